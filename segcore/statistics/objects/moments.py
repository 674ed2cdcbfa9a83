"""Measures of objects that add up over tiles: whole numbers, so that the finished table is the same
for any tiling.

Moments count from the corner of the object's own bounding box. They are moved exactly when parts
with other corners come together, and are kept as wide integers where 64 bits may not hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.statistics.objects.bands import BandSums
from maskloom.segcore.statistics.objects.int96 import carried, product
from maskloom.segcore.statistics.objects.polygons import Outlines
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_PARTS = ("bands", "outlines")


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Measures:
    """What is known of objects, or of parts of them, one row each; no object twice."""

    object_id: Integers
    """(n,) ascending."""
    class_id: NDArray[np.int32]
    """(n,)"""
    whole: NDArray[np.bool_]
    """(n,) True where no other tile has any pixel of the object."""
    pixels: Integers
    """(n,) number of pixels."""
    box: Integers
    """(n, 4) first row, first column, one past the last row, one past the last column."""
    first: Integers
    """(n, 2) sums of rows and of columns, counted from the corner of `box`."""
    second: Integers
    """(n, 3, 2) sums of row**2, column**2 and row * column, counted from there; wide."""
    area: Integers
    """(n, 2) quanta of area; wide. 0 where all pixels are equally large."""
    border: Integers
    """(n, 3) border pixels that count 1, sqrt(2) and (1 + sqrt(2)) / 2 for the perimeter."""
    score: NDArray[np.float32]
    """(n,) how sure the segmenter is, NaN where it does not say."""
    bands: BandSums
    """n rows."""
    outlines: Outlines
    """n rows."""

    def __len__(self) -> int:
        return len(self.object_id)

    def take(self, index: Integers) -> Measures:
        """Rows by index."""
        columns = {name: getattr(self, name)[index] for name in _columns()}
        return Measures(**columns, bands=self.bands.take(index), outlines=self.outlines.take(index))

    def split(self, mask: NDArray[np.bool_]) -> tuple[Measures, Measures]:
        """Rows where the mask is True, and the others."""
        return self.take(np.flatnonzero(mask)), self.take(np.flatnonzero(~mask))

    def merge(self, other: Measures) -> Measures:
        """The objects of both; parts of one object are added."""
        return Measures.concatenate([self, other])

    @classmethod
    def concatenate(cls, parts: Sequence[Measures]) -> Measures:
        """The objects of all parts, of which there is at least one; parts of one object are added.
        The images' bands must be of one kind.
        """
        rows = cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts]) for name in _columns()
            },
            bands=BandSums.concatenate([part.bands for part in parts]),
            outlines=Outlines.concatenate([part.outlines for part in parts]),
        )
        steps = np.diff(rows.object_id)
        if (steps > 0).all():
            return rows
        rows = rows.take(np.argsort(rows.object_id, kind="stable"))
        new = np.diff(rows.object_id, prepend=-1) != 0
        return rows if new.all() else _added(rows, new)


def _added(rows: Measures, new: NDArray[np.bool_]) -> Measures:
    """Rows added to the last `new` row before them."""
    starts, group = np.flatnonzero(new), np.cumsum(new) - 1
    box = np.concatenate(
        [
            np.minimum.reduceat(rows.box[:, :2], starts),
            np.maximum.reduceat(rows.box[:, 2:], starts),
        ],
        axis=1,
    )
    first, second = _from_corner(rows, box[group, :2])
    return Measures(
        rows.object_id[starts],
        rows.class_id[starts],
        np.logical_and.reduceat(rows.whole, starts),
        np.add.reduceat(rows.pixels, starts),
        box,
        np.add.reduceat(first, starts),
        carried(np.add.reduceat(second, starts)),
        carried(np.add.reduceat(rows.area, starts)),
        np.add.reduceat(rows.border, starts),
        np.fmax.reduceat(rows.score, starts),
        rows.bands.sum_by(group, len(starts)),
        rows.outlines.grouped(starts),
    )


def _from_corner(measures: Measures, corner: Integers) -> tuple[Integers, Integers]:
    """`first` and `second` counted from corners (n, 2) further up and left."""
    down, right = (measures.box[:, :2] - corner).T
    rows, columns = measures.first.T
    moved = (
        product(down, 2 * rows + down * measures.pixels),
        product(right, 2 * columns + right * measures.pixels),
        product(down, columns + right * measures.pixels) + product(right, rows),
    )
    first = measures.first + np.asarray(
        np.stack([down, right], axis=1) * measures.pixels[:, None], np.int64
    )
    return first, carried(measures.second + np.stack(moved, axis=1))


def _columns() -> list[str]:
    """Fields that hold an array a row."""
    return [name for name in Measures.__slots__ if name not in _PARTS]
