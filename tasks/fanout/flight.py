"""One call of `Dask.map`, from the first job sent to the last result fetched.

Callers wait in their own threads; one thread of distributed's (`Flight._land`) fetches every result
as soon as it is there and releases its future.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from maskloom.segcore.errors import RunError, Stopped, WorkerDied
from maskloom.tasks.fanout import isolation, local_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from maskloom.tasks.fanout.dask import Dask, Job

JobType = TypeVar("JobType", bound="Job")
ResultType = TypeVar("ResultType")

GRACE_SECONDS = 20.0
"""How long running jobs may go on after the run was asked to stop."""
_POLL_SECONDS = 0.2
"""How often a caller that waits for results looks at the stop event and at the window."""


class InFlightLimit:
    """Counts jobs in flight for all callers together."""

    def __init__(self) -> None:
        self.limit = 1
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, at_any_rate: bool) -> bool:
        """Whether one more job may fly. `at_any_rate`: the caller has none, and must not starve."""
        with self._lock:
            if self._taken >= self.limit and not at_any_rate:
                return False
            self._taken += 1
            return True

    def give(self) -> None:
        """One job landed."""
        with self._lock:
            self._taken -= 1


@dataclass(frozen=True, slots=True)
class _Sent(Generic[JobType]):
    """A job in flight."""

    job: JobType
    alone: bool
    """Whether it runs in a child process of its own."""
    future: Any
    """A `distributed.Future`."""


@dataclass(slots=True)
class Flight(Generic[JobType, ResultType]):
    """One call of `Dask.map`: what it still has to send, what is under way, and what has come
    back.
    """

    dask: Dask
    function: Callable[[JobType], ResultType]
    jobs: Iterator[JobType]
    suspects: deque[JobType] = field(default_factory=deque)
    """Parts of jobs that lost their workers: they run alone."""
    sent: dict[Any, _Sent[JobType]] = field(default_factory=dict)
    """By key. Whoever takes an entry out, the thread of callbacks or the caller's, gives its place
    in the window back.
    """
    landed: queue.SimpleQueue[tuple[_Sent[JobType], Any, BaseException | None]] = field(
        default_factory=queue.SimpleQueue
    )
    """Jobs that are done, with a result or an error."""
    waiting_for: int = 0
    """Jobs sent and not yet taken from `landed`."""

    def results(self) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Sends, waits and yields until everything is back."""
        try:
            while not self.dask.stop.is_set():
                self._send()
                if not self.waiting_for:
                    return
                yield from self._receive()
            yield from self._wind_down()
        finally:
            self._withdraw(set(self.sent))

    def _send(self) -> None:
        """Fills the window."""
        window = self.dask.window
        # Results that nobody has taken yet count too: a caller that is busy with one must not pile
        # up others.
        while self.waiting_for < max(1, window.limit) and window.take(at_any_rate=not self.sent):
            try:
                sent = self._send_next()
            except BaseException:
                window.give()
                raise
            if sent is None:
                window.give()
                return
            self.waiting_for += 1
            self.sent[sent.future.key] = sent
            sent.future.add_done_callback(self._land)

    def _send_next(self) -> _Sent[JobType] | None:
        """Submits one more job, if there is one. Suspects go first."""
        client, prepare = self.dask.client, self.dask.prepare
        if self.suspects:
            part = self.suspects.popleft()
            future = client.submit(isolation.run_isolated, prepare, self.function, part, pure=False)
            return _Sent(part, True, future)
        job = next(self.jobs, None)
        if job is None:
            return None
        return _Sent(
            job, False, client.submit(isolation.run_job, prepare, self.function, job, pure=False)
        )

    def _land(self, future: Any) -> None:
        """Fetches what a future has become, in the thread of callbacks, and makes the scheduler
        forget it.
        """
        sent = self.sent.pop(future.key, None)
        if sent is None:
            return
        self.dask.window.give()
        lost = future.status != "error"
        try:
            self.landed.put((sent, future.result(), None))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller's thread
            self.landed.put((sent, None, _connection_lost(error) if lost else error))
        finally:
            future.release()

    def _receive(self) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Waits a moment for one job to come back."""
        try:
            sent, result, error = self.landed.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            self.dask.look()
            return
        self.waiting_for -= 1
        if isinstance(result, isolation.Raised):
            raise result.revived()
        if error is None:
            yield sent.job, result
        elif not local_cluster.is_death(error):
            raise error
        elif sent.alone:
            yield (
                sent.job,
                WorkerDied(
                    "The worker that watched over the process that worked on it alone died twice."
                ),
            )
        else:
            self.suspects.extend(sent.job.split())

    def _wind_down(self) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Withdraws what has not begun, lets the rest end, and raises `Stopped`.

        A job that begins after the look and before its worker hears of the withdrawal is lost, and
        done again by the next run.
        """
        if self.sent:
            self._withdraw(
                set(self.sent) - local_cluster.running_keys(self.dask.client, list(self.sent))
            )
        deadline = time.monotonic() + GRACE_SECONDS
        while self.waiting_for and time.monotonic() < deadline:
            yield from self._receive()
        raise stopped()

    def _withdraw(self, keys: set[Any]) -> None:
        """Takes jobs back. A job that runs goes on at its worker, but nobody hears of it."""
        for sent in filter(None, [self.sent.pop(key, None) for key in keys]):
            self.dask.window.give()
            self.waiting_for -= 1
            sent.future.release()


def stopped() -> Stopped:
    """The error of a run that was asked to stop."""
    return Stopped("The run was asked to stop. The same command goes on where it stopped.")


def _connection_lost(error: BaseException) -> RunError:
    lost = RunError(
        f"The connection with the Dask scheduler was lost ({error}). The same command goes on "
        "where it stopped."
    )
    lost.__cause__ = error
    return lost
