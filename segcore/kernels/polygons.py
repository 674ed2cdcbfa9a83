"""Compiled loops that trace the outlines of objects along the edges of pixels.

A crack is a side of a pixel whose neighbour there has another label. Cracks have the direction in
which their pixel lies to the right on a screen (rows downwards): 0 along the top of the pixel to
the right, 1 down its right side, 2 along its bottom to the left, 3 up its left side. A place is row
* 2**30 + column of a corner between pixels; a vertex is 2 * place, plus 1 if the outline may touch
itself there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

PLACE = 30
"""Bits of a column."""

_DOWN = np.array([0, 1, 0, -1])
_ACROSS = np.array([1, 0, -1, 0])
"""Step to the pixel ahead, by direction."""
_END_DOWN = np.array([0, 1, 1, 0])
_END_ACROSS = np.array([1, 1, 0, 0])
"""Where a crack ends, from the top left corner of its pixel."""


@strict_njit
def _doubled(array: Any) -> Any:
    larger = np.empty(2 * len(array), np.int64)
    for i in range(len(array)):
        larger[i] = array[i]
    return larger


@strict_njit
def _next(labels: Any, y: Any, x: Any, direction: Any) -> Any:
    """The crack that follows that of pixel (y, x), and whether another part of the object touches
    the corner between them.

    Parts of an object are connected by sides of pixels, so an outline never continues at a pixel
    that touches only at a corner.
    """
    label, outward = labels[y, x], (direction + 3) & 3
    ahead_y, ahead_x = y + _DOWN[direction], x + _ACROSS[direction]
    beyond_y, beyond_x = ahead_y + _DOWN[outward], ahead_x + _ACROSS[outward]
    if labels[ahead_y, ahead_x] != label:
        return y, x, (direction + 1) & 3, labels[beyond_y, beyond_x] == label
    if labels[beyond_y, beyond_x] != label:
        return ahead_y, ahead_x, direction, False
    return beyond_y, beyond_x, outward, False


@strict_njit
def _enters(labels: Any, y: Any, x: Any, direction: Any) -> Any:
    """Whether the crack before that of pixel (y, x) belongs to a pixel outside the core."""
    rows, columns, label, outward = (
        labels.shape[0] - 4,
        labels.shape[1] - 4,
        labels[y, x],
        (direction + 3) & 3,
    )
    before_y, before_x = y - _DOWN[direction], x - _ACROSS[direction]
    if labels[before_y, before_x] != label:
        return False
    if labels[before_y + _DOWN[outward], before_x + _ACROSS[outward]] == label:
        before_y, before_x = before_y + _DOWN[outward], before_x + _ACROSS[outward]
    return not (2 <= before_y < rows + 2 and 2 <= before_x < columns + 2)


@strict_njit
def _walk(labels: Any, crack: Any, frame: Any, seen: Any, vertices: Any, used: Any) -> Any:
    """Follow an outline from a crack until it leaves the core or closes; returns the vertices, how
    many, and the key of the crack after the last.
    """
    top, left, spacing = frame
    rows, columns = seen.shape
    y, x, direction = crack
    while True:
        if direction == 0:
            seen[y - 2, x - 2] = True
        row, column = top + y - 2 + _END_DOWN[direction], left + x - 2 + _END_ACROSS[direction]
        y, x, turned, touches = _next(labels, y, x, direction)
        along = row if direction & 1 else column
        if turned != direction or along % spacing == 0:
            if used == len(vertices):
                vertices = _doubled(vertices)
            vertices[used] = ((row << PLACE | column) << 1) + touches
            used += 1
        direction = turned
        if not (2 <= y < rows + 2 and 2 <= x < columns + 2) or (y, x, direction) == crack:
            return vertices, used, (row << PLACE | column) << 2 | direction


@strict_njit
def trace(labels: Any, top: Any, left: Any, spacing: Any) -> Any:
    """Chains of cracks of the core's pixels; `labels` has a ring of 2 pixels around the core, whose
    first pixel is (top, left).

    Returns the vertices of all chains, and one after another of each chain its label, the keys of
    its first crack and of the crack after its last, and its number of vertices. A key is 4 times
    the place where a crack starts, plus its direction. In a closed chain both are equal.
    """
    rows, columns = labels.shape[0] - 4, labels.shape[1] - 4
    seen, frame = np.zeros((rows, columns), np.bool_), (top, left, spacing)
    vertices, used, chains, found = np.empty(1024, np.int64), 0, np.empty(1024, np.int64), 0
    # First the outlines that come in over the edge of the core, then those that are closed within
    # it: each of these has a top.
    for closed in range(2):
        for y in range(2, rows + 2):
            edge = y in (2, rows + 1)
            for x in (
                range(2, columns + 2)
                if closed or edge or columns == 1
                else range(2, columns + 2, columns - 1)
            ):
                label = labels[y, x]
                if label == 0:
                    continue
                for direction in range(1 if closed else 4):
                    outward = (direction + 3) & 3
                    if labels[y + _DOWN[outward], x + _ACROSS[outward]] == label:
                        continue
                    if seen[y - 2, x - 2] if closed else not _enters(labels, y, x, direction):
                        continue
                    # A crack starts where the one before it around the same pixel ends.
                    row, column = (
                        top + y - 2 + _END_DOWN[outward],
                        left + x - 2 + _END_ACROSS[outward],
                    )
                    before = used
                    vertices, used, end = _walk(
                        labels, (y, x, direction), frame, seen, vertices, used
                    )
                    if found + 4 > len(chains):
                        chains = _doubled(chains)
                    chains[found], chains[found + 3] = label, used - before
                    chains[found + 1], chains[found + 2] = (
                        (row << PLACE | column) << 2 | direction,
                        end,
                    )
                    found += 4
    return vertices[:used], chains[:found]


@strict_njit
def join(follower: Any, offsets: Any, vertices: Any, owner: Any) -> Any:
    """Rings from chains, each of which is followed by chain `follower`; returns vertices, stop of
    each ring, and its owner.
    """
    out, used, rings = np.empty_like(vertices), 0, 0
    stops, owners = np.empty(len(follower), np.int64), np.empty(len(follower), np.int64)
    done = np.zeros(len(follower), np.bool_)
    for first in range(len(follower)):
        chain = first
        while not done[chain]:
            done[chain] = True
            for i in range(offsets[chain], offsets[chain + 1]):
                out[used] = vertices[i]
                used += 1
            chain = follower[chain]
            if chain == first:
                stops[rings], owners[rings] = used, owner[first]
                rings += 1
    return out[:used], stops[:rings], owners[:rings]


@strict_njit
def split(places: Any, following: Any, stops: Any, most: Any) -> Any:
    """Simple rings from rings that may touch themselves, `most` at most, by the vertex that follows
    each once they are cut there.

    Returns places, stop, ring and area of each; the area is negative for holes. Each starts at its
    least place.
    """
    out, used, loops, start = np.empty_like(places), 0, 0, 0
    cuts, rings, areas = (
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
    )
    done = np.zeros(len(places), np.bool_)
    for ring in range(len(stops)):
        for first in range(start, stops[ring]):
            if done[first]:
                continue
            i, least = following[first], first
            while i != first:
                if places[i] < places[least]:
                    least = i
                i = following[i]
            begin, i = used, least
            while not done[i]:
                done[i] = True
                out[used] = places[i]
                used += 1
                i = following[i]
            cuts[loops], rings[loops], areas[loops] = used, ring, _area(out[begin:used])
            loops += 1
        start = stops[ring]
    return out, cuts[:loops], rings[:loops], areas[:loops]


@strict_njit
def _area(places: Any) -> Any:
    """Pixels inside a ring, by the shoelace formula; positive where the pixels of the object lie
    inside.
    """
    mask, total = (1 << PLACE) - 1, 0
    row, column = places[0] >> PLACE, places[0] & mask
    for i in range(1, len(places) - 1):
        y, x = (places[i] >> PLACE) - row, (places[i] & mask) - column
        next_y, next_x = (places[i + 1] >> PLACE) - row, (places[i + 1] & mask) - column
        total += x * next_y - next_x * y
    return total // 2


@strict_njit
def sweep(lows: Any, highs: Any, rings: Any, shells: Any) -> None:
    """Find the exteriors of holes (-1 in `shells`) from the upright edges of rings, object by
    object and from left to right.

    To the left of a hole lie pixels of the object; the next ring to their left is of the same part.
    """
    latest = np.empty(highs.max(), np.int64)
    for k in range(len(rings)):
        ring = rings[k]
        if shells[ring] < 0:
            shells[ring] = shells[latest[lows[k]]]
        for row in range(lows[k], highs[k]):
            latest[row] = ring
