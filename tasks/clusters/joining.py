"""Joining a Dask cluster that others started."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RunError
from maskloom.tasks.clusters.tls import Tls, trouble
from maskloom.tasks.fanout import client as dask_client
from maskloom.tasks.fanout.versions import require_same, worker_versions

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def joined(
    address: str, security: Any = None, tls: Tls | None = None, gpu: bool = False
) -> Iterator[dask_client.Client]:
    """A client of the scheduler at `address`, whose workers are ready and run the same maskloom;
    they continue after the block.

    `security` is a `distributed.Security`; None: as Dask is configured. `tls`: the files it was
    made of. `gpu`: some workers must offer GPUs.

    Raises `RunError` if the scheduler does not answer, has no workers, or its workers run another
    version.
    """
    distributed = dask_client.import_distributed()
    seconds = dask_client.CONNECT_SECONDS
    try:
        client = distributed.Client(
            address, timeout=seconds, set_as_default=False, security=security
        )
    except (OSError, ValueError, TypeError) as error:
        reason = trouble(address, tls)
        raise RunError(
            f"No Dask scheduler answered at {address} within {seconds:.0f} s ({error}). "
            + (reason or "Start it, correct cluster.address, or use cluster: {kind: local}.")
        ) from error
    with client:
        require_same_code(client, address, gpu)
        yield client


def require_same_code(client: dask_client.Client, address: str, gpu: bool = False) -> None:
    """Raise `RunError` unless the scheduler and one worker run the driver's code. Other workers are
    asked when they get a job. `gpu`: the worker must offer a GPU.
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
    seconds = dask_client.WORKERS_SECONDS
    try:
        there = future.result(timeout=seconds)
    except TimeoutError as error:
        raise RunError(_no_worker(address, seconds, gpu)) from error
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
