"""Presence: the folder below `staging/` in which one process of a run keeps what only it needs.

Its name tells host, process and a random number, so that the next run on that host can remove what a killed process left. A
process of another host may be alive, whatever its folder looks like: those folders are left to `maskloom clean`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from segcore.conditional import conditions_of
from segcore.errors import RunError
from segcore.storage import STAGING, Store

PROCESSES = f"{STAGING}/processes"
_MARK = "process.json"
_UNSAFE = re.compile(r"[^\w.]")


@contextlib.contextmanager
def present(store: Store, run_id: str, *, sole_writer: bool = False) -> Iterator[str]:
    """The folder of this process below the output, removed when the block ends without an error.

    Raises `RunError` where the store has no conditional writes and another process may be at work, unless `sole_writer` says that none is.
    """
    folder = f"{PROCESSES}/{_host()}-{os.getpid()}-{uuid.uuid4().hex}"
    store.publish(f"{folder}/{_MARK}", json.dumps({"run_id": run_id, "host": platform.node(), "process": os.getpid()}).encode())
    if not sole_writer and not conditions_of(store).several_writers:
        # Each process writes its mark before it looks for those of others: of two that start at once, at least one sees the other.
        _refuse_others(store, folder)
    yield folder
    store.remove(folder)


def is_at_work(store: Store, run_id: str) -> bool:
    """Whether a process of this run may be at work: one of another host may."""
    return any(not is_dead(folder) and (_mark(store, folder) or {}).get("run_id") == run_id for folder in others(store, ""))


def sweep(store: Store) -> None:
    """Remove the folders of processes of this host that have ended. No commit of theirs may be under way."""
    for folder in others(store, ""):
        if is_dead(folder):
            store.remove(folder)


def others(store: Store, own: str) -> list[str]:
    """The folders of all processes but `own`."""
    names = store.names(PROCESSES, "")
    return sorted({"/".join(name.split("/")[:3]) for name in names if not (own and name.startswith(f"{own}/"))})


def is_dead(folder: str) -> bool:
    """Whether the process of a folder was one of this host and has ended."""
    host, _, rest = folder.rpartition("/")[2].partition("-")
    process = rest.partition("-")[0]
    return host == _host() and process.isdecimal() and not Path(f"/proc/{process}").exists()


def _refuse_others(store: Store, own: str) -> None:
    for folder in others(store, own):
        if is_dead(folder):
            continue
        mark = _mark(store, folder)
        if mark is None:
            continue
        store.remove(own)
        raise RunError(
            f"The store of {store.root} has no conditional writes, so only one run may write into it at a time. Run {mark['run_id']} on "
            f"{mark['host']} (process {mark['process']}) is at work, or was killed. Wait for it; if it is dead, add --sole-writer."
        )


def _mark(store: Store, folder: str) -> dict[str, Any] | None:
    """What a process says of itself. None: it has ended since."""
    try:
        return cast("dict[str, Any]", json.loads(store.read(f"{folder}/{_MARK}")))
    except FileNotFoundError:
        return None


@lru_cache(maxsize=1)
def _host() -> str:
    """This host's name, and its namespace of processes: containers of one name must not take each other for dead."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:
        namespace = "0"
    return f"{_UNSAFE.sub('_', platform.node() or 'host')}.{namespace}"
