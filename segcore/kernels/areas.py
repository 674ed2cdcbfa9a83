"""Loops over the pixels of a tile for their areas, in strict arithmetic or integers, so every
tiling gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

_LOW = np.int64(2**32 - 1)
_SHORTEST, _LONGEST = 16, 512
"""Shortest run of pixels worth a parabola, and longest run whose sums fit in their bits."""
_POWERS = np.array([1 + (x << 16) + (x * x << 36) for x in range(_LONGEST)])
"""1, x and x**2, packed into bit fields that hold their sums over all x below `_LONGEST`."""
_NEGLIGIBLE = 1e-10
"""Largest relative error of an area by a parabola."""


@strict_njit
def _row_coefficients(polynomial, v, line):  # type: ignore[no-untyped-def]
    """The polynomial along a row: the coefficients of the powers of u for this v."""
    terms = len(polynomial)
    for k in range(terms):
        value = polynomial[terms - 1, k]
        for j in range(terms - 2, -1, -1):
            value = value * v + polynomial[j, k]
        line[k] = value


@strict_njit
def _value(line, u):  # type: ignore[no-untyped-def]
    c0, c1, c2, c3, c4, c5, c6 = line[0], line[1], line[2], line[3], line[4], line[5], line[6]
    return (((((c6 * u + c5) * u + c4) * u + c3) * u + c2) * u + c1) * u + c0


@strict_njit
def fill_cells(out, origin, cells):  # type: ignore[no-untyped-def]
    """Write the values of polynomials into the part of `out` (y, x) that their cells cover.

    `out` starts at pixel `origin` of the raster; `cells` are (size, corners, polynomials). Cell i
    covers `size` x `size` pixels from `corners[i]`. Its value at the centre of a pixel is the sum
    of `polynomials[i, j, k] * v**j * u**k`, where v and u run from -1 to 1 across the cell.
    """
    (top, left), (size, corners, polynomials) = origin, cells
    line, step = np.zeros(7), 1.0 / size
    for i in range(len(corners)):
        first_row, first_column = corners[i]
        begin, end = max(first_column, left), min(first_column + size, left + out.shape[1])
        for y in range(max(first_row, top), min(first_row + size, top + out.shape[0])):
            _row_coefficients(polynomials[i], (2 * (y - first_row) + 1) * step - 1.0, line)
            row = out[y - top]
            for x in range(begin, end):
                row[x - left] = _value(line, (2 * (x - first_column) + 1) * step - 1.0)


@strict_njit
def _length(polynomial, size):  # type: ignore[no-untyped-def]
    """Largest run of pixels in a row, a power of two, over which a parabola through three points is
    as accurate as the polynomial.
    """
    third = 0.0
    for j in range(len(polynomial)):
        for k in range(3, len(polynomial)):
            third += k * (k - 1) * (k - 2) * abs(polynomial[j, k])
    length = min(size, _LONGEST)
    # The error of a parabola through three points at distance h is at most h**3 / (9 * sqrt(3))
    # times the third derivative.
    while length > 1 and third * (length / size) ** 3 > 15.5 * _NEGLIGIBLE * abs(polynomial[0, 0]):
        length //= 2
    return length if length >= _SHORTEST else 1


@strict_njit
def _parabola(line, first, length, size):  # type: ignore[no-untyped-def]
    """Integers q such that q[0] + q[1] * x + q[2] * x**2 approximates pixel first + x of a cell's
    row, and the larger of the values at both ends.
    """
    last, step = length - 1, 1.0 / size
    u = (2 * first + 1) * step - 1.0
    begin, middle, end = (
        _value(line, u),
        _value(line, u + last * step),
        _value(line, u + 2 * last * step),
    )
    second = np.rint(2.0 * (begin - 2.0 * middle + end) / (last * last))
    # The slope compensates for rounding, so the error at both ends is negligible.
    slope = np.rint((end - begin) / last - second * last)
    return (np.int64(np.rint(begin)), np.int64(slope), np.int64(second)), max(begin, end)


@strict_njit
def _add_long(row, place, q, first, sums):  # type: ignore[no-untyped-def]
    """Add the pixels of `row`, whose first is pixel `first` of the parabola `q`, by one addition
    per pixel.

    Each addition adds 1, x and x**2 at once, in separate bit fields.
    """
    # Four tables: with one, each addition in a run of equal labels would wait for the previous one.
    tables, whole = np.zeros((4, sums.shape[1]), np.int64), len(row) // 4 * 4
    for t in range(0, whole, 4):
        x = first + t
        tables[0, place[row[t]]] += _POWERS[x]
        tables[1, place[row[t + 1]]] += _POWERS[x + 1]
        tables[2, place[row[t + 2]]] += _POWERS[x + 2]
        tables[3, place[row[t + 3]]] += _POWERS[x + 3]
    for t in range(whole, len(row)):
        tables[0, place[row[t]]] += _POWERS[first + t]
    for i in range(tables.shape[1]):
        packed = tables[0, i] + tables[1, i] + tables[2, i] + tables[3, i]
        if packed:
            n, linear, squares = packed & 0xFFFF, packed >> 16 & 0xFFFFF, packed >> 36
            rest = n * (q[0] & _LOW) + linear * (q[1] & _LOW) + squares * (q[2] & _LOW)
            sums[0, i] += n
            sums[1, i] += rest & _LOW
            sums[2, i] += (
                n * (q[0] >> 32) + linear * (q[1] >> 32) + squares * (q[2] >> 32) + (rest >> 32)
            )


@strict_njit
def _add_short(row, place, q, first, sums):  # type: ignore[no-untyped-def]
    """As `_add_long`, pixel by pixel: for few pixels or many classes, where its tables cost too
    much.
    """
    for t in range(len(row)):
        i, x = place[row[t]], first + t
        amount = q[0] + x * (q[1] + x * q[2])
        sums[0, i] += 1
        sums[1, i] += amount & _LOW
        sums[2, i] += amount >> 32


@strict_njit
def _add(row, place, q, first, sums):  # type: ignore[no-untyped-def]
    """Add at most `_LONGEST` pixels by one parabola. Both ways give the same sums."""
    if len(row) > 4 * sums.shape[1]:
        _add_long(row, place, q, first, sums)
    else:
        _add_short(row, place, q, first, sums)


@strict_njit
def _add_parabolas(row, place, line, part, sums):  # type: ignore[no-untyped-def]
    """Add the pixels of `row`, a part of a row of a cell, by one parabola per `length` pixels of
    the cell.
    """
    first, length, size = part
    greatest, stop = 0.0, first + len(row)
    for origin in range(first // length * length, stop, length):
        begin, end = max(first, origin), min(stop, origin + length)
        q, area = _parabola(line, origin, length, size)
        greatest = max(greatest, area)
        _add(row[begin - first : end - first], place, q, begin - origin, sums)
    return greatest


@strict_njit
def _add_pixels(row, place, line, part, sums):  # type: ignore[no-untyped-def]
    """Add the pixels of `row`, a part of a row of a cell, by the polynomial."""
    first, _, size = part
    greatest, step = 0.0, 1.0 / size
    for t in range(len(row)):
        i, area = place[row[t]], _value(line, (2 * (first + t) + 1) * step - 1.0)
        greatest, amount = max(greatest, area), np.int64(np.rint(area))
        sums[0, i] += 1
        sums[1, i] += amount & _LOW
        sums[2, i] += amount >> 32
    return greatest


@strict_njit
def sum_cells(values, place, origin, cells, scale, sums):  # type: ignore[no-untyped-def]
    """Count labels and sum the areas of their pixels in quanta. Returns the largest area in quanta.

    `values` (y, x) starts at pixel `origin` of the raster; `cells` as for `fill_cells`, `place` and
    `sums` as for `sum_rows`; `scale` is the number of quanta per unit. The rows of a cell are
    divided into parts of equal length, in which parabolas with integer coefficients approximate the
    polynomial. If the polynomial varies too fast, each pixel is rounded separately. Parts and
    coefficients depend on the cell alone, never on `values`. The sums are invalid if the largest
    area exceeds 2**62.
    """
    (top, left), (size, corners, polynomials) = origin, cells
    greatest, line = 0.0, np.zeros(7)
    for i in range(len(corners)):
        first_row, first_column = corners[i]
        length = _length(polynomials[i], size)
        begin, end = max(first_column, left), min(first_column + size, left + values.shape[1])
        for y in range(max(first_row, top), min(first_row + size, top + values.shape[0])):
            _row_coefficients(polynomials[i], (2 * (y - first_row) + 1) / size - 1.0, line)
            line *= scale
            row, part = (
                values[y - top, begin - left : end - left],
                (begin - first_column, length, size),
            )
            if length > 1:
                area = _add_parabolas(row, place, line, part, sums)
            else:
                area = _add_pixels(row, place, line, part, sums)
            greatest = max(greatest, area)
    return greatest


@strict_njit
def sum_rows(values, place, amounts, sums):  # type: ignore[no-untyped-def]
    """Count labels and sum an amount that is equal for all pixels of a row.

    `values` are (y, x); `place[label]` is the label's column in the sums; `amounts` holds one
    integer per row. The first row of `sums` has the counts. The sum of the amounts is `sums[2] *
    2**32 + sums[1]`.
    """
    for y in range(values.shape[0]):
        for start in range(0, values.shape[1], _LONGEST):
            _add(values[y, start : start + _LONGEST], place, (amounts[y], 0, 0), 0, sums)


@strict_njit
def fill_zones(out, row, latitude, height, squared):  # type: ignore[no-untyped-def]
    """Write the areas of cells that lie between two parallels to `out`, one for each row, in units
    of half the square of the semi-minor axis and per radian of longitude.

    Row 0 begins at `latitude`, and each is `height` high, in radians; `out` begins with the row
    `row`. `squared` is the square of the ellipsoid's eccentricity. Latitudes end at the poles.
    """
    e = math.sqrt(squared)
    for i in range(len(out)):
        low = min(max(latitude + height * (row + i), -math.pi / 2), math.pi / 2)
        high = min(max(latitude + height * (row + i + 1), -math.pi / 2), math.pi / 2)
        s, t = math.sin(low), math.sin(high)
        step = 2 * math.cos((low + high) / 2) * math.sin((high - low) / 2)
        first = step * (1 + squared * s * t) / ((1 - squared * s * s) * (1 - squared * t * t))
        second = math.atanh(e * step / (1 - squared * s * t)) / e if e > 0 else step
        out[i] = abs(first + second)
