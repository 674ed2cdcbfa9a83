"""Entries of `inputs`, and of lists: where they are, and the files that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.raster.source import ABSENT, Member
from maskloom.segcore.storage.addresses import (
    is_signed,
    is_web,
    redacted,
    require_no_password,
    without_signature,
)
from maskloom.segcore.storage.filesystems import filesystem, is_local, version_of
from maskloom.tasks.discovery import lists
from maskloom.tasks.discovery.files import info_of


@dataclass(frozen=True, slots=True)
class FoundImage:
    """A file, a folder or a series that is one image."""

    address: str | None
    """Where it is read. None: at its URI."""
    version: str
    size: int
    members: tuple[Member, ...] = ()
    is_folder: bool = False


def found_file(fs: Any, name: str, info: Mapping[str, Any]) -> tuple[str, FoundImage]:
    """The URI of a listed file, and the file."""
    address = uri_of(fs, name)
    uri = without_signature(address).encode("utf-8", "backslashreplace").decode()
    version = version_of(info) if info else ABSENT
    size = int(info.get("size") or 0)
    return uri, FoundImage(None if address == uri else address, version, size)


def target_info(fs: Any, link: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a local store says of the file that a link names, whose version workers compare: fsspec
    gives the time of the link. Of links to anything else, what it says of the link.
    """
    found = info_of(fs, link["name"])
    return found if found.get("type") == "file" else link


def shown_uri(fs: Any, path: str) -> str:
    """The URI of a path without its secrets."""
    return redacted(without_signature(str(fs.unstrip_protocol(path))))


def is_hidden(path: str) -> bool:
    """Whether a file or a folder around it has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def place_of(entry: str) -> tuple[Any, str]:
    """The file system of an input and the path in it, normalised for local files."""
    try:
        fs, path = filesystem(entry)
    except StoreError as error:
        raise RecipeError(f"inputs: {error}") from error
    return fs, os.path.normpath(path) if "file" in fs.protocol else path


def refuse_secrets(entry: str, chain: tuple[str, ...]) -> None:
    """Raise `RecipeError` for an address with a password, or a signature that is no web address's;
    `chain` are the lists that led to it.
    """
    if "://" not in entry:
        return
    where = f"inputs: {redacted(entry)!r}" + (f" in the list {chain[-1]!r}" if chain else "")
    require_no_password(entry, where)
    if is_signed(entry) and not is_web(entry):
        raise RecipeError(
            f"{where}: only addresses that begin with https:// may be signed; leave the secret "
            "parameter out."
        )


def existing_name(name: str) -> str:
    """A name of a list whose bytes are not UTF-8: unchanged if such a file exists, otherwise read
    as spreadsheets write it.
    """
    plain = lists.spelled(name)
    return (
        name
        if plain == name or (is_local(name) and filesystem(name)[0].exists(filesystem(name)[1]))
        else plain
    )


def uri_of(fs: Any, path: str) -> str:
    """The URI of a path; of a local file, the path itself."""
    return path if "file" in fs.protocol else str(fs.unstrip_protocol(path))
