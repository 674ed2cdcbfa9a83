"""Clusters: starts worker processes on this machine, or joins a scheduler that runs elsewhere.

Local workers are spawned, not forked (numba, GDAL and OpenCV do not survive a fork), with one
thread each and one thread in every library. They never see Ctrl-C: it is blocked in the thread that
spawns them, and blocked signals are inherited, so the driver alone decides how a run ends. Messages
of distributed go to the logger `maskloom.cluster` at level debug.
"""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RunError
from maskloom.tasks.fanout import isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

Client = Any
"""A `distributed.Client`. Its annotations are too partial for strict checking."""

log = logging.getLogger("maskloom.cluster")

START_SECONDS = 90.0
"""How long the processes of a local cluster may take to start."""
CONNECT_SECONDS = 15.0
"""How long a scheduler may take to answer."""
WORKERS_SECONDS = 60.0
"""How long a cluster may be without any worker."""

_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "GDAL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
_SETTINGS: dict[str, Any] = {
    # A job that loses two workers is taken apart; more restarts would only cost time.
    "distributed.scheduler.allowed-failures": 1,
    # By default a worker that has not registered anew 15 s after a death is never started again.
    "distributed.deploy.lost-worker-timeout": "1000 days",
    # Native code may hold the interpreter for minutes; the death of a local process is seen at once
    # without heartbeats.
    "distributed.scheduler.worker-ttl": None,
    # One heap for the one thread that works: with several, their leftovers add up and the peak
    # grows with the image.
    "distributed.nanny.pre-spawn-environ": {
        **dict.fromkeys(_ONE_THREAD, "1"),
        "MALLOC_ARENA_MAX": "1",
    },
    # Results are tiny, so there is nothing to spill, and a paused worker might never wake.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    "distributed.scheduler.http.routes": [],
}


def core_count() -> int:
    """Processor cores that this process may use (affinity and cgroup quota)."""
    from dask.system import cpu_count

    return int(cpu_count())


def gpu_count() -> int:
    """NVIDIA GPUs of this machine."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def memory_limit() -> int:
    """Bytes of memory that this process may use (machine, cgroup, ulimit)."""
    return int(_distributed().system.MEMORY_LIMIT)


@contextmanager
def local(workers: int, memory_bytes: int | None) -> Iterator[Client]:
    """A client of worker processes on this machine that end with the block. Raises `RunError` if
    they cannot be started.
    """
    import dask

    # Imported before the settings are set: leaving them would take back the defaults that its
    # import brings.
    distributed = _distributed()
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        share = memory_bytes or memory_limit() // workers
        try:
            with _interrupts_blocked():
                cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    # Without this it serves HTTP at port 8787, or warns that somebody else does.
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    memory_limit=share,
                    silence_logs=logging.CRITICAL,
                    death_timeout=START_SECONDS,
                )
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"{workers} worker processes did not start within {START_SECONDS:.0f} s: {error}. "
                "Lower cluster.workers, or use "
                "cluster: {kind: serial}."
            ) from error
        stack.enter_context(cluster)
        yield stack.enter_context(
            distributed.Client(cluster, set_as_default=False, direct_to_workers=True)
        )


@contextmanager
def joined(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`, whose workers are ready and run the same maskloom;
    they go on after the block.

    Raises `RunError` where the scheduler does not answer, has no workers, or workers of another
    version.
    """
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"No Dask scheduler answered at {address} within {CONNECT_SECONDS:.0f} s ({error}). "
            "Start it, correct "
            "cluster.address, or use cluster: {kind: local}."
        ) from error
    with client:
        _introduced(client, address)
        yield client


def _introduced(client: Client, address: str) -> None:
    """Raises `RunError` unless the scheduler and a worker run the code that the driver runs. Others
    are asked when they get a job.
    """
    here = isolation.introduce()
    try:
        # It unpickles jobs on their way.
        scheduler = client.run_on_scheduler(isolation.introduce)
    except Exception as error:
        raise RunError(
            f"The Dask scheduler at {address} cannot load maskloom: {error}. Install the same "
            "maskloom there."
        ) from error
    isolation.require_same(f"The Dask scheduler at {address}", tuple(scheduler), here)
    # A task, not a look at the list of workers: an adaptive cluster starts workers only for tasks.
    future = client.submit(isolation.introduce, pure=False)
    try:
        there = future.result(timeout=WORKERS_SECONDS)
    except TimeoutError as error:
        raise RunError(
            f"The Dask scheduler at {address} had no worker free within {WORKERS_SECONDS:.0f} s. "
            "Start workers, then run again."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise RunError(
            f"A worker of the Dask cluster at {address} cannot run maskloom: {error}. Install the "
            "same maskloom on all workers."
        ) from error
    finally:
        future.release()
    isolation.require_same(f"A worker of the Dask cluster at {address}", tuple(there), here)


def thread_count(client: Client) -> int:
    """Threads of all workers that the scheduler knows now; 0 where it does not answer."""
    try:
        identity = client.sync(
            client.scheduler.identity, n_workers=0, callback_timeout=CONNECT_SECONDS
        )
    except OSError:
        return 0
    return int(identity["total_threads"])


def running_keys(client: Client, keys: list[Any]) -> set[Any]:
    """Those of `keys` that a worker is computing now; all of them where workers do not answer."""
    try:
        stacks: dict[str, dict[Any, object]] = client.sync(
            client.scheduler.call_stack, keys=keys, callback_timeout=2.0
        )
    except OSError:
        return set(keys)
    return {key for on_worker in stacks.values() for key in on_worker}


def is_death(error: BaseException) -> bool:
    """Whether a task failed because its workers died, and not by what it raised."""
    return isinstance(error, _distributed().scheduler.KilledWorker)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks SIGINT in this thread and in all threads and processes that start meanwhile."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    # Starting it unblocks SIGINT in the thread that does so: let it be now.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Demoted(logging.Handler):
    """Hands records of other loggers to ours at level debug."""

    def emit(self, record: logging.LogRecord) -> None:
        log.debug("%s: %s", record.name, record.getMessage(), exc_info=record.exc_info)


@cache
def _distributed() -> Any:
    """The library, imported on first use, its messages kept off the terminal: what matters reaches
    the user as our own errors.
    """
    import distributed

    for name in (
        "distributed",
        "distributed.client",
        "distributed.gc",
        "tornado",
        "tornado.application",
        "bokeh",
    ):
        logger = logging.getLogger(name)
        logger.handlers = [_Demoted()]
        logger.propagate = False
    return distributed
