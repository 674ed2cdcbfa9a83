"""Moving staged files to their names: each at most once, whichever process does it and however
late.

A commit moves staged files over the names that users read (`tasks/commits/log.py`). Two processes
may carry out the same commit: the one that claimed it and one that found it unfinished. The slower
one must not restore a file that a later commit has replaced:

- On a local disk a move is a rename. It consumes its source, so a second rename finds nothing to
  move.
- In an object store a move is a copy on condition that the target has not changed since the commit
  was drafted (`segcore/storage/object_stores.py`), then the removal of the source.
- Stores that ignore such conditions take one writer at a time. `conditions_of` finds out by trying.

Replies are judged by their HTTP status: their words differ from server to server.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from maskloom.segcore.errors import StoreError
from maskloom.segcore.storage.atomic import sync_folder
from maskloom.segcore.storage.failpoints import failpoint
from maskloom.segcore.storage.filesystems import current_version, filesystem, remedy, store_errors
from maskloom.segcore.storage.object_stores import (
    NOT_FOUND,
    PRECONDITION_FAILED,
    ConditionalCopies,
    status_of,
    ways_to_copy,
)
from maskloom.segcore.storage.store import STAGING, Store, retry_on_conflict

T = TypeVar("T")
Item = TypeVar("Item")

_AT_ONCE = 16
"""Concurrent requests to an object store."""
_UNKNOWN_HEADER = (400, 501)
"""HTTP: replies of servers that do not know the header of a condition."""
_PROBED: dict[str, Conditions] = {}


@dataclass(frozen=True, slots=True)
class Move:
    """A staged file to be moved to its name, or a file to be removed."""

    staged: str | None
    """Its staged name below the store's root. None: the file `name` is removed."""
    name: str
    """Its final name; an existing file is replaced."""
    base: str | None = None
    """The version of the file to be replaced, of `versions_of`. None: no such file, or the store
    has no versions. For a file to be removed, its `current_version`.
    """


@dataclass(frozen=True, slots=True)
class Conditions:
    """The kinds of conditional write that a store honours."""

    create: bool
    """Write only if the name is free."""
    replace: bool
    """Replace a file only if it has not changed since it was looked up."""
    copies: ConditionalCopies | None = None
    """How files of an object store are replaced on this condition."""

    @property
    def several_writers(self) -> bool:
        """Whether several runs may write to one output at the same time."""
        return self.create and self.replace


def conditions_of(store: Store) -> Conditions:
    """The conditional writes that a store honours, found out by trying them in files under
    `staging/`. Cached by process and root.

    Raises `StoreError`.
    """
    if store.root not in _PROBED:
        _PROBED[store.root] = _probe(store)
    return _PROBED[store.root]


def versions_of(store: Store, names: Sequence[str]) -> list[str | None]:
    """The version of each file, as `Move.base` needs it. None: the file is absent, or the store
    does not use versions.
    """
    copies = conditions_of(store).copies
    if copies is None:
        return [None] * len(names)
    return _map_concurrently(lambda name: _version(copies, store, name), names)


def require_movable(store: Store, folders: Sequence[str]) -> None:
    """Raise `StoreError` if a file staged in these folders is too large to move; its commit could
    never be carried out.
    """
    copies = conditions_of(store).copies
    if copies is None or copies.largest is None:
        return
    for name, found in (each for folder in folders for each in store.listed(folder).items()):
        if found.size > copies.largest:
            raise StoreError(
                f"{store.uri(name)} has {found.size / 2**30:.1f} GiB, more than S3 takes in one "
                f"conditional write ({copies.largest / 2**30:g} GiB). Leave the image out, or "
                "write to a local disk."
            )


def move(store: Store, moves: Iterable[Move]) -> None:
    """Carry out the moves, in any order; moves already done by any process are skipped."""
    moves = list(moves)
    _map_concurrently(
        lambda each: _remove(store, each), [each for each in moves if each.staged is None]
    )
    moves = [each for each in moves if each.staged is not None]
    fs, root = filesystem(store.root)
    if isinstance(fs, LocalFileSystem):
        _rename(Path(root), moves)
        return
    copies = conditions_of(store).copies
    if copies is not None:
        _map_concurrently(lambda each: _move_conditionally(fs, copies, store, each), moves)
    else:
        _map_concurrently(lambda each: _overwrite(fs, store, each), moves)


