"""A job alone in a disposable child process.

A segmentation fault or a lack of memory ends the whole process in which it happens, and a step that
hangs (`segcore.processes.limits`) can only be ended with its process. A part whose batch lost its
worker therefore runs alone in a child of the worker (a plain subprocess: workers are daemonic,
which rules out multiprocessing). The child gets the worker's module path, then the pickled job on
its standard input, and answers on its standard output. It does not outlive the worker
(`segcore.processes.lifeline`).
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, TypeVar

from maskloom.segcore.errors import OutOfMemory, WorkerDied
from maskloom.segcore.processes import lifeline
from maskloom.tasks.fanout.worker import Raised, Watchdog, call, timed_out

if TYPE_CHECKING:
    from collections.abc import Callable

JobType = TypeVar("JobType")
ResultType = TypeVar("ResultType")

_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "import maskloom.tasks.fanout.isolation as it; it.answer(int(sys.argv[1]))"
)
_POLL_SECONDS = 0.25
"""How often the memory of a child is checked."""
_TIMEOUT = re.compile(rb"^Timeout \((\d+):(\d+):([\d.]+)\)!", re.MULTILINE)
"""What `faulthandler` writes when it ends a process: hours, minutes and seconds of the limit."""


def run_isolated(
    prepare: bytes,
    function: Callable[[JobType], ResultType],
    job: JobType,
    memory_bytes: int | None = None,
) -> ResultType | Raised | WorkerDied:
    """The function's result, from its own child process; `WorkerDied` if the child dies, hangs or
    needs too much memory.

    `memory_bytes` is the resident memory that it may use. None: the limit of the worker that
    starts it.
    """
    import cloudpickle  # type: ignore[import-untyped]

    payload = pickle.dumps(sys.path) + cloudpickle.dumps((prepare, function, job))
    with lifeline.child_lifeline() as line:
        child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(line)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(line,),
        )
        with child:
            try:
                output, errors, excess = _wait(child, payload, memory_bytes or _own_memory_limit())
            finally:
                child.kill()
    if excess:
        return OutOfMemory(excess)
    timeout = _TIMEOUT.search(errors)
    if child.returncode == 1 and timeout is not None:
        hours, minutes, seconds = map(float, timeout.groups())
        return timed_out(3600 * hours + 60 * minutes + seconds)
    if child.returncode != 0:
        return WorkerDied(
            f"The child process in which it ran alone {_ending(child.returncode, errors)}"
        )
    result: ResultType | Raised = pickle.loads(output)
    return result


def _wait(
    child: subprocess.Popen[bytes], payload: bytes, memory: int | None
) -> tuple[bytes, bytes, str]:
    """The child's standard output and standard error, and why it was killed ("" if it was not)."""
    import psutil

    excess = ""
    pending: bytes | None = payload
    while True:
        try:
            output, errors = child.communicate(pending, timeout=_POLL_SECONDS)
            return output, errors, excess
        except subprocess.TimeoutExpired:
            pending = None
        try:
            resident = psutil.Process(child.pid).memory_info().rss
        except psutil.NoSuchProcess:
            continue
        if memory and resident > memory:
            excess = (
                f"It needed more memory than a worker has ({memory / 2**30:.3g} GiB). Lower "
                "tiling.tile or raise cluster.memory."
            )
            child.kill()


def _own_memory_limit() -> int | None:
    """Memory in bytes that the Dask worker around this call may use; None outside of one, or
    without a limit.
    """
    import distributed

    try:
        limit = distributed.get_worker().memory_manager.memory_limit
    except ValueError:
        return None
    return int(limit) if limit else None


def _ending(code: int, errors: bytes) -> str:
    """How a process ended, as the end of a sentence."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (most often: the machine had no memory left)" if -code == signal.SIGKILL else ""
        return f"died of exit signal {name}{hint}."
    last_line = errors.decode(errors="replace").strip().splitlines()[-1:]
    return f"ended with exit code {code}{': ' + last_line[0] if last_line else ''}."


def answer(line: int) -> None:
    """The child's work: read one job from standard input, run it, write the result to standard
    output.
    """
    import cloudpickle

    lifeline.exit_with_parent(line)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Text that libraries print must not get into the answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    prepare, function, job = pickle.load(sys.stdin.buffer)
    with output, Watchdog(sys.stderr).watching():
        output.write(cloudpickle.dumps(call(prepare, function, job)))
