"""Pixels and areas of pairs of values: how many pixels have one value in a mask and another value
in a second mask.

It is a fold over tiles. Areas are sums of integers (`segcore.statistics.exact_areas`), so that they
are the same for any tiling, and add up to the areas of each mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.statistics.exact_areas import add_areas, check_areas, quanta_in_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec

    Ints = NDArray[np.int64]

UNKNOWN = -1
"""In place of the value of a pixel that has none."""
_MOST_PAIRS = 2**16


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Pixels by pair of values, each pair once, in ascending order."""

    before: Ints
    after: Ints
    pixels: Ints
    low: Ints
    high: Ints
    """The areas in quanta are `high * 2**32 + low`; both 0 where all pixels are equally large."""
    equal: bool = True
    """Whether all pixels are equally large."""

    @classmethod
    def of(cls, before: Ints, after: Ints, spec: RasterSpec, box: Box) -> Joint:
        """The pairs of one box of a raster. Raises `FormatError` if its CRS is invalid."""
        one, other = before.ravel(), after.ravel()
        if not one.size:
            return cls.total([])
        # Runs of equal pairs are fewer than pixels.
        changes = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
        starts = np.flatnonzero(np.concatenate([[True], changes]))
        pairs = np.stack([one[starts], other[starts]])
        found, number = np.unique(pairs, axis=1, return_inverse=True)
        if found.shape[1] > _MOST_PAIRS:
            return cls.total([cls.of(*half) for half in _halves(before, after, spec, box)])
        lengths = np.diff(starts, append=one.size)
        place = np.arange(found.shape[1], dtype=np.uint32)
        values = np.repeat(number.ravel().astype(np.uint16), lengths).reshape(before.shape)
        sums = np.zeros((3, found.shape[1]), np.int64)
        greatest = add_areas(values, place, spec, box, sums)
        check_areas(greatest, spec.location)
        return cls(found[0], found[1], *sums, equal=greatest is None)

    @classmethod
    def total(cls, parts: Sequence[Joint]) -> Joint:
        """The sums of all parts of a raster, in any order."""
        nothing = np.zeros((5, 0), np.int64)
        rows = np.concatenate([nothing, *(part._rows for part in parts)], axis=1)
        pairs, number = np.unique(rows[:2], axis=1, return_inverse=True)
        sums = np.zeros((3, pairs.shape[1]), np.int64)
        for total, each in zip(sums, rows[2:], strict=True):
            np.add.at(total, number.ravel(), each)
        return cls(*pairs, *sums, equal=all(part.equal for part in parts))

    @property
    def _rows(self) -> Ints:
        return np.stack([self.before, self.after, self.pixels, self.low, self.high])

    def mapped(self, before: Ints, after: Ints) -> Joint:
        """The same pixels with other values, one for each pair."""
        return Joint.total([Joint(before, after, self.pixels, self.low, self.high, self.equal)])

    def areas(self, spec: RasterSpec) -> NDArray[np.float64]:
        """The area of each pair in the unit of the raster's space."""
        if self.equal:
            size = spec.space.cell_size(Box.whole((1,) * len(spec.shape)), spec.shape)
            return self.pixels * float(np.asarray(size).ravel()[0])
        quanta = self.high.astype(np.float64) * 2.0**32 + self.low
        return quanta / quanta_in_unit(spec.space)


@dataclass(slots=True)
class JointSum:
    """Adds up the pairs of tiles. Memory grows with the number of different pairs alone."""

    parts: list[Joint]
    waiting: int = 0

    def add(self, part: Joint) -> None:
        """Add the pairs of a tile."""
        self.parts.append(part)
        self.waiting += len(part.pixels)
        if self.waiting > max(2**18, 2 * len(self.parts[0].pixels)):
            self.parts, self.waiting = [Joint.total(self.parts)], 0

    @property
    def total(self) -> Joint:
        """The pairs of all tiles so far."""
        return Joint.total(self.parts)


def _halves(
    before: Ints, after: Ints, spec: RasterSpec, box: Box
) -> list[tuple[Ints, Ints, RasterSpec, Box]]:
    """Both halves of a box along its longest axis."""
    axis = int(np.argmax(box.shape))
    middle = box.shape[axis] // 2
    halves = []
    for start, stop in ((0, middle), (middle, box.shape[axis])):
        part = tuple(
            slice(start, stop) if i == axis else slice(None) for i in range(len(box.shape))
        )
        inside = Box(
            tuple(n + start if i == axis else n for i, n in enumerate(box.start)),
            tuple(box.start[i] + stop if i == axis else n for i, n in enumerate(box.stop)),
        )
        halves.append((before[part], after[part], spec, inside))
    return halves
