"""Moving staged files to their names: each at most once, whichever process does it and however
late.

A commit moves staged files over the names that users read (`tasks/commits/log.py`). Two processes
may carry out the same commit: the one that claimed it and one that found it unfinished. The slower
one must not restore a file that a later commit has replaced:

- On a local disk a move is a rename. It consumes its source, so a second rename finds nothing to
  move.
- On S3 a move writes the target on condition that it has not changed since the commit was drafted
  (`If-Match`, `If-None-Match`), then removes the source. Servers that honour the condition for
  copies copy the object themselves; for others the bytes pass through this process.
- Other stores, and S3 servers that ignore conditions, offer neither. `conditions_of` probes this.
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from maskloom.segcore.errors import StoreError
from maskloom.segcore.storage.atomic import sync_folder
from maskloom.segcore.storage.filesystems import current_version, filesystem, remedy, store_errors
from maskloom.segcore.storage.store import STAGING, Store

T = TypeVar("T")
Item = TypeVar("Item")
_Target = dict[str, str]
"""Bucket and key, or conditions, as request arguments."""

_AT_ONCE = 16
"""Concurrent requests to an object store."""
LARGEST_OBJECT = 5 * 2**30
"""Maximum size in bytes of one conditional request to S3."""
_CONFLICTS = 5
"""Number of attempts for a write that conflicts with a concurrent one (HTTP 409)."""
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
    """Write only if the file has not changed since it was looked up."""
    copy: bool = False
    """The same for copies made by the server."""

    @property
    def several_writers(self) -> bool:
        """Whether several runs may write to one output at the same time."""
        return self.create and self.replace


def conditions_of(store: Store) -> Conditions:
    """The conditions that a store honours, probed with a file under `staging/`. Cached by process
    and root.

    Raises `StoreError`.
    """
    if store.root not in _PROBED:
        fs, _ = filesystem(store.root)
        if isinstance(fs, LocalFileSystem):
            _PROBED[store.root] = Conditions(create=True, replace=True)
        elif not is_s3(fs):
            # Clients of other stores can require a free name, but none can require a version of the
            # file to be replaced.
            _PROBED[store.root] = Conditions(create=True, replace=False)
        else:
            _PROBED[store.root] = _probe(fs, store)
    return _PROBED[store.root]


def versions_of(store: Store, names: Sequence[str]) -> list[str | None]:
    """The version of each file, as `Move.base` needs it. None: the file is absent, or the store
    does not use versions.
    """
    fs, _ = filesystem(store.root)
    if not is_s3(fs):
        return [None] * len(names)
    return _map_concurrently(lambda name: _version(fs, store, name), names)


def require_movable(store: Store, folders: Sequence[str]) -> None:
    """Raise `StoreError` if a file staged in these folders is too large to move; its commit could
    never be carried out.
    """
    if not is_s3(filesystem(store.root)[0]):
        return
    for name, found in (each for folder in folders for each in store.listed(folder).items()):
        if found.size > LARGEST_OBJECT:
            raise StoreError(
                f"{store.uri(name)} has {found.size / 2**30:.1f} GiB, more than S3 takes in one "
                "conditional write "
                f"({LARGEST_OBJECT / 2**30:g} GiB). Leave the image out, or write to a local disk."
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
    elif is_s3(fs) and conditions_of(store).replace:
        _map_concurrently(lambda each: _move_conditionally(fs, store, each), moves)
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
            fs.rm_file(path)
            fs.invalidate_cache(path)


def _rename(root: Path, moves: Sequence[Move]) -> None:
    folders = {(root / each.name).parent for each in moves}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for each in moves:
            try:
                (root / str(each.staged)).replace(root / each.name)
            except FileNotFoundError:
                # Already moved by another process that carries out the same commit.
                continue
        for folder in folders:
            sync_folder(folder)
    except OSError as error:
        raise StoreError(f"Cannot move results into {root}: {error}. {remedy(error)}") from error


def is_s3(fs: Any) -> bool:
    """Whether a file system is S3."""
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _version(fs: Any, store: Store, name: str) -> str | None:
    with store_errors(f"look for {store.uri(name)}"):
        try:
            fs.invalidate_cache(filesystem(store.uri(name))[1])
            return str(fs.info(filesystem(store.uri(name))[1])["ETag"])
        except FileNotFoundError:
            return None


def _move_conditionally(fs: Any, store: Store, each: Move) -> None:
    """Write the target if it is still its base. Any other content was written by this commit or by
    a later one.
    """
    source = filesystem(store.uri(str(each.staged)))[1]
    with store_errors(f"write {store.uri(each.name)}"):
        try:
            if conditions_of(store).copy:
                _conditional(
                    fs, store, each, lambda condition, key: _copy(fs, source, key, condition)
                )
            else:
                with tempfile.NamedTemporaryFile() as content:
                    fs.get_file(source, content.name)
                    _conditional(
                        fs,
                        store,
                        each,
                        lambda condition, key: _put(fs, content.name, key, condition),
                    )
        except FileNotFoundError:
            return
        fs.rm_file(source)


def _conditional(
    fs: Any, store: Store, each: Move, write: Callable[[_Target, _Target], None]
) -> None:
    bucket, key, _ = fs.split_path(filesystem(store.uri(each.name))[1])
    base = each.base
    for attempt in range(_CONFLICTS):
        condition = {"IfNoneMatch": "*"} if base is None else {"IfMatch": base}
        try:
            write(condition, {"Bucket": bucket, "Key": key})
            break
        # s3fs turns a 412 into FileExistsError or OSError, depending on the condition, so use the
        # code of the reply.
        except OSError as error:
            code = _code(error)
            if code == "PreconditionFailed":
                break
            if (
                code in {"NoSuchKey", "404"}
                and base is not None
                and _version(fs, store, each.name) is None
            ):
                # The file has been removed since; nothing can be lost.
                base = None
            elif code not in {"ConditionalRequestConflict", "409"} or attempt == _CONFLICTS - 1:
                raise
    fs.invalidate_cache(filesystem(store.uri(each.name))[1])


def _copy(fs: Any, source: str, target: _Target, condition: _Target) -> None:
    bucket, key, _ = fs.split_path(source)
    fs.call_s3("copy_object", CopySource={"Bucket": bucket, "Key": key}, **target, **condition)


def _put(fs: Any, content: str, target: _Target, condition: _Target) -> None:
    with Path(content).open("rb") as body:
        fs.call_s3("put_object", Body=body, **target, **condition)


def _code(error: BaseException | None) -> str:
    """The code of a store's reply, from the error that s3fs raised."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""


