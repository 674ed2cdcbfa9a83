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
from typing import TYPE_CHECKING, Any, Self

from maskloom.segcore.errors import RecipeError, RunError
from maskloom.tasks.clusters import machine
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster, parse_bytes
from maskloom.tasks.clusters.scheduler import extensions
from maskloom.tasks.clusters.settings import ONE_THREAD, SCHEDULER, WORKER
from maskloom.tasks.fanout.client import Client, import_distributed
from maskloom.tasks.fanout.dask import Dask

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

_START_SECONDS = 90.0
"""How long the worker processes may take to start."""


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
        gpus = machine.gpus()
        return replace(self, workers=len(gpus)) if self.workers is None and gpus else self

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Dask:
        """A fan-out on worker processes, which end with it."""

        def connect() -> AbstractContextManager[Client]:
            return started(fanout.workers_at_first, self.worker_memory, machine.gpus())

        fanout = Dask(connect, prepare, stop, own_workers=self.worker_count)
        return fanout


@contextmanager
def started(workers: int, memory: int, gpus: Sequence[str] = ()) -> Iterator[Client]:
    """A client of `workers` processes on this machine with `memory` bytes each, which end with the
    block. Each sees one of the `gpus`, in turn. Raises `RunError` if they cannot be started.
    """
    import dask

    # Imported before the settings are set: leaving them would undo the defaults that its import
    # sets.
    distributed = import_distributed()
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_settings()))
        try:
            with _interrupts_blocked():
                cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    # Without this it serves HTTP at port 8787, or warns that the port is taken.
                    scheduler_kwargs={
                        "dashboard": False,
                        "dashboard_address": "127.0.0.1:0",
                        "extensions": extensions(),
                    },
                    memory_limit=memory,
                    silence_logs=logging.CRITICAL,
                    death_timeout=_START_SECONDS,
                    worker_class=_nanny(gpus) if gpus else None,
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


def _nanny(gpus: Sequence[str]) -> Any:
    """A class of worker processes, the first of which sees the first GPU alone, and so on."""
    nanny: Any = import_distributed().Nanny

    class OneGpu(nanny):  # type: ignore[misc]
        """A worker process that sees one GPU, also after it was started again."""

        def __init__(self, *arguments: Any, name: int, **options: Any) -> None:
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[name % len(gpus)]}
            super().__init__(*arguments, name=name, env=gpu, **options)

    return OneGpu


def _settings() -> dict[str, Any]:
    """Settings of Dask for the scheduler, and for the workers that inherit them."""
    return {
        **SCHEDULER,
        **WORKER,
        "distributed.nanny.pre-spawn-environ": dict(ONE_THREAD),
    }


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
