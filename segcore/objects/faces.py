"""Faces: where tiles meet, for any number of axes.

`Faces` are the pixels of a tile's core along each of its sides; joining compares those of all tiles
to find fragments that touch. `neighbours` yields the pairs of tiles that touch, and `Faces.towards`
gives the pixels of one that face the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The pixels of a core that are at most `width` - 1 away from one of its sides."""

    slabs: tuple[NDArray[Any], ...]
    """For each axis the slab at its start, then the slab at its end: `width` pixels along the axis
    (fewer in a core that has fewer), all pixels along the others.
    """

    @classmethod
    def of(cls, values: NDArray[Any], width: int = 1) -> Faces:
        """The faces of a core with these values."""
        return cls(
            tuple(
                values[(slice(None),) * axis + (part,)].copy()
                for axis, length in enumerate(values.shape)
                for part in (slice(width), slice(max(0, length - width), None))
            )
        )

    def apply(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Faces:
        """The faces with other values, computed slab by slab."""
        return Faces(tuple(function(slab) for slab in self.slabs))

    def towards(self, offset: Shape) -> NDArray[Any]:
        """The pixels that touch the neighbour at this offset, in tiles: a face, an edge or a
        corner of the core, with length 1 along every axis where the offset is not 0.
        """
        axis = next(axis for axis, step in enumerate(offset) if step)
        ends = {-1: slice(1), 0: slice(None), 1: slice(-1, None)}
        return self.slabs[2 * axis + (offset[axis] > 0)][tuple(ends[step] for step in offset)]

    def at(self, index: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
        """The values of pixels, given by their index in the core: one array per axis.

        Raises `ValueError` for pixels further inside.
        """
        found = np.zeros(len(index[0]), self.slabs[0].dtype)
        left = np.ones(len(found), np.bool_)
        for number, slab in enumerate(self.slabs):
            axis, at_end = divmod(number, 2)
            # All slabs but those of an axis have the full length along it.
            length = self.slabs[2 if axis == 0 else 0].shape[axis]
            place = list(index)
            place[axis] = index[axis] - (length - slab.shape[axis] if at_end else 0)
            inside = left & (place[axis] >= 0) & (place[axis] < slab.shape[axis])
            found[inside] = slab[tuple(each[inside] for each in place)]
            left &= ~inside
        if left.any():
            raise ValueError(
                f"expected pixels within {self.slabs[0].shape[0]} of a tile's side; "
                f"{np.count_nonzero(left)} are further inside"
            )
        return found


def neighbours(grid: Grid, reach: Shape | None = None) -> Iterator[tuple[int, int, Shape]]:
    """All pairs of tiles that touch, also diagonally, each pair once: the numbers of both, and the
    offset from the first to the second in tiles.

    With `reach`, pairs of tiles at most that many tiles apart along each axis.
    """
    counts = grid.counts
    steps = product(*(range(-most, most + 1) for most in reach or (1,) * len(counts)))
    forward = [step for step in steps if step > (0,) * len(counts)]
    for number, index in enumerate(np.ndindex(counts)):
        for step in forward:
            other = tuple(at + by for at, by in zip(index, step, strict=True))
            if all(0 <= at < count for at, count in zip(other, counts, strict=True)):
                yield number, number_of(other, counts), step


def number_of(index: Shape, counts: Shape) -> int:
    """The number of a tile in the order of its grid."""
    number = 0
    for at, count in zip(index, counts, strict=True):
        number = number * count + at
    return number


def values_at(
    grid: Grid, faces: Sequence[Faces], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Tile number and value of pixels of the raster, given by their flat positions, from the faces
    of all tiles. Raises `ValueError` for pixels that are in no face.
    """
    index = np.unravel_index(places, grid.shape)
    tiles = np.ravel_multi_index(
        tuple(at // side for at, side in zip(index, grid.tile, strict=True)), grid.counts
    ).astype(np.int64)
    found = np.zeros(len(places), faces[0].slabs[0].dtype)
    order = np.argsort(tiles, kind="stable")
    firsts = np.flatnonzero(np.diff(tiles[order], prepend=-1))
    for chosen in np.split(order, firsts[1:]) if len(order) else ():
        number = int(tiles[chosen[0]])
        start = grid[number].core.start
        found[chosen] = faces[number].at(
            [at[chosen] - origin for at, origin in zip(index, start, strict=True)]
        )
    return tiles, found
