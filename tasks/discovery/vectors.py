"""Files of vectors (GeoJSON, GeoPackage, GeoParquet ...) among files, globs and folders."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from maskloom.segcore.annotations.polygons.files import (
    PARQUET_SUFFIXES,
    is_geoparquet,
    is_vector_file,
)
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.source import Source
from maskloom.segcore.storage.addresses import redacted, require_no_password, without_query
from maskloom.segcore.storage.filesystems import filesystem, store_errors, version_of
from maskloom.tasks.discovery.image_ids import image_ids


def are_vectors(entries: Sequence[str]) -> bool:
    """Whether these files and globs are those of vectors by their names; a `.parquet` file by its
    content, since it may be a list of masks. Raises `RecipeError` if only some are.
    """
    found = [_is_vectors(entry) for entry in entries]
    if any(found) and not all(found):
        raise RecipeError(
            f"{redacted(entries[found.index(True)])!r} holds vectors, "
            f"{redacted(entries[found.index(False)])!r} does not. Give either polygons or masks."
        )
    return any(found)


def find_vectors(entries: Sequence[str], key: str) -> list[Source]:
    """All files of vectors of these entries; `key` names them in messages. Raises `RecipeError` if
    an entry has none, `StoreError` if a store cannot be listed.
    """
    found: dict[str, tuple[str, int]] = {}
    folders = set()
    for entry in entries:
        require_no_password(entry, f"{key}: {redacted(entry)!r}")
        fs, path = filesystem(entry)
        with store_errors(f"list {redacted(entry)!r}"):
            files = list(_files(fs, path))
        if not files:
            raise RecipeError(
                f"{key}: {redacted(entry)!r} is no file of vectors, and no glob or folder that has "
                "some (.geojson .gpkg .parquet). Check its name."
            )
        for name, info in files:
            uri = name if "file" in fs.protocol else str(fs.unstrip_protocol(name))
            found[uri] = version_of(info), int(info.get("size") or 0)
            folders.add(posixpath.dirname(uri))
    ids = image_ids(sorted(found), sorted(folders), {})
    return [Source(uri, ids[uri], *found[uri]) for uri in sorted(found)]


def _files(fs: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if fs.isfile(path):
        yield path, fs.info(path)
        return
    pattern = path if any(sign in path for sign in "*?[") else f"{path.rstrip('/')}/**"
    for name, info in sorted(fs.glob(pattern, detail=True).items()):
        if info["type"] == "file" and is_vector_file(name):
            yield name, info


def _is_vectors(entry: str) -> bool:
    if not is_vector_file(entry):
        return False
    if not without_query(entry).lower().endswith(PARQUET_SUFFIXES):
        return True
    return "*" not in entry and is_geoparquet(entry)
