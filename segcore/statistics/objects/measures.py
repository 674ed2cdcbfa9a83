"""Measures of objects that add up over tiles: integers, so the finished table is the same for any
tiling.

All objects have pixels, a box, first moments, an area, hulls and band sums. `shape` holds the
measures specific to images (`PlanarShape`) or volumes (`SolidShape`). Moments are relative to the
corner of the object's bounding box; they are shifted exactly when parts with different corners are
merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.statistics.objects.bands import BandSums
from maskloom.segcore.statistics.objects.hulls import Hulls
from maskloom.segcore.statistics.objects.int96 import normalised
from maskloom.segcore.statistics.objects.planar import PlanarShape
from maskloom.segcore.statistics.objects.solid import SolidShape
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_PARTS = ("bands", "hulls", "shape")


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Measures:
    """Measures of objects, or of parts of them, one row each; no object twice."""

    object_id: Integers
    """(n,) ascending."""
    class_id: NDArray[np.int32]
    """(n,)"""
    whole: NDArray[np.bool_]
    """(n,) True if no other tile has a pixel of the object."""
    pixels: Integers
    """(n,) number of pixels."""
    box: Integers
    """(n, 2 * axes) first pixel along each axis, then one past the last along each axis."""
    first: Integers
    """(n, axes) sums of the pixels' positions along each axis, relative to the start of `box`."""
    area: Integers
    """(n, 2) quanta of area; wide. 0 if all pixels are equally large."""
    score: NDArray[np.float32]
    """(n,) confidence of the segmenter, NaN if it gives none."""
    bands: BandSums
    """n rows."""
    hulls: Hulls
    """n rows."""
    shape: PlanarShape | SolidShape
    """n rows."""

    def __len__(self) -> int:
        return len(self.object_id)

    @property
    def start(self) -> Integers:
        """(n, axes) first pixel along each axis."""
        return self.box[:, : self.first.shape[1]]

    @property
    def stop(self) -> Integers:
        """(n, axes) one past the last pixel along each axis."""
        return self.box[:, self.first.shape[1] :]

    @property
    def centroids(self) -> NDArray[np.float64]:
        """(n, axes) means of the pixels' positions."""
        pixels = self.pixels[:, None]
        centroids: NDArray[np.float64] = (self.start * pixels + self.first) / pixels
        return centroids

    def take(self, index: Integers) -> Measures:
        """Rows by index."""
        columns = {name: getattr(self, name)[index] for name in _columns()}
        parts = {name: getattr(self, name).take(index) for name in _PARTS}
        return Measures(**columns, **parts)

    def split(self, mask: NDArray[np.bool_]) -> tuple[Measures, Measures]:
        """Rows where the mask is True, and the others."""
        return self.take(np.flatnonzero(mask)), self.take(np.flatnonzero(~mask))

    def merge(self, other: Measures) -> Measures:
        """The objects of both; parts of one object are added."""
        return Measures.concatenate([self, other])

    @classmethod
    def concatenate(cls, parts: Sequence[Measures]) -> Measures:
        """The objects of all parts, of which there is at least one; parts of one object are added.
        The bands of all images must be of one kind.
        """
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _columns()
        }
        shape: Any = type(parts[0].shape)
        rows = cls(
            **columns,
            bands=BandSums.concatenate([part.bands for part in parts]),
            hulls=Hulls.concatenate([part.hulls for part in parts]),
            shape=shape.concatenate([part.shape for part in parts]),
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
    start = np.minimum.reduceat(rows.start, starts)
    stop = np.maximum.reduceat(rows.stop, starts)
    # Offset of the corner of each row from that of its object.
    shift = rows.start - start[group]
    first = rows.first + shift * rows.pixels[:, None]
    return Measures(
        rows.object_id[starts],
        rows.class_id[starts],
        np.logical_and.reduceat(rows.whole, starts),
        np.add.reduceat(rows.pixels, starts),
        np.concatenate([start, stop], axis=1),
        np.add.reduceat(first, starts),
        normalised(np.add.reduceat(rows.area, starts)),
        np.fmax.reduceat(rows.score, starts),
        rows.bands.sum_by(group, len(starts)),
        rows.hulls.grouped(starts),
        rows.shape.added(starts, rows.pixels, rows.first, shift),
    )


def _columns() -> list[str]:
    """Fields that hold an array of rows."""
    return [name for name in Measures.__slots__ if name not in _PARTS]
