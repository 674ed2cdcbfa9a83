"""Compiled loops for convex hulls of objects, plane by plane, and the greatest width of objects.

Coordinates are integers, and so is the decision which pixels are corners: the hulls of parts
combine to that of the whole, for any parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def count_rows(labels: Any, seen: Any, counts: Any) -> None:
    """Count the rows of `labels`, (z, y, x), in which each label occurs. `seen` has a -1 for each
    label.
    """
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            row, line = z * labels.shape[1] + y, labels[z, y]
            for x in range(len(line)):
                label = line[x]
                if label and seen[label] != row:
                    seen[label] = row
                    counts[label] += 1


@strict_njit
def find_rows(labels: Any, seen: Any, place: Any, rows: Any) -> None:
    """The rows that `count_rows` counted: z, y, first x and last x, those of a label together.
    `place` is where the rows of each label begin, and is changed.
    """
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            row, line = z * labels.shape[1] + y, labels[z, y]
            for x in range(len(line)):
                label = line[x]
                if label == 0:
                    continue
                if seen[label] != row:
                    seen[label] = row
                    into = rows[place[label]]
                    into[0], into[1], into[2] = z, y, x
                    place[label] += 1
                rows[place[label] - 1, 3] = x


@strict_njit
def _chain(rows: Any, first: Any, stop: Any, side: Any, points: Any, start: Any) -> Any:
    """Corners on one side of a hull: 2 for the least x of each row, 3 for the greatest. Returns the
    number of points after them.

    The monotone chain of Andrew, Another efficient algorithm for convex hulls in two dimensions
    (1979).
    """
    stop_at = start
    for i in range(first, stop):
        y, x = rows[i, 1], rows[i, side]
        while stop_at - start > 1:
            a, b = points[stop_at - 2], points[stop_at - 1]
            turn = (b[1] - a[1]) * (x - a[2]) - (b[2] - a[2]) * (y - a[1])
            if (turn > 0) if side == 2 else (turn < 0):
                break
            stop_at -= 1
        point = points[stop_at]
        point[0], point[1], point[2] = rows[i, 0], y, x
        stop_at += 1
    return stop_at


@strict_njit
def hull_planes(rows: Any, stops: Any, points: Any, counts: Any) -> Any:
    """Corners of the convex hull of each object's pixels in each plane; returns their number.

    `rows` are z, y, least x and greatest x, sorted by object, z and y; those of an object end at
    `stops`. `points` has room for two corners a row; `counts` gets the number of each object.
    """
    total, first = 0, 0
    for number in range(len(stops)):
        begin = total
        while first < stops[number]:
            stop = first + 1
            while stop < stops[number] and rows[stop, 0] == rows[first, 0]:
                stop += 1
            right = _chain(rows, first, stop, 2, points, total)
            total = _chain(rows, first, stop, 3, points, right)
            # Both chains have the ends; one pixel there is one corner.
            if rows[stop - 1, 2] == rows[stop - 1, 3]:
                total -= 1
            if stop - first > 1 and rows[first, 2] == rows[first, 3]:
                for i in range(right + 1, total):
                    points[i - 1] = points[i]
                total -= 1
            first = stop
        counts[number] = total - begin
    return total


@strict_njit
def find_widest(points: Any, stops: Any, steps: Any, ends: Any, squares: Any) -> None:
    """The two positions of each object that are farthest apart, and their squared distance, where
    each pixel reaches half a step to both sides along each axis.

    `points`, (n, 3), are corners of the hulls of objects, which end at `stops`; `steps`, (objects,
    axis, 3), is the way of one step along each axis. `ends` gets the positions, (objects, 2, 3).
    """
    first = 0
    for number in range(len(stops)):
        corners, step = points[first : stops[number]], steps[number]
        squares[number], one, other, axis, half = _widest_pair(_places(corners, step), step)
        for k in range(3):
            ends[number, 0, k], ends[number, 1, k] = corners[one, k], corners[other, k]
        ends[number, 0, axis] += half
        ends[number, 1, axis] -= half
        first = stops[number]


@strict_njit
def _places(corners: Any, step: Any) -> Any:
    """The positions of pixels, relative to the first of them."""
    places = np.zeros((len(corners), 3))
    for i in range(len(corners)):
        for axis in range(3):
            offset = np.float64(corners[i, axis] - corners[0, axis])
            for k in range(3):
                places[i, k] += offset * step[axis, k]
    return places


@strict_njit
def _widest_pair(places: Any, step: Any) -> Any:
    """The greatest squared distance, the two pixels, and the axis and the direction in which half a
    step is added to the first and taken from the second.

    Half a step along one and the same axis is best: the squared distance is a convex function of
    both half steps, so it is not greater for two axes than for the better one of them.
    """
    squared = np.array([(step[axis] ** 2).sum() for axis in range(3)])
    longest = np.sqrt(squared.max())
    best, least = (-1.0, 0, 0, 0, 0.5), 0.0
    for i in range(len(places)):
        for j in range(i, len(places)):
            z = places[i, 0] - places[j, 0]
            y = places[i, 1] - places[j, 1]
            x = places[i, 2] - places[j, 2]
            square = z * z + y * y + x * x
            # Two pixels that are much closer than the best pair cannot be better.
            if square < least:
                continue
            for axis in range(3):
                along = z * step[axis, 0] + y * step[axis, 1] + x * step[axis, 2]
                found = square + 2 * abs(along) + squared[axis]
                if found > best[0]:
                    best = (found, i, j, axis, 0.5 if along >= 0 else -0.5)
                    least = max(0.0, np.sqrt(found) * (1 - 1e-9) - longest) ** 2
    return best
