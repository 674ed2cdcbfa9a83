"""Image ids: the path of a source below the common folder, as a name that is safe for files.

The common folder is that of the inputs as the recipe states them, so an id does not change when
other images arrive.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Mapping, Sequence

from maskloom.segcore import formats
from maskloom.segcore.formats.dicom.grouping import is_series

_FOLDER_SUFFIX = re.compile(r"\.(\w+)/")
_UNSAFE = re.compile(r"[^\w.\-]")
_LONGEST_NAME = 150
"""Bytes of one part of a path; file systems allow 255, and suffixes are added."""


def _common_folder(folders: Sequence[str]) -> str:
    protocols = {folder.partition("://")[0] for folder in folders}
    return (
        posixpath.commonpath([folder.partition("://")[2] for folder in folders])
        if len(protocols) == 1
        else ""
    )


def image_ids(
    uris: Sequence[str], folders: Sequence[str], known: Mapping[str, str]
) -> dict[str, str]:
    """An id for each URI. `folders`: those that the inputs name; `known`: ids of earlier runs by
    URI, which stay.
    """
    root = _common_folder(folders)
    ids = {uri: known[uri] for uri in uris if uri in known}
    taken = {image_id.casefold() for image_id in known.values()}
    for uri in uris:
        if uri in ids:
            continue
        path = _below(uri.partition("://")[2] or uri, root)
        stem, suffix = posixpath.splitext(path)
        if is_series(uri):
            # Dots in the UID of a series begin no suffix.
            stem, suffix = path, ""
        # Only the formats know suffixes with two dots.
        elif (claimed := formats.suffix_of(uri)).count(".") > 1 and path.lower().endswith(claimed):
            stem, suffix = path[: -len(claimed)], path[-len(claimed) :]
        # A folder that is named like an image must not get the name of that image's mask.
        folder, _, name = stem.rpartition("/")
        plain = safe_name(_FOLDER_SUFFIX.sub(r"_\1/", f"{folder}/") + name)
        candidates = (
            plain,
            f"{plain}_{safe_name(suffix[1:])}" if suffix else plain,
            f"{plain}_{hashlib.sha256(uri.encode()).hexdigest()[:10]}",
        )
        # Some file systems ignore case.
        ids[uri] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(ids[uri].casefold())
    return ids


def _below(path: str, root: str) -> str:
    return (
        path[len(root) :].lstrip("/")
        if root and path.startswith(root.rstrip("/") + "/")
        else path.lstrip("/")
    )


def safe_name(path: str) -> str:
    """A path that is safe on every file system: letters, digits, `_`, `-`, `.` and `/`, without
    hidden or relative parts.

    >>> safe_name("a b/../ü:x")
    'a_b/_./ü_x'
    """
    parts = [
        _UNSAFE.sub("_", unicodedata.normalize("NFC", part)) for part in path.split("/") if part
    ]
    parts = ["_" + part[1:] if part.startswith(".") else part for part in parts] or ["_"]
    return "/".join(
        part
        if len(part.encode()) <= _LONGEST_NAME
        else f"{part[:60]}_{hashlib.sha256(part.encode()).hexdigest()[:10]}"
        for part in parts
    )
