"""What was found in files of polygons, counted, and the sentences that say it to users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from maskloom.segcore.annotations.label_mapping import VOID_NAME

SHOWN = 5
"""Names that a message lists; it counts the others."""


@dataclass(slots=True)
class Counts:
    """What was found in the files."""

    features: int = 0
    empty: int = 0
    other: int = 0
    """Points and lines."""
    repaired: int = 0
    broken: int = 0
    """Invalid, and nothing was left after repair."""
    void: int = 0
    added: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    nowhere: Counter[str] = field(default_factory=Counter)
    """Polygons of images that there are not, by the name that they state."""


def notes(counts: Counts, outside: int, without: Sequence[str]) -> Iterator[str]:
    """Sentences on what was left out and repaired. `outside`: polygons in no image; `without`: URIs
    of images without polygons.
    """
    said = [
        (counts.void, VOID_NAME),
        (outside, "outside of all images"),
        (sum(counts.nowhere.values()), "of images that there are not"),
        (counts.repaired, "invalid and repaired"),
        (counts.broken, "invalid and left out"),
        (counts.empty, "empty and left out"),
        (counts.other, "points or lines and left out"),
    ]
    parts = [f"{number} {what}" for number, what in said if number]
    if parts:
        yield f"Of {counts.features} features, {', '.join(parts)}."
    if without:
        some = ", ".join(without[:SHOWN]) + (", ..." if len(without) > SHOWN else "")
        yield f"{len(without)} images have no polygon and are left out: {some}."
