"""The folder below `staging/` in which one process of a run keeps its own files.

Its name contains the machine and the process, so the next run on that machine can remove the files
of a killed process. A process of another machine may be alive; its folder is left to `maskloom
clean`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from maskloom.segcore.errors import MaskloomError, RunError
from maskloom.segcore.storage.atomic import is_writer_alive, temporary_name
from maskloom.segcore.storage.conditional import conditions_of
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.commits.log import incomplete_folder

PROCESSES = f"{STAGING}/processes"
_MARK = "process.json"


@contextlib.contextmanager
def process_folder(store: Store, run_id: str, *, sole_writer: bool = False) -> Iterator[str]:
    """The folder of this process below the output, removed when the block ends.

    Raises `RunError` if the store has no conditional writes and another process may be at work,
    unless the user asserts with `sole_writer` that no other process writes.
    """
    folder = f"{PROCESSES}/{temporary_name()}"
    store.publish(
        f"{folder}/{_MARK}",
        json.dumps({"run_id": run_id, "host": platform.node(), "process": os.getpid()}).encode(),
    )
    if not sole_writer and not conditions_of(store).several_writers:
        # Each process writes its mark before it looks for others: of two that start at the same
        # time, at least one sees the other.
        _refuse_others(store, folder)
    try:
        yield folder
    except BaseException:
        # A store that has just failed may fail again; the next run removes the rest.
        with contextlib.suppress(MaskloomError):
            _leave(store, folder)
        raise
    _leave(store, folder)


def single_writer_note(store: Store) -> str | None:
    """A line for users if only one run at a time may write to the store. None: several may."""
    if conditions_of(store).several_writers:
        return None
    return (
        f"{store.root}: this store has no conditional writes, found out by trying. Only one run at "
        "a time may write to it; a second one is refused."
    )


def is_at_work(store: Store, run_id: str) -> bool:
    """Whether a process of this run may be at work, here or on another machine."""
    return any(
        not is_dead(folder) and (_mark(store, folder) or {}).get("run_id") == run_id
        for folder in other_folders(store, "")
    )


def sweep(store: Store) -> None:
    """Remove the folders of ended processes of this machine, except one with an incomplete
    commit.
    """
    dead = [folder for folder in other_folders(store, "") if is_dead(folder)]
    # Looked up afterwards: a dead process made its claim before it died.
    incomplete = incomplete_folder(store) if dead else None
    for folder in dead:
        if not (incomplete or "").startswith(f"{folder}/"):
            store.remove(folder)


def other_folders(store: Store, own: str) -> list[str]:
    """The folders of all processes except `own`."""
    names = store.names(PROCESSES, "")
    return sorted({"/".join(name.split("/")[:3]) for name in names} - {own})


def is_dead(folder: str) -> bool:
    """Whether the folder belongs to a process of this machine that has ended."""
    return is_writer_alive(Path(folder)) is False


def _leave(store: Store, folder: str) -> None:
    """Remove the folder, unless a commit staged there is incomplete."""
    if not (incomplete_folder(store) or "").startswith(f"{folder}/"):
        store.remove(folder)


def _refuse_others(store: Store, own: str) -> None:
    for folder in other_folders(store, own):
        if is_dead(folder):
            continue
        mark = _mark(store, folder)
        if mark is None:
            continue
        store.remove(own)
        raise RunError(
            f"The store of {store.root} has no conditional writes, so only one run may write into "
            f"it at a time. Run {mark['run_id']} on "
            f"{mark['host']} (process {mark['process']}) is at work, or was killed. Wait for it; "
            "if it was killed, add --sole-writer."
        )


def _mark(store: Store, folder: str) -> dict[str, Any] | None:
    """The record that a process wrote. None: the process has ended meanwhile."""
    try:
        return cast("dict[str, Any]", json.loads(store.read(f"{folder}/{_MARK}")))
    except FileNotFoundError:
        return None
