"""Numbering: the ids of the objects of an image.

Objects are numbered from 1 in the order of their first pixels, row by row, so the ids are the same
whatever the tiling. A tile row of tiles is numbered at a time: what is held is a number for each
object of that row, never for all of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Tile
    from maskloom.segcore.models.fragments import Equivalences

_MOST_OBJECTS = 2**32 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """The objects of one tile, by fragment."""

    ids: NDArray[np.uint32]
    """(n + 1,) id of the object of each fragment; 0: background."""
    class_of: NDArray[np.uint16]
    """(n + 1,) class id of each fragment's object."""
    whole: NDArray[np.bool_]
    """(n + 1,) True where a fragment is an object by itself: no other tile has any of it."""


def first_pixels(values: NDArray[np.uint32], tile: Tile, width: int) -> NDArray[np.int64]:
    """(n + 1,) the number of each fragment's first pixel in an image of `width` columns, counted
    row by row; [0] is 0.

    `values` covers the tile's core.
    """
    from maskloom.segcore.kernels.fragments import first_positions

    positions = first_positions(np.ascontiguousarray(values), int(values.max(initial=0)))
    row, column = np.divmod(positions, values.shape[1])
    found: NDArray[np.int64] = (row + tile.core.start[0]) * width + column + tile.core.start[1]
    found[0] = 0
    return found


def number_objects(
    grid: Grid,
    groupings: Sequence[Equivalences],
    read: Callable[[int], tuple[NDArray[np.int64], NDArray[np.uint16]]],
    location: str,
) -> Iterator[Numbers]:
    """The objects of each tile in the order of the grid.

    `read` gives the `first_pixels` and the classes of the fragments of a tile by its number; it is
    asked twice for each tile, row by row. Raises `FormatError` where there are more objects than 32
    bits number.
    """
    first_of_group = _first_of_groups(groupings, read)
    members = np.zeros(len(first_of_group), np.int64)
    for grouping in groupings:
        np.add.at(members, grouping.groups, 1)
    members[0] = 0
    ids_of_group = np.zeros(len(first_of_group), np.int64)
    width, across = grid.shape[1], grid.counts[1]
    done = 0
    for start in range(0, len(grid), across):
        numbers = range(start, start + across)
        fragments = [read(number) for number in numbers]
        alone = [
            _alone(len(firsts), groupings[number])
            for number, (firsts, _) in zip(numbers, fragments, strict=True)
        ]
        rows = grid[start].core
        begun = np.flatnonzero(
            (first_of_group >= rows.start[0] * width) & (first_of_group < rows.stop[0] * width)
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
            grouping, own = groupings[number], int(chosen.sum())
            of = np.zeros(len(first), np.uint32)
            of[chosen] = ids[at : at + own]
            of[grouping.fragments] = ids_of_group[grouping.groups]
            at += own
            class_of = classes.copy()
            class_of[grouping.fragments] = grouping.class_of
            class_of[of == 0] = 0
            whole = chosen.copy()
            whole[grouping.fragments] = members[grouping.groups] == 1
            yield Numbers(of, class_of, whole)


def _alone(count: int, grouping: Equivalences) -> NDArray[np.bool_]:
    """Which of a tile's fragments 0 ... count - 1 stand alone."""
    alone = np.ones(count, np.bool_)
    alone[0] = False
    alone[grouping.fragments] = False
    return alone


def _first_of_groups(
    groupings: Sequence[Equivalences],
    read: Callable[[int], tuple[NDArray[np.int64], NDArray[np.uint16]]],
) -> NDArray[np.int64]:
    """The first pixel of each group; that of the background, 0, is of no meaning."""
    most = max((int(grouping.groups.max(initial=0)) for grouping in groupings), default=0)
    first_of_group = np.full(most + 1, np.iinfo(np.int64).max)
    for number, grouping in enumerate(groupings):
        if len(grouping.fragments):
            np.minimum.at(first_of_group, grouping.groups, read(number)[0][grouping.fragments])
    return first_of_group
