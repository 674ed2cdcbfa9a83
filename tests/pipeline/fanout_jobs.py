"""Jobs for test_fanout.py, in a module of their own because worker processes must be able to import
them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from maskloom.segcore.errors import StoreError, TimedOut
from maskloom.segcore.processes import limits

SHORT = 1.0
"""Seconds that a step may take where a test waits for one that never ends."""

times_prepared = 0
over = threading.Event()
"""Ends what waits for ever in this process."""


def prepare() -> None:
    """What the pipeline's own preparation does, and a count of it."""
    global times_prepared  # noqa: PLW0603 - the count of this process is the thing under test
    import cv2

    cv2.setNumThreads(1)
    times_prepared += 1


@dataclass(frozen=True)
class Numbers:
    """A bundle of numbers."""

    items: tuple[int, ...]

    def split(self) -> tuple[Numbers, ...]:
        return tuple(replace(self, items=(item,)) for item in self.items)


@dataclass(frozen=True)
class Mark:
    """A job that leaves a file when it begins, so that its beginning can be seen from outside."""

    folder: str
    name: str
    seconds: float = 0.0
    until: str = ""
    """A file of the folder: the job does not end before it is there."""

    def split(self) -> tuple[Mark, ...]:
        return (self,)


def squares(job: Numbers) -> tuple[int, ...]:
    return tuple(item**2 for item in job.items)


def slow_squares(job: Numbers) -> tuple[int, ...]:
    time.sleep(0.05)
    return squares(job)


def squares_or_crash(job: Numbers) -> tuple[int, ...]:
    """Negative numbers end the process by a segmentation fault."""
    if min(job.items) < 0:
        ctypes.string_at(0)
    return squares(job)


def refuse(job: Numbers) -> int:
    raise StoreError(f"no room for {job.items}")


def mark_and_sleep(job: Mark) -> str:
    Path(job.folder, job.name).write_text(str(os.getpid()))
    time.sleep(job.seconds)
    while job.until and not Path(job.folder, job.until).exists():
        time.sleep(0.02)
    return job.name


def wait_the_first_time(job: Mark) -> str:
    """The victim waits long the first time, so that its worker can be killed, and returns at once
    when it is run again.
    """
    first = job.name == "victim" and not Path(job.folder, job.name).exists()
    return mark_and_sleep(replace(job, seconds=60.0 if first else 0.0))


def die_the_first_time(job: Mark) -> str:
    """Kills its process the first time it runs."""
    first = not Path(job.folder, job.name).exists()
    mark_and_sleep(job)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return job.name


def sleep_in_a_child(job: Mark) -> str:
    """Kills every worker, but lives long in a child process of its own."""
    if "distributed" in sys.modules:
        os.kill(os.getpid(), signal.SIGKILL)
    return mark_and_sleep(replace(job, name="child"))


def surroundings(job: Numbers) -> dict[str, object]:
    """What libraries see in this process. It takes its time, so that all workers get some of these
    jobs.
    """
    import cv2

    time.sleep(0.05)

    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "GDAL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
    )
    return {name: os.environ.get(name) for name in names} | {
        "cv2": cv2.getNumThreads(),
        "prepared": times_prepared,
        "pid": os.getpid(),
        "interrupts blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }


def talk_and_sum(job: Numbers) -> int:
    """Writes to standard output, below Python too."""
    print("chatter")
    os.write(1, b"more chatter\n")
    return sum(job.items)


def hoard(job: Numbers) -> NoReturn:
    """Takes as many MiB as it is told, and keeps them for ever."""
    memory = bytearray(job.items[0] * 2**20)
    memory[:: os.sysconf("SC_PAGE_SIZE")] = b"\x01" * len(memory[:: os.sysconf("SC_PAGE_SIZE")])
    while True:
        time.sleep(1)


def never_end(job: Numbers) -> tuple[int, ...]:
    """Work on a negative number never ends, and nothing can interrupt it: the interpreter's lock is
    held.
    """
    for item in job.items:
        limits.begin_read()
        if item < 0:
            ctypes.PyDLL(None).pause()
    return squares(job)


def wait_for_ever(job: Numbers) -> tuple[int, ...]:
    """As `never_end`, in a way that lets other threads work."""
    for item in job.items:
        limits.begin_read()
        while item < 0 and not over.wait(1):
            pass
    return squares(job)


def prepare_with_short_limits() -> None:
    prepare()
    limits.configure(limits.Limits(read=SHORT, work=60.0))


def steps(job: Mark) -> str:
    """Many steps that take longer than any one of them may."""
    deadline = time.monotonic() + 2 * SHORT
    while time.monotonic() < deadline:
        limits.begin_read()
        time.sleep(SHORT / 20)
    return job.name


def go_on_when_left_behind(job: Mark) -> str:
    """A step that ends too late, and then another one."""
    limits.begin_read()
    while not Path(job.folder, job.until).exists():
        time.sleep(0.02)
    try:
        limits.begin_work()
    except TimedOut:
        Path(job.folder, "gave up").touch()
        raise
    Path(job.folder, "went on").touch()
    return job.name


def squares_or_hoard_in_a_child(job: Numbers) -> tuple[int, ...]:
    """For a negative number a child process takes 3 GB, which no nanny watches."""
    if min(job.items) < 0:
        program = "import time; taken = b'1' * 3_000_000_000; time.sleep(600)"
        subprocess.run([sys.executable, "-c", program], check=True)
    return squares(job)
