"""Compiled loops of the watershed.

All comparisons are between integer squares, their roots and relative positions, so an object is the
same wherever its block begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.disjoint import root_of

_LENGTHS = np.array([0.0, 1.0, 2.0**0.5, 3.0**0.5])
"""Length of a step, by the number of axes along which it moves."""


@strict_njit
def squared_distances(classes: Any, reach: Any, out: Any) -> None:
    """Squared Euclidean distance of each pixel to the nearest of another class, at most reach**2; 0
    where the class is 0.

    `classes` and `out` are (z, y, x) arrays; images are volumes of one plane. Pixels outside the
    array are unknown and give no bound. First within each plane, then across planes, outwards until
    no nearer pixel is possible (after Saito and Toriwaki 1994, bounded).
    """
    for z in range(classes.shape[0]):
        _distances_in_plane(classes[z], reach, out[z])
    depth, height, width = classes.shape
    if depth == 1:
        return
    in_plane = out.copy()
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                best, step = in_plane[z, y, x], 1
                while step * step < best:
                    for beside in (z - step, z + step):
                        if 0 <= beside < depth:
                            same = classes[beside, y, x] == classes[z, y, x]
                            away = in_plane[beside, y, x] if same else 0
                            best = min(best, step * step + away)
                    step += 1
                out[z, y, x] = best


@strict_njit
def _distances_in_plane(classes: Any, reach: Any, out: Any) -> None:
    """`squared_distances` in one plane: first along columns, then along rows, outwards."""
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


@strict_njit
def descending(squares: Any, highest: Any) -> Any:
    """Flat positions of the pixels above 0, the highest first, equals in C order. No pixel exceeds
    `highest`.
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


@strict_njit
def _reached(classes: Any, basins: Any, place: Any, near: Any, axes: Any) -> Any:
    """The number of neighbours of a pixel with its class and already a basin; their flat positions
    in C order in `near`, and the number of axes along which they differ from it in `axes`.
    """
    depth, height, width = classes.shape
    z, rest = place // (height * width), place % (height * width)
    y, x = rest // width, rest % width
    count = 0
    for nz in range(max(z - 1, 0), min(z + 2, depth)):
        for ny in range(max(y - 1, 0), min(y + 2, height)):
            for nx in range(max(x - 1, 0), min(x + 2, width)):
                beside = (nz * height + ny) * width + nx
                if classes[nz, ny, nx] == classes[z, y, x] and basins[beside] >= 0:
                    near[count] = beside
                    axes[count] = abs(nz - z) + abs(ny - y) + abs(nx - x)
                    count += 1
    return count


@strict_njit
def _united(squares: Any, basins: Any, roots: Any, pass_height: Any, prominence: Any) -> Any:
    """Unite two basins that meet at a pass unless both rise enough above it; returns the new root
    of the first.
    """
    one, other = roots
    if min(squares[one], squares[other]) ** 0.5 - pass_height >= prominence:
        return one
    first = squares[one] > squares[other] or (squares[one] == squares[other] and one < other)
    high, low = (one, other) if first else (other, one)
    basins[low] = high
    return high


@strict_njit
def flood(classes: Any, squares: Any, order: Any, prominence: Any) -> Any:
    """(labels, count): the basins of each class as 1 ... count in the order of their first pixels,
    0 where the class is 0. All arrays are (z, y, x).

    Pixels come in `order`. One with no neighbour before it is a maximum and begins a basin, which
    keeps the place of that maximum as its root; any other goes with its steepest neighbour. Where
    basins meet, the one with the lower maximum is taken in by the other if it rises less than
    `prominence` above this meeting point.
    """
    basins = np.full(classes.size, -1, np.int32)
    flat = squares.ravel()
    near, axes = np.empty(26, np.int64), np.empty(26, np.int64)
    for place in order:
        count = _reached(classes, basins, place, near, axes)
        own = flat[place] ** 0.5
        steepest, root = -1.0, np.int64(place)
        for i in range(count):
            slope = (flat[near[i]] ** 0.5 - own) / _LENGTHS[axes[i]]
            if slope > steepest:
                steepest, root = slope, near[i]
        if count:
            root = np.int64(root_of(basins, root))
        basins[place] = root
        for i in range(count):
            other = np.int64(root_of(basins, near[i]))
            if other != root:
                root = _united(flat, basins, (root, other), own, prominence)
    return _numbered(basins, classes.shape)


@strict_njit
def _numbered(basins: Any, shape: Any) -> Any:
    labels = np.zeros(basins.size, np.int32)
    number_of = np.zeros(basins.size, np.int32)
    count = 0
    for place in range(basins.size):
        if basins[place] >= 0:
            root = root_of(basins, place)
            if number_of[root] == 0:
                count += 1
                number_of[root] = count
            labels[place] = number_of[root]
    return labels.reshape(shape), count
