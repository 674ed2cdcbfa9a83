"""Fanning out: maps a function over many jobs, here or on the workers of a Dask cluster. Nothing
else knows where jobs run.

All callers (one thread a shard) share one bounded window of jobs in flight, and every caller may
always have one, so nobody starves. A result is fetched and its future released as soon as it is
there: the scheduler never knows more than the window, whatever the number of jobs.

A worker that dies gives its jobs back. A job that loses two workers is taken apart, and each part
runs alone in a disposable child process, until the part that kills is named by a `WorkerDied` and
its neighbours have their results. A worker with a step that is not over in time
(`segcore.processes.limits`) ends itself, so that this holds for what hangs too. `distributed` is
imported when a `Dask` starts.
"""

from __future__ import annotations

import math
import pickle
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from maskloom.segcore.errors import RecipeError, RunError, TimedOut, WorkerDied
from maskloom.segcore.processes import limits
from maskloom.segcore.registry import Registry
from maskloom.tasks.fanout import isolation, local_cluster
from maskloom.tasks.fanout.flight import GRACE_SECONDS, Flight, InFlightLimit, stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_WINDOW = 3
"""Jobs in flight for each worker thread: one runs, one waits at the worker, one is on its way."""
_LOOK_SECONDS = 2.0
"""How often the workers are counted while nothing comes back."""
_ATTEMPT = "maskloom-job"
_WAIT_SECONDS = 0.5
"""How often the stop event and the time are looked at while a job runs in this process."""


class Job(Protocol):
    """Work for one call of a function: small, frozen, picklable."""

    def split(self) -> Sequence[Self]:
        """The parts of a bundle, in order. What cannot be divided gives itself alone."""
        ...


JobType = TypeVar("JobType", bound=Job)
ResultType = TypeVar("ResultType")


class Fanout(Protocol):
    """Runs a function on many jobs. Safe to use from several threads at once."""

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""
        ...

    def start(self) -> None:
        """Begins to get ready, and returns at once. What goes wrong meanwhile is raised by
        `map`.
        """
        ...

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results in order of completion; a job that was taken apart comes as its
        parts.

        `jobs` is read as far as the window allows. What the function raises is raised here. Raises
        `Stopped` when the run was asked to stop, and `RunError` when the workers are gone.
        """
        ...

    def close(self) -> None:
        """Gives back what `start` took."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


CLUSTERS: Registry[type[LocalCluster | Existing | InProcess]] = Registry("cluster")
"""Kinds of clusters, as the recipe names them."""


@CLUSTERS.register("local")
@dataclass(frozen=True, slots=True)
class LocalCluster:
    """Worker processes on this machine."""

    workers: int | None = None
    """Number of worker processes. None: one for each processor core that this process may use."""
    memory: str | None = None
    """Memory of one worker ("4 GiB"); a worker above it is restarted. None: an equal share of what
    this process may use.
    """

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"cluster.workers must be 1 or more, not {self.workers}.")
        if self.memory is not None:
            _bytes(self.memory)


@CLUSTERS.register("address")
@dataclass(frozen=True, slots=True)
class Existing:
    """A Dask cluster that somebody else runs, with maskloom installed on its workers."""

    address: str
    """Address of its scheduler ("tcp://host:8786")."""


@CLUSTERS.register("serial")
@dataclass(frozen=True, slots=True)
class InProcess:
    """No cluster: one job after the other in the driver's own process."""


Cluster = LocalCluster | Existing | InProcess


def open_fanout(cluster: Cluster, prepare: Callable[[], None], stop: threading.Event) -> Fanout:
    """Choose the fanout for a cluster.

    `prepare` runs once in every process that runs jobs, so it must pickle; `stop` ends the work
    when it is set.
    """
    return Serial(prepare, stop) if isinstance(cluster, InProcess) else Dask(cluster, prepare, stop)


def memory_of(cluster: Cluster) -> int | None:
    """Bytes that one worker may hold. None: its owner knows."""
    if isinstance(cluster, Existing):
        return None
    if isinstance(cluster, InProcess):
        return local_cluster.memory_limit()
    if cluster.memory is not None:
        return _bytes(cluster.memory)
    return local_cluster.memory_limit() // (cluster.workers or local_cluster.core_count())


def with_gpus(cluster: Cluster) -> Cluster:
    """The cluster with one worker for each GPU of this machine, where it has some and the recipe
    leaves the number open.
    """
    gpus = local_cluster.gpu_count()
    return (
        replace(cluster, workers=gpus)
        if isinstance(cluster, LocalCluster) and cluster.workers is None and gpus
        else cluster
    )


def threads_of(cluster: Cluster) -> int:
    """Threads that one worker may use inside a library that shares its work among some."""
    if isinstance(cluster, Existing):
        return 1
    return max(
        1,
        local_cluster.core_count()
        // (1 if isinstance(cluster, InProcess) else cluster.workers or local_cluster.core_count()),
    )


Result = TypeVar("Result")


