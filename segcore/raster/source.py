"""The inputs of a run: files, and folders and series of files that are one image each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.storage.addresses import redacted, remember_address
from maskloom.segcore.storage.canonical import digest
from maskloom.segcore.storage.filesystems import (
    current_version,
    filesystem,
    store_errors,
    version_of,
)
from maskloom.segcore.values import pickled_by_fields

ABSENT = "absent"
"""Version of a listed file that does not exist."""
_AT_ONCE = 16
"""Concurrent requests to a store."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class Member:
    """One file of an image that has several."""

    uri: str
    version: str
    """Changes when its bytes change."""
    size: int
    """Bytes."""
    address: str | None = field(default=None, repr=False, compare=False)
    """See `Source.address`."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class Source:
    """One input image: a file, a folder, or a series of files."""

    uri: str
    """Of the file or folder, with the part of it that is meant (`uri_of_part`). A series is named
    by its format.
    """
    image_id: str
    version: str
    """Changes when the bytes of a file change, and when a folder gains or loses one."""
    size: int
    """Bytes of all files."""
    address: str | None = field(default=None, repr=False, compare=False)
    """The address that its bytes are read from, if not `uri` (see `segcore.storage.addresses`). It
    is sent with jobs and never stored.
    """
    members: tuple[Member, ...] = ()
    """The files of a series. The files of a folder are listed when needed: a chunked array may have
    a million, too many for a job.
    """
    is_folder: bool = False
    part: str = ""
    """Name of the image among several in the file or folder. Empty: all of it."""
    acquired: str | None = field(default=None, compare=False)
    """When it was acquired, in UTC, by the list that names it. None: it says nothing."""

    @property
    def location(self) -> str:
        """URI of the file or folder; the name of a series."""
        return split_part(self.uri)[0] if self.part else self.uri


@dataclass(frozen=True, slots=True)
class Series:
    """Files that are one image, as a format groups them."""

    uri: str
    """Name of the image, below the folder of its files."""
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a format groups files."""

    series: Sequence[Series]
    """A file may belong to several."""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    """URIs of files that hold no image, and what each is, in a few words for a count. Those that an
    input names one by one become failed rows.
    """


def learn_addresses(source: Source) -> None:
    """Make the addresses of a source known to this process; see `segcore.storage.addresses`."""
    remember_address(source.location, source.address)
    for member in source.members:
        remember_address(member.uri, member.address)


def combined_version(members: Iterable[Member]) -> str:
    """The version of an image from those of its files: their number and a digest."""
    files = sorted((redacted(each.uri), each.version) for each in members)
    return f"{len(files)}-{digest(files)[:32]}"


def version_now(source: Source) -> str:
    """The present version of a source in its store.

    Raises `FileNotFoundError` if a file or the folder is missing, and `StoreError` if the store
    does not answer.
    """
    if source.is_folder:
        return combined_version(list_folder(source.location))
    if not source.members:
        return current_version(source.location)
    with ThreadPoolExecutor(_AT_ONCE, "version") as pool:
        versions = list(pool.map(current_version, (each.uri for each in source.members)))
    return combined_version(
        replace(each, version=version)
        for each, version in zip(source.members, versions, strict=True)
    )


def list_folder(uri: str) -> tuple[Member, ...]:
    """All files below a folder. Raises as `version_now`."""
    fs, path = filesystem(uri)
    with store_errors(f"list {uri}"):
        fs.invalidate_cache()
        found = fs.find(path, detail=True)
    if not found:
        raise FileNotFoundError(uri)
    return members_of(fs, found)


def members_of(fs: Any, found: Mapping[str, Mapping[str, Any]]) -> tuple[Member, ...]:
    """The members for listed files; `found` maps the path of each to the store's information about
    it.
    """
    local = "file" in fs.protocol
    return tuple(
        Member(
            path if local else str(fs.unstrip_protocol(path)),
            version_of(info),
            int(info.get("size") or 0),
        )
        for path, info in found.items()
    )
