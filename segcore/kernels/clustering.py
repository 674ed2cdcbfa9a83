"""Compiled loops that fit clusters.

Each call handles one chunk of the values and writes its own sums. The caller divides the values
into chunks by their number alone and adds the sums in order, so results do not depend on the number
of threads.
"""

from __future__ import annotations

import math

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.pixels import BATCH, score_batch

CELL_BITS = 9
"""Colours are pruned in cells of 2**9 Morton codes: cubes of 8 x 8 x 8 colours."""
_CELL_SIDE = 8
_LOG2_E, _LN_2 = 1 / math.log(2), math.log(2)
_LN_2_HIGH = 0.693147180369123816490
_LN_2_LOW = 1.90821492927058770002e-10
_ROUND = 1.5 * 2.0**52
"""Adding this leaves the nearest integer in the low bits of a double."""


@strict_njit
def _exp(x):  # type: ignore[no-untyped-def]
    """e**x for x <= 0 to about 1e-15, without branches so that loops over it vectorise."""
    x = max(x, -700.0)
    shifted = x * _LOG2_E + _ROUND
    whole = shifted - _ROUND
    r = x - whole * _LN_2_HIGH - whole * _LN_2_LOW
    p = 1 / 39916800 + r * (1 / 479001600)
    p = 1 / 3628800 + r * p
    p = 1 / 362880 + r * p
    p = 1 / 40320 + r * p
    p = 1 / 5040 + r * p
    p = 1 / 720 + r * p
    p = 1 / 120 + r * p
    p = 1 / 24 + r * p
    p = 1 / 6 + r * p
    p = 0.5 + r * p
    p = 1.0 + r * p
    p = 1.0 + r * p
    power = (np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)
    return p * np.int64(power).view(np.float64)


@strict_njit
def _log(y):  # type: ignore[no-untyped-def]
    """log(y) for normal y > 0, by the series of the inverse hyperbolic tangent."""
    bits = np.float64(y).view(np.int64)
    exponent = float((bits >> np.int64(52)) - np.int64(1023))
    m = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000)).view(np.float64)
    large = m > math.sqrt(2.0)
    m = 0.5 * m if large else m
    exponent = exponent + 1.0 if large else exponent
    f = (m - 1.0) / (m + 1.0)
    s = f * f
    p = 1 / 19 + s * (1 / 21)
    p = 1 / 17 + s * p
    p = 1 / 15 + s * p
    p = 1 / 13 + s * p
    p = 1 / 11 + s * p
    p = 1 / 9 + s * p
    p = 1 / 7 + s * p
    p = 1 / 5 + s * p
    p = 1 / 3 + s * p
    return exponent * _LN_2 + 2.0 * f * (1.0 + s * p)


@strict_njit
def cell_sums(starts, colours, weights, sums):  # type: ignore[no-untyped-def]
    """Sums (w, r, g, b, rr + gg + bb) of the colours from each start to the next: exact
    integers.
    """
    for cell in range(starts.size - 1):
        for i in range(starts[cell], starts[cell + 1]):
            w = weights[i]
            sums[cell, 0] += w
            square = 0.0
            for channel in range(3):
                value = float(colours[channel, i])
                sums[cell, 1 + channel] += w * value
                square += value * value
            sums[cell, 4] += w * square


@strict_njit
def _candidates(corner, centres, scale, found):  # type: ignore[no-untyped-def]
    """Find the centres that may own a colour of the cell at `corner`, in order; return their
    number.

    `scale` multiplies differences along each channel. Source: Kanungo et al., IEEE TPAMI 24, 2002.
    """
    nearest, least = 0, np.inf
    for k in range(centres.shape[0]):
        square = 0.0
        for channel in range(3):
            square += (
                (corner[channel] + 0.5 * (_CELL_SIDE - 1) - centres[k, channel]) * scale[channel]
            ) ** 2
        if square < least:
            nearest, least = k, square
    n = 0
    for k in range(centres.shape[0]):
        mine, theirs = 0.0, 0.0
        for channel in range(3):
            # The corner of the cell that is farthest towards centre k.
            far = _CELL_SIDE - 1 if centres[k, channel] > centres[nearest, channel] else 0
            mine += ((corner[channel] + far - centres[k, channel]) * scale[channel]) ** 2
            theirs += ((corner[channel] + far - centres[nearest, channel]) * scale[channel]) ** 2
        # The margins cover rounding, so every colour gets the label that a full search would give.
        if k == nearest or mine <= theirs + 1e-6 + 1e-9 * theirs:
            found[n] = k
            n += 1
    return n


