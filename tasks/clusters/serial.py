"""No cluster: jobs run in the driver's process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from maskloom.tasks.clusters import machine
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster
from maskloom.tasks.fanout.serial import Serial

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


@CLUSTERS.register("serial")
@dataclass(frozen=True, slots=True)
class SerialCluster(Cluster):
    """No cluster: one job after the other in the driver's process."""

    in_process: ClassVar[bool] = True

    @property
    def worker_memory(self) -> int:
        """All memory that this process may use."""
        return machine.memory_limit()

    @property
    def worker_threads(self) -> int:
        """All cores that this process may use."""
        return machine.core_count()

    def open(self, prepare: Callable[[], None], stop: threading.Event) -> Serial:
        """A fan-out in this process."""
        return Serial(prepare, stop)
