"""Settings of Dask for the schedulers and workers that a run starts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE_THREAD: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "NUMEXPR_NUM_THREADS",
            "NUMBA_NUM_THREADS",
            "GDAL_NUM_THREADS",
            "TF_NUM_INTRAOP_THREADS",
            "TF_NUM_INTEROP_THREADS",
        ),
        "1",
    ),
    # One heap for the one thread that works: with several, their leftovers add up and the peak
    # grows with the image.
    "MALLOC_ARENA_MAX": "1",
}
"""Environment of a worker."""
SCHEDULER: Mapping[str, Any] = {
    # A job that loses two workers is split; more restarts would only cost time.
    "distributed.scheduler.allowed-failures": 1,
    # By default a worker that has not registered again 15 s after a death is never restarted.
    "distributed.deploy.lost-worker-timeout": "1000 days",
    # Native code may hold the interpreter for minutes, and no heartbeat is sent meanwhile. The
    # death of a process is seen at once without heartbeats, that of a machine after 30 s
    # (distributed.comm.timeouts.tcp).
    "distributed.scheduler.worker-ttl": None,
    "distributed.scheduler.http.routes": [],
    # Logs for developers of Dask, which keep whole messages.
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.log-length": 100,
}
"""Settings of Dask for a scheduler in the driver's process."""
WORKER: Mapping[str, Any] = {
    # Results are tiny, so there is nothing to spill, and a paused worker might never wake.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.log-length": 100,
}
"""Settings of Dask for a worker."""


def as_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings of Dask as environment variables, for a process that is started by a command.

    >>> as_environment({"distributed.scheduler.allowed-failures": 1})
    {'DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES': '1'}
    """
    return {
        f"DASK_{key.upper().replace('-', '_').replace('.', '__')}": str(value)
        for key, value in settings.items()
    }
