"""Folders of labels beside images: they are truth, not images to segment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Source

_LABELS = re.compile(
    r"(labels?|masks?|annotations?|annotated|ground.?truths?|truths?|gts?|segmentations?"
    r"|segmentation(class|object)|targets?)([\W_].*)?",
    re.IGNORECASE,
)
"""Usual names of folders that hold labels."""


def without_labels(inputs: Sequence[str], found: Sequence[Source]) -> tuple[list[str], list[str]]:
    """The inputs, with folders of labels beside folders of images left out; and the folders that
    were left out.

    `inputs` are absolute. A folder with images of its own stays as it is: naming the folders in it
    would lose them.
    """
    kept: list[str] = []
    labels: list[str] = []
    for entry in inputs:
        places = list(_places(entry, found))
        for folder, is_label in _folders(entry, places):
            (labels if is_label else kept).append(folder)
    return kept, labels


def _places(entry: str, found: Sequence[Source]) -> Iterator[tuple[str, ...]]:
    """The folders between the entry, if it is a folder, and each source in it."""
    start = f"{entry.rstrip('/')}/"
    for source in found:
        if source.uri.startswith(start):
            *folders, name = source.uri.removeprefix(start).split("/")
            # A series has its files in the folder that it is named by.
            yield (*folders, name) if source.is_folder or source.members else tuple(folders)


def _folders(folder: str, places: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, bool]]:
    """The folder, or folders in it that hold images, and those of labels, which are marked."""
    below: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in filter(None, places):
        below.setdefault(first, []).append(tuple(rest))
    images = [each for each in below if not _LABELS.fullmatch(each)]
    any_labels = any(_LABELS.fullmatch(each) for place in places for each in place)
    if not any_labels or not images or () in places:
        yield folder, False
        return
    for each in sorted(below):
        if each in images:
            yield from _folders(f"{folder}/{each}", below[each])
        else:
            yield f"{folder}/{each}", True
