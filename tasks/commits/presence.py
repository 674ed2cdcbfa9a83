"""The folder below `staging/` in which one process of a run keeps its own files.

Its name contains the machine and the process, so the next run on that machine can remove the files
of a killed process. A process of another machine may be alive; its folder is left to `maskloom
clean`. A file in it says who works there and how far it is, and is renewed every minute: a sign of
life that any machine can see. No result depends on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from maskloom.segcore.errors import MaskloomError, RunError
from maskloom.segcore.storage.atomic import is_writer_alive, temporary_name
from maskloom.segcore.storage.conditional import conditions_of
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.commits.log import incomplete_folder

PROCESSES = f"{STAGING}/processes"
_MARK = "process.json"
RENEWED_SECONDS = 60.0
"""Time between two signs of life."""
_END_SECONDS = 10.0
"""How long the end of a process waits for a sign of life that is being written."""
Position = Callable[[], Mapping[str, Any]]
"""How far the work of a process is, as JSON values."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that works on an output, or did so until it was killed."""

    folder: str
    """Its folder below the output."""
    run_id: str
    host: str
    process: int
    started: str | None
    """When it started, by its own clock, in ISO format. None: it is of an earlier version."""
    position: Mapping[str, Any]
    """How far it is. Empty before its first pass."""
    renewed: float | None
    """Time of its last sign of life in seconds, by the store's clock. None: the store does not
    record times.
    """
    alive: bool | None
    """Whether it is alive. None: unknown, since it runs on another machine."""


@contextlib.contextmanager
def process_folder(
    store: Store, run_id: str, position: Position = dict, *, sole_writer: bool = False
) -> Iterator[str]:
    """The folder of this process below the output, removed when the block ends. Until then a thread
    records there how far the work is, as `position` returns it.

    Raises `RunError` if the store has no conditional writes and another process may be at work,
    unless the user asserts with `sole_writer` that no other process writes.
    """
    mark = _Mark(store, f"{PROCESSES}/{temporary_name()}", run_id, position)
    mark.write()
    if not sole_writer and not conditions_of(store).several_writers:
        # Each process writes its mark before it looks for others: of two that start at the same
        # time, at least one sees the other.
        _refuse_others(store, mark.folder)
    try:
        with mark.renewed():
            yield mark.folder
    except BaseException:
        # A store that has just failed may fail again; the next run removes the rest.
        with contextlib.suppress(MaskloomError):
            _leave(store, mark.folder)
        raise
    _leave(store, mark.folder)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The file by which a process shows that it works."""

    store: Store
    folder: str
    run_id: str
    position: Position
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self) -> None:
        """Write the mark. Raises `StoreError`."""
        record = {
            "run_id": self.run_id,
            "host": platform.node(),
            "process": os.getpid(),
            "started": self.started,
            "position": dict(self.position()),
        }
        self.store.publish(f"{self.folder}/{_MARK}", json.dumps(record).encode())

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Write the mark again and again until the block ends."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEWED_SECONDS):
                # What the store refuses now, it may take a minute later.
                with contextlib.suppress(MaskloomError):
                    self.write()

        thread = threading.Thread(target=renew, name="sign of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_END_SECONDS)


def processes(store: Store) -> list[Process]:
    """The processes that work on an output, or were killed. Raises `StoreError`."""
    listed = store.listed(PROCESSES)
    found = []
    for folder in _folders(listed):
        mark, written = _mark(store, folder), listed.get(f"{folder}/{_MARK}")
        if mark is not None:
            found.append(
                Process(
                    folder,
                    str(mark["run_id"]),
                    str(mark["host"]),
                    int(mark["process"]),
                    mark.get("started"),
                    mark.get("position", {}),
                    None if written is None else written.modified,
                    is_writer_alive(Path(folder)),
                )
            )
    return found


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
    return [folder for folder in _folders(store.listed(PROCESSES)) if folder != own]


def _folders(names: Iterable[str]) -> list[str]:
    return sorted({"/".join(name.split("/")[:3]) for name in names})


def is_dead(folder: str) -> bool:
    """Whether the folder belongs to a process of this machine that has ended."""
    return is_writer_alive(Path(folder)) is False


def _leave(store: Store, folder: str) -> None:
    """Remove the folder, unless a commit staged there is incomplete."""
    if not (incomplete_folder(store) or "").startswith(f"{folder}/"):
        store.remove(folder)


def _refuse_others(store: Store, own: str) -> None:
    for other in processes(store):
        if other.folder == own or other.alive is False:
            continue
        store.remove(own)
        age = (
            ""
            if other.renewed is None
            else f", this one {max(0.0, time.time() - other.renewed):.0f} s ago"
        )
        raise RunError(
            f"The store of {store.root} has no conditional writes, so only one run may write into "
            f"it at a time. Run {other.run_id} on {other.host} (process {other.process}) is at "
            f"work, or was killed: a process at work gives a sign of life every "
            f"{RENEWED_SECONDS:.0f} s{age}. Wait for it; if it was killed, add --sole-writer."
        )


def _mark(store: Store, folder: str) -> dict[str, Any] | None:
    """The record that a process wrote. None: the process has ended meanwhile, or was killed while
    its machine wrote the file.
    """
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        mark = json.loads(store.read(f"{folder}/{_MARK}"))
        if mark["run_id"] and mark["host"] and mark["process"]:
            return cast("dict[str, Any]", mark)
    return None
