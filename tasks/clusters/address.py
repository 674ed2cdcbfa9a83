"""An existing Dask cluster, joined by the address of its scheduler."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from maskloom.segcore.errors import RunError
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster
from maskloom.tasks.fanout import client as dask_client
from maskloom.tasks.fanout.dask import Dask
from maskloom.tasks.fanout.versions import require_same, worker_versions

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator


@CLUSTERS.register("address")
@dataclass(frozen=True, slots=True)
class ExistingCluster(Cluster):
    """An existing Dask cluster with maskloom installed on its workers."""

    address: str
    """Address of its scheduler, e.g. tcp://host:8786."""

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Dask:
        """A fan-out on its workers, which continue after the run."""
        return Dask(partial(joined, self.address), prepare, stop)


@contextmanager
def joined(address: str) -> Iterator[dask_client.Client]:
    """A client of the scheduler at `address`, whose workers are ready and run the same maskloom;
    they continue after the block.

    Raises `RunError` if the scheduler does not answer, has no workers, or its workers run another
    version.
    """
    distributed = dask_client.import_distributed()
    seconds = dask_client.CONNECT_SECONDS
    try:
        client = distributed.Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"No Dask scheduler answered at {address} within {seconds:.0f} s ({error}). Start it, "
            "correct cluster.address, or use cluster: {kind: local}."
        ) from error
    with client:
        require_same_code(client, address)
        yield client


def require_same_code(client: dask_client.Client, address: str) -> None:
    """Raise `RunError` unless the scheduler and one worker run the driver's code. Other workers are
    asked when they get a job.
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
    future = client.submit(worker_versions, pure=False)
    seconds = dask_client.WORKERS_SECONDS
    try:
        there = future.result(timeout=seconds)
    except TimeoutError as error:
        raise RunError(
            f"The Dask scheduler at {address} had no worker free within {seconds:.0f} s. Start "
            "workers, then run again."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise RunError(
            f"A worker of the Dask cluster at {address} cannot run maskloom: {error}. Install the "
            "same maskloom on all workers."
        ) from error
    finally:
        future.release()
    require_same(f"A worker of the Dask cluster at {address}", tuple(there), here)
