"""File systems: the fsspec file system of a location, its options, errors and versions of files."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from maskloom.segcore.errors import MaskloomError, StoreError
from maskloom.segcore.storage.addresses import address_of, redacted

_EXTRAS = {
    "s3": ("s3", "s3a"),
    "http": ("http", "https"),
    "gcs": ("gs", "gcs"),
    "azure": ("az", "abfs", "abfss"),
}
"""Extras of this package, and the protocols that they enable."""
_PROTOCOLS = [protocols[0] for protocols in _EXTRAS.values()]
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or local path, and the path inside it.

    Raises `StoreError` for an unknown protocol.
    """
    if "://" not in uri:
        # fsspec itself would read "::" in a file name as a chain of stores.
        return _local(), _absolute(address_of(uri))
    try:
        fs, path = fsspec.core.url_to_fs(address_of(uri))
    # Some packages raise an AttributeError for a protocol that they no longer support, or a
    # TypeError for one that needs options.
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise StoreError(
            f"Cannot use the location {redacted(uri)!r}: {_remedy(uri, error)}"
        ) from error
    return fs, str(path)


@cache
def _local() -> LocalFileSystem:
    return LocalFileSystem()


def _absolute(path: str) -> str:
    if path[:1] == "/" and path[-1:] != "/" and "//" not in path and "/." not in path:
        # This is called some ten times an image, and pathlib takes 10 microseconds.
        return path
    return str(Path(path).absolute())


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
        advice = (
            remedy(error)
            if isinstance(error, OSError) and error.errno in _FULL
            else "Check the location, your access to it and the room in it, then run the same "
            "command again."
        )
        raise StoreError(f"Cannot {redacted(what)}: {reason}. {advice}") from error


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


def info_of(fs: fsspec.AbstractFileSystem, path: str) -> Mapping[str, Any]:
    """What the store says of a file: at least its type, its size and what decides its version.
    Raises `FileNotFoundError`, and the client's errors.
    """
    if isinstance(fs, LocalFileSystem):
        # A plan asks three times for each of a million images; fsspec needs ten times as long.
        found = os.stat(path)  # noqa: PTH116
        kind = "file" if stat.S_ISREG(found.st_mode) else "other"
        kind = "directory" if stat.S_ISDIR(found.st_mode) else kind
        return {"name": path, "type": kind, "size": found.st_size, "mtime": found.st_mtime}
    return cast("Mapping[str, Any]", fs.info(path))


def fresh_info(fs: fsspec.AbstractFileSystem, path: str) -> Mapping[str, Any]:
    """What the store says of a file now. Raises `FileNotFoundError`, and the client's errors."""
    if isinstance(fs, LocalFileSystem):
        return info_of(fs, path)
    # Otherwise clients answer from earlier listings. That of Azure forgets no more than the listing
    # that it is told to forget.
    fs.invalidate_cache(path)
    fs.invalidate_cache(path.rpartition("/")[0])
    return info_of(fs, path)


def current_version(uri: str) -> str:
    """The present version of a file in its store.

    Raises `FileNotFoundError`, or `StoreError` if the store does not answer.
    """
    fs, path = filesystem(uri)
    with store_errors(f"look at {uri}"):
        return version_of(fresh_info(fs, path))
