"""What surrounds a function on a worker: the preparation of the process, and a process of its own
for a job under suspicion.

A segmentation fault or a lack of memory ends the whole process it happens in, and a step that never
ends (`segcore.processes.limits`) can only be ended with its process. A part whose bundle lost its
worker therefore runs alone in a child of the worker (a plain subprocess: workers are daemonic,
multiprocessing is closed to them). The child gets the worker's module path, then the pickled job on
its standard input, and answers on its standard output. It does not outlive the worker
(`segcore.processes.lifeline`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import maskloom
from maskloom import segcore, tasks
from maskloom.segcore.errors import OutOfMemory, RunError, TimedOut, WorkerDied
from maskloom.segcore.processes import lifeline, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JobType = TypeVar("JobType")
ResultType = TypeVar("ResultType")

_BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "import maskloom.tasks.fanout.isolation as it; it.answer(int(sys.argv[1]))"
)
_LOOK_SECONDS = 0.25
"""How often the memory of a child is looked at."""
_GIVEN_UP = re.compile(rb"^Timeout \((\d+):(\d+):([\d.]+)\)!", re.MULTILINE)
"""What `faulthandler` says of a process that it ends: hours, minutes and seconds that it had."""


class _Preparation:
    """Remembers what this process was last prepared with. Workers of a shared cluster may serve one
    run after the other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = b""

    def ensure(self, prepare: bytes) -> None:
        """Runs the pickled function, unless it was the last one to run."""
        with self._lock:
            if prepare != self._last:
                pickle.loads(prepare)()
                self._last = prepare


_preparation = _Preparation()


def prepare_process(prepare: bytes) -> None:
    """Runs the pickled function `prepare` once in this process."""
    _preparation.ensure(prepare)


@dataclass(frozen=True, slots=True)
class Raised:
    """What a function raised, on its way to the driver as a value.

    distributed cannot carry it: it rebuilds errors by way of tblib, which fails for classes with
    two built-in bases (`StoreError` is both a `RuntimeError` and an `OSError`) and leaves a bare
    `Exception` in their place.
    """

    error: Exception
    trace: dict[str, Any]
    """The traceback, as tblib writes it down."""

    @classmethod
    def of(cls, error: Exception) -> Raised:
        """The error just caught. One that does not pickle is replaced by a `RuntimeError` with its
        text.
        """
        import tblib  # type: ignore[import-untyped]

        trace = tblib.Traceback(error.__traceback__).to_dict()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - foreign classes can fail to pickle in any way
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, trace)

    def revived(self) -> Exception:
        """The error with the traceback of where it was raised."""
        import tblib

        return self.error.with_traceback(tblib.Traceback.from_dict(self.trace).as_traceback())


class _Watchdog:
    """Ends this process when a step of any of its jobs is not over in time.

    A thread that hangs in a library cannot be ended, and may hold the interpreter's lock:
    `faulthandler` needs neither.
    """

    def __init__(self, complaints: IO[str]) -> None:
        self._complaints = complaints
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the steps that begin in this thread; the block itself is one."""
        thread = threading.get_ident()
        try:
            with limits.watched_by(
                lambda seconds: self._expect(thread, time.monotonic() + seconds)
            ):
                limits.working()
                yield
        finally:
            self._expect(thread, None)

    def _expect(self, thread: int, deadline: float | None) -> None:
        with self._lock:
            self._deadlines.pop(thread, None)
            if deadline is not None:
                self._deadlines[thread] = deadline
            if self._deadlines:
                left = min(self._deadlines.values()) - time.monotonic()
                faulthandler.dump_traceback_later(
                    max(left, 0.001), exit=True, file=self._complaints
                )
            else:
                faulthandler.cancel_dump_traceback_later()


@cache
def _watchdog() -> _Watchdog:
    """That of a worker. Its last words would reach the user's terminal."""
    return _Watchdog(Path(os.devnull).open("w"))


def run_job(
    prepare: bytes, function: Callable[[JobType], ResultType], job: JobType
) -> ResultType | Raised:
    """Give the function's result for the job, in this worker, which ends where a step of the job
    never does.

    A restarted worker is prepared by its first job.
    """
    with _watchdog().watching():
        return _result(prepare, function, job)


def _result(
    prepare: bytes, function: Callable[[JobType], ResultType], job: JobType
) -> ResultType | Raised:
    try:
        prepare_process(prepare)
        return function(job)
    except Exception as error:  # noqa: BLE001 - whatever the function raises is raised again in the driver
        return Raised.of(error)


