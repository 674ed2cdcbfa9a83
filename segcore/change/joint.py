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
        found, number = np.unique(_keys(one[starts], other[starts]), return_inverse=True)
        if len(found) > _MOST_PAIRS:
            return cls.total([cls.of(*half) for half in _halves(before, after, spec, box)])
        lengths = np.diff(starts, append=one.size)
        place = np.arange(len(found), dtype=np.uint32)
        values = np.repeat(number.astype(np.uint16), lengths).reshape(before.shape)
        sums = np.zeros((3, len(found)), np.int64)
        greatest = add_areas(values, place, spec, box, sums)
        check_areas(greatest, spec.location)
        return cls(*_values(found), sums[0], sums[1], sums[2], greatest is None)

    @classmethod
    def total(cls, parts: Sequence[Joint]) -> Joint:
        """The sums of all parts of a raster, in any order."""
        columns = [
            np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)])
            for name in ("before", "after", "pixels", "low", "high")
        ]
        pairs, number = np.unique(_keys(*columns[:2]), return_inverse=True)
        sums = np.zeros((3, len(pairs)), np.int64)
        for total, each in zip(sums, columns[2:], strict=True):
            np.add.at(total, number, each)
        return cls(*_values(pairs), sums[0], sums[1], sums[2], all(part.equal for part in parts))

    def mapped(self, before: Ints, after: Ints) -> Joint:
        """The same pixels with other values, one for each pair."""
        return Joint.total([Joint(before, after, self.pixels, self.low, self.high, self.equal)])

    def areas(self, spec: RasterSpec) -> NDArray[np.float64]:
        """(pair,): areas in the unit of the raster's space."""
        if self.equal:
            size = spec.space.cell_size(Box.whole((1,) * len(spec.shape)), spec.shape)
            return self.pixels.astype(np.float64) * float(np.asarray(size).ravel()[0])
        quanta: NDArray[np.float64] = self.high.astype(np.float64) * 2.0**32 + self.low
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


def _keys(before: Ints, after: Ints) -> NDArray[np.uint64]:
    """One number per pair, in the order of the pairs. Values have at most 32 bits."""
    keys: NDArray[np.uint64] = (before - UNKNOWN).astype(np.uint64) << np.uint64(32)
    return keys | (after - UNKNOWN).astype(np.uint64)


def _values(keys: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    low = keys & np.uint64(2**32 - 1)
    return (
        (keys >> np.uint64(32)).astype(np.int64) + UNKNOWN,
        low.astype(np.int64) + UNKNOWN,
    )


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
