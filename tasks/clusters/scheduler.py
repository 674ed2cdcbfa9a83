"""What a scheduler of Dask needs, so that its memory does not grow with the number of jobs.

Spans group tasks for a dashboard. A scheduler keeps every one of them and adds some data to them
with each job for as long as it lives (dask/distributed#7977), about a quarter of a KiB. A scheduler
that a run starts has none. One that you start has none either with

    dask scheduler --preload maskloom.tasks.clusters.scheduler

What is left is bounded: `dask.utils.key_split` remembers the last 100,000 keys, 0.19 KiB each.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from maskloom.tasks.fanout.client import import_distributed


@cache
def extensions() -> dict[str, Any]:
    """The extensions of a scheduler: distributed's, without spans."""
    return {**import_distributed().scheduler.DEFAULT_EXTENSIONS, "spans": _NoSpans}


def dask_setup(scheduler: Any) -> None:
    """Called by `dask scheduler --preload`."""
    scheduler.extensions["spans"] = _NoSpans(scheduler)


class _NoSpans:
    """Takes the place of the extension to which workers report: they do not run without."""

    def __init__(self, scheduler: Any) -> None:
        pass

    def observe_tasks(self, *_: Any, **__: Any) -> dict[Any, Any]:
        """Tasks have arrived. No span is made of them."""
        return {}

    def heartbeat(self, worker: Any, data: Any) -> None:
        """A worker says how it spent its time."""
