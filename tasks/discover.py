"""Discover: the recipe's inputs as a list of sources, each with its version and a name of its own.

Inputs are files, globs, folders (every file below whose suffix a format claims) and lists (.csv, .parquet, .txt with a column
`uri`) on any fsspec store. `image_id` is the path of a source below the inputs' common folder, without its suffix and made safe for file names.
The common folder is that of the inputs as the recipe states them, so an id does not change when other images arrive.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from segcore import formats  # noqa: F401  (fills FORMATS)
from segcore.errors import RecipeError
from segcore.manifest import Source
from segcore.raster import FORMATS
from segcore.storage import STAGING, filesystem, store_errors, version_of

log = logging.getLogger(__name__)

LISTS = (".csv", ".parquet", ".txt")
_GLOB = re.compile(r"[*?\[]")
_SUFFIXED = re.compile(r"\.(\w+)/")
_UNSAFE = re.compile(r"[^\w.\-]")
_LONGEST_NAME = 150


def discover(inputs: Sequence[str], output: str, known: Mapping[str, str]) -> list[Source]:
    """All sources of these inputs, sorted by URI, each once; nothing that a run writes below `output`.

    `known` maps the URIs of earlier runs to their image ids, which stay. Raises `RecipeError` where an input names nothing at all, `StoreError`
    where a store cannot be listed.
    """
    found: dict[str, Mapping[str, Any]] = {}
    ours = tuple(f"{output}/{folder}/" for folder in ("masks", "previews", "tables", "runs", "evaluation", STAGING))
    folders = []
    for entry in inputs:
        before = len(found)
        for folder, uri, info in _expand(entry):
            folders.append(folder)
            if not uri.startswith(ours):
                found.setdefault(uri, info)
        if len(found) == before:
            log.warning("The input %r adds no image: it matches none, or only images that other inputs give too.", entry)
    if not found:
        raise RecipeError(
            f"inputs: {', '.join(map(repr, inputs))} match no image. Give a file, a glob such as 'scenes/**/*.tif', a folder with images "
            f"({' '.join(image_suffixes())}), or a list file with a column `uri`."
        )
    root = _common(folders)
    ids = _image_ids(sorted(found), root, known)
    return [Source(uri, ids[uri], version_of(found[uri]), int(found[uri].get("size") or 0)) for uri in sorted(found)]


def image_suffixes() -> tuple[str, ...]:
    """All file suffixes that some format claims."""
    return tuple(suffix for image_format in FORMATS.values() for suffix in image_format.suffixes)


def _expand(entry: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(folder that the entry names, URI, file info) of each file of one entry."""
    fs, path = filesystem(entry)
    fs.invalidate_cache()
    with store_errors(f"list the input {entry!r}"):
        # An existing file wins over a glob: real names do contain brackets.
        if _GLOB.search(path) and not fs.exists(path):
            folder = posixpath.dirname(path[: _GLOB.search(path).start()])  # type: ignore[union-attr]
            files = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
        elif fs.isdir(path):
            folder = path.rstrip("/")
            files = {name: info for name, info in fs.find(path, detail=True).items() if _claimed(name, folder)}
        elif path.lower().endswith(LISTS):
            for uri in _read_list(entry, fs.cat_file(path)):
                yield from _expand(_absolute(uri, posixpath.dirname(entry)))
            return
        else:
            folder = posixpath.dirname(path)
            files = {path: _info(fs, path)}
    for name, info in files.items():
        yield fs.unstrip_protocol(folder), _printable(_uri(fs, name)), info


def _printable(uri: str) -> str:
    """A file name that is not UTF-8 with its strange bytes spelled out: such a file fails alone, by a name that tables can hold."""
    return uri.encode("utf-8", "backslashreplace").decode("utf-8")


def _info(fs: Any, path: str) -> Mapping[str, Any]:
    try:
        info: Mapping[str, Any] = fs.info(path)
    except FileNotFoundError:
        # Named but absent: one failed row with a clear reason, as for any image that cannot be read.
        return {"size": 0}
    return info


def _uri(fs: Any, path: str) -> str:
    return path if "file" in fs.protocol else str(fs.unstrip_protocol(path))


def _claimed(path: str, folder: str) -> bool:
    hidden = any(part.startswith(".") for part in path[len(folder) :].split("/"))
    return not hidden and path.lower().endswith(image_suffixes())


def _read_list(entry: str, content: bytes) -> list[str]:
    if entry.lower().endswith(".txt"):
        lines = (line.strip() for line in content.decode("utf-8-sig").splitlines())
        uris = [line for line in lines if line and not line.startswith("#") and line != "uri"]
    elif entry.lower().endswith(".csv"):
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        _need_uri_column(entry, rows.fieldnames or [])
        uris = [row["uri"].strip() for row in rows if row["uri"]]
    else:
        from segcore.parquet import read_parquet

        table = read_parquet(content)
        _need_uri_column(entry, table.column_names)
        uris = [str(uri) for uri in table["uri"].to_pylist() if uri]
    if not uris:
        raise RecipeError(f"inputs: the list {entry!r} names no image.")
    return uris


def _need_uri_column(entry: str, columns: Iterable[str]) -> None:
    if "uri" not in columns:
        raise RecipeError(f"inputs: the list {entry!r} needs a column `uri`; it has {', '.join(columns) or 'none'}.")


def _absolute(uri: str, folder: str) -> str:
    return uri if "://" in uri or uri.startswith("/") else posixpath.join(folder, uri)


def _common(folders: Sequence[str]) -> str:
    protocols = {folder.partition("://")[0] for folder in folders}
    return posixpath.commonpath([folder.partition("://")[2] for folder in folders]) if len(protocols) == 1 else ""


def _image_ids(uris: Sequence[str], root: str, known: Mapping[str, str]) -> dict[str, str]:
    ids = {uri: known[uri] for uri in uris if uri in known}
    taken = {image_id.casefold() for image_id in known.values()}
    for uri in uris:
        if uri in ids:
            continue
        stem, suffix = posixpath.splitext(_below(uri.partition("://")[2] or uri, root))
        # A folder named like an image must not take the name of that image's mask.
        folder, _, name = stem.rpartition("/")
        plain = safe_name(_SUFFIXED.sub(r"_\1/", f"{folder}/") + name)
        candidates = (
            plain,
            f"{plain}_{safe_name(suffix[1:])}" if suffix else plain,
            f"{plain}_{hashlib.sha256(uri.encode()).hexdigest()[:10]}",
        )
        # Case-insensitive, since some file systems and all colleagues are.
        ids[uri] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(ids[uri].casefold())
    return ids


def _below(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") if root and path.startswith(root.rstrip("/") + "/") else path.lstrip("/")


def safe_name(path: str) -> str:
    """A path made safe for every file system: letters, digits, `_`, `-`, `.` and `/`, no hidden or relative parts.

    >>> safe_name("a b/../ü:x")
    'a_b/_./ü_x'
    """
    parts = [_UNSAFE.sub("_", unicodedata.normalize("NFC", part)) for part in path.split("/") if part]
    parts = ["_" + part[1:] if part.startswith(".") else part for part in parts] or ["_"]
    return "/".join(
        part if len(part.encode()) <= _LONGEST_NAME else f"{part[:60]}_{hashlib.sha256(part.encode()).hexdigest()[:10]}"
        for part in parts
    )
