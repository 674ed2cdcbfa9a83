"""Compiled loops of quick shift.

Densities are sums over a window around each pixel. The weight of a pair of pixels is symmetric, so
it is computed once, for whole rows of pairs at a time so that the loops vectorise, and added to
both. The order of a pixel's terms depends on their offsets only: the rows above from the farthest
to the nearest, its own row, the rows below from the nearest to the farthest. So its density has the
same bits in every tile that contains its window.

Invalid pixels have infinite colours: their weight in any sum is e**-700, which does not change a
density.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from maskloom.segcore.kernels.clustering import _log
from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.pixels import splitmix

_NOISE = 1e-5
"""Standard deviation of the noise that breaks ties, as in scikit-image."""
_LOG2_E = 1 / math.log(2)
_LN_2_HIGH, _LN_2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_ROUND = 1.5 * 2.0**52
"""Adding this leaves the nearest integer in the low bits of a double."""


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _fused(context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001  numba hands over the types
    """a·b + c, rounded once on every processor, and one instruction on most."""
    return types.float64(
        types.float64, types.float64, types.float64
    ), lambda _, builder, __, values: builder.fma(*values)


@strict_njit
def _exp(x):  # type: ignore[no-untyped-def]
    """e**x for x <= 700, and e**-700 below -700, accurate to the second last bit; without branches,
    so that loops vectorise.
    """
    x = max(x, -700.0)
    shifted = _fused(x, _LOG2_E, _ROUND)
    whole = shifted - _ROUND
    r = _fused(whole, -_LN_2_LOW, _fused(whole, -_LN_2_HIGH, x))
    p = _fused(r, 1 / 479001600, 1 / 39916800)
    p = _fused(r, p, 1 / 3628800)
    p = _fused(r, p, 1 / 362880)
    p = _fused(r, p, 1 / 40320)
    p = _fused(r, p, 1 / 5040)
    p = _fused(r, p, 1 / 720)
    p = _fused(r, p, 1 / 120)
    p = _fused(r, p, 1 / 24)
    p = _fused(r, p, 1 / 6)
    p = _fused(r, p, 0.5)
    p = _fused(r, p, 1.0)
    p = _fused(r, p, 1.0)
    power = (np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)
    return p * np.int64(power).view(np.float64)


# ---- colours and noise
# ---------------------------------------------------------------------------------------------


@strict_njit
def _linearise(values):  # type: ignore[no-untyped-def]
    """Convert values of sRGB to linear light (IEC 61966-2-1)."""
    for x in range(values.size):
        value = values[x]
        curved = _exp(2.4 * _log((max(value, 0.04) + 0.055) / 1.055))
        values[x] = curved if value > 0.04045 else value / 12.92


@strict_njit
def _adapt(values, white):  # type: ignore[no-untyped-def]
    """Convert values of CIE XYZ to cube roots relative to white, with the linear part of CIE Lab
    near black.
    """
    for x in range(values.size):
        light = values[x] / white
        root = _exp(_log(max(light, 0.008)) / 3.0)
        values[x] = root if light > 0.008856 else 7.787 * light + 16.0 / 116.0


@strict_njit
def convert_to_lab(planes):  # type: ignore[no-untyped-def]
    """Convert (3, y, x) planes of sRGB from 0 to 1 to CIE Lab (D65, 2 degrees), with the constants
    of scikit-image.
    """
    for y in range(planes.shape[1]):
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        _linearise(red)
        _linearise(green)
        _linearise(blue)
        for x in range(planes.shape[2]):
            r, g, b = red[x], green[x], blue[x]
            red[x] = 0.412453 * r + 0.357580 * g + 0.180423 * b
            green[x] = 0.212671 * r + 0.715160 * g + 0.072169 * b
            blue[x] = 0.019334 * r + 0.119193 * g + 0.950227 * b
        _adapt(red, 0.95047)
        _adapt(green, 1.0)
        _adapt(blue, 1.08883)
        for x in range(planes.shape[2]):
            first, second, third = red[x], green[x], blue[x]
            red[x] = 116.0 * second - 16.0
            green[x] = 500.0 * (first - second)
            blue[x] = 200.0 * (second - third)


@strict_njit
def fill_noise(corner, seed, noise):  # type: ignore[no-untyped-def]
    """Fill in the noise of the pixels from `corner` (row, column of the raster) on: approximately
    normal, determined by position and `seed`.

    The sum of twelve uniform draws has variance 1 (Irwin and Hall); integers avoid rounding.
    """
    low = np.uint64(0xFFFFFFFF)
    salt = splitmix(np.uint64(seed))
    for y in range(noise.shape[0]):
        row = splitmix(salt ^ splitmix(np.uint64(corner[0] + y)))
        for x in range(noise.shape[1]):
            state = row ^ np.uint64(corner[1] + x)
            total = np.int64(0)
            for _ in range(6):
                state = splitmix(state)
                total += np.int64(state & low) + np.int64(state >> np.uint64(32))
            noise[y, x] = _NOISE * (float(total - np.int64(6 * 0xFFFFFFFF)) / 4294967296.0)


# ---- densities and trees
# -------------------------------------------------------------------------------------------


@strict_njit
def _weigh_colours(planes, here, there, space, factor, weights):  # type: ignore[no-untyped-def]
    """Weights of the pairs of pixels from `here` and from `there` (row, column) on; `space` is
    their squared distance in space.
    """
    n = weights.size
    # Rows that the compiler knows to be contiguous, from 0 on; otherwise it does not vectorise.
    a, b, c = (
        planes[0, here[0]][here[1] :],
        planes[1, here[0]][here[1] :],
        planes[2, here[0]][here[1] :],
    )
    d, e, f = (
        planes[0, there[0]][there[1] :],
        planes[1, there[0]][there[1] :],
        planes[2, there[0]][there[1] :],
    )
    for x in range(n):
        first, second, third = a[x] - d[x], b[x] - e[x], c[x] - f[x]
        weights[x] = _exp((first * first + second * second + third * third + space) * factor)


@strict_njit
def _weigh_bands(planes, here, there, space, factor, weights):  # type: ignore[no-untyped-def]
    """As `_weigh_colours`, for any number of bands."""
    n = weights.size
    for x in range(n):
        weights[x] = 0.0
    for band in range(planes.shape[0]):
        one, other = planes[band, here[0]][here[1] :], planes[band, there[0]][there[1] :]
        for x in range(n):
            difference = one[x] - other[x]
            weights[x] += difference * difference
    for x in range(n):
        weights[x] = _exp((weights[x] + space) * factor)


@strict_njit
def _add(terms, sums):  # type: ignore[no-untyped-def]
    for x in range(terms.size):
        sums[x] += terms[x]


@strict_njit
def add_densities(planes, densities, inner, width, factor):  # type: ignore[no-untyped-def]
    """Add to the densities of the pixels of `inner` (top, left, bottom, right) the weights
    exp(factor · distance²) of their windows.

    `planes` (band, y, x) and `densities` (y, x) cover `inner` and up to `width` pixels around it.
    Densities outside `inner` are incomplete.
    """
    top, left, bottom, right = inner
    bands, height, across = planes.shape
    row = np.empty(across)
    for y in range(max(top - width, 0), bottom):
        for dy in range(max(top - y, 0), min(width, height - 1 - y) + 1):
            if dy == 0:
                for x in range(left, right):
                    densities[y, x] += 1.0
            for dx in range(-width if dy > 0 else 1, width + 1):
                first, last = (
                    max(left - max(dx, 0), -dx, 0),
                    min(right - min(dx, 0), across - dx, across),
                )
                if first >= last:
                    continue
                weights, space = row[: last - first], float(dy * dy + dx * dx)
                if bands == 3:
                    _weigh_colours(planes, (y, first), (y + dy, first + dx), space, factor, weights)
                else:
                    _weigh_bands(planes, (y, first), (y + dy, first + dx), space, factor, weights)
                _add(weights, densities[y][first:last])
                _add(weights, densities[y + dy][first + dx : last + dx])


@strict_njit
def find_parents(planes, densities, core, offsets, max_dist, parents):  # type: ignore[no-untyped-def]
    """Set `parents` (flat positions) of the pixels of `core` (top, left, bottom, right); roots are
    their own parents.

    Pixels with density -inf are invalid: they have no parent and no children. `offsets` are rows
    (dy² + dx², dy, dx) by ascending distance. As in scikit-image the nearest denser pixel is the
    parent, the first of equally near ones in row order. No farther offset can win once the distance
    in space alone is greater than the nearest found.
    """
    top, left, bottom, right = core
    bands, height, across = planes.shape
    for y in range(top, bottom):
        for x in range(left, right):
            density = densities[y, x]
            if density == -np.inf:
                continue
            nearest, parent = np.inf, y * across + x
            for i in range(offsets.shape[0]):
                if offsets[i, 0] > nearest:
                    break
                dy, dx = offsets[i, 1], offsets[i, 2]
                if (
                    not (0 <= y + dy < height and 0 <= x + dx < across)
                    or densities[y + dy, x + dx] <= density
                ):
                    continue
                distance = 0.0
                for band in range(bands):
                    difference = planes[band, y, x] - planes[band, y + dy, x + dx]
                    distance += difference * difference
                distance = distance + float(dy * dy) + float(dx * dx)
                place = (y + dy) * across + x + dx
                if distance < nearest or (distance == nearest and place < parent):
                    nearest, parent = distance, place
            parents[y, x] = parent if math.sqrt(nearest) <= max_dist else y * across + x


@strict_njit
def number_trees(parents, values):  # type: ignore[no-untyped-def]
    """Write the number of each pixel's tree to `values`, which contains zeros, from 1 on in the row
    order of the trees' first pixels.

    A tree ends in a pixel that is its own parent, or in one with unknown parent (-1). Pixels with
    unknown parent are numbered only if a chain ends in them.
    """
    flat, numbers = parents.ravel(), values.ravel()
    count = 0
    for start in range(flat.size):
        if flat[start] < 0 or numbers[start] > 0:
            continue
        place = start
        while numbers[place] == 0 and flat[place] >= 0 and flat[place] != place:
            place = flat[place]
        if numbers[place] == 0:
            count += 1
            numbers[place] = count
        number = numbers[place]
        place = start
        while numbers[place] == 0:
            numbers[place] = number
            place = flat[place]
