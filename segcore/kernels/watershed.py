"""Compiled loops of the watershed.

All comparisons are between whole squares, their roots and places relative to one another, so an
object comes out the same wherever the block that holds it begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import exactly
from maskloom.segcore.kernels.disjoint import root_of

_DIAGONAL = 2.0**0.5


@exactly
def squared_distances(classes: Any, reach: Any, out: Any) -> None:
    """Squared Euclidean distance of each pixel to the nearest of another class, at most reach**2; 0
    where the class is 0.

    `classes` and `out` are (y, x) arrays. What lies outside the array is unknown and no bound.
    Columns first, then along the rows outwards until nothing nearer can come (after Saito and
    Toriwaki 1994, bounded).
    """
    height, width = classes.shape
    column = np.empty((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            above = (
                reach if y == 0 else (column[y - 1, x] if classes[y, x] == classes[y - 1, x] else 0)
            )
            column[y, x] = min(above + 1, reach) if classes[y, x] else 0
    for y in range(height - 2, -1, -1):
        for x in range(width):
            below = column[y + 1, x] if classes[y, x] == classes[y + 1, x] else 0
            column[y, x] = min(column[y, x], below + 1) if classes[y, x] else 0
    for y in range(height):
        for x in range(width):
            best = column[y, x] * column[y, x]
            step = 1
            while step * step < best:
                for beside in (x - step, x + step):
                    if 0 <= beside < width:
                        down = column[y, beside] if classes[y, beside] == classes[y, x] else 0
                        best = min(best, step * step + down * down)
                step += 1
            out[y, x] = best


@exactly
def descending(squares: Any, highest: Any) -> Any:
    """Flat places of the pixels above 0, the highest first, equals in the order of the rows. No
    pixel exceeds `highest`.
    """
    flat = squares.ravel()
    starts = np.zeros(highest + 2, np.int64)
    for value in flat:
        starts[highest - value + 1] += 1
    for i in range(1, starts.size):
        starts[i] += starts[i - 1]
    order = np.empty(starts[highest], np.int32)
    for i in range(flat.size):
        if flat[i] > 0:
            slot = highest - flat[i]
            order[starts[slot]] = i
            starts[slot] += 1
    return order


@exactly
def _reached(classes: Any, basins: Any, place: Any, near: Any) -> Any:
    """How many neighbours of a pixel have its class and a basin already; their flat places, row by
    row, in `near`.
    """
    height, width = classes.shape
    y, x = place // width, place % width
    count = 0
    for ny in range(max(y - 1, 0), min(y + 2, height)):
        for nx in range(max(x - 1, 0), min(x + 2, width)):
            if classes[ny, nx] == classes[y, x] and basins[ny * width + nx] >= 0:
                near[count] = ny * width + nx
                count += 1
    return count


@exactly
def _united(squares: Any, basins: Any, roots: Any, pass_height: Any, prominence: Any) -> Any:
    """Unite two basins that meet at a pass unless both rise enough above it; the root that the
    first has now.
    """
    one, other = roots
    if min(squares[one], squares[other]) ** 0.5 - pass_height >= prominence:
        return one
    first = squares[one] > squares[other] or (squares[one] == squares[other] and one < other)
    high, low = (one, other) if first else (other, one)
    basins[low] = high
    return high


@exactly
def flood(classes: Any, squares: Any, order: Any, prominence: Any) -> Any:
    """(labels, count): the basins of each class as 1 ... count in the order of their first pixels,
    0 where the class is 0.

    Pixels come in `order`. One with no neighbour before it is a maximum and begins a basin, which
    keeps the place of that maximum as its root; any other goes with its steepest neighbour. Where
    basins meet, the one with the lower maximum is taken in by the other if it rises less than
    `prominence` above this meeting point.
    """
    height, width = classes.shape
    basins = np.full(height * width, -1, np.int32)
    flat = squares.ravel()
    near = np.empty(8, np.int64)
    for place in order:
        count = _reached(classes, basins, place, near)
        own = flat[place] ** 0.5
        steepest, root = -1.0, np.int64(place)
        for i in range(count):
            straight = near[i] // width == place // width or near[i] % width == place % width
            slope = (flat[near[i]] ** 0.5 - own) / (1.0 if straight else _DIAGONAL)
            if slope > steepest:
                steepest, root = slope, near[i]
        if count:
            root = np.int64(root_of(basins, root))
        basins[place] = root
        for i in range(count):
            other = np.int64(root_of(basins, near[i]))
            if other != root:
                root = _united(flat, basins, (root, other), own, prominence)
    return _numbered(basins, height, width)


@exactly
def _numbered(basins: Any, height: Any, width: Any) -> Any:
    labels = np.zeros((height, width), np.int32)
    number_of = np.zeros(basins.size, np.int32)
    count = 0
    for place in range(basins.size):
        if basins[place] >= 0:
            root = root_of(basins, place)
            if number_of[root] == 0:
                count += 1
                number_of[root] = count
            labels[place // width, place % width] = number_of[root]
    return labels, count
