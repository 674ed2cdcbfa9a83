"""Stores: where images come from and where results go, on any fsspec file system.

Everything that maskloom writes goes through `Store.publish` or `Store.writing`, so that whatever is found under a name is
whole. On a local disk the bytes go to a file under `staging/`, are flushed to the disk and then take their name in one atomic step
(rename, or link where the name must be new). On an object store one put is that step, conditional where the name must be new.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import posixpath
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from segcore.errors import MaskloomError, StoreError

STAGING = "staging"
"""Folder below a store's root for what is not yet, or no longer, a result."""
_HOST = platform.node() or "host"


@dataclass(frozen=True, slots=True)
class Artefact:
    """A published file."""

    name: str
    """Its path below the store's root."""
    size: int
    """Bytes."""
    sha256: str
    """Digest of its bytes, in hexadecimal."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or local path, and the path inside it. Raises `StoreError` for an unknown protocol."""
    if "://" not in uri:
        # Not by fsspec's own rules, which read "::" in a file name as a chain of stores.
        return LocalFileSystem(), str(Path(uri).absolute())
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise StoreError(
            f"Cannot use the location {uri!r}: {error}. Check its protocol; a store may need its fsspec package."
        ) from error
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Whether a URI or path lies on a disk of this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def configure(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Use these fsspec options (profile, endpoint, region ...) for each protocol in this process."""
    for protocol, values in options.items():
        fsspec.config.conf.setdefault(protocol, {}).update(values)


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn whatever a store's client raises into a `StoreError`; absence and presence of a file pass."""
    try:
        yield
    except (MaskloomError, FileNotFoundError, FileExistsError):
        raise
    # Clients raise errors of their own (botocore, aiohttp, google ...), which have no common base.
    except Exception as error:
        raise StoreError(
            f"Cannot {what}: {error or type(error).__name__}. Check the location, your access to it and the room in it, "
            "then run the same command again."
        ) from error


def version_of(info: Mapping[str, Any]) -> str:
    """What changes when a file's bytes change: the store's own tag, or size and time of the last change."""
    tag = next((str(info[key]).strip('"') for key in ("ETag", "etag", "md5Hash", "content_md5") if info.get(key)), None)
    if tag is not None:
        return f"{info.get('size', 0):x}-{tag}"
    changed = next(
        (info[key] for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created") if info.get(key)), ""
    )
    stamp = f"{int(changed * 1_000_000):x}" if isinstance(changed, float) else str(changed)
    return f"{info.get('size', 0) or 0:x}-{stamp}"


def current_version(uri: str) -> str:
    """The version of a file as its store tells it now. Raises `FileNotFoundError`, or `StoreError` where the store does not answer."""
    fs, path = filesystem(uri)
    with store_errors(f"look at {uri}"):
        # What a listing of the folder said earlier is not asked again otherwise.
        fs.invalidate_cache(path)
        return version_of(fs.info(path))


@dataclass(frozen=True, slots=True)
class Store:
    """A folder on some file system that results are written to."""

    root: str
    """fsspec URI or absolute local path."""

    def uri(self, name: str) -> str:
        """Full location of a name."""
        return posixpath.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Whether something is published under this name."""
        fs, path = filesystem(self.uri(name))
        with store_errors(f"look for {self.uri(name)}"):
            fs.invalidate_cache()
            return bool(fs.exists(path))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes under a name, or a range of them. Raises `FileNotFoundError`, or `StoreError` where the store does not answer."""
        fs, path = filesystem(self.uri(name))
        with store_errors(f"read {self.uri(name)}"):
            return b"" if start == stop else cast(bytes, fs.cat_file(path, start=start or None, end=stop))

    def open(self, name: str) -> IO[bytes]:
        """Open a published file for reading. Raises as `read`."""
        fs, path = filesystem(self.uri(name))
        with store_errors(f"read {self.uri(name)}"):
            return cast("IO[bytes]", fs.open(path, "rb"))

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of all files below a folder that end with `suffix`, sorted. An absent folder is empty."""
        fs, path = filesystem(self.uri(folder))
        root = filesystem(self.root)[1].rstrip("/")
        try:
            with store_errors(f"list {self.uri(folder)}"):
                fs.invalidate_cache()
                found = fs.find(path)
        except FileNotFoundError:
            return []
        return sorted(name[len(root) + 1 :] for name in found if name.endswith(suffix))

    def remove(self, folder: str) -> None:
        """Remove a folder and all below it; nothing happens where it is absent."""
        fs, path = filesystem(self.uri(folder))
        with contextlib.suppress(FileNotFoundError), store_errors(f"remove {self.uri(folder)}"):
            fs.rm(path, recursive=True)

    def publish(self, name: str, content: bytes) -> Artefact:
        """Put bytes under a name in one step, in place of what was there."""
        with self.writing(name) as out:
            out.write(content)
        return out.artefact

    def publish_new(self, name: str, content: bytes) -> bool:
        """Put bytes under a name that must be free. False where other bytes have the name already."""
        fs, path = filesystem(self.uri(name))
        try:
            with store_errors(f"write {self.uri(name)}"):
                if isinstance(fs, LocalFileSystem):
                    _link_new(self._staging(), Path(path), content)
                elif fs.exists(path):
                    return bool(fs.cat_file(path) == content)
                else:
                    fs.pipe_file(path, content, mode="create")
        except FileExistsError:
            # A conditional put whose reply was lost is sent again by the client and then meets its own bytes.
            return bool(fs.cat_file(path) == content)
        return True

    def sweep(self) -> None:
        """Remove temporary files that processes of this machine left behind when they were killed."""
        if is_local(self.root):
            for path in self._staging().glob(f"{_HOST}-*.tmp"):
                # The name of another machine may begin with ours.
                process = path.name.removeprefix(f"{_HOST}-").split("-")[0]
                if process.isdecimal() and not Path(f"/proc/{process}").exists():
                    path.unlink(missing_ok=True)

    def _staging(self) -> Path:
        # On a disk the temporary file must lie on the target's file system, or the last step would not be atomic.
        return Path(filesystem(self.root)[1]) / STAGING if is_local(self.root) else Path(tempfile.gettempdir())

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Publication]:
        """A file to write in sequence, published under `name` when the block ends, dropped when it raises."""
        fs, path = filesystem(self.uri(name))
        local = isinstance(fs, LocalFileSystem)
        try:
            temporary = _temporary(self._staging())
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(lambda: temporary.unlink(missing_ok=True))
                with temporary.open("wb") as file:
                    out = Publication(name, file)
                    yield out
                    file.flush()
                    if local:
                        os.fsync(file.fileno())
                if local:
                    _rename(temporary, Path(path))
                else:
                    with store_errors(f"write {self.uri(name)}"):
                        fs.put_file(str(temporary), path)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(
                f"Cannot write {self.uri(name)}: {error}. Free space or repair the store, then run the same command."
            ) from error


class Publication:
    """A file on its way to being published: written in sequence, digested on the way."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file = name, file
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Append bytes."""
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
        """Whether the file is closed, for writers that ask."""
        return self._file.closed

    @property
    def artefact(self) -> Artefact:
        """What was written; final once the publication is over."""
        return Artefact(self._name, self._size, self._digest.hexdigest())


def _temporary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{_HOST}-{os.getpid()}-{uuid.uuid4().hex}.tmp"


def _rename(temporary: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)
    _sync_folder(target.parent)


def _link_new(staging: Path, target: Path, content: bytes) -> None:
    temporary = _temporary(staging)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(temporary)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # A rename is on the disk only when the folder that holds the name is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
