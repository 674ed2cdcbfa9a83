"""Class tables: the names and colours of classes, and the label that means "not processed or no
data".

The colour of a class is, in this order: the one that the recipe states; that of the model's card;
that of its reference (`classes: {name: "#rrggbb"}`), if all references are told apart; the
conventional one of its name (`segcore.raster.colours`); of a cluster without a name its own mean
colour; one of the palette that is unlike the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from maskloom.segcore.raster.colours import (
    APART,
    BACKGROUND,
    Colour,
    conventional,
    parse_colour,
    pushed_apart,
    smallest_distance,
    unlike,
)

BACKGROUND_NAMES = frozenset({"background", "unlabelled", "unlabeled", "other", "void"})
_UNNAMED = re.compile(r"cluster_\d+")


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Names and colours of the classes of a mask, by class id."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    @classmethod
    def of(cls, names: tuple[str, ...]) -> ClassTable:
        """A class table with a different colour for each name: the conventional one of the name, or
        one of the palette; a class named background is dark grey.
        """
        return ColourChoice().table(names)

    @classmethod
    def recorded(cls, names: Sequence[str], colours: Iterable[str | None]) -> ClassTable:
        """The class table with the colours that a table has, as `#rrggbb`. A class without one, as
        in rows of earlier versions, has a colour as in `of`.
        """
        known = {
            name: parse_colour(colour)
            for name, colour in zip(names, colours, strict=True)
            if colour is not None
        }
        return ColourChoice.of(known).table(tuple(names))

    @property
    def dtype(self) -> str:
        """NumPy name of the smallest type that holds the classes and the nodata label."""
        return "uint8" if len(self.names) <= 255 else "uint16"

    @property
    def nodata(self) -> int:
        """Label of pixels without data and of pixels that were not processed."""
        return 255 if self.dtype == "uint8" else 65535


@dataclass(frozen=True, slots=True)
class ColourChoice:
    """What a run knows about the colours of its classes before it sees any pixel."""

    stated: tuple[tuple[str, Colour], ...] = ()
    """Colours by name that the recipe or the card of the model states."""
    references: tuple[tuple[str, Colour], ...] = ()
    """Reference colours of the segmenter's classes."""

    @classmethod
    def of(
        cls, stated: Mapping[str, Colour], references: Mapping[str, Colour] | None = None
    ) -> ColourChoice:
        """The choice from colours by name. References that are confused with one another are not
        used.
        """
        references = references or {}
        if smallest_distance(list(references.values())) < APART:
            references = {}
        return cls(tuple(stated.items()), tuple(references.items()))

    def table(self, names: tuple[str, ...], means: tuple[Colour, ...] | None = None) -> ClassTable:
        """The class table of these names. `means`: the mean colour of each class, for clusters
        without a name.
        """
        return ClassTable(names, _colours(self, names, means))


@lru_cache(64)
def _colours(
    choice: ColourChoice, names: tuple[str, ...], means: tuple[Colour, ...] | None
) -> tuple[Colour, ...]:
    found: dict[int, Colour] = {}
    known = {**dict(choice.references), **dict(choice.stated)}
    for i, name in enumerate(names):
        background = BACKGROUND if name.lower() in BACKGROUND_NAMES else None
        colour = known.get(name) or background
        if colour is not None:
            found[i] = colour
    # Classes that the user or the images do not tell apart may share a colour; others do not.
    for i, name in enumerate(names):
        colour = conventional(name)
        if i not in found and colour is not None and colour not in found.values():
            found[i] = colour
    unnamed = [i for i, name in enumerate(names) if i not in found and _UNNAMED.fullmatch(name)]
    if means is not None and unnamed:
        pushed = pushed_apart([means[i] for i in unnamed])
        found.update(zip(unnamed, pushed, strict=True))
    taken = dict.fromkeys(found.values())
    for i in range(len(names)):
        if i not in found:
            found[i] = unlike(taken)
            taken[found[i]] = None
    return tuple(found[i] for i in range(len(names)))
