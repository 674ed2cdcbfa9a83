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
from maskloom.segcore.formats.stac.documents import is_feature

_FOLDER_SUFFIX = re.compile(r"\.(\w+)/")
_IN_DOCUMENT = re.compile(r"\.(?:geo)?json/(?=[^/]+$)")
_UNSAFE = re.compile(r"[^\w.\-]")
_SAFE = re.compile(r"[A-Za-z0-9_\-][\w.\-]*(?:/[A-Za-z0-9_\-][\w.\-]*)*", re.ASCII)
"""Paths that are safe as they are."""
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
    root = root.rstrip("/")
    suffixes: dict[str, str] = {}
    for uri in uris:
        if uri in ids:
            continue
        path = _below(uri.partition("://")[2] or uri, root)
        stem, suffix = posixpath.splitext(path)
        if is_series(uri) or is_feature(uri):
            # Dots in the UID of a series, or in the id of an item, begin no suffix.
            stem, suffix = _IN_DOCUMENT.sub("/", path), ""
        else:
            # Only the formats know suffixes with two dots. Most names end alike.
            tail = formats.tail_of(uri)
            if tail not in suffixes:
                suffixes[tail] = formats.suffix_of(uri)
            claimed = suffixes[tail]
            if claimed.count(".") > 1 and path.lower().endswith(claimed):
                stem, suffix = path[: -len(claimed)], path[-len(claimed) :]
        # A folder that is named like an image must not get the name of that image's mask.
        folder, _, name = stem.rpartition("/")
        plain = safe_name(_FOLDER_SUFFIX.sub(r"_\1/", f"{folder}/") + name if folder else name)
        image_id = plain
        # Some file systems ignore case.
        if image_id.casefold() in taken:
            candidates = (
                f"{plain}_{safe_name(suffix[1:])}" if suffix else plain,
                f"{plain}_{hashlib.sha256(uri.encode()).hexdigest()[:10]}",
            )
            image_id = next(name for name in candidates if name.casefold() not in taken)
        folded = image_id.casefold()
        ids[uri] = image_id
        # Mostly the same string, which is then in memory once.
        taken.add(image_id if folded == image_id else folded)
    return ids


def _below(path: str, root: str) -> str:
    return (
        path[len(root) :].lstrip("/") if root and path.startswith(f"{root}/") else path.lstrip("/")
    )


def safe_name(path: str) -> str:
    """A path that is safe on every file system: letters, digits, `_`, `-`, `.` and `/`, without
    hidden or relative parts.

    >>> safe_name("a b/../ü:x")
    'a_b/_./ü_x'
    """
    if _SAFE.fullmatch(path) and len(path) <= _LONGEST_NAME:
        return path
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