@strict_njit
def lloyd_cells(chunk, cells, colours, weights, measure, sums):  # type: ignore[no-untyped-def]
    """One step of k-means over the cells of `chunk`: exact sums (w, r, g, b) of the colours nearest
    to each centre.

    `cells` is (starts, corners, sums of each cell). Cells that belong to one centre are added as a
    whole. `measure` is (centres, scale): `scale` multiplies differences along each channel.
    """
    starts, corners, cell_totals = cells
    centres, scale = measure
    found = np.empty(centres.shape[0], np.int64)
    for cell in range(chunk[0], chunk[1]):
        n = _candidates(corners[cell], centres, scale, found)
        if n == 1:
            for j in range(4):
                sums[found[0], j] += cell_totals[cell, j]
            continue
        for i in range(starts[cell], starts[cell + 1]):
            r, g, b = float(colours[0, i]), float(colours[1, i]), float(colours[2, i])
            least, label = np.inf, 0
            for at in range(n):
                k = found[at]
                square = ((r - centres[k, 0]) * scale[0]) ** 2
                square += ((g - centres[k, 1]) * scale[1]) ** 2
                square += ((b - centres[k, 2]) * scale[2]) ** 2
                if square < least:
                    least, label = square, k
            w = weights[i]
            sums[label, 0] += w
            sums[label, 1] += w * r
            sums[label, 2] += w * g
            sums[label, 3] += w * b


@strict_njit
def lloyd_points(chunk, x, weights, measure, sums):  # type: ignore[no-untyped-def]
    """One step of k-means over the values of `chunk`, x (channel, n): weight, sums by channel and
    inertia of each centre.

    `measure` is (centres, scale): `scale` multiplies differences along each channel.
    """
    centres, scale = measure
    channels = x.shape[0]
    square, least, label = np.empty(BATCH), np.empty(BATCH), np.empty(BATCH, np.int64)
    for start in range(chunk[0], chunk[1], BATCH):
        n = min(BATCH, chunk[1] - start)
        for k in range(centres.shape[0]):
            for p in range(n):
                square[p] = 0.0
            for j in range(channels):
                centre, factor = centres[k, j], scale[j]
                for p in range(n):
                    difference = factor * (x[j, start + p] - centre)
                    square[p] += difference * difference
            for p in range(n):
                nearer = k == 0 or square[p] < least[p]
                label[p] = k if nearer else label[p]
                least[p] = square[p] if nearer else least[p]
        for p in range(n):
            w, k = weights[start + p], label[p]
            sums[k, 0] += w
            for j in range(channels):
                sums[k, 1 + j] += w * x[j, start + p]
            sums[k, 1 + channels] += w * least[p]


@strict_njit
def _log_probabilities(x, component, out):  # type: ignore[no-untyped-def]
    """Set `out` to constant - |factor (x - mean)|**2 / 2 for the columns of x (channel, batch)."""
    constant, mean, factor = component
    difference = np.empty(BATCH)
    for p in range(BATCH):
        out[p] = constant
    for i in range(mean.size):
        shift = 0.0
        for j in range(i + 1):
            shift += factor[i, j] * mean[j]
        for p in range(BATCH):
            difference[p] = -shift
        for j in range(i + 1):
            scale = factor[i, j]
            for p in range(BATCH):
                difference[p] += scale * x[j, p]
        for p in range(BATCH):
            out[p] -= 0.5 * difference[p] * difference[p]


