"""Stores: folders that results are written to and read from, on any fsspec file system.

All output goes through `Store.publish` or `Store.writing`, so a file under its name is always
complete. On a local disk the bytes go to a temporary file under `staging/`, are flushed to the disk
and then take their name in one atomic step (a rename, or a hard link if the name must be new). On
an object store this step is one put, conditional if the name must be new. `Store.sweep` removes the
temporary files of dead processes (`segcore.storage.atomic`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from maskloom.segcore.errors import StoreError
from maskloom.segcore.storage.atomic import (
    TEMPORARY,
    is_writer_alive,
    link_new,
    new_temporary,
    remove_temporary,
    rename_into_place,
)
from maskloom.segcore.storage.failpoints import failpoint
from maskloom.segcore.storage.filesystems import filesystem, is_local, remedy, store_errors
from maskloom.segcore.storage.object_stores import CONFLICT, PRECONDITION_FAILED, status_of

STAGING = "staging"
"""Folder below a store's root for files that are not yet, or no longer, results."""
_CHUNK = 2**22
"""Bytes that are read at a time."""
_CONFLICTS = (CONFLICT, PRECONDITION_FAILED)
_TRIES, _FIRST_PAUSE = 4, 0.2
"""Number of attempts for a put that meets a conflict, and seconds before the second one. The pause
doubles with each attempt.
"""
T = TypeVar("T")


class Sink(Protocol):
    """Sequential output for a mask file."""

    def write(self, data: bytes, /) -> int:
        """Append bytes; return their number."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in a store's listing."""

    size: int
    """Bytes."""
    modified: float | None
    """Time of the last write in seconds, by the store's clock. None if not available."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A published file."""

    name: str
    """Its path below the store's root."""
    size: int
    """Bytes."""
    sha256: str
    """Digest of its bytes, in hexadecimal."""


def not_empty(listed: Mapping[str, Listed] | Iterable[tuple[str, Listed]]) -> set[str]:
    """Names of the listed files that are not empty, and of the folders around them."""
    pairs = listed.items() if isinstance(listed, Mapping) else listed
    names = set()
    for name, found in pairs:
        if found.size:
            names.add(name)
            while (name := name.rpartition("/")[0] or ".") not in names:
                names.add(name)
    return names


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest for several files, from their names and digests; of a file alone, its own.

    A file alone has no name, those of a folder have their paths in it.
    """
    if digests.keys() == {""}:
        return digests[""]
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """A folder on some file system."""

    root: str
    """fsspec URI or absolute local path."""

    def uri(self, name: str) -> str:
        """The full location of a name."""
        return posixpath.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Whether a file is published under this name. Raises `StoreError`."""
        fs, path = filesystem(self.uri(name))
        with store_errors(f"look for {self.uri(name)}"):
            fs.invalidate_cache()
            return bool(fs.exists(path))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes under a name, or a range of them.

        Raises `FileNotFoundError`, or `StoreError` if the store does not answer.
        """
        fs, path = filesystem(self.uri(name))
        with store_errors(f"read {self.uri(name)}"):
            return (
                b""
                if start == stop
                else cast("bytes", fs.cat_file(path, start=start or None, end=stop))
            )

    def open(self, name: str) -> IO[bytes]:
        """Open a published file for reading. Raises as `read`."""
        fs, path = filesystem(self.uri(name))
        with store_errors(f"read {self.uri(name)}"):
            # A cached listing may give the size of a file that has been replaced.
            fs.invalidate_cache(path)
            return cast("IO[bytes]", fs.open(path, "rb"))

    def sha256(self, name: str) -> str:
        """Digest of a published file, or of a folder's files together; see `combined_digest`.

        Raises `FileNotFoundError` where there is neither, and as `read`.
        """
        found = self.listed(name)
        if not found:
            raise FileNotFoundError(self.uri(name))
        # The path of a file in the folder; nothing for a file alone.
        return combined_digest(
            {file[len(name) :].removeprefix("/"): self._file_sha256(file) for file in found}
        )

    def _file_sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of all files below a folder that end with `suffix`, sorted. An absent folder is
        empty.
        """
        return sorted(name for name in self.listed(folder) if name.endswith(suffix))

    def listed(self, folder: str) -> dict[str, Listed]:
        """All files below a folder by name, from the store's listing, without opening any. An
        absent folder is empty. Raises `StoreError`.
        """
        return dict(self.scanned(folder))

    def scanned(self, folder: str) -> Iterator[tuple[str, Listed]]:
        """As `listed`, one file at a time, since a folder may hold a million."""
        fs, path = filesystem(self.uri(folder))
        root = filesystem(self.root)[1].rstrip("/")
        try:
            with store_errors(f"list {self.uri(folder)}"):
                fs.invalidate_cache()
                if isinstance(fs, LocalFileSystem):
                    found = _local_files(path)
                else:
                    listing = fs.find(path, detail=True)
                    if not isinstance(listing, Mapping):
                        # adlfs lists a single file without its details.
                        listing = {name: fs.info(name) for name in listing}
                    found = iter(listing.items())
                for name, info in found:
                    # SeaweedFS keeps empty folders.
                    if info.get("type") != "directory":
                        listed = Listed(int(info.get("size") or 0), _modified_at(info))
                        yield name[len(root) + 1 :], listed
        except FileNotFoundError:
            return

    def remove(self, folder: str) -> None:
        """Remove a folder and all files below it. An absent folder is no error. Raises
        `StoreError`.
        """
        fs, path = filesystem(self.uri(folder))
        with contextlib.suppress(FileNotFoundError), store_errors(f"remove {self.uri(folder)}"):
            failpoint("remove", path)
            # A cached listing may be incomplete.
            fs.invalidate_cache()
            if isinstance(fs, LocalFileSystem) or not fsspec.core.has_magic(path):
                retry_on_conflict(lambda: fs.rm(path, recursive=True))
            else:
                # fsspec would treat brackets in a folder's name as a pattern and remove other
                # files.
                for found in fs.find(path):
                    retry_on_conflict(partial(fs.rm_file, found))
            failpoint("removed", path)

    def tidy(self) -> None:
        """Remove the folder of temporary files if it is empty; files of others may be in it."""
        if is_local(self.root):
            with contextlib.suppress(OSError):
                self._staging().rmdir()

    def publish(self, name: str, content: bytes) -> Artefact:
        """Put bytes under a name in one step, replacing any existing file. Raises `StoreError`."""
        with self.writing(name) as out:
            out.write(content)
        return out.artefact

    def publish_new(self, name: str, content: bytes) -> bool:
        """Put bytes under a name that must be free. False if other bytes already have the name.
        Raises `StoreError`.
        """
        fs, path = filesystem(self.uri(name))
        with store_errors(f"write {self.uri(name)}"):
            if not isinstance(fs, LocalFileSystem):
                failpoint("write", path)
                is_ours = retry_on_conflict(lambda: _put_new(fs, path, content))
                failpoint("written", path)
                return is_ours
            try:
                link_new(self._staging(), Path(path), content)
            except FileExistsError:
                return Path(path).read_bytes() == content
        return True

    def now(self) -> float:
        """The time by the store's clock, in seconds, from a file written for this purpose and then
        removed. The local clock if the store gives no time.
        """
        name = f"{STAGING}/clock-{uuid.uuid4().hex}"
        self.publish(name, b"now")
        modified = self.listed(name)[name].modified
        self.remove(name)
        return time.time() if modified is None else modified

    def sweep(self) -> None:
        """Remove temporary files left behind by killed processes of this machine."""
        for path in self.temporaries():
            if is_writer_alive(path) is False:
                remove_temporary(path)

    def temporaries(self) -> list[Path]:
        """All temporary files of writers to this store, alive or dead, that this machine can see:
        on its own disks and on shared ones.

        Writers to any object store keep theirs in the temporary folder of the machine.
        """
        return sorted(
            path for path in self._staging().glob("*.tmp") if TEMPORARY.fullmatch(path.name)
        )

    def _staging(self) -> Path:
        # On a disk, the temporary file must be on the file system of the target, or the rename is
        # not atomic.
        return (
            Path(filesystem(self.root)[1]) / STAGING
            if is_local(self.root)
            else Path(tempfile.gettempdir())
        )

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Publication]:
        """A file for sequential writing, published under `name` when the block ends, discarded if
        it raises.

        Raises `StoreError`.
        """
        fs, path = filesystem(self.uri(name))
        local = isinstance(fs, LocalFileSystem)
        try:
            temporary = new_temporary(self._staging())
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(lambda: temporary.unlink(missing_ok=True))
                with temporary.open("wb") as file:
                    out = Publication(name, file)
                    yield out
                    file.flush()
                    if local:
                        os.fsync(file.fileno())
                failpoint("write", path)
                if local:
                    rename_into_place(temporary, Path(path))
                else:
                    with store_errors(f"write {self.uri(name)}"):
                        retry_on_conflict(lambda: fs.put_file(str(temporary), path))
                failpoint("written", path)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"Cannot write {self.uri(name)}: {error}. {remedy(error)}") from error


