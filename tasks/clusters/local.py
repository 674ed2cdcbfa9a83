"""Worker processes on this machine.

They are spawned, not forked (numba, GDAL and OpenCV do not survive a fork), with one thread each
and one thread in every library. They never see Ctrl-C: it is blocked in the thread that spawns
them, and blocked signals are inherited, so the driver alone decides how a run ends.
"""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from maskloom.segcore.errors import RecipeError, RunError
from maskloom.tasks.clusters import machine
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster, parse_bytes
from maskloom.tasks.fanout.client import Client, import_distributed
from maskloom.tasks.fanout.dask import Dask

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

_START_SECONDS = 90.0
"""How long the worker processes may take to start."""
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
    # A job that loses two workers is split; more restarts would only cost time.
    "distributed.scheduler.allowed-failures": 1,
    # By default a worker that has not registered again 15 s after a death is never restarted.
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


@CLUSTERS.register("local")
@dataclass(frozen=True, slots=True)
class LocalCluster(Cluster):
    """Worker processes on this machine."""

    workers: int | None = None
    """Number of worker processes. None: one per processor core that this process may use."""
    memory: str | None = None
    """Memory of one worker, e.g. 4 GiB; a worker that exceeds it is restarted. None: an equal share
    of the memory that this process may use.
    """

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"cluster.workers must be 1 or more, not {self.workers}.")
        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def worker_count(self) -> int:
        """Number of worker processes."""
        return self.workers or machine.core_count()

    @property
    def worker_memory(self) -> int:
        """Bytes that one worker may hold."""
        if self.memory is not None:
            return parse_bytes(self.memory)
        return machine.memory_limit() // self.worker_count

    @property
    def worker_threads(self) -> int:
        """An equal share of the cores."""
        return max(1, machine.core_count() // self.worker_count)

    def with_one_worker_per_gpu(self) -> Self:
        """One worker for each GPU of this machine, unless the recipe names a number or there is no
        GPU.
        """
        gpus = machine.gpu_count()
        return replace(self, workers=gpus) if self.workers is None and gpus else self

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Dask:
        """A fan-out on worker processes, which end with it."""
        connect = partial(started, self.worker_count, self.worker_memory)
        return Dask(connect, prepare, stop, own_workers=self.worker_count)


@contextmanager
def started(workers: int, memory: int) -> Iterator[Client]:
    """A client of `workers` processes on this machine with `memory` bytes each, which end with the
    block. Raises `RunError` if they cannot be started.
    """
    import dask

    # Imported before the settings are set: leaving them would undo the defaults that its import
    # sets.
    distributed = import_distributed()
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        try:
            with _interrupts_blocked():
                cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    # Without this it serves HTTP at port 8787, or warns that the port is taken.
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    memory_limit=memory,
                    silence_logs=logging.CRITICAL,
                    death_timeout=_START_SECONDS,
                )
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"{workers} worker processes did not start within {_START_SECONDS:.0f} s: {error}. "
                "Lower cluster.workers, or use cluster: {kind: serial}."
            ) from error
        stack.enter_context(cluster)
        yield stack.enter_context(
            distributed.Client(cluster, set_as_default=False, direct_to_workers=True)
        )


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in this thread and in all threads and processes that it starts meanwhile."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    # Starting it later would unblock SIGINT in the thread that does so.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