@strict_njit
def _dot(a, b):  # type: ignore[no-untyped-def]
    """Sum of a * b over a batch, in eight fixed parts: the processor adds them in parallel and no
    compiler may reorder them.
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for p in range(0, BATCH, 8):
        s0 += a[p] * b[p]
        s1 += a[p + 1] * b[p + 1]
        s2 += a[p + 2] * b[p + 2]
        s3 += a[p + 3] * b[p + 3]
        s4 += a[p + 4] * b[p + 4]
        s5 += a[p + 5] * b[p + 5]
        s6 += a[p + 6] * b[p + 6]
        s7 += a[p + 7] * b[p + 7]
    return ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))


@strict_njit
def _load_batch(x, weights, units, part, batch):  # type: ignore[no-untyped-def]
    """Load the (start, number) `part` of x into `batch` = (weights, rows).

    The first row holds ones. The rows below hold the values in `units`, then their products i <= j.
    """
    start, n = part
    origin, scale = units
    weight, rows = batch
    channels = x.shape[0]
    for p in range(n):
        weight[p] = weights[start + p]
    for p in range(n, BATCH):
        weight[p] = 0.0
    at = 1 + channels
    for j in range(channels):
        low, factor = origin[j], scale[j]
        for p in range(n):
            rows[1 + j, p] = (x[j, start + p] - low) * factor
        for i in range(j + 1):
            for p in range(BATCH):
                rows[at, p] = rows[1 + i, p] * rows[1 + j, p]
            at += 1


@strict_njit
def _responsibilities(weight, score, top, total):  # type: ignore[no-untyped-def]
    """Turn log-probabilities (component, batch) into weighted responsibilities; `top` becomes the
    log-likelihoods.
    """
    components = score.shape[0]
    for p in range(BATCH):
        top[p] = score[0, p]
        total[p] = 0.0
    for k in range(1, components):
        for p in range(BATCH):
            top[p] = max(top[p], score[k, p])
    for k in range(components):
        for p in range(BATCH):
            score[k, p] = _exp(score[k, p] - top[p])
            total[p] += score[k, p]
    for p in range(BATCH):
        top[p] += _log(total[p])
        total[p] = weight[p] / total[p]
    for k in range(components):
        for p in range(BATCH):
            score[k, p] *= total[p]


@strict_njit
def expect(chunk, data, units, mixture, sums):  # type: ignore[no-untyped-def]
    """The expectation step over the values of `chunk`. Returns the sum of weighted log-likelihoods.

    `data` is (values, weights). `mixture` is (constants, means, factors) in `units`: values minus
    an origin, times a scale per channel. Adds to `sums` (component, 1 + c + c (c + 1) / 2) the
    totals of each component, weighted by its responsibilities and in the same units: weight,
    values, and products of values i <= j.
    """
    x, weights = data
    constants, means, factors = mixture
    components = constants.size
    # Rows: ones, the values, and their products. Columns beyond the last value of a chunk have
    # weight 0.
    rows = np.ones((sums.shape[1], BATCH))
    score = np.empty((components, BATCH))
    weight, top, total = np.empty(BATCH), np.empty(BATCH), np.empty(BATCH)
    likelihood = 0.0
    for start in range(chunk[0], chunk[1], BATCH):
        _load_batch(x, weights, units, (start, min(BATCH, chunk[1] - start)), (weight, rows))
        for k in range(components):
            _log_probabilities(rows[1:], (constants[k], means[k], factors[k]), score[k])
        _responsibilities(weight, score, top, total)
        likelihood += _dot(weight, top)
        for k in range(components):
            for row in range(sums.shape[1]):
                sums[k, row] += _dot(score[k], rows[row])
    return likelihood


@strict_njit
def posteriors(pixels, scorer, diagonal, out):  # type: ignore[no-untyped-def]
    """Probability of each component for each row of `pixels` (n, channel), into `out` (n,
    components), which holds numbers to add to the scores before. Scores as in `label_pixels`.

    All components are equally probable for a pixel that is not finite.
    """
    constants, means, factors = scorer
    channels, components = pixels.shape[1], constants.size
    x, score = np.empty((channels, BATCH)), np.zeros((components, BATCH))
    ones, top, total = np.ones(BATCH), np.empty(BATCH), np.empty(BATCH)
    for start in range(0, pixels.shape[0], BATCH):
        n = min(BATCH, pixels.shape[0] - start)
        for j in range(channels):
            for p in range(n):
                x[j, p] = pixels[start + p, j]
        for k in range(components):
            score_batch(x, n, constants[k], means[k], factors[k], diagonal, score[k])
            for p in range(n):
                score[k, p] += out[start + p, k]
        _responsibilities(ones, score, top, total)
        for p in range(n):
            for k in range(components):
                out[start + p, k] = score[k, p] if np.isfinite(total[p]) else 1.0 / components


@strict_njit
def _invert_lower(lower, inverse):  # type: ignore[no-untyped-def]
    """Write the inverse of a lower triangular matrix (d, d) to `inverse`, which is zeros."""
    for j in range(lower.shape[0]):
        inverse[j, j] = 1 / lower[j, j]
        for i in range(j + 1, lower.shape[0]):
            rest = 0.0
            for m in range(j, i):
                rest -= lower[i, m] * inverse[m, j]
            inverse[i, j] = rest / lower[i, i]


@strict_njit
def inverse_roots(matrices, inverses):  # type: ignore[no-untyped-def]
    """Write the inverses of the Cholesky roots of symmetric matrices (k, d, d) to `inverses`, which
    are zeros: lower triangular, and inverse.T @ inverse is the inverse of the matrix. Returns
    whether all matrices are positive definite.

    LAPACK does the same, with other last bits on other processors.
    """
    size = matrices.shape[1]
    root = np.zeros((size, size))
    for k in range(matrices.shape[0]):
        for i in range(size):
            for j in range(i + 1):
                rest = matrices[k, i, j]
                for m in range(j):
                    rest -= root[i, m] * root[j, m]
                if i > j:
                    root[i, j] = rest / root[j, j]
                elif rest > 0:
                    root[i, i] = math.sqrt(rest)
                else:
                    return False
        _invert_lower(root, inverses[k])
    return True


@strict_njit
def of_inverse_roots(factors, matrices):  # type: ignore[no-untyped-def]
    """Write the matrices (k, d, d) whose `inverse_roots` are `factors`."""
    size = factors.shape[1]
    for k in range(factors.shape[0]):
        root = np.zeros((size, size))
        _invert_lower(factors[k], root)
        for i in range(size):
            for j in range(size):
                total = 0.0
                for m in range(min(i, j) + 1):
                    total += root[i, m] * root[j, m]
                matrices[k, i, j] = total
