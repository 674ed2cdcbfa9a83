"""How a process runs the function of a job: with preparation, errors as values, and time limits."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import pickle
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from maskloom.segcore.errors import TimedOut
from maskloom.segcore.processes import limits
from maskloom.tasks.fanout.versions import require_same, worker_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JobType = TypeVar("JobType")
ResultType = TypeVar("ResultType")


class _Preparation:
    """Remembers what this process was last prepared with. Workers of a shared cluster may serve one
    run after the other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = b""

    def ensure(self, prepare: bytes) -> None:
        """Call the pickled function, unless it was the last one called."""
        with self._lock:
            if prepare == self._last:
                return
            # It imports most libraries. The collector would go through all of them again and again,
            # now and during the jobs, and find almost nothing.
            gc.disable()
            try:
                pickle.loads(prepare)()
            finally:
                gc.freeze()
                gc.enable()
            self._last = prepare


_preparation = _Preparation()


def prepare_process(prepare: bytes) -> None:
    """Call the pickled function `prepare`, once in this process."""
    _preparation.ensure(prepare)


def prepare_if_same(driver: tuple[str, ...], prepare: Callable[[], None]) -> None:
    """Prepare this process. Raises `RunError` if it runs other code than the driver: workers may
    join, or restart, while a run is under way.
    """
    require_same("A worker", worker_versions(), driver)
    prepare()


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception of a function, sent to the driver as a value.

    distributed cannot send it: it rebuilds errors with tblib, which fails for classes with two
    built-in bases (`StoreError` is both a `RuntimeError` and an `OSError`) and leaves a bare
    `Exception` in their place.
    """

    error: Exception
    trace: dict[str, Any]
    """The traceback, in tblib's form."""

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
        """The error with its original traceback."""
        import tblib

        return self.error.with_traceback(tblib.Traceback.from_dict(self.trace).as_traceback())


class Watchdog:
    """Ends this process when a step of any of its jobs exceeds its time limit.

    A thread that hangs in a library cannot be ended, and may hold the interpreter's lock: the
    kernel's timer and `faulthandler` need neither. The timer costs a microsecond a step,
    `faulthandler`, which starts a thread and writes where the process hangs, a hundred.
    """

    def __init__(self, stream: IO[str], *, silent: bool = False) -> None:
        """`silent`: write nothing to the stream."""
        self._stream = stream
        self._silent = silent and sys.platform != "win32"
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the steps that begin in this thread; the block itself is one."""
        thread = threading.get_ident()
        try:
            with limits.steps_reported_to(
                lambda seconds: self._expect(thread, time.monotonic() + seconds)
            ):
                limits.begin_work()
                yield
        finally:
            self._expect(thread, None)

    def _expect(self, thread: int, deadline: float | None) -> None:
        with self._lock:
            self._deadlines.pop(thread, None)
            if deadline is not None:
                self._deadlines[thread] = deadline
            if self._deadlines:
                self._arm(max(min(self._deadlines.values()) - time.monotonic(), 0.001))
            else:
                self._disarm()

    def _arm(self, seconds: float) -> None:
        if self._silent:
            # Its signal ends the process, unless a handler is set.
            signal.setitimer(signal.ITIMER_REAL, seconds)
        else:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._stream)

    def _disarm(self) -> None:
        if self._silent:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            faulthandler.cancel_dump_traceback_later()


def _watchdog() -> Watchdog:
    """The one watchdog of a Dask worker, whichever of its threads asks first."""
    with _asking:
        return _silent_watchdog()


_asking = threading.Lock()


@cache
def _silent_watchdog() -> Watchdog:
    """A watchdog without a traceback, which would reach the user's terminal."""
    return Watchdog(Path(os.devnull).open("w"), silent=True)


def run_job(
    prepare: bytes, function: Callable[[JobType], ResultType], job: JobType
) -> ResultType | Raised:
    """The function's result for the job. This worker process ends if a step of the job hangs.

    A restarted worker is prepared by its first job.
    """
    with _watchdog().watching():
        return call(prepare, function, job)


def call(
    prepare: bytes, function: Callable[[JobType], ResultType], job: JobType
) -> ResultType | Raised:
    """The function's result, or its error as a value."""
    try:
        prepare_process(prepare)
        return function(job)
    except Exception as error:  # noqa: BLE001 - raised again in the driver
        return Raised.of(error)


def timed_out(seconds: float) -> TimedOut:
    """The error of a step that did not end within its time limit."""
    return TimedOut(
        f"A read, or the work on what was read, did not end within {seconds:.4g} s. Check the "
        "store, the file and the model; if they are only slow, raise limits.read or limits.work."
    )