def _overwrite(fs: Any, store: Store, each: Move) -> None:
    source, target = (filesystem(store.uri(name))[1] for name in (str(each.staged), each.name))
    with store_errors(f"write {store.uri(each.name)}"):
        try:
            fs.cp_file(source, target)
        except FileNotFoundError:
            return
        fs.rm_file(source)
        fs.invalidate_cache()


def _probe(fs: Any, store: Store) -> Conditions:
    """Try each kind of condition in a case where it must fail. A server that ignores it accepts the
    write.
    """
    name = f"{STAGING}/probe-{uuid.uuid4().hex}"
    path = filesystem(store.uri(name))[1]
    bucket, key, _ = fs.split_path(path)
    target = {"Bucket": bucket, "Key": key}
    other = {"IfMatch": '"' + "0" * 32 + '"'}
    with store_errors(f"write {store.uri(name)}"):
        fs.pipe_file(path, b"probe")
        try:
            return Conditions(
                create=_is_honoured(
                    lambda: fs.call_s3("put_object", Body=b"again", IfNoneMatch="*", **target)
                ),
                replace=_is_honoured(
                    lambda: fs.call_s3("put_object", Body=b"again", **other, **target)
                ),
                copy=_is_honoured(
                    lambda: fs.call_s3(
                        "copy_object",
                        CopySource=dict(target),
                        MetadataDirective="REPLACE",
                        **other,
                        **target,
                    )
                ),
            )
        finally:
            fs.rm_file(path)


def _is_honoured(write: Callable[[], object]) -> bool:
    """Whether the server honoured a condition that does not hold. A server without conditions
    writes, or rejects the header as unknown.
    """
    try:
        write()
    except OSError as error:
        code = _code(error)
        if code == "PreconditionFailed":
            return True
        if code in {"NotImplemented", "InvalidRequest", "InvalidArgument"}:
            return False
        raise
    return False


def _map_concurrently(function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE, "store") as pool:
        return list(pool.map(function, items))
