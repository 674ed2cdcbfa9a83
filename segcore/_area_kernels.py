"""Compiled loops over the pixels of a tile for their areas. Import only inside functions: numba takes a second to load.

All of them use strict IEEE arithmetic or whole numbers, so every cut into tiles gives the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

_LOW = np.int64(2**32 - 1)


def _exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`njit` that releases the lock and keeps the machine code on disk where there is a place for it."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]  # numba has no types
    except RuntimeError:  # numba's word for: neither the package's folder nor the user's cache can be written
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]  # numba has no types


@_exactly
def fill_cells(out, top, left, corners, size, polynomials):  # type: ignore[no-untyped-def]
    """Write the values of polynomials into the part of `out` that their cells cover.

    `out` starts at pixel (top, left) of the raster. Cell i covers `size` x `size` pixels from `corners[i]`; its value at the
    centre of a pixel is the sum of `polynomials[i, j, k] * v**j * u**k`, where v and u run from -1 to 1 across the cell.
    """
    terms = polynomials.shape[1]
    line, step = np.empty(terms), 1.0 / size
    for i in range(len(corners)):
        first_row, first_column = corners[i, 0], corners[i, 1]
        begin, end = max(first_column, left), min(first_column + size, left + out.shape[1])
        for y in range(max(first_row, top), min(first_row + size, top + out.shape[0])):
            v = (2 * (y - first_row) + 1) * step - 1.0
            for k in range(terms):
                value = polynomials[i, terms - 1, k]
                for j in range(terms - 2, -1, -1):
                    value = value * v + polynomials[i, j, k]
                line[k] = value
            c0, c1, c2, c3, c4, c5, c6 = line[0], line[1], line[2], line[3], line[4], line[5], line[6]
            row = out[y - top]
            for x in range(begin, end):
                u = (2 * (x - first_column) + 1) * step - 1.0
                row[x - left] = (((((c6 * u + c5) * u + c4) * u + c3) * u + c2) * u + c1) * u + c0


@_exactly
def sum_rows(values, place, amounts, count, low, high):  # type: ignore[no-untyped-def]
    """Count labels, and add up an amount that is the same for all pixels of a row.

    `place[label]` is the label's place in the sums; `amounts` holds a whole number a row. A sum is `high * 2**32 + low`.
    """
    places = len(count)
    # Four tables: runs of one label would else wait for their own last addition.
    tables = np.empty((4, places), np.int64)
    for y in range(values.shape[0]):
        tables[:] = 0
        row = values[y]
        whole = len(row) // 4 * 4
        for x in range(0, whole, 4):
            tables[0, place[row[x]]] += 1
            tables[1, place[row[x + 1]]] += 1
            tables[2, place[row[x + 2]]] += 1
            tables[3, place[row[x + 3]]] += 1
        for x in range(whole, len(row)):
            tables[0, place[row[x]]] += 1
        for i in range(places):
            n = tables[0, i] + tables[1, i] + tables[2, i] + tables[3, i]
            count[i] += n
            low[i] += n * (amounts[y] & _LOW)
            high[i] += n * (amounts[y] >> 32)


@_exactly
def sum_pixels(values, place, areas, scale, count, low, high):  # type: ignore[no-untyped-def]
    """Count labels, and add up `areas * scale`, each pixel's rounded to a whole number; returns the greatest.

    `place[label]` is the label's place in the sums; `areas` is not negative. A sum is `high * 2**32 + low`. Sums are void if
    the greatest product is above 2**62.
    """
    greatest = 0.0
    for y in range(values.shape[0]):
        row, weights = values[y], areas[y]
        for x in range(len(row)):
            i = place[row[x]]
            product = weights[x] * scale
            greatest = max(greatest, product)
            amount = np.int64(product + 0.5)
            count[i] += 1
            low[i] += amount & _LOW
            high[i] += amount >> 32
    return greatest
