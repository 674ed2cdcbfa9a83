"""An existing Dask cluster, joined by the address of its scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from maskloom.segcore.errors import RecipeError
from maskloom.tasks.clusters.joining import Wait, joined
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster
from maskloom.tasks.clusters.tls import Tls, is_loopback, security_for
from maskloom.tasks.fanout import client as dask_client
from maskloom.tasks.fanout.dask import Dask

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


@CLUSTERS.register("address")
@dataclass(frozen=True, slots=True)
class ExistingCluster(Cluster):
    """An existing Dask cluster with maskloom installed on its workers."""

    address: str
    """Address of its scheduler, e.g. tls://host:8786, or tcp://127.0.0.1:8786."""
    tls: Tls | None = None
    """Certificates for an address that begins with tls://: the files `ca`, `cert` and `key`. None:
    as Dask is configured on this machine.
    """
    insecure: bool = False
    """Allow an address beyond this machine that is not encrypted. Anyone who reaches its port can
    run code there and here.
    """
    gpu: bool = False
    """Networks run on workers that offer a GPU (dask worker --resources GPU=1), one for each GPU;
    the other work runs on any worker.
    """

    def __post_init__(self) -> None:
        encrypted = self.address.startswith("tls://")
        if not (encrypted or self.insecure or is_loopback(self.address)):
            raise RecipeError(
                f"address: {self.address} is beyond this machine and not encrypted: anyone who "
                "reaches that port can run code on the cluster and on this machine. Write tls:// "
                "and name certificates by `tls`, or add insecure: true if the network keeps "
                "everybody else out."
            )

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Dask:
        """A fan-out on its workers, which continue after the run. Raises `RecipeError` if the
        certificates cannot be used.
        """
        security = security_for(self.address, self.tls)
        wait = Wait(dask_client.WORKERS_SECONDS, stop)
        connect = partial(joined, self.address, security, self.tls, self.gpu, wait)
        return Dask(connect, prepare, stop, gpu=self.gpu)
