"""The fan-out over the workers of a Dask cluster.

All callers (one thread per shard) share one limit of jobs in flight, but every caller may always
have one job, so none starves. A result is fetched and its future released as soon as it arrives, so
the scheduler never knows more jobs than the limit.

A job that loses two workers is split, and each part runs alone in a child process
(`fanout.isolation`). A worker with a step that hangs ends itself, so this covers hangs too.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self

from maskloom.segcore.errors import MaskloomError, RunError, WorkerDied
from maskloom.tasks.fanout import client as dask_client
from maskloom.tasks.fanout.background import Background
from maskloom.tasks.fanout.client import Client
from maskloom.tasks.fanout.isolation import run_isolated
from maskloom.tasks.fanout.protocol import GRACE_SECONDS, JobType, ResultType, stopped
from maskloom.tasks.fanout.versions import worker_versions
from maskloom.tasks.fanout.worker import Raised, prepare_if_same, prepare_process, run_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

_JOBS_PER_THREAD = 3
"""Jobs in flight for each worker thread: one runs, one waits at the worker, one is on its way."""
_COUNT_SECONDS = 2.0
"""How often the workers are counted while no result arrives."""
_POLL_SECONDS = 0.2
"""How often a caller that waits for results checks the stop event and the limit."""


class InFlightLimit:
    """Counts the jobs in flight of all callers together."""

    def __init__(self) -> None:
        self.limit = 1
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, always: bool) -> bool:
        """Reserve a slot. `always`: the caller has no job in flight, so it gets one in any case."""
        with self._lock:
            if self._taken >= self.limit and not always:
                return False
            self._taken += 1
            return True

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self._taken

    def give(self) -> None:
        """Return a slot."""
        with self._lock:
            self._taken -= 1


class Dask:
    """Runs jobs on the workers of a Dask cluster. The driver's threads share one connection and one
    limit of jobs in flight.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Client]],
        prepare: Callable[[], None],
        stop: threading.Event,
        own_workers: int | None = None,
        *,
        gpu: bool = False,
        expect_workers: Callable[[], bool] | None = None,
    ) -> None:
        """`connect` opens a client, in a background thread.

        `own_workers` is the number of one-thread workers of this run. `connect` starts as many as
        `workers_at_first` says, and they are prepared while the driver still plans; the others
        start when there are more jobs than these can take. None: the workers belong to an existing
        cluster.

        `gpu`: jobs that want a GPU run on workers that offer one.

        `expect_workers` is called every few seconds, to replace workers that are lost for good. It
        returns whether there is a reason to wait where there are none, and raises `RunError` if
        there will never be any.
        """
        self.prepare = pickle.dumps(partial(prepare_if_same, worker_versions(), prepare))
        self.stop = stop
        self.in_flight = InFlightLimit()
        self._connect_client = connect
        self._own_workers = own_workers
        self._expected = self._begun = own_workers or 0
        self._gpu = gpu
        self._expect_workers = expect_workers
        self._connection = Background(self._connect)
        self._open = ExitStack()
        self._counting = threading.Lock()
        self._threads = 0
        self._last_seen = self._last_counted = 0.0

    @property
    def workers(self) -> int:
        """Threads of all workers. Waits for the connection unless this run starts them."""
        if self._own_workers is not None:
            return self._own_workers
        self._connection.result()
        return self._threads

    @property
    def workers_at_first(self) -> int:
        """Workers that this run starts at first; 0 if they belong to an existing cluster."""
        return min(self._expected, self._own_workers or 0)

    @property
    def busy(self) -> int:
        """Jobs in flight that the workers can run at once; some may just be on their way."""
        return min(self.in_flight.taken, self._threads)

    @property
    def client(self) -> Client:
        """The connection; waits for it. Raises `RunError` if it cannot be made."""
        return self._connection.result()

    def expect(self, jobs: int) -> None:
        """Start at first only as many workers as there are jobs."""
        self._expected = max(1, jobs)

    def start(self) -> None:
        """Start the worker processes, or join the cluster, in the background."""
        self._connection.start()

    def _connect(self) -> Client:
        """A client of the cluster, which is ready for jobs."""
        client = self._open.enter_context(self._connect_client())
        if self._own_workers is not None:
            self._begun = self.workers_at_first
            for address in client.nthreads():
                future = client.submit(prepare_process, self.prepare, workers=[address], pure=False)
                self._open.callback(future.release)
        self._last_seen = time.monotonic()
        self._note_threads(dask_client.thread_count(client, self._gpu))
        return client

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results in order of completion; a split job comes as its parts."""
        return _MapCall(self, function, iter(jobs)).results()

    def require_workers(self) -> None:
        """Raise `RunError` if the cluster has been without workers for too long. Asks the scheduler
        every few seconds.
        """
        with self._counting:
            if time.monotonic() - self._last_counted < _COUNT_SECONDS:
                return
            self._note_threads(dask_client.thread_count(self.client, self._gpu))
            if self._expect_workers is not None and self._expect_workers():
                return
            missing = time.monotonic() - self._last_seen
            if missing > dask_client.WORKERS_SECONDS:
                raise RunError(
                    f"The Dask cluster has had no worker{' with a GPU' * self._gpu} for "
                    f"{missing:.0f} s: all died and none was restarted. Look for a lack of memory "
                    "(cluster.memory, tiling.tile), then run the same command again to continue."
                )

    def grow(self) -> None:
        """Start the other workers of this run if there are more jobs than workers."""
        with self._counting:
            if self._own_workers is None or not self._begun < self._own_workers:
                return
            if self.in_flight.taken > self._begun:
                self._begun = self._own_workers
                self.client.cluster.scale(self._own_workers)

    def needs(self, job: object) -> dict[str, Any]:
        """What a worker must have for a job, as arguments of `Client.submit`."""
        if self._gpu and getattr(job, "wants_gpu", False):
            return {"resources": dask_client.ONE_GPU}
        return {}

    def _note_threads(self, threads: int) -> None:
        """Record how many worker threads there are now, and adapt the limit."""
        self._last_counted = time.monotonic()
        if threads:
            self._last_seen = self._last_counted
            self._threads = threads
            self.in_flight.limit = _JOBS_PER_THREAD * threads

    def close(self) -> None:
        """End the workers of this run; an existing cluster continues."""
        self._connection.wait()
        self._open.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Submitted(Generic[JobType]):
    """A job in flight."""

    job: JobType
    isolated: bool
    """Whether it runs alone in a child process."""
    future: Any
    """A `distributed.Future`."""


@dataclass(slots=True)
class _MapCall(Generic[JobType, ResultType]):
    """One call of `Dask.map`, from the first job submitted to the last result fetched.

    The caller waits in its own thread; distributed's callback thread (`_fetch`) fetches each result
    as soon as it is there and releases its future.
    """

    dask: Dask
    function: Callable[[JobType], ResultType]
    jobs: Iterator[JobType]
    suspects: deque[JobType] = field(default_factory=deque)
    """Parts of jobs that lost their workers: they run isolated."""
    in_flight: dict[Any, _Submitted[JobType]] = field(default_factory=dict)
    """By key. The thread that removes an entry, the callback's or the caller's, returns its slot.
    """
    finished: queue.SimpleQueue[tuple[_Submitted[JobType], Any, BaseException | None]] = field(
        default_factory=queue.SimpleQueue
    )
    """Jobs with their result or error."""
    waiting_for: int = 0
    """Jobs submitted and not yet taken from `finished`."""

    def results(self) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Submit, wait and yield until all results have arrived."""
        try:
            while not self.dask.stop.is_set():
                self._submit()
                if not self.waiting_for:
                    return
                yield from self._receive()
            yield from self._wind_down()
        finally:
            self._withdraw(set(self.in_flight))

    def _submit(self) -> None:
        """Submit jobs up to the limit."""
        slots = self.dask.in_flight
        # Results that the caller has not taken count too, so that they do not pile up while it is
        # busy.
        while self.waiting_for < max(1, slots.limit) and slots.take(always=not self.in_flight):
            try:
                submitted = self._submit_next()
            except BaseException:
                slots.give()
                raise
            if submitted is None:
                slots.give()
                return
            self.waiting_for += 1
            self.in_flight[submitted.future.key] = submitted
            self.dask.grow()
            submitted.future.add_done_callback(self._fetch)

    def _submit_next(self) -> _Submitted[JobType] | None:
        """Submit one more job, suspects first. None: no job is left."""
        client, prepare = self.dask.client, self.dask.prepare
        if self.suspects:
            part = self.suspects.popleft()
            needs = self.dask.needs(part)
            future = client.submit(run_isolated, prepare, self.function, part, pure=False, **needs)
            return _Submitted(part, True, future)
        job = next(self.jobs, None)
        if job is None:
            return None
        needs = self.dask.needs(job)
        future = client.submit(run_job, prepare, self.function, job, pure=False, **needs)
        return _Submitted(job, False, future)

    def _fetch(self, future: Any) -> None:
        """Fetch a result, in the callback thread, and make the scheduler forget its future."""
        submitted = self.in_flight.pop(future.key, None)
        if submitted is None:
            return
        self.dask.in_flight.give()
        lost = future.status != "error"
        try:
            self.finished.put((submitted, future.result(), None))
        except BaseException as error:  # noqa: BLE001 - any error belongs to the caller's thread
            self.finished.put((submitted, None, _connection_lost(error) if lost else error))
        finally:
            future.release()

    def _receive(self) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Wait briefly for one job to finish."""
        # Also while results arrive: workers may be lost, or have joined.
        self.dask.require_workers()
        try:
            submitted, result, error = self.finished.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        self.waiting_for -= 1
        if isinstance(result, Raised):
            raise result.revived()
        if error is None:
            yield submitted.job, result
        elif not dask_client.is_death(error):
            raise error if isinstance(error, MaskloomError) else _broken(error)
        elif submitted.isolated:
            yield (
                submitted.job,
                WorkerDied(
                    "It ran alone in a child process, and the worker of that process died twice."
                ),
            )
        else:
            self.suspects.extend(submitted.job.split())

    def _wind_down(self) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Withdraw jobs that have not begun, let the others end, and raise `Stopped`.

        A job that begins between the query of the workers and its withdrawal is lost; the next run
        does it again.
        """
        if self.in_flight:
            running = dask_client.running_keys(self.dask.client, list(self.in_flight))
            self._withdraw(set(self.in_flight) - running)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.waiting_for and time.monotonic() < deadline:
            yield from self._receive()
        raise stopped()

    def _withdraw(self, keys: set[Any]) -> None:
        """Withdraw jobs. A running job continues at its worker, and its result is ignored."""
        for submitted in filter(None, [self.in_flight.pop(key, None) for key in keys]):
            self.dask.in_flight.give()
            self.waiting_for -= 1
            submitted.future.release()


def _broken(error: BaseException) -> RunError:
    """The error of a job that did not run at all, since errors of functions come as values."""
    broken = RunError(
        f"A worker of the Dask cluster cannot run maskloom ({type(error).__name__}: {error}). "
        "Install the same maskloom on all workers, then run the same command again to continue."
    )
    broken.__cause__ = error
    return broken


def _connection_lost(error: BaseException) -> RunError:
    lost = RunError(
        f"The connection to the Dask scheduler was lost ({error}). Run the same command again to "
        "continue."
    )
    lost.__cause__ = error
    return lost
