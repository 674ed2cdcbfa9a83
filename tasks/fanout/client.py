"""The library distributed, imported on first use, without its messages on the terminal; and the
queries of a client that the fan-out needs.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

Client = Any
"""A `distributed.Client`. Its annotations are too partial for strict checking."""

log = logging.getLogger("maskloom.cluster")

CONNECT_SECONDS = 15.0
"""How long a scheduler may take to answer."""
WORKERS_SECONDS = 60.0
"""How long a cluster may be without any worker."""
ONE_GPU = {"GPU": 1.0}
"""What a worker with a GPU offers, and a job that wants one takes, in Dask's resources."""
_LOGGERS = (
    "distributed",
    "distributed.client",
    "distributed.gc",
    "tornado",
    "tornado.application",
    "bokeh",
)


@cache
def import_distributed() -> Any:
    """The library. Its messages go to the logger `maskloom.cluster` at level debug: failures that
    matter reach the user as our errors.
    """
    import distributed

    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [_Demoted()]
        logger.propagate = False
    return distributed


class _Demoted(logging.Handler):
    """Passes records of other loggers to ours at level debug."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record at level debug."""
        log.debug("%s: %s", record.name, record.getMessage(), exc_info=record.exc_info)


def thread_count(client: Client, gpu: bool = False) -> int:
    """Threads of all workers known to the scheduler now; 0 if it does not answer. `gpu`: 0 also if
    no worker offers a GPU.
    """
    try:
        identity = client.sync(
            client.scheduler.identity, n_workers=-1 if gpu else 0, callback_timeout=CONNECT_SECONDS
        )
    except OSError:
        return 0
    if gpu and not any(each["resources"].get("GPU") for each in identity["workers"].values()):
        return 0
    return int(identity["total_threads"])


def running_keys(client: Client, keys: list[Any]) -> set[Any]:
    """The `keys` that a worker is computing now; all of them if workers do not answer."""
    try:
        stacks: dict[str, dict[Any, object]] = client.sync(
            client.scheduler.call_stack, keys=keys, callback_timeout=2.0
        )
    except OSError:
        return set(keys)
    return {key for on_worker in stacks.values() for key in on_worker}


def is_death(error: BaseException) -> bool:
    """Whether a task failed because its workers died, rather than by an exception."""
    return isinstance(error, import_distributed().scheduler.KilledWorker)
