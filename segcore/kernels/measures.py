"""Compiled loops that measure objects.

Integers are exact. Sums of floating-point numbers are pairs (double-double, after Dekker 1971 and
Knuth) that preserve the rounding error of each addition.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

_LOW = np.uint64(2**32 - 1)
_SPLITTER = 134217729.0
"""2**27 + 1: splits a float64 into halves whose products are exact (Veltkamp)."""


@strict_njit
def add_shapes(labels: Any, sums: Any, boxes: Any) -> None:
    """Add up the pixels of each label in the core of `labels`, which has a ring of 2 pixels around
    it.

    Columns of `sums`: pixels, then the sums of row, column, row**2, column**2 and row * column,
    counted from the corner of the core. Columns of `boxes`: first row, first column, and one past
    the last row and column.
    """
    rows, columns = labels.shape[0] - 4, labels.shape[1] - 4
    for y in range(rows):
        row = labels[y + 2, 2 : columns + 2]
        x = 0
        while x < columns:
            label, start = row[x], x
            x += 1
            while x < columns and row[x] == label:
                x += 1
            if label == 0:
                continue
            count, total = x - start, (x - start) * (start + x - 1) // 2
            # Sum of the squares of 0 ... n - 1 is (n - 1) * n * (2 * n - 1) / 6.
            squares = (x - 1) * x * (2 * x - 1) // 6 - (start - 1) * start * (2 * start - 1) // 6
            into, box = sums[label], boxes[label]
            into[0] += count
            into[1] += count * y
            into[2] += total
            into[3] += count * y * y
            into[4] += squares
            into[5] += total * y
            box[0], box[1] = min(box[0], y), min(box[1], start)
            box[2], box[3] = max(box[2], y + 1), max(box[3], x)


@strict_njit
def add_solids(labels: Any, sums: Any, boxes: Any) -> None:
    """Add up the voxels of each label in the core of `labels`, (z, y, x), which has a ring of 2
    voxels around it.

    Columns of `sums`: voxels, then the sums of z, y and x, counted from the corner of the core.
    Columns of `boxes`: first z, y and x, and one past the last z, y and x.
    """
    for z in range(labels.shape[0] - 4):
        for y in range(labels.shape[1] - 4):
            for x in range(labels.shape[2] - 4):
                label = labels[z + 2, y + 2, x + 2]
                if label == 0:
                    continue
                into, box = sums[label], boxes[label]
                into[0] += 1
                into[1] += z
                into[2] += y
                into[3] += x
                box[0], box[1], box[2] = min(box[0], z), min(box[1], y), min(box[2], x)
                box[3], box[4] = max(box[3], z + 1), max(box[4], y + 1)
                box[5] = max(box[5], x + 1)


@strict_njit
def count_faces(labels: Any, faces: Any) -> None:
    """Count the faces of each label's voxels in the core towards other labels: across z, y, x.
    `labels` has a ring of 2 voxels around the core.
    """
    for z in range(2, labels.shape[0] - 2):
        for y in range(2, labels.shape[1] - 2):
            for x in range(2, labels.shape[2] - 2):
                label = labels[z, y, x]
                if label == 0:
                    continue
                into = faces[label]
                into[0] += (labels[z - 1, y, x] != label) + (labels[z + 1, y, x] != label)
                into[1] += (labels[z, y - 1, x] != label) + (labels[z, y + 1, x] != label)
                into[2] += (labels[z, y, x - 1] != label) + (labels[z, y, x + 1] != label)


@strict_njit
def mark_borders(labels: Any, marks: Any) -> None:
    """Mark the pixels with a neighbour of another label at one of their sides. `marks` lacks the
    outermost pixels of `labels`.
    """
    for y in range(marks.shape[0]):
        above, here, below = labels[y], labels[y + 1], labels[y + 2]
        for x in range(marks.shape[1]):
            label = here[x + 1]
            marks[y, x] = (label != 0) & (
                (above[x + 1] != label)
                | (below[x + 1] != label)
                | (here[x] != label)
                | (here[x + 2] != label)
            )


@strict_njit
def count_borders(labels: Any, marks: Any, kinds: Any, counts: Any) -> None:
    """Count the border pixels of each label in the core by the kind of their surroundings.

    `kinds[2 * s + 10 * d]` is the kind of a pixel with s border pixels of its label at its sides
    and d at its corners; kind 0 is not counted.
    """
    for y in range(labels.shape[0] - 4):
        for x in range(labels.shape[1] - 4):
            if not marks[y + 1, x + 1]:
                continue
            label, code = labels[y + 2, x + 2], 0
            for i in range(-1, 2):
                for j in range(-1, 2):
                    if (
                        marks[y + 1 + i, x + 1 + j]
                        and labels[y + 2 + i, x + 2 + j] == label
                        and (i != 0 or j != 0)
                    ):
                        code += 2 if i == 0 or j == 0 else 10
            kind = kinds[code]
            if kind:
                counts[label, kind - 1] += 1


@strict_njit
def add_integers(values: Any, pixels: Any, counts: Any, sums: Any, squares: Any) -> None:
    """Add the band values of each label's pixels, integers of up to 32 bits; `squares[..., 0] *
    2**32 + squares[..., 1]` is a sum of squares.
    """
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            label = values[y, x]
            if label == 0:
                continue
            counts[label] += 1
            for band in range(pixels.shape[2]):
                value = np.int64(pixels[y, x, band])
                square = np.uint64(abs(value)) * np.uint64(abs(value))
                sums[label, band] += value
                squares[label, band, 0] += np.int64(square >> np.uint64(32))
                squares[label, band, 1] += np.int64(square & _LOW)


@strict_njit
def _two_sum(a: Any, b: Any) -> Any:
    """A sum and its rounding error; 0 if the sum is infinite or NaN."""
    total = a + b
    part = total - a
    rest = (a - (total - part)) + (b - part)
    return total, (rest if np.isfinite(rest) else 0.0)


@strict_njit
def _two_product(a: Any, b: Any) -> Any:
    """A product and its rounding error; 0 if that cannot be determined."""
    product = a * b
    c, d = _SPLITTER * a, _SPLITTER * b
    a1, b1 = c - (c - a), d - (d - b)
    a2, b2 = a - a1, b - b1
    rest = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
    return product, (rest if np.isfinite(rest) else 0.0)


@strict_njit
def _add_pair(a: Any, b: Any) -> Any:
    """The sum of two pairs."""
    total, rest = _two_sum(a[0], b[0])
    other, least = _two_sum(a[1], b[1])
    total, rest = _two_sum(total, rest + other)
    return _two_sum(total, rest + least)


@strict_njit
def _multiply_pair(a: Any, b: Any) -> Any:
    """The product of two pairs."""
    product, rest = _two_product(a[0], b[0])
    one, least = _two_product(a[0], b[1])
    other, lesser = _two_product(a[1], b[0])
    cross = _add_pair((one, least), (other, lesser))
    return _add_pair(_add_pair((product, rest), cross), (a[1] * b[1], 0.0))


@strict_njit
def add_floats(values: Any, pixels: Any, counts: Any, sums: Any, squares: Any) -> None:
    """Add the band values of each label's pixels, floating-point numbers; sums of values and of
    squares are pairs along the last axis.
    """
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            label = values[y, x]
            if label == 0:
                continue
            counts[label] += 1
            for band in range(pixels.shape[2]):
                value = np.float64(pixels[y, x, band])
                into = sums[label, band]
                into[0], into[1] = _add_pair((into[0], into[1]), (value, 0.0))
                into = squares[label, band]
                into[0], into[1] = _add_pair((into[0], into[1]), _two_product(value, value))


@strict_njit
def add_pairs(target: Any, index: Any, source: Any) -> None:
    """Add pairs (n, bands, 2) to the rows `index` of the target."""
    for i in range(len(index)):
        for band in range(source.shape[1]):
            one, other = target[index[i], band], source[i, band]
            one[0], one[1] = _add_pair((one[0], one[1]), (other[0], other[1]))


@strict_njit
def spread_of_pairs(counts: Any, sums: Any, squares: Any, out: Any) -> None:
    """Standard deviations from counts and from sums of values and squares as pairs: sqrt(n *
    squares - sum**2) / n.
    """
    for i in range(len(counts)):
        count = (np.float64(counts[i]), 0.0)
        for band in range(sums.shape[1]):
            total, square = (
                (sums[i, band, 0], sums[i, band, 1]),
                (squares[i, band, 0], squares[i, band, 1]),
            )
            scaled, product = _multiply_pair(count, square), _multiply_pair(total, total)
            difference, _ = _add_pair(scaled, (-product[0], -product[1]))
            # max() might hide NaN.
            out[i, band] = (
                np.nan if np.isnan(difference) else np.sqrt(max(difference, 0.0)) / count[0]
            )


@strict_njit
def half_angles(y: Any, x: Any, out: Any) -> None:
    """Write half the angle of each vector (x, y) to the x axis to `out`, in radians."""
    for i in range(len(out)):
        out[i] = 0.5 * math.atan2(y[i], x[i])
