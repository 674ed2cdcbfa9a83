"""Cores, memory and GPUs of the machine on which the driver runs."""

from __future__ import annotations

import os
from pathlib import Path

from maskloom.tasks.fanout.client import import_distributed


def core_count() -> int:
    """Processor cores that this process may use (affinity and cgroup quota)."""
    from dask.system import cpu_count

    return int(cpu_count())


def memory_limit() -> int:
    """Bytes of memory that this process may use (machine, cgroup, ulimit)."""
    return int(import_distributed().system.MEMORY_LIMIT)


def gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs of this machine that this process may use, as `CUDA_VISIBLE_DEVICES` names
    them.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(name for name in map(str.strip, allowed.split(",")) if name not in ("", "-1"))
    devices = Path("/dev").glob("nvidia[0-9]*")
    return tuple(sorted((each.name.removeprefix("nvidia") for each in devices), key=int))
