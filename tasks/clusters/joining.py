"""Joining a Dask cluster that others started."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RunError, Stopped
from maskloom.tasks.clusters.tls import Tls, trouble
from maskloom.tasks.fanout import client as dask_client
from maskloom.tasks.fanout.protocol import stopped
from maskloom.tasks.fanout.versions import require_same, worker_versions

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Wait:
    """How long to wait for a worker, and what ends it."""

    seconds: float
    stop: threading.Event | None = None
    """Set when the run is asked to stop."""

    def result(self, future: Any) -> Any:
        """The result of a task. Raises `TimeoutError`, or `Stopped` if the run is asked to stop."""
        deadline = time.monotonic() + self.seconds
        while True:
            left = deadline - time.monotonic()
            try:
                return future.result(timeout=max(0.1, min(left, 1.0)))
            except TimeoutError:
                if self.stop is not None and self.stop.is_set():
                    raise stopped() from None
                if left < 0:
                    raise


@contextmanager
def joined(
    address: str,
    security: Any = None,
    tls: Tls | None = None,
    gpu: bool = False,
    wait: Wait | None = None,
) -> Iterator[dask_client.Client]:
    """A client of the scheduler at `address`, whose workers are ready and run the same maskloom;
    they continue after the block.

    `security` is a `distributed.Security`; None: as Dask is configured. `tls`: the files it was
    made of. `gpu`: some workers must offer GPUs. `wait`: how to wait for a worker.

    Raises `RunError` if the scheduler does not answer, has no workers, or its workers run another
    version.
    """
    distributed = dask_client.import_distributed()
    limit = dask_client.CONNECT_SECONDS
    try:
        client = distributed.Client(address, timeout=limit, set_as_default=False, security=security)
    except (OSError, ValueError, TypeError) as error:
        reason = trouble(address, tls)
        said = str(error) or type(error).__name__
        raise RunError(
            f"The Dask scheduler at {address} could not be joined ({said}). "
            + (reason or "Start it, correct cluster.address, or use cluster: {kind: local}.")
        ) from error
    with client:
        require_same_code(client, address, gpu, wait)
        yield client


def require_same_code(
    client: dask_client.Client, address: str, gpu: bool = False, wait: Wait | None = None
) -> None:
    """Raise `RunError` unless the scheduler and one worker run the driver's code. Other workers are
    asked when they get a job. `gpu`: the worker must offer a GPU. `wait`: how to wait for it.
    """
    here = worker_versions()
    try:
        # The scheduler is checked too, since it unpickles jobs.
        scheduler = client.run_on_scheduler(worker_versions)
    except Exception as error:
        raise RunError(
            f"The Dask scheduler at {address} cannot load maskloom: {error}. Install the same "
            "maskloom there."
        ) from error
    require_same(f"The Dask scheduler at {address}", tuple(scheduler), here)
    # A task is submitted, since an adaptive cluster starts workers only for tasks.
    needs = {"resources": dask_client.ONE_GPU} if gpu else {}
    future = client.submit(worker_versions, pure=False, **needs)
    wait = wait or Wait(dask_client.WORKERS_SECONDS)
    try:
        there = wait.result(future)
    except Stopped:
        raise
    except TimeoutError as error:
        raise RunError(_no_worker(address, wait.seconds, gpu)) from error
    except (ImportError, RuntimeError) as error:
        raise RunError(
            f"A worker of the Dask cluster at {address} cannot run maskloom: {error}. Install the "
            "same maskloom on all workers."
        ) from error
    finally:
        future.release()
    require_same(f"A worker of the Dask cluster at {address}", tuple(there), here)


def _no_worker(address: str, seconds: float, gpu: bool) -> str:
    if not gpu:
        return (
            f"The Dask scheduler at {address} had no worker free within {seconds:.0f} s. Start "
            "workers, then run again."
        )
    return (
        f"The Dask scheduler at {address} had no worker with a GPU free within {seconds:.0f} s. "
        "Start one for each GPU: CUDA_VISIBLE_DEVICES=0 dask worker --nthreads 1 --resources GPU=1 "
        "..., or remove cluster.gpu."
    )
