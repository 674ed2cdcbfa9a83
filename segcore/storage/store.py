"""Stores: where images are read from and results are written to, on any fsspec file system.

All output goes through `Store.publish` or `Store.writing`, so a file under its name is always
complete. On a local disk the bytes go to a temporary file under `staging/`, are flushed to the disk
and then take their name in one atomic step (a rename, or a hard link if the name must be new). On
an object store this step is one put, conditional if the name must be new.

The name of a temporary file identifies its writer: `maskloom-HOST-PROCESS-MACHINE-….tmp`, where
MACHINE identifies one boot of one machine (or container). So `sweep` recognises the files of dead
processes of this machine and leaves all others alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import hashlib
import os
import platform
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from maskloom.segcore.errors import MaskloomError, StoreError
from maskloom.segcore.storage.addresses import address_of, redacted

STAGING = "staging"
"""Folder below a store's root for files that are not yet, or no longer, results."""
_HOST = platform.node() or "host"
_EXTRAS = {
    "s3": ("s3", "s3a"),
    "http": ("http", "https"),
    "gcs": ("gs", "gcs"),
    "azure": ("az", "abfs", "abfss"),
}
"""Extras of this package, and the protocols that they enable."""
_PROTOCOLS = [protocols[0] for protocols in _EXTRAS.values()]
_TEMPORARY = re.compile(
    r"(?:maskloom-)?(?P<host>.+)-(?P<process>\d+)-(?:(?P<machine>[0-9a-f]{12})-)?[0-9a-f]{32}\.tmp"
)
_CHUNK = 2**22
"""Bytes that are read at a time."""
_CONFLICTS = (409, 412)
"""HTTP: conflict with a concurrent request for the same object, or failed precondition."""
_TRIES, _FIRST_PAUSE = 4, 0.2
"""Number of attempts for a put that meets a conflict, and seconds before the second one. The pause
doubles with each attempt.
"""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
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


def not_empty(listed: Mapping[str, Listed]) -> set[str]:
    """Names of the listed files that are not empty, and of the folders around them."""
    names = {name for name, found in listed.items() if found.size}
    return names | {str(folder) for name in names for folder in PurePosixPath(name).parents}


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest for several files, from their names and digests; of a file alone, its own.

    A file alone has no name, those of a folder have their paths in it.
    """
    if digests.keys() == {""}:
        return digests[""]
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or local path, and the path inside it.

    Raises `StoreError` for an unknown protocol.
    """
    if "://" not in uri:
        # fsspec itself would read "::" in a file name as a chain of stores.
        return LocalFileSystem(), str(Path(address_of(uri)).absolute())
    try:
        fs, path = fsspec.core.url_to_fs(address_of(uri))
    # Some packages raise an AttributeError for a protocol that they no longer support.
    except (ValueError, ImportError, AttributeError) as error:
        raise StoreError(
            f"Cannot use the location {redacted(uri)!r}: {_remedy(uri, error)}"
        ) from error
    return fs, str(path)


def _remedy(uri: str, error: Exception) -> str:
    """The remedy if fsspec has no file system for a URI."""
    protocol = uri.partition("://")[0].rpartition("::")[2]
    extra = next((extra for extra, protocols in _EXTRAS.items() if protocol in protocols), None)
    if extra is not None and isinstance(error, ImportError):
        return f"{protocol}:// needs the extra {extra!r}: pip install 'maskloom[{extra}]'."
    if isinstance(error, ImportError):
        return f"{redacted(str(error)).rstrip('.')}."
    close = difflib.get_close_matches(protocol, fsspec.available_protocols(), n=1)
    hint = f" Did you mean {close[0]}://?" if close else ""
    return (
        f"{redacted(str(error)).rstrip('.')}.{hint} Known are a path, "
        f"{', '.join(f'{name}://' for name in _PROTOCOLS)} and others of fsspec."
    )