class Publication:
    """A file in sequential writing, with its digest, before it is published."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file = name, file
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Append bytes; return their number."""
        self._digest.update(data)
        count = self._file.write(data)
        self._size += count
        return count

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        self._file.flush()

    @property
    def closed(self) -> bool:
        """Whether the file is closed; some writers ask."""
        return self._file.closed

    @property
    def artefact(self) -> Artefact:
        """The file as written so far; final once it is published."""
        return Artefact(self._name, self._size, self._digest.hexdigest())


def _local_files(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files below a local folder, or the file at a path, as `LocalFileSystem.find` lists
    them. A folder that is being removed is listed as far as it is there.
    """
    if not Path(path).is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield path, LocalFileSystem().info(path)
        return
    waiting = [path]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat()
                    yield entry.path, {"size": found.st_size, "mtime": found.st_mtime}


def _modified_at(info: Mapping[str, Any]) -> float | None:
    """Time of the last write of a listed file in seconds, by the store's clock."""
    found = next(
        (
            info[key]
            for key in ("mtime", "LastModified", "last_modified", "updated", "created")
            if info.get(key)
        ),
        None,
    )
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(found)
    if isinstance(found, datetime):
        return found.timestamp()
    return float(found) if isinstance(found, int | float) else None


def retry_on_conflict(put: Callable[[], T]) -> T:
    """The result of a request to a store, repeated if it conflicts with a concurrent request for
    the same object (the client itself repeats requests to a busy store).
    """
    for number in range(1, _TRIES):
        try:
            return put()
        # The errors of clients have no common base class.
        except Exception as error:
            if status_of(error) not in _CONFLICTS:
                raise
            time.sleep(_FIRST_PAUSE * 2 ** (number - 1))
    return put()


def _put_new(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
    """Put bytes under a name that must be free. False if other bytes have it. Raises the client's
    errors.
    """
    if fs.exists(path):
        return bool(fs.cat_file(path) == content)
    try:
        fs.pipe_file(path, content, mode="create")
    except Exception as error:
        # If the reply to a put is lost, the client repeats it and then meets its own bytes.
        if status_of(error) not in _CONFLICTS:
            raise
        fs.invalidate_cache()
        if not fs.exists(path):
            raise OSError(f"{error}, but there is no such object") from error
        return bool(fs.cat_file(path) == content)
    return True
