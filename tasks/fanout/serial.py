"""Jobs one after the other in this process, each in a thread that can be abandoned if it hangs."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Generic, Self

from maskloom.segcore.errors import TimedOut, WorkerDied
from maskloom.segcore.processes import limits
from maskloom.tasks.fanout.background import Background
from maskloom.tasks.fanout.protocol import GRACE_SECONDS, JobType, ResultType, stopped
from maskloom.tasks.fanout.worker import timed_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_THREAD = "maskloom-job"
_POLL_SECONDS = 0.5
"""How often the stop event and the time limit are checked while a job runs."""


class Serial:
    """Runs one job after the other in this process, whatever the number of callers."""

    workers = 1

    def __init__(self, prepare: Callable[[], None], stop: threading.Event) -> None:
        self._stop = stop
        self._turn = threading.Lock()
        self._prepared = Background(prepare)

    @property
    def busy(self) -> int:
        """Whether a job runs now: 0 or 1."""
        return int(self._turn.locked())

    def expect(self, jobs: int) -> None:
        """Nothing changes: there is one worker."""

    def start(self) -> None:
        """Start preparing this process."""
        self._prepared.start()

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results, in the order of the jobs; a job that hangs comes as its parts."""
        self._prepared.result()
        for job in jobs:
            result = self._attempt(function, job)
            parts = job.split() if isinstance(result, TimedOut) else ()
            if len(parts) < 2:
                yield job, result
            else:
                yield from ((part, self._attempt(function, part)) for part in parts)

    def _attempt(
        self, function: Callable[[JobType], ResultType], job: JobType
    ) -> ResultType | TimedOut:
        with self._turn:
            if self._stop.is_set():
                raise stopped()
            return _Attempt(partial(function, job), self._stop).result()

    def close(self) -> None:
        """Wait for the end of the preparation."""
        self._prepared.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def threads_left_behind() -> bool:
    """Whether an abandoned job still runs in this process."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


class _Attempt(Generic[ResultType]):
    """A call in its own thread, which is abandoned if a step of it hangs: Python cannot end a
    thread.
    """

    def __init__(self, call: Callable[[], ResultType], stop: threading.Event) -> None:
        self._call = call
        self._stop = stop
        self._future: Future[ResultType] = Future()
        self._seconds = self._deadline = math.inf
        self._abandoned = False

    def result(self) -> ResultType | TimedOut:
        """The call's result. Raises what the call raised, and `Stopped` where it does not end soon
        after the run was asked to stop.
        """
        threading.Thread(target=self._run, name=_THREAD, daemon=True).start()
        while not wait((self._future,), timeout=_POLL_SECONDS).done:
            if self._stop.is_set():
                self._deadline = min(self._deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > self._deadline:
                self._abandoned = True
                if self._stop.is_set():
                    raise stopped()
                return timed_out(self._seconds)
        return self._future.result()

    def _run(self) -> None:
        try:
            with limits.steps_reported_to(self._begin):
                limits.begin_work()
                self._future.set_result(self._call())
        except BaseException as error:  # noqa: BLE001 - any error belongs to the caller's thread
            self._future.set_exception(error)

    def _begin(self, seconds: float) -> None:
        """A step begins, with its time limit. Raises `TimedOut` if the call has been abandoned."""
        if self._abandoned:
            raise timed_out(self._seconds)
        if not self._stop.is_set():
            self._seconds, self._deadline = seconds, time.monotonic() + seconds
