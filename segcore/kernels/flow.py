"""Loops over pixels that walk to the middle of their object.

A place is kept as a pixel and an offset from it, so that the arithmetic of a pixel does not depend
on where its tile begins.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def walk(foreground, vectors, frame, steps, rate, ends):  # type: ignore[no-untyped-def]
    """Write where each pixel of the foreground (y, x) ends after some steps of `rate` pixels
    against the direction of the vectors (y, x, 2: x and y): its flat place, or -1 outside the
    foreground. A step goes by the vector of the nearest pixel; one of length 0 stays where it is.

    `frame` are the least and greatest row and column of the image, relative to the arrays: walks
    end there. Walks beyond the arrays see their outermost pixels.
    """
    height, width = foreground.shape
    top, bottom, left, right = frame
    for y in range(height):
        for x in range(width):
            if not foreground[y, x]:
                ends[y, x] = -1
                continue
            down, across = 0.0, 0.0
            row, column = y, x
            for _ in range(steps):
                along_x, along_y = float(vectors[row, column, 0]), float(vectors[row, column, 1])
                length = np.sqrt(along_x * along_x + along_y * along_y)
                if length == 0.0:
                    break
                down -= rate * along_y / length
                across -= rate * along_x / length
                down = min(max(down, float(top - y)), float(bottom - y))
                across = min(max(across, float(left - x)), float(right - x))
                row = min(max(y + int(np.floor(down + 0.5)), 0), height - 1)
                column = min(max(x + int(np.floor(across + 0.5)), 0), width - 1)
            ends[y, x] = row * width + column


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