class _Background(Generic[Result]):
    """A function that runs once, in a thread of its own, from the moment somebody wants it to."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._future: Future[Result] | None = None

    def start(self) -> Future[Result]:
        """Begins, if not done yet, and returns at once."""
        with self._lock:
            if self._future is None:
                pool = ThreadPoolExecutor(1)
                self._future = pool.submit(self._function)
                pool.shutdown(wait=False)
            return self._future

    def result(self) -> Result:
        """What the function gave, or what it raised."""
        return self.start().result()

    def wait(self) -> None:
        """Returns when the function is through, and at once if nobody has started it."""
        if self._future is not None:
            self._future.exception()


def threads_left_behind() -> bool:
    """Whether a job that was given up still runs in this process."""
    return any(thread.name == _ATTEMPT for thread in threading.enumerate())


class _Attempt(Generic[ResultType]):
    """A call in a thread of its own, which is left behind where a step of it never ends: no thread
    can be ended.
    """

    def __init__(self, call: Callable[[], ResultType], stop: threading.Event) -> None:
        self._call = call
        self._stop = stop
        self._future: Future[ResultType] = Future()
        self._seconds = self._deadline = math.inf
        self._left_behind = False

    def result(self) -> ResultType | TimedOut:
        """What the call gives, or raises. Raises `Stopped` where it is not over soon after the run
        was asked to stop.
        """
        threading.Thread(target=self._run, name=_ATTEMPT, daemon=True).start()
        while not wait((self._future,), timeout=_WAIT_SECONDS).done:
            if self._stop.is_set():
                self._deadline = min(self._deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > self._deadline:
                self._left_behind = True
                if self._stop.is_set():
                    raise stopped()
                return isolation.too_late(self._seconds)
        return self._future.result()

    def _run(self) -> None:
        try:
            with limits.watched_by(self._begin):
                limits.working()
                self._future.set_result(self._call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller's thread
            self._future.set_exception(error)

    def _begin(self, seconds: float) -> None:
        """A step begins. Raises `TimedOut` where nobody waits for its result any more."""
        if self._left_behind:
            raise isolation.too_late(self._seconds)
        if not self._stop.is_set():
            self._seconds, self._deadline = seconds, time.monotonic() + seconds


class Serial:
    """Runs one job after the other in this process, whatever the number of callers."""

    workers = 1

    def __init__(self, prepare: Callable[[], None], stop: threading.Event) -> None:
        self._stop = stop
        self._turn = threading.Lock()
        self._prepared = _Background(prepare)

    def start(self) -> None:
        """Begins to prepare this process."""
        self._prepared.start()

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results, in the order of the jobs; a job that was taken apart because it
        hangs comes as its parts.
        """
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
        """Waits for a preparation under way."""
        self._prepared.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Dask:
    """Runs jobs on the workers of a Dask cluster. The driver's threads share one connection and one
    window.
    """

    def __init__(
        self, cluster: LocalCluster | Existing, prepare: Callable[[], None], stop: threading.Event
    ) -> None:
        self.prepare = pickle.dumps(
            partial(isolation.prepare_alike, isolation.introduce(), prepare)
        )
        self.stop = stop
        self.window = InFlightLimit()
        self._cluster = cluster
        self._connection = _Background(self._connect)
        self._open = ExitStack()
        self._looking = threading.Lock()
        self._threads = 0
        self._seen = self._looked = 0.0

    @property
    def workers(self) -> int:
        """Threads of all workers. A local cluster knows them before it starts."""
        if isinstance(self._cluster, LocalCluster):
            return self._cluster.workers or local_cluster.core_count()
        self._connection.result()
        return self._threads

    @property
    def client(self) -> local_cluster.Client:
        """The connection, once it is there. Raises `RunError` if there will be none."""
        return self._connection.result()

    def start(self) -> None:
        """Begins to start the worker processes, or to join the cluster."""
        self._connection.start()

    def _connect(self) -> local_cluster.Client:
        """A client of the cluster, which is ready for jobs."""
        if isinstance(self._cluster, LocalCluster):
            memory = _bytes(self._cluster.memory) if self._cluster.memory else None
            client = self._open.enter_context(local_cluster.local(self.workers, memory))
            for address in client.nthreads():
                # The imports of the first jobs happen while the driver still plans.
                future = client.submit(
                    isolation.prepare_process, self.prepare, workers=[address], pure=False
                )
                self._open.callback(future.release)
        else:
            client = self._open.enter_context(local_cluster.joined(self._cluster.address))
        self._see(local_cluster.thread_count(client))
        return client

    def map(
        self, function: Callable[[JobType], ResultType], jobs: Iterable[JobType]
    ) -> Iterator[tuple[JobType, ResultType | WorkerDied]]:
        """Jobs and their results in order of completion; a job that was taken apart comes as its
        parts.
        """
        return Flight(self, function, iter(jobs)).results()

    def look(self) -> None:
        """Raise `RunError` if the cluster has been without workers for too long. Asks the scheduler
        now and then.
        """
        with self._looking:
            if time.monotonic() - self._looked < _LOOK_SECONDS:
                return
            self._see(local_cluster.thread_count(self.client))
            missing = time.monotonic() - self._seen
            if missing > local_cluster.WORKERS_SECONDS:
                raise RunError(
                    f"The Dask cluster has had no worker for {missing:.0f} s: all died and none "
                    "came back. Look for a lack of "
                    "memory (cluster.memory, tiling.tile), then run the same command again: it "
                    "goes on where it stopped."
                )

    def _see(self, threads: int) -> None:
        """Notes how many worker threads there are now."""
        self._looked = time.monotonic()
        if threads:
            self._seen = self._looked
            self._threads = threads
            self.window.limit = _WINDOW * threads

    def close(self) -> None:
        """Ends local workers; leaves a joined cluster to its owner."""
        self._connection.wait()
        self._open.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _bytes(text: str) -> int:
    """Bytes from a number and a unit. Raises `RecipeError` for anything else."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise RecipeError(
            "cluster.memory must be a number and a unit, such as '4 GiB' or '800 MB', not "
            f"{text!r}."
        )
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
