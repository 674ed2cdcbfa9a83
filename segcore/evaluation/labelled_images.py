"""Truth and prediction, one tile at a time: the class and the object of each pixel.

A truth is a mask with a `LabelMapping`; a prediction is a mask of classes or of objects. Ids of
objects are the mask's values, or connected components of a class (over all neighbours), which are
found over tiles as in a run: labelled tile by tile, joined, then numbered (`segcore.objects`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from maskloom.segcore.annotations.label_mapping import UNKNOWN, VOID
from maskloom.segcore.annotations.object_metrics import ImageObjects
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.objects.components import Components
from maskloom.segcore.objects.two_pass import (
    PackedLabels,
    Relabelling,
    join_tiles,
    pack_labels,
    relabel,
)
from maskloom.segcore.processes import limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.label_mapping import LabelMapping
    from maskloom.segcore.annotations.masks import LabelReader
    from maskloom.segcore.geometry import Box, Grid, Tile

_FIRST_COMPONENT = 2**41
"""Ids of connected components follow all values of masks."""
_NO_DATA = 65535


class LabelledImage(Protocol):
    """Classes and values of an image's pixels."""

    def classes(self, box: Box) -> NDArray[np.int64]:
        """Class ids of a box, in its shape; negative without a class."""
        ...

    def values(self, box: Box) -> NDArray[np.int64]:
        """Values of the mask in a box, in its shape."""
        ...

    def class_of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class ids of values."""
        ...


@dataclass(frozen=True, slots=True)
class TruthImage:
    """A truth mask with the meaning of its values."""

    reader: LabelReader
    mapping: LabelMapping

    def classes(self, box: Box) -> NDArray[np.int64]:
        """Class ids in a box, of its shape; `VOID` or `UNKNOWN`."""
        values, known = self.reader.read(box)
        return np.where(known, self.mapping.classify(values), VOID)

    def values(self, box: Box) -> NDArray[np.int64]:
        """Values of the mask in a box, of its shape."""
        return self.reader.read(box)[0].astype(np.int64)

    def class_of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class ids of values."""
        return self.mapping.classify(values)


@dataclass(frozen=True, slots=True)
class PredictedImage:
    """A mask of a run: classes or ids of objects."""

    reader: LabelReader
    table: NDArray[np.int64]
    """Class id of each value. `UNKNOWN` if the run's tables do not have it."""
    beyond: int = VOID
    """Class id of values beyond the table."""

    def classes(self, box: Box) -> NDArray[np.int64]:
        """Class ids in a box, of its shape; `VOID` if the mask has no data. Raises `RecipeError` if
        the class of an object is not known.
        """
        values, known = self.reader.read(box)
        return np.where(known, self.class_of(values.astype(np.int64)), VOID)

    def values(self, box: Box) -> NDArray[np.int64]:
        """Values of the mask in a box, of its shape."""
        return self.reader.read(box)[0].astype(np.int64)

    def class_of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class ids of values. Raises `RecipeError` if one is not known."""
        inside = values < len(self.table)
        found = np.where(inside, self.table[np.where(inside, values, 0)], self.beyond)
        if (found == UNKNOWN).any():
            raise RecipeError(
                f"{self.reader.location} has objects that tables/objects does not name (for "
                f"example {values[found == UNKNOWN][0]}), and the run has several classes. Run it "
                "with statistics: [area, {kind: objects, min_size: 1}]."
            )
        return np.asarray(found)


@dataclass(frozen=True, slots=True, eq=False)
class TiledComponents:
    """The connected components of some classes of an image."""

    tiles: Sequence[PackedLabels]
    relabellings: Sequence[Relabelling]

    @classmethod
    def find(
        cls, image: LabelledImage, classes: Sequence[int], grid: Grid, location: str
    ) -> TiledComponents:
        """Label the components of these classes over all tiles. Keeps the compressed labels of the
        image in memory.
        """
        rule, tiles = Components(tuple(sorted(classes))), []
        for tile in grid:
            limits.begin_work(tile.core.size)
            labels = image.classes(tile.core)
            known = np.where(labels >= 0, labels, _NO_DATA).astype(np.uint16)
            fragments = rule.fragment(known, tile, grid.shape)
            tiles.append(pack_labels(fragments, labels >= 0, tile, grid.shape))
        return cls(tiles, list(join_tiles(rule, grid, tiles, location)))

    def ids(self, number: int) -> NDArray[np.int64]:
        """The id of each pixel's component in the core of a tile of the grid, 0 for none."""
        return relabel(self.tiles[number].labels, self.relabellings[number]).ids.astype(np.int64)

    def objects(self) -> ImageObjects:
        """All components, by ascending id."""
        ids = np.concatenate([each.numbers.ids for each in self.relabellings]).astype(np.int64)
        class_of = np.concatenate([each.numbers.class_of for each in self.relabellings]).astype(
            np.int64
        )
        unique, first = np.unique(ids, return_index=True)
        kept = unique > 0
        return ImageObjects(unique[kept], class_of[first[kept]])


@dataclass(frozen=True, slots=True, eq=False)
class ImageInstances:
    """The objects of an image."""

    image: LabelledImage
    numbered: tuple[int, ...]
    """Classes whose values are ids."""
    components: TiledComponents | None
    """The objects of the other classes. None: there are no other classes."""

    @classmethod
    def of(
        cls,
        image: LabelledImage,
        foreground: Sequence[int],
        numbered: frozenset[int],
        grid: Grid,
        location: str,
    ) -> ImageInstances:
        """The objects of the classes in `foreground`: of `numbered` classes their values, of others
        their connected components.
        """
        rest = [i for i in foreground if i not in numbered]
        components = TiledComponents.find(image, rest, grid, location) if rest else None
        return cls(image, tuple(i for i in foreground if i in numbered), components)

    def ids(self, number: int, tile: Tile) -> NDArray[np.int64]:
        """Ids of the objects in a tile's core: the value of the mask plus one, 0 for none,
        negative for void.
        """
        classes = self.image.classes(tile.core)
        ids = np.where(
            np.isin(classes, self.numbered),
            self.image.values(tile.core) + 1,
            np.where(classes < 0, -1, 0),
        )
        if self.components is not None:
            found = self.components.ids(number)
            ids = np.where(found > 0, found + _FIRST_COMPONENT, ids)
        return ids

    def objects(self, seen: NDArray[np.int64], scores: NDArray[np.float64] | None) -> ImageObjects:
        """The objects with these ids, in ascending order. `scores` are by value of the mask."""
        ids = np.unique(seen[seen > 0])
        own = ids < _FIRST_COMPONENT
        class_of = np.zeros(len(ids), np.int64)
        class_of[own] = self.image.class_of(ids[own] - 1)
        if self.components is not None:
            known = self.components.objects()
            class_of[~own] = known.class_of[
                np.searchsorted(known.ids, ids[~own] - _FIRST_COMPONENT)
            ]
        if scores is None or not own.all():
            return ImageObjects(ids, class_of)
        # Objects that the run's table lacks are the least certain.
        return ImageObjects(ids, class_of, np.append(scores, 0)[np.minimum(ids - 1, len(scores))])
