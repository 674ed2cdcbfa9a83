"""Loops over pixels that walk to the middle of their object.

Places are whole numbers, in `UNIT`-ths of a pixel, so that sums are exact and no arithmetic depends
on where a tile begins.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

_BITS = 16
UNIT = 1 << _BITS
_HALF = UNIT >> 1


@strict_njit
def moves_of(vectors, rate, moves):  # type: ignore[no-untyped-def]
    """Write the step of each pixel in `UNIT`-ths of a pixel (y, x, 2: y and x): `rate` pixels along
    its vector (y, x, 2: x and y), or 0 for one of length 0.
    """
    height, width, _ = vectors.shape
    for y in range(height):
        for x in range(width):
            across, down = float(vectors[y, x, 0]), float(vectors[y, x, 1])
            length = np.sqrt(across * across + down * down)
            scale = UNIT * rate / length if length > 0.0 else 0.0
            moves[y, x, 0] = np.int32(np.floor(down * scale + 0.5))
            moves[y, x, 1] = np.int32(np.floor(across * scale + 0.5))


@strict_njit
def walk(foreground, moves, steps, ends):  # type: ignore[no-untyped-def]
    """Write where each pixel of the foreground (y, x) ends after some steps against the moves (y,
    x, 2: y and x): its flat place, or -1 outside the foreground.

    A step goes by the move of the nearest pixel. One out of the array ends at its outermost pixels;
    so the array must reach to the border of the image, or as far as any walk that matters.
    """
    height, width = foreground.shape
    flat = moves.reshape(-1, 2)
    lowest, rightmost = ((height - 1) << _BITS) + _HALF, ((width - 1) << _BITS) + _HALF
    for y in range(height):
        for x in range(width):
            if not foreground[y, x]:
                ends[y, x] = -1
                continue
            # From the upper left corner of pixels, of which the upper bits are the number.
            down, across = (y << _BITS) + _HALF, (x << _BITS) + _HALF
            place = np.uint64(y * width + x)
            for _ in range(steps):
                down -= flat[place, 0]
                across -= flat[place, 1]
                row, column = down >> _BITS, across >> _BITS
                if row < 0 or row >= height or column < 0 or column >= width:
                    down, across = min(max(down, _HALF), lowest), min(max(across, _HALF), rightmost)
                    row, column = down >> _BITS, across >> _BITS
                place = np.uint64(row * width + column)
            ends[y, x] = place


@strict_njit
def count_ends(ends, counts):  # type: ignore[no-untyped-def]
    """Add the number of pixels that end at each place to `counts` (flat)."""
    for end in ends.ravel():
        if end >= 0:
            counts[end] += 1


@strict_njit
def offsets(ranks, empty, vectors):  # type: ignore[no-untyped-def]
    """Write the offset of each pixel (y, x) from the mean place of the pixels of its rank, along x
    and y (y, x, 2), divided by the greatest offset to that side. Ranks that are `empty` keep what
    is there.
    """
    height, width = ranks.shape
    count = np.zeros(empty.size, np.int64)
    middle = np.zeros((empty.size, 2))
    for y in range(height):
        for x in range(width):
            rank = ranks[y, x]
            count[rank] += 1
            middle[rank, 0] += x
            middle[rank, 1] += y
    least, most = np.zeros((empty.size, 2)), np.zeros((empty.size, 2))
    for y in range(height):
        for x in range(width):
            rank = ranks[y, x]
            for axis, at in enumerate((x, y)):
                offset = at - middle[rank, axis] / count[rank]
                least[rank, axis] = min(least[rank, axis], offset)
                most[rank, axis] = max(most[rank, axis], offset)
    for y in range(height):
        for x in range(width):
            rank = ranks[y, x]
            for axis, at in enumerate((x, y)):
                offset = at - middle[rank, axis] / count[rank]
                reach = most[rank, axis] if offset > 0 else -least[rank, axis]
                if reach > 0 and not empty[rank]:
                    vectors[y, x, axis] = offset / reach


@strict_njit
def grow_into(parts, border, reach, grown):  # type: ignore[no-untyped-def]
    """Write the parts (y, x), and for pixels of the border the nearest part within `reach` rows and
    columns, the first of equals in C order; 0 if there is none.
    """
    height, width = parts.shape
    for y in range(height):
        for x in range(width):
            grown[y, x] = parts[y, x]
            if parts[y, x] > 0 or not border[y, x]:
                continue
            least = 2 * reach * reach + 1
            for row in range(max(0, y - reach), min(height, y + reach + 1)):
                for column in range(max(0, x - reach), min(width, x + reach + 1)):
                    away = (row - y) * (row - y) + (column - x) * (column - x)
                    if parts[row, column] > 0 and away < least:
                        least = away
                        grown[y, x] = parts[row, column]


@strict_njit
def sum_votes(owners, classes, quanta, sizes, votes):  # type: ignore[no-untyped-def]
    """Add the pixels of each owner from 1 on to `sizes`, and their class scores (y, x, class) in
    whole `quanta`-ths to `votes` (owner, class).
    """
    height, width, count = classes.shape
    for y in range(height):
        for x in range(width):
            owner = owners[y, x]
            if owner > 0:
                sizes[owner] += 1
                for k in range(count):
                    votes[owner, k] += np.int64(np.floor(classes[y, x, k] * quanta + 0.5))
