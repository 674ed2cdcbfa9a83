"""Cores, memory and GPUs of the machine on which the driver runs."""

from __future__ import annotations

from pathlib import Path

from maskloom.tasks.fanout.client import import_distributed


def core_count() -> int:
    """Processor cores that this process may use (affinity and cgroup quota)."""
    from dask.system import cpu_count

    return int(cpu_count())


def memory_limit() -> int:
    """Bytes of memory that this process may use (machine, cgroup, ulimit)."""
    return int(import_distributed().system.MEMORY_LIMIT)


def gpu_count() -> int:
    """NVIDIA GPUs of this machine."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
