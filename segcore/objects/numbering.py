"""Numbering: the ids of the objects of an image or a volume.

Objects are numbered from 1 in the order of their first pixels (C order), so the ids are the same
for any tiling. A pixel is identified by its flat position in the raster. One layer of tiles along
the first axis (in images: one row of tiles) is numbered at a time, so memory is needed for the
objects of that layer only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape, Tile
    from maskloom.segcore.models.fragments import Equivalences

_MOST_OBJECTS = 2**32 - 1


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """The objects of one tile, by fragment."""

    ids: NDArray[np.uint32]
    """(n + 1,) id of the object of each fragment; 0: background."""
    class_of: NDArray[np.uint16]
    """(n + 1,) class id of each fragment's object."""
    whole: NDArray[np.bool_]
    """(n + 1,) True if the fragment is its whole object: no other fragment is part of it."""
    score_of: NDArray[np.float32] | None = None
    """(n + 1,) confidence in each fragment's object, NaN where that of the fragment stands. None:
    everywhere.
    """

    @property
    def greatest(self) -> int:
        """The largest id."""
        return int(self.ids.max(initial=0))


def first_positions(values: NDArray[np.uint32], tile: Tile, shape: Shape) -> NDArray[np.int64]:
    """(n + 1,) flat position of each fragment's first pixel in a raster of this shape; [0] is 0.

    `values` covers the tile's core.
    """
    from maskloom.segcore.kernels.fragments import first_positions as first_in_core

    in_core = first_in_core(np.ascontiguousarray(values), int(values.max(initial=0)))
    found = place_in(shape, in_core, values.shape, tile.core.start)
    found[0] = 0
    return found


def place_in(
    shape: Shape, places: NDArray[np.int64], part: Shape, start: Shape
) -> NDArray[np.int64]:
    """Flat positions in a raster of this shape, from flat positions in a part of it that begins at
    `start`.
    """
    index = np.unravel_index(places, part)
    moved = tuple(at + origin for at, origin in zip(index, start, strict=True))
    return np.asarray(np.ravel_multi_index(moved, shape), np.int64)


def tiles_of_layer(grid: Grid) -> int:
    """Number of tiles in one layer along the first axis."""
    return prod(grid.counts[1:])


def number_objects(
    grid: Grid,
    equivalences: Sequence[Equivalences],
    read: Callable[[int], tuple[NDArray[np.int64], NDArray[np.uint16]]],
    location: str,
) -> Iterator[Numbers]:
    """The objects of each tile in the order of the grid.

    `read` gives the `first_positions` and the classes of the fragments of a tile by its number; it
    is called twice per tile, layer by layer. Raises `FormatError` if there are more objects than 32
    bits can number.
    """
    first_of_group = _first_of_groups(equivalences, read)
    members = np.zeros(len(first_of_group), np.int64)
    for each in equivalences:
        np.add.at(members, each.groups, 1)
    members[0] = 0
    ids_of_group = np.zeros(len(first_of_group), np.int64)
    pixels, across = prod(grid.shape[1:]), tiles_of_layer(grid)
    done = 0
    for start in range(0, len(grid), across):
        numbers = range(start, start + across)
        fragments = [read(number) for number in numbers]
        alone = [
            _alone(len(firsts), equivalences[number])
            for number, (firsts, _) in zip(numbers, fragments, strict=True)
        ]
        layer = grid[start].core
        begun = np.flatnonzero(
            (first_of_group >= layer.start[0] * pixels) & (first_of_group < layer.stop[0] * pixels)
        )
        begun = begun[begun > 0]
        firsts = np.concatenate(
            [
                *(first[chosen] for (first, _), chosen in zip(fragments, alone, strict=True)),
                first_of_group[begun],
            ]
        )
        ids = np.empty(len(firsts), np.int64)
        ids[np.argsort(firsts)] = np.arange(done + 1, done + 1 + len(firsts))
        done += len(firsts)
        if done > _MOST_OBJECTS:
            raise FormatError(
                f"{location} has more objects than 32 bits can number. Raise `min_size`, or cut "
                "the image up."
            )
        ids_of_group[begun] = ids[len(ids) - len(begun) :]
        at = 0
        for number, (first, classes), chosen in zip(numbers, fragments, alone, strict=True):
            joined, own = equivalences[number], int(chosen.sum())
            of = np.zeros(len(first), np.uint32)
            of[chosen] = ids[at : at + own]
            of[joined.fragments] = ids_of_group[joined.groups]
            at += own
            class_of = classes.copy()
            class_of[joined.fragments] = joined.class_of
            class_of[of == 0] = 0
            whole = chosen.copy()
            whole[joined.fragments] = members[joined.groups] == 1
            score_of = None
            if joined.score_of is not None:
                score_of = np.full(len(first), np.nan, np.float32)
                score_of[joined.fragments] = joined.score_of
            yield Numbers(of, class_of, whole, score_of)


def _alone(count: int, joined: Equivalences) -> NDArray[np.bool_]:
    """(count,) True for those fragments of a tile that are joined with no other."""
    alone = np.ones(count, np.bool_)
    alone[0] = False
    alone[joined.fragments] = False
    return alone


def _first_of_groups(
    equivalences: Sequence[Equivalences],
    read: Callable[[int], tuple[NDArray[np.int64], NDArray[np.uint16]]],
) -> NDArray[np.int64]:
    """The first pixel of each group; entry 0, the background, is unused."""
    most = max((int(each.groups.max(initial=0)) for each in equivalences), default=0)
    first_of_group = np.full(most + 1, np.iinfo(np.int64).max)
    for number, each in enumerate(equivalences):
        if len(each.fragments):
            np.minimum.at(first_of_group, each.groups, read(number)[0][each.fragments])
    return first_of_group
