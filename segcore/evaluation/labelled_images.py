"""The two sides of a comparison, a tile at a time: the class of each pixel, and the id of each
pixel's object.

The truth is a mask with a `LabelMapping`; a prediction is a mask of classes or of objects. Ids of
objects are the mask's own values, or connected parts of a class (8 neighbours), which are found
over tiles as in a run: labelled tile by tile, joined, then numbered (`segcore.objects`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from maskloom.segcore.annotations.label_mapping import UNKNOWN, VOID
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.evaluation.instances import ImageObjects
from maskloom.segcore.objects.components import Components
from maskloom.segcore.objects.two_pass import (
    PackedLabels,
    Relabelling,
    join_tiles,
    pack_labels,
    relabel,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.label_mapping import LabelMapping
    from maskloom.segcore.annotations.masks import MaskReader
    from maskloom.segcore.geometry import Box, Grid, Tile

_FIRST_PART = 2**41
"""Ids of connected parts begin beyond all values of masks."""
_NO_DATA = 65535


class Layer(Protocol):
    """One side."""

    def classes(self, box: Box) -> NDArray[np.int64]:
        """The class id of each pixel of a box; negative for pixels without a class."""
        ...

    def values(self, box: Box) -> NDArray[np.int64]:
        """The mask's value of each pixel of a box."""
        ...

    def class_of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class ids that values mean."""
        ...


@dataclass(frozen=True, slots=True)
class Truth:
    """A truth mask and what its values mean."""

    reader: MaskReader
    key: LabelMapping

    def classes(self, box: Box) -> NDArray[np.int64]:
        """Class ids, `VOID` or `UNKNOWN`."""
        values, known = self.reader.read(box)
        return np.where(known, self.key.classify(values), VOID)

    def values(self, box: Box) -> NDArray[np.int64]:
        """The mask's values."""
        return self.reader.read(box)[0]

    def class_of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """By the key."""
        return self.key.classify(values)


@dataclass(frozen=True, slots=True)
class Predicted:
    """A mask of a run: classes or ids of objects."""

    reader: MaskReader
    table: NDArray[np.int64]
    """Class id of each value. `UNKNOWN`: the run's tables do not tell."""
    beyond: int = VOID
    """Class id of values beyond the table."""

    def classes(self, box: Box) -> NDArray[np.int64]:
        """Class ids; `VOID` where the mask has no data. Raises `RecipeError` where an object's
        class is not known.
        """
        values, known = self.reader.read(box)
        return np.where(known, self.class_of(values), VOID)

    def values(self, box: Box) -> NDArray[np.int64]:
        """The mask's values."""
        return self.reader.read(box)[0]

    def class_of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """By the table."""
        inside = values < len(self.table)
        found = np.where(inside, self.table[np.where(inside, values, 0)], self.beyond)
        if (found == UNKNOWN).any():
            raise RecipeError(
                f"{self.reader.location} has objects that tables/objects does not name "
                f"({values[found == UNKNOWN][0]}, say), and the run has "
                "several classes. Run it with statistics: [area, {kind: objects, min_size: 1}]."
            )
        return np.asarray(found)


@dataclass(frozen=True, slots=True, eq=False)
class ConnectedParts:
    """The connected parts of some classes of an image."""

    tiles: Sequence[PackedLabels]
    relabellings: Sequence[Relabelling]

    @classmethod
    def find(
        cls, layer: Layer, classes: Sequence[int], grid: Grid, location: str
    ) -> ConnectedParts:
        """Label the parts of these classes over all tiles. Keeps the compressed labels of the image
        in memory.
        """
        rule, tiles = Components(tuple(sorted(classes))), []
        for tile in grid:
            labels = layer.classes(tile.core)
            known = np.where(labels >= 0, labels, _NO_DATA).astype(np.uint16)
            fragments = rule.fragment(known, tile, grid.shape)
            tiles.append(pack_labels(fragments, labels >= 0, tile, grid.shape))
        return cls(tiles, list(join_tiles(rule, grid, tiles, location)))

    def ids(self, number: int) -> NDArray[np.int64]:
        """The id of each pixel's part in a tile of the grid, 0 for background."""
        return relabel(self.tiles[number].labels, self.relabellings[number]).ids.astype(np.int64)

    def objects(self) -> ImageObjects:
        """All parts, by ascending id."""
        ids = np.concatenate([each.numbers.ids for each in self.relabellings]).astype(np.int64)
        class_of = np.concatenate([each.numbers.class_of for each in self.relabellings]).astype(
            np.int64
        )
        unique, first = np.unique(ids, return_index=True)
        kept = unique > 0
        return ImageObjects(unique[kept], class_of[first[kept]])


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The objects of one side."""

    layer: Layer
    numbered: tuple[int, ...]
    """Classes whose values are ids."""
    parts: ConnectedParts | None
    """The objects of the other classes. None: there are no others."""

    @classmethod
    def of(
        cls,
        layer: Layer,
        foreground: Sequence[int],
        numbered: frozenset[int],
        grid: Grid,
        location: str,
    ) -> Instances:
        """The objects of the foreground's classes; those of `numbered` classes are told by values,
        others are connected parts.
        """
        rest = [i for i in foreground if i not in numbered]
        parts = ConnectedParts.find(layer, rest, grid, location) if rest else None
        return cls(layer, tuple(i for i in foreground if i in numbered), parts)

    def ids(self, number: int, tile: Tile) -> NDArray[np.int64]:
        """The id of each pixel's object in a tile's core: the value of the mask and one, so that 0
        is none. Negative: void.
        """
        classes = self.layer.classes(tile.core)
        ids = np.where(
            np.isin(classes, self.numbered),
            self.layer.values(tile.core) + 1,
            np.where(classes < 0, -1, 0),
        )
        if self.parts is not None:
            found = self.parts.ids(number)
            ids = np.where(found > 0, found + _FIRST_PART, ids)
        return ids

    def objects(self, seen: NDArray[np.int64], scores: NDArray[np.float64] | None) -> ImageObjects:
        """The objects with these ids, in their order. `scores` are by value of the mask."""
        ids = np.unique(seen[seen > 0])
        own = ids < _FIRST_PART
        class_of = np.zeros(len(ids), np.int64)
        class_of[own] = self.layer.class_of(ids[own] - 1)
        if self.parts is not None:
            known = self.parts.objects()
            class_of[~own] = known.class_of[np.searchsorted(known.ids, ids[~own] - _FIRST_PART)]
        if scores is None or not own.all():
            return ImageObjects(ids, class_of)
        # Objects that the table of the run leaves out are the least certain.
        return ImageObjects(ids, class_of, np.append(scores, 0)[np.minimum(ids - 1, len(scores))])