def _remove(store: Store, each: Move) -> None:
    """Remove a file if it has not changed since the commit was drafted; a changed one belongs to a
    later commit.
    """
    uri = store.uri(each.name)
    with contextlib.suppress(FileNotFoundError), store_errors(f"remove {uri}"):
        if current_version(uri) == each.base:
            fs, path = filesystem(uri)
            failpoint("remove", path)
            fs.rm_file(path)
            fs.invalidate_cache(path)
            failpoint("removed", path)


def _rename(root: Path, moves: Sequence[Move]) -> None:
    folders = {(root / each.name).parent for each in moves}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for each in moves:
            failpoint("move", str(root / each.name))
            try:
                (root / str(each.staged)).replace(root / each.name)
            except FileNotFoundError:
                # Already moved by another process that carries out the same commit.
                continue
            failpoint("moved", str(root / each.name))
        for folder in folders:
            sync_folder(folder)
    except OSError as error:
        raise StoreError(f"Cannot move results into {root}: {error}. {remedy(error)}") from error


def _version(copies: ConditionalCopies, store: Store, name: str) -> str | None:
    with store_errors(f"look for {store.uri(name)}"):
        try:
            return copies.version(filesystem(store.uri(name))[1])
        except FileNotFoundError:
            return None


def _move_conditionally(fs: Any, copies: ConditionalCopies, store: Store, each: Move) -> None:
    """Replace the target if it is still its base. Any other content was written by this commit or
    by a later one.
    """
    source, target = (filesystem(store.uri(name))[1] for name in (str(each.staged), each.name))
    with store_errors(f"write {store.uri(each.name)}"):
        failpoint("move", each.name)
        try:
            _copy_to_base(copies, store, each, source, target)
        except FileNotFoundError:
            # Already moved by another process that carries out the same commit.
            return
        failpoint("moved", each.name)
        _remove_staged(fs, source)


def _copy_to_base(
    copies: ConditionalCopies, store: Store, each: Move, source: str, target: str
) -> None:
    def copy(base: str | None) -> None:
        """Copy onto this version. None: where nothing is."""
        try:
            copies.copy(source, target, base)
        # The errors of clients have no common base class.
        except Exception as error:
            status = status_of(error)
            if status not in {NOT_FOUND, PRECONDITION_FAILED}:
                raise
            if base is not None and _version(copies, store, each.name) is None:
                # The file has been removed since; nothing can be lost.
                copy(None)
            elif status == NOT_FOUND:
                raise FileNotFoundError(source) from error

    retry_on_conflict(lambda: copy(each.base))


def _overwrite(fs: Any, store: Store, each: Move) -> None:
    source, target = (filesystem(store.uri(name))[1] for name in (str(each.staged), each.name))
    with store_errors(f"write {store.uri(each.name)}"):
        failpoint("move", each.name)
        try:
            fs.cp_file(source, target)
        except FileNotFoundError:
            return
        failpoint("moved", each.name)
        _remove_staged(fs, source)


def _remove_staged(fs: Any, source: str) -> None:
    fs.invalidate_cache()
    # Another process may carry out the same commit.
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(source)


def _probe(store: Store) -> Conditions:
    """Try each kind of condition in a case where it must fail. A server that ignores it accepts the
    write.
    """
    fs, _ = filesystem(store.root)
    if isinstance(fs, LocalFileSystem):
        return Conditions(create=True, replace=True)
    names = [f"{STAGING}/probe-{uuid.uuid4().hex}" for _ in range(2)]
    there, other = (filesystem(store.uri(name))[1] for name in names)
    with store_errors(f"write {store.uri(names[0])}"):
        try:
            for path in (there, other):
                fs.pipe_file(path, b"probe")
            create = _is_honoured(lambda: fs.pipe_file(there, b"again", mode="create"))
            for copies in ways_to_copy(fs):
                if all(
                    _is_honoured(partial(copies.copy, other, there, base))
                    for base in (None, copies.impossible)
                ):
                    return Conditions(create, replace=True, copies=copies)
            return Conditions(create, replace=False)
        finally:
            for path in (there, other):
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(path)


def _is_honoured(write: Callable[[], object]) -> bool:
    """Whether the server honoured a condition that does not hold. A server without conditions
    writes, or rejects the header as unknown.
    """

    def attempt() -> bool:
        """Whether the condition was honoured, unless the store is busy."""
        try:
            write()
        # The errors of clients have no common base class.
        except Exception as error:
            status = status_of(error)
            if status != PRECONDITION_FAILED and status not in _UNKNOWN_HEADER:
                raise
            return status == PRECONDITION_FAILED
        return False

    return retry_on_conflict(attempt)


def _map_concurrently(function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE, "store") as pool:
        return list(pool.map(function, items))
