"""Folders of labels beside images: they are truth, not images to segment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
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
    """The inputs with a folder that holds folders of images and folders of labels, by their names,
    replaced by those of images; and the folders of labels that were left out.

    `inputs` are absolute. A folder with images of its own stays as it is: naming other folders
    would lose them.
    """
    kept, labels = [], []
    for entry in inputs:
        below = sorted(set(_folders(entry, found)))
        images = [each for each in below if not _LABELS.fullmatch(each)]
        if "" in below or not images or len(images) == len(below):
            kept.append(entry)
            continue
        kept += [f"{entry}/{each}" for each in images]
        labels += [f"{entry}/{each}" for each in below if each not in images]
    return kept, labels


def _folders(entry: str, found: Sequence[Source]) -> Iterator[str]:
    """The folder below the entry of each source in it; empty: directly in it."""
    if not Path(entry).is_dir():
        return
    start = f"{entry.rstrip('/')}/"
    for source in found:
        if source.uri.startswith(start):
            first, _, rest = source.uri.removeprefix(start).partition("/")
            yield first if rest or source.is_folder or source.members else ""