def is_local(uri: str) -> bool:
    """Whether a URI or path is on a local disk of this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def configure(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Set fsspec options (profile, endpoint, region ...) by protocol for this process."""
    for protocol, values in options.items():
        fsspec.config.conf.setdefault(protocol, {}).update(values)


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn any error of a store's client into a `StoreError`, except `FileNotFoundError`,
    `FileExistsError` and maskloom's own.
    """
    try:
        yield
    except (MaskloomError, FileNotFoundError, FileExistsError):
        raise
    # The errors of clients (botocore, aiohttp, google ...) have no common base class.
    except Exception as error:
        reason = redacted(str(error)).rstrip(".") or type(error).__name__
        raise StoreError(
            f"Cannot {redacted(what)}: {reason}. Check the location, your access to it and the "
            "room in it, then run the same command again."
        ) from error


def remedy(error: OSError) -> str:
    """The remedy for a failed write to a local disk.

    >>> remedy(OSError(errno.ENOSPC, "No space left on device"))
    'Free space there, then run the same command.'
    """
    if error.errno in _FULL:
        return "Free space there, then run the same command."
    if error.errno in _NOT_WRITABLE:
        return (
            "Check that the folder is there and that you may write there, then run the same "
            "command."
        )
    return "Repair the store, then run the same command."


def version_of(info: Mapping[str, Any]) -> str:
    """A string that changes whenever a file's bytes change: the store's own tag, or else size and
    time of the last change.
    """
    tag = next(
        (
            str(info[key]).strip('"')
            for key in ("ETag", "etag", "md5Hash", "content_md5")
            if info.get(key)
        ),
        None,
    )
    if tag is not None:
        return f"{info.get('size', 0):x}-{tag}"
    changed = next(
        (
            info[key]
            for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
            if info.get(key)
        ),
        "",
    )
    stamp = f"{int(changed * 1_000_000):x}" if isinstance(changed, float) else str(changed)
    return f"{info.get('size', 0) or 0:x}-{stamp}"


def current_version(uri: str) -> str:
    """The present version of a file in its store.

    Raises `FileNotFoundError`, or `StoreError` if the store does not answer.
    """
    fs, path = filesystem(uri)
    with store_errors(f"look at {uri}"):
        # Otherwise fsspec answers from an earlier listing of the folder.
        fs.invalidate_cache(path)
        return version_of(fs.info(path))


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
                else cast(bytes, fs.cat_file(path, start=start or None, end=stop))
            )

    def open(self, name: str) -> IO[bytes]:
        """Open a published file for reading. Raises as `read`."""
        fs, path = filesystem(self.uri(name))
        with store_errors(f"read {self.uri(name)}"):
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
        fs, path = filesystem(self.uri(folder))
        root = filesystem(self.root)[1].rstrip("/")
        try:
            with store_errors(f"list {self.uri(folder)}"):
                fs.invalidate_cache()
                found = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            name[len(root) + 1 :]: Listed(int(info.get("size") or 0), _modified_at(info))
            for name, info in found.items()
        }

    def remove(self, folder: str) -> None:
        """Remove a folder and all files below it. An absent folder is no error. Raises
        `StoreError`.
        """
        fs, path = filesystem(self.uri(folder))
        with contextlib.suppress(FileNotFoundError), store_errors(f"remove {self.uri(folder)}"):
            # A cached listing may be incomplete.
            fs.invalidate_cache()
            if isinstance(fs, LocalFileSystem) or not fsspec.core.has_magic(path):
                _retry_on_conflict(lambda: fs.rm(path, recursive=True))
            else:
                # fsspec would treat brackets in a folder's name as a pattern and remove other
                # files.
                for found in fs.find(path):
                    _retry_on_conflict(partial(fs.rm_file, found))

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
                return _retry_on_conflict(lambda: _put_new(fs, path, content))
            try:
                _link_new(self._staging(), Path(path), content)
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
            path for path in self._staging().glob("*.tmp") if _TEMPORARY.fullmatch(path.name)
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
                        _retry_on_conflict(lambda: fs.put_file(str(temporary), path))
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


def is_writer_alive(temporary: Path) -> bool | None:
    """Whether the process named in a temporary file's name is alive. None if unknown: it belongs to
    another machine.
    """
    name = _TEMPORARY.fullmatch(temporary.name)
    if name is None or name["machine"] != _machine():
        return None
    try:
        os.kill(int(name["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        # The process belongs to another user.
        pass
    return True


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, unless it is gone or belongs to another user."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()


@lru_cache(maxsize=1)
def _machine() -> str:
    """An identifier of one boot of one machine and one process namespace: each container numbers
    its processes separately.
    """
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{_HOST}\n{boot}\n{space}".encode()).hexdigest()[:12]


def temporary_name() -> str:
    """A new name that identifies this process and machine; see `is_writer_alive`."""
    return f"maskloom-{_HOST}-{os.getpid()}-{_machine()}-{uuid.uuid4().hex}.tmp"


def _temporary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / temporary_name()


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


def _retry_on_conflict(put: Callable[[], T]) -> T:
    """The result of a request to a store, repeated if it conflicts with a concurrent request for
    the same object (the client itself repeats requests to a busy store).
    """
    for number in range(1, _TRIES):
        try:
            return put()
        # The errors of clients have no common base class.
        except Exception as error:
            if _status(error) not in _CONFLICTS:
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
        if not isinstance(error, FileExistsError) and _status(error) not in _CONFLICTS:
            raise
        fs.invalidate_cache()
        if not fs.exists(path):
            raise OSError(f"{error}, but there is no such object") from error
        return bool(fs.cat_file(path) == content)
    return True


def _status(error: BaseException) -> int | None:
    """The HTTP status in a client's error, wherever the client stores it (botocore, gcsfs, Azure,
    aiohttp).
    """
    met: BaseException | None = error
    while met is not None:
        response = getattr(met, "response", None)
        if isinstance(response, Mapping):
            return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for name in ("status_code", "status", "code"):
            found = getattr(met, name, None)
            if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()):
                return int(found)
        met = met.__cause__
    return None


def _rename(temporary: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)
    sync_folder(target.parent)


def _link_new(staging: Path, target: Path, content: bytes) -> None:
    temporary = _temporary(staging)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename_new(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename to a name that must be free, on a file system without hard links.

    Raises `FileExistsError`, and `StoreError` if the file system lacks such a rename too: two runs
    could then not detect each other.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        number = errno.ENOSYS
    elif (
        rename(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        == 0
    ):
        return
    else:
        number = ctypes.get_errno()
    if number == errno.EEXIST:
        raise FileExistsError(number, os.strerror(number), str(target))
    raise StoreError(
        f"Cannot write {target}: its file system has neither hard links nor renames that replace "
        f"nothing ({os.strerror(number)}), so runs "
        "could not be kept from doing the same work at once. Choose an `output` on another file "
        "system, or in an object store."
    )


def sync_folder(folder: Path) -> None:
    """Flush a local folder to the disk: a rename survives a crash only once its folder is
    flushed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
