"""The inputs of a recipe as a list of sources, each with its version and its image id."""

from __future__ import annotations

import difflib
import logging
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.raster.source import ABSENT, Source, learn_addresses
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.storage.addresses import redacted
from maskloom.segcore.storage.filesystems import filesystem, is_local
from maskloom.segcore.storage.store import STAGING
from maskloom.tasks.discovery.image_ids import image_ids
from maskloom.tasks.discovery.lists import COLUMN
from maskloom.tasks.discovery.search import WITHOUT_SUFFIX, Search, image_suffixes
from maskloom.tasks.discovery.series import ReadHeaders, read_headers_here

log = logging.getLogger(__name__)

DEFAULT = ReadOptions()

_NAMED = 3
_NAMED_SUFFIXES = 20
_NAMES_COMPARED = 10_000
_BY_CONTENT = (
    ".qptiff",
    ".lsm",
    ".stk",
    ".tf8",
    ".tif8",
    ".geotiff",
    ".vms",
    ".vmu",
)
"""Suffixes of files that formats recognise by their content, though none claims the suffix."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """The result of a search."""

    sources: list[Source]
    """Sorted by URI, each once."""
    passed_over: Mapping[str, int]
    """See `Search.passed_over`."""


def discover(
    inputs: Sequence[str],
    output: str,
    known: Mapping[str, str],
    read_headers: ReadHeaders = read_headers_here,
    options: ReadOptions = DEFAULT,
) -> Discovered:
    """All sources of these inputs, without the files that a run writes below `output`.

    `known` maps the URIs of earlier runs to their image ids, which stay; `read_headers` reads files
    that may belong to series. Raises `RecipeError` if no image is found or none exists, if a list
    cannot be read or names itself, and if an address holds a password; `StoreError` if a store
    cannot be listed.
    """
    search = Search(
        tuple(
            f"{output}/{folder}/"
            for folder in (
                "masks",
                "scores",
                "previews",
                "tables",
                "runs",
                "evaluation",
                "stac",
                STAGING,
            )
        )
    )
    without_image = []
    for entry in inputs:
        before = search.count
        search.add(entry)
        if search.count == before:
            without_image.append(entry)
    search.read_stac(options)
    search.join_series(read_headers, options)
    if not search.found:
        raise RecipeError(
            f"inputs: {_some(inputs)} {'matches' if len(inputs) == 1 else 'match'} no image. "
            f"{passed_over_note(search.passed_over)}"
            "Give a file, a glob, e.g. "
            f"'scenes/**/*.tif', a folder with images ({' '.join(image_suffixes())}), or a list "
            f"file with a column `{COLUMN}`."
        )
    sources = _sources(search, known)
    if all(source.version == ABSENT for source in sources):
        raise RecipeError(f"inputs: {_absent([source.uri for source in sources], without_image)}")
    _warn(without_image, search.duplicates)
    return Discovered(sources, search.passed_over)


def passed_over_note(passed_over: Mapping[str, int]) -> str:
    """Sentences about files that were passed over, followed by a space; empty if there are none.

    >>> passed_over_note({".nii.gz": 12, ".dcm": 1})
    'Passed over in folders, since no format claims such files: 12 .nii.gz, 1 .dcm. '
    >>> passed_over_note({"reports": 3})
    'Passed over in folders, since they hold no image: 3 reports. '
    """
    unclaimed = {
        kind: count
        for kind, count in passed_over.items()
        if kind.startswith(".") or kind == WITHOUT_SUFFIX
    }
    without = {kind: passed_over[kind] for kind in passed_over.keys() - unclaimed.keys()}
    return _passed_over("no format claims such files", unclaimed) + _passed_over(
        "they hold no image", without
    )


def _passed_over(reason: str, kinds: Mapping[str, int]) -> str:
    counts = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count} {kind}" for kind, count in counts[:_NAMED_SUFFIXES]]
    if more := len(counts[_NAMED_SUFFIXES:]):
        named.append(f"{sum(count for _, count in counts[_NAMED_SUFFIXES:])} of {more} more kinds")
    return f"Passed over in folders, since {reason}: {', '.join(named)}. " if named else ""


def passed_over_advice(passed_over: Mapping[str, int]) -> str:
    """How to read files that were passed over, but whose content may be an image; empty if there
    are none of them.

    >>> passed_over_advice({".lsm": 2}), passed_over_advice({".dcm": 2})
    ("To read them by their content, name them by a file or a glob, e.g. '*.lsm'.", '')
    """
    suffix = next((suffix for suffix in _BY_CONTENT if suffix in passed_over), None)
    return (
        f"To read them by their content, name them by a file or a glob, e.g. '*{suffix}'."
        if suffix
        else ""
    )


def _sources(search: Search, known: Mapping[str, str]) -> list[Source]:
    uris = sorted(search.found)
    ids = image_ids(uris, sorted(search.folders), known)
    sources = []
    for uri in uris:
        # What is a source need not stay in memory twice.
        found = search.found.pop(uri)
        source = Source(
            uri,
            ids[uri],
            found.version,
            found.size,
            found.address,
            found.members,
            found.is_folder,
            acquired=search.dates.get(uri),
        )
        learn_addresses(source)
        sources.append(source)
    return sources


def _warn(without_image: Sequence[str], duplicates: int) -> None:
    for entry in without_image:
        log.warning(
            "The input %r adds no image: it matches none, or only images that other inputs give "
            "too.",
            redacted(entry),
        )
    if duplicates:
        log.warning(
            "Inputs whose URLs differ only in the signature or the fragment are one image: %d left "
            "out.",
            duplicates,
        )


def _absent(uris: Sequence[str], without_image: Sequence[str]) -> str:
    """A message that no input exists, with the name that may have been meant; `without_image` are
    inputs that match no image.
    """
    close = _similar_name(uris[0])
    hint = f" Did you mean {close!r}?" if close else ""
    also = (
        f", and {_some(without_image)} {'matches' if len(without_image) == 1 else 'match'} no image"
        if without_image
        else ""
    )
    if len(uris) == 1:
        names = "the names" if without_image else "its name"
        return f"{uris[0]!r} does not exist{also}.{hint} Check {names}."
    return (
        f"none of the {len(uris)} files {_some(uris)} exists{also}.{hint} Check their names and "
        "the folder that they are below."
    )


def _similar_name(uri: str) -> str | None:
    """A name in the same folder that is similar to a missing one."""
    folder, name = posixpath.split(uri)
    try:
        fs, path = filesystem(folder)
        if not is_local(uri) or not fs.isdir(path):
            return None
        names = [
            posixpath.basename(each.rstrip("/"))
            for each in fs.ls(path, detail=False)[:_NAMES_COMPARED]
        ]
    except (OSError, StoreError):
        return None
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _some(entries: Sequence[str]) -> str:
    return ", ".join(repr(redacted(entry)) for entry in entries[:_NAMED]) + (
        ", ..." if len(entries) > _NAMED else ""
    )