@cache
def introduce() -> tuple[str, ...]:
    """What this process runs: the version of maskloom, a digest of its code, the versions of Python
    and distributed.
    """
    code = hashlib.sha256()
    for folder in (*tasks.__path__, *segcore.__path__):
        package = Path(folder)
        for path in sorted(package.rglob("*.py")):
            code.update(
                f"{package.name}/{path.relative_to(package).as_posix()}\0".encode()
                + path.read_bytes()
            )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return maskloom.__version__, code.hexdigest()[:12], python, version("distributed")


def require_same(name: str, versions: tuple[str, ...], driver: tuple[str, ...]) -> None:
    """Raise `RunError` where a process introduced itself otherwise than the driver: its results
    might be others too.
    """
    if versions != driver:
        raise RunError(
            f"{name} runs {_in_words(versions)}, the driver {_in_words(driver)}. Install the same "
            "versions on the scheduler and on all "
            "workers, and start them again."
        )


def _in_words(versions: tuple[str, ...]) -> str:
    if len(versions) != len(introduce()):
        return f"another maskloom ({', '.join(versions)})"
    maskloom, code, python, distributed = versions
    return f"maskloom {maskloom} (code {code}) with Python {python} and distributed {distributed}"


def prepare_alike(driver: tuple[str, ...], prepare: Callable[[], None]) -> None:
    """Prepare this process, unless it runs other code than the driver: workers may join, or start
    again, while a run is under way.
    """
    require_same("A worker", introduce(), driver)
    prepare()


def run_isolated(
    prepare: bytes,
    function: Callable[[JobType], ResultType],
    job: JobType,
    memory_bytes: int | None = None,
) -> ResultType | Raised | WorkerDied:
    """Give the function's result, from a child process of its own; `WorkerDied` if the child dies
    or takes too much.

    `memory_bytes` is the resident memory that it may use. None: what the worker that starts it may
    use.
    """
    import cloudpickle  # type: ignore[import-untyped]

    payload = pickle.dumps(sys.path) + cloudpickle.dumps((prepare, function, job))
    with lifeline.tied() as line:
        child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(line)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(line,),
        )
        with child:
            try:
                answer_bytes, complaint, excess = _wait(
                    child, payload, memory_bytes or _own_memory_limit()
                )
            finally:
                child.kill()
    if excess:
        return OutOfMemory(excess)
    given_up = _GIVEN_UP.search(complaint)
    if child.returncode == 1 and given_up is not None:
        hours, minutes, seconds = map(float, given_up.groups())
        return too_late(3600 * hours + 60 * minutes + seconds)
    if child.returncode != 0:
        return WorkerDied(
            f"The process that worked on it alone {_ending(child.returncode, complaint)}"
        )
    result: ResultType | Raised = pickle.loads(answer_bytes)
    return result


def too_late(seconds: float) -> TimedOut:
    """That a step did not end within its time."""
    return TimedOut(
        f"A read, or the work on what was read, did not end within {seconds:.4g} s. Look at the "
        "store, the file and the model; where they are "
        "only slow, raise limits.read or limits.work."
    )


def _wait(
    child: subprocess.Popen[bytes], payload: bytes, memory: int | None
) -> tuple[bytes, bytes, str]:
    """What the child wrote on standard output and standard error, and why it had to be ended ("" if
    it ended by itself).
    """
    import psutil

    excess = ""
    pending: bytes | None = payload
    while True:
        try:
            answer_bytes, complaint = child.communicate(pending, timeout=_LOOK_SECONDS)
            return answer_bytes, complaint, excess
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


def _ending(code: int, complaint: bytes) -> str:
    """How a process ended, in words."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (most often: the machine had no memory left)" if -code == signal.SIGKILL else ""
        return f"died of exit signal {name}{hint}."
    last_words = complaint.decode(errors="replace").strip().splitlines()[-1:]
    return f"ended with exit code {code}{': ' + last_words[0] if last_words else ''}."


def answer(line: int) -> None:
    """The child's whole life: read one job from standard input, run it, write the result to
    standard output.
    """
    import cloudpickle

    lifeline.hold(line)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What libraries print must not get into the answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    prepare, function, job = pickle.load(sys.stdin.buffer)
    with output, _Watchdog(sys.stderr).watching():
        output.write(cloudpickle.dumps(_result(prepare, function, job)))
