"""Conditional copies within an object store, which fsspec does not offer: the content of one object
goes to another name on condition that the object there has not changed.

    S3       If-Match and If-None-Match, with the ETag as version
    Google   ifGenerationMatch, with the generation as version
    Azure    If-Match and If-None-Match, with the ETag as version

A condition that does not hold is an error of the client with HTTP status 412 (`status_of`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, cast

import fsspec

from maskloom.segcore.storage.atomic import new_temporary, remove_temporary
from maskloom.segcore.storage.filesystems import fresh_info

CONFLICT, PRECONDITION_FAILED, NOT_FOUND = 409, 412, 404
"""HTTP: conflict with a concurrent request for the same object; a condition does not hold; no such
object.
"""


class ConditionalCopies(Protocol):
    """One way of an object store to copy on a condition. Paths are those of its file system."""

    largest: ClassVar[int | None]
    """Maximum size in bytes of an object. None: no limit but that of the store."""
    impossible: ClassVar[str]
    """A version that no object has."""

    def version(self, path: str) -> str:
        """The version of an object. Raises `FileNotFoundError`, and the client's errors."""
        ...

    def copy(self, source: str, target: str, base: str | None) -> None:
        """Copy an object to `target` if the version there is `base`. None: if
        no object is there.

        Raises the client's errors.
        """
        ...


def ways_to_copy(fs: fsspec.AbstractFileSystem) -> list[ConditionalCopies]:
    """The ways in which a store may copy on a condition, the best one first; whether it honours the
    condition must be tried. Empty: none are known.
    """
    if is_s3(fs):
        return [_S3Copies(fs), _S3Puts(fs)]
    if "gs" in _protocols(fs):
        return [_GoogleCopies(fs)]
    return [_AzurePuts(fs)] if "abfs" in _protocols(fs) else []


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is S3."""
    return "s3" in _protocols(fs)


def _protocols(fs: fsspec.AbstractFileSystem) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


@dataclass(frozen=True, slots=True)
class _S3:
    """What both ways of S3 share."""

    fs: Any
    largest: ClassVar[int | None] = 5 * 2**30
    impossible: ClassVar[str] = '"' + "0" * 32 + '"'

    def version(self, path: str) -> str:
        return str(_object(self.fs, path)["ETag"])

    def _target(self, path: str, base: str | None) -> dict[str, str]:
        """The arguments of a request for a target and its condition."""
        bucket, key, _ = self.fs.split_path(path)
        condition = {"IfNoneMatch": "*"} if base is None else {"IfMatch": base}
        return {"Bucket": bucket, "Key": key, **condition}


@dataclass(frozen=True, slots=True)
class _S3Copies(_S3):
    """The server copies."""

    def copy(self, source: str, target: str, base: str | None) -> None:
        bucket, key, _ = self.fs.split_path(source)
        copied = {"Bucket": bucket, "Key": key}
        self.fs.call_s3("copy_object", CopySource=copied, **self._target(target, base))


@dataclass(frozen=True, slots=True)
class _S3Puts(_S3):
    """The bytes pass through this process: many servers honour conditions of puts only."""

    def copy(self, source: str, target: str, base: str | None) -> None:
        with _fetched(self.fs, source) as content:
            self.fs.call_s3("put_object", Body=content, **self._target(target, base))


@dataclass(frozen=True, slots=True)
class _GoogleCopies:
    """The server copies."""

    fs: Any
    largest: ClassVar[int | None] = None
    impossible: ClassVar[str] = "1"

    def version(self, path: str) -> str:
        return str(_object(self.fs, path)["generation"])

    def copy(self, source: str, target: str, base: str | None) -> None:
        places = [part for path in (source, target) for part in self.fs.split_path(path)[:2]]
        reply: dict[str, Any] = {"done": False}
        # A large object takes several requests.
        while not reply["done"]:
            reply = self.fs.call(
                "POST",
                "b/{}/o/{}/rewriteTo/b/{}/o/{}",
                *places,
                headers={"Content-Type": "application/json"},
                ifGenerationMatch=base or "0",
                rewriteToken=reply.get("rewriteToken"),
                json_out=True,
            )


@dataclass(frozen=True, slots=True)
class _AzurePuts:
    """The bytes pass through this process: copies by the server may end after their request."""

    fs: Any
    largest: ClassVar[int | None] = None
    impossible: ClassVar[str] = '"0x8000000000000000"'

    def version(self, path: str) -> str:
        tag = str(_object(self.fs, path)["etag"]).strip('"')
        return f'"{tag}"'

    def copy(self, source: str, target: str, base: str | None) -> None:
        from azure.core import MatchConditions

        condition: dict[str, Any] = {"overwrite": False}
        if base is not None:
            condition = {"etag": base, "match_condition": MatchConditions.IfNotModified}
        with _fetched(self.fs, source) as content:
            self.fs.pipe_file(target, content, **condition)


def status_of(error: BaseException) -> int | None:
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
        if met.__cause__ is None and isinstance(met, FileExistsError | FileNotFoundError):
            # Some clients raise these in place of their own errors.
            return PRECONDITION_FAILED if isinstance(met, FileExistsError) else NOT_FOUND
        met = met.__cause__
    return None


def _object(fs: Any, path: str) -> Mapping[str, Any]:
    """What the store says of an object now. Raises `FileNotFoundError`."""
    info = fresh_info(fs, path)
    if info.get("type") == "directory":
        # Clients report names with something below them.
        raise FileNotFoundError(path)
    return info


@contextlib.contextmanager
def _fetched(fs: Any, path: str) -> Iterator[IO[bytes]]:
    """The content of an object in a temporary file, which names its process (`Store.sweep`)."""
    temporary = new_temporary(Path(tempfile.gettempdir()))
    try:
        fs.get_file(path, str(temporary))
        with temporary.open("rb") as content:
            yield content
    finally:
        remove_temporary(temporary)
