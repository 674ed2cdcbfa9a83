"""Compiled loops of mean shift in the space of values.

A lattice cell has a key: the sum over channels of the cell's index times the channel's stride,
modulo 2**64. A lattice is passed as (side, lows, extents, strides). Values by cell are stored in an
open-addressed hash table (keys, held). Its size is a power of two, and held < 0 marks a free slot.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.clustering import _exp
from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.pixels import BLUE, GREEN, RED

FLAT, EPANECHNIKOV, GAUSSIAN = 0, 1, 2
_MEMO_SLOTS = 2**17
_BATCH = 128


# ---- cells
# --------------------------------------------------------------------------------------------------


@strict_njit
def _slot(keys, held, key):  # type: ignore[no-untyped-def]
    """The slot of `key` in the table, or the free slot where it belongs."""
    mask = np.uint64(keys.size - 1)
    position = key * np.uint64(0x9E3779B97F4A7C15)
    position = (position ^ (position >> np.uint64(32))) & mask
    while held[position] >= 0 and keys[position] != key:
        position = (position + np.uint64(1)) & mask
    return position


@strict_njit
def _cell_of(value, lattice):  # type: ignore[no-untyped-def]
    """The key of the value's cell, and whether the cell is in the lattice: not for outside values
    and NaN.
    """
    side, lows, extents, strides = lattice
    key, inside = np.uint64(0), True
    for j in range(value.size):
        place = np.floor((value[j] - lows[j]) / side)
        inside = inside and 0 <= place < extents[j]
        key += np.uint64(place if inside else 0.0) * strides[j]
    return key, inside


@strict_njit
def fill(keys, held, new_keys, values):  # type: ignore[no-untyped-def]
    """Insert (key, value) pairs into an empty table."""
    for i in range(new_keys.size):
        position = _slot(keys, held, new_keys[i])
        keys[position] = new_keys[i]
        held[position] = values[i]


@strict_njit
def group_by_cell(values, weights, lattice, table, cells):  # type: ignore[no-untyped-def]
    """Collect values (channel, n), all inside the lattice, by cell in order of first occurrence.

    Fills `cells`: sums (most, 1 + channels) of weights and weighted values, and keys (most,).
    Returns the number of cells, or -1 if it exceeds `most`.
    """
    keys, held = table
    sums, cell_keys = cells
    n = 0
    for i in range(weights.size):
        key, _ = _cell_of(values[:, i], lattice)
        position = _slot(keys, held, key)
        if held[position] < 0:
            if n == cell_keys.size:
                return -1
            keys[position] = key
            held[position] = n
            cell_keys[n] = key
            n += 1
        cell = held[position]
        sums[cell, 0] += weights[i]
        for j in range(values.shape[0]):
            sums[cell, 1 + j] += weights[i] * float(values[j, i])
    return n


# ---- climbing
# --------------------------------------------------------------------------------------------------


@strict_njit
def _lower_bound(values, begin, end, bound):  # type: ignore[no-untyped-def]
    """The index of the first of the ascending values[begin:end] that is not below the bound."""
    while begin < end:
        middle = (begin + end) >> 1
        if values[middle] < bound:
            begin = middle + 1
        else:
            end = middle
    return begin


@strict_njit
def _count(squares, weights, window, counted):  # type: ignore[no-untyped-def]
    """The weights times the kernel at their squared distances from the window's centre."""
    kernel, bandwidth, reach = window
    shape = 1.0 / (bandwidth * bandwidth)
    if kernel == FLAT:
        for p in range(weights.size):
            counted[p] = weights[p]
    elif kernel == EPANECHNIKOV:
        for p in range(weights.size):
            counted[p] = weights[p] * (1.0 - squares[p] * shape)
    else:
        for p in range(weights.size):
            counted[p] = weights[p] * _exp(-0.5 * squares[p] * shape)
    for p in range(weights.size):
        counted[p] = counted[p] if squares[p] <= reach * reach else 0.0


@strict_njit
def _add_run(position, window, density, run, scratch, total):  # type: ignore[no-untyped-def]
    """Add the points of a (begin, end) `run` to `total`, in loops that vectorise."""
    points, weights = density[0], density[1]
    channels = points.shape[0]
    squares, counted = scratch
    for start in range(run[0], run[1], _BATCH):
        n = min(_BATCH, run[1] - start)
        squares[:n] = 0.0
        for j in range(channels):
            for p in range(n):
                difference = points[j, start + p] - position[j]
                squares[p] += difference * difference
        _count(squares, weights[start : start + n], window, counted)
        for p in range(n):
            total[0] += counted[p]
        for j in range(channels):
            for p in range(n):
                total[1 + j] += counted[p] * points[j, start + p]


@strict_njit
def _rows_within(value, low, number, side, reach):  # type: ignore[no-untyped-def]
    """The value relative to the begin of the rows, and the first and last row within reach."""
    place = value - low
    return (
        place,
        max(0, int(np.floor((place - reach) / side))),
        min(number - 1, int(np.floor((place + reach) / side))),
    )


@strict_njit
def _weighted_sums(position, window, density, scratch, total):  # type: ignore[no-untyped-def]
    """Weight and weighted sums (1 + channels) of the points around `position`, weighted by the
    kernel.

    `window` is (kernel, bandwidth, reach). `density` is (points (channel, n), weights, starts,
    rows): points sorted by row, and within a row by their third channel (the last one, if there are
    fewer). `rows` is (side, low and number of rows along two channels).
    """
    points, _, starts, rows = density
    side, low_a, number_a, low_b, number_b = rows
    channels = points.shape[0]
    along = min(2, channels - 1)
    total[:] = 0.0
    # The margin covers rounding: the distances alone decide which points count.
    reach = window[2] * (1 + 1e-9)
    a, first_a, last_a = (
        _rows_within(position[0], low_a, number_a, side, reach) if channels > 1 else (0.0, 0, 0)
    )
    b, first_b, last_b = (
        _rows_within(position[1], low_b, number_b, side, reach) if channels > 2 else (0.0, 0, 0)
    )
    for row_a in range(first_a, last_a + 1):
        gap_a = max(0.0, row_a * side - a, a - (row_a + 1) * side) if channels > 1 else 0.0
        for row_b in range(first_b, last_b + 1):
            gap_b = max(0.0, row_b * side - b, b - (row_b + 1) * side) if channels > 2 else 0.0
            left = reach * reach - gap_a * gap_a - gap_b * gap_b
            begin, end = starts[row_a * number_b + row_b], starts[row_a * number_b + row_b + 1]
            if left < 0 or begin == end:
                continue
            half = np.sqrt(left) + 1e-9 * reach
            begin = _lower_bound(points[along], begin, end, position[along] - half)
            end = _lower_bound(points[along], begin, end, position[along] + half)
            _add_run(position, window, density, (begin, end), scratch, total)


@strict_njit
def _step(position, total):  # type: ignore[no-untyped-def]
    """Move to the mean; return the squared distance moved."""
    moved = 0.0
    for j in range(position.size):
        mean = total[1 + j] / total[0]
        moved += (mean - position[j]) ** 2
        position[j] = mean
    return moved


@strict_njit
def follow_paths(chunk, window, density, micro, steps, found):  # type: ignore[no-untyped-def]
    """Follow mean shift from the points of `chunk` until a step is at most a thousandth of the
    bandwidth.

    `steps` is the largest number of steps of a path. `found` receives the ends (n, channel) and
    their strengths (n,): the kernel-weighted sum there. If the lattice `micro` has a side above 0,
    a path that enters a cell already crossed by an earlier path of the chunk takes that path's end.
    """
    points, ends, strengths = density[0], found[0], found[1]
    channels = points.shape[0]
    total, position = np.empty(1 + channels), np.empty(channels)
    scratch = np.empty(_BATCH), np.empty(_BATCH)
    remembers = micro[0] > 0
    slots = _MEMO_SLOTS if remembers else 1
    keys, held = np.zeros(slots, np.uint64), np.full(slots, -1, np.int64)
    path = np.empty(steps + 1, np.uint64)
    known = 0
    for i in range(chunk[0], chunk[1]):
        position[:] = points[:, i]
        crossed, same = 0, -1
        for _ in range(steps):
            key, inside = _cell_of(position, micro)
            if inside and remembers:
                same = held[_slot(keys, held, key)]
                if same >= 0:
                    break
                path[crossed] = key
                crossed += 1
            _weighted_sums(position, window, density, scratch, total)
            if total[0] <= 0:
                break
            strengths[i] = total[0]
            if _step(position, total) <= (1e-3 * window[1]) ** 2:
                break
        if same < 0:
            ends[i], same = position, i
        ends[i], strengths[i] = ends[same], strengths[same]
        for step in range(crossed):
            if 2 * known < slots:
                slot = _slot(keys, held, path[step])
                known += held[slot] < 0
                keys[slot] = path[step]
                held[slot] = same


@strict_njit
def keep_strongest(ends, bandwidth, most, kept):  # type: ignore[no-untyped-def]
    """Keep each of the `ends` (n, channel), strongest first, that is farther than the bandwidth
    from all kept before.

    Writes their rows into `kept`; returns their number, at most `most`.
    """
    n = 0
    for i in range(ends.shape[0]):
        least = np.inf
        for other in range(n):
            square = 0.0
            for j in range(ends.shape[1]):
                square += (ends[i, j] - ends[kept[other], j]) ** 2
            least = min(least, square)
            if least <= bandwidth * bandwidth:
                break
        if least > bandwidth * bandwidth:
            if n == most:
                break
            kept[n] = i
            n += 1
    return n


# ---- labelling
# --------------------------------------------------------------------------------------------------


@strict_njit
def _class_of(value, lattice, table, modes):  # type: ignore[no-untyped-def]
    """The class stored for the value's cell, or else that of the nearest mode, the first of
    equals.
    """
    keys, held = table
    key, inside = _cell_of(value, lattice)
    if inside:
        known = held[_slot(keys, held, key)]
        if known >= 0:
            return known
    least, label = np.inf, np.int64(0)
    for k in range(modes.shape[0]):
        square = 0.0
        for j in range(value.size):
            square += (value[j] - modes[k, j]) ** 2
        if square < least:
            least, label = square, np.int64(k)
    return label


@strict_njit
def label_values(values, lattice, table, modes, out):  # type: ignore[no-untyped-def]
    """Write the classes of the rows of `values` (n, channel) to `out` (n,)."""
    value = np.empty(values.shape[1])
    for i in range(values.shape[0]):
        for j in range(value.size):
            value[j] = values[i, j]
        out[i] = _class_of(value, lattice, table, modes)


@strict_njit
def label_colours(pixels, labeller, memo, out):  # type: ignore[no-untyped-def]
    """Write the classes of a (y, x, 3) uint8 block to `out` (y, x), by way of `memo`.

    `memo` holds class + 1 by Morton code. 0: not computed yet; it is filled on first use.
    """
    lattice, table, modes = labeller
    value = np.empty(3)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            red, green, blue = pixels[y, x, 0], pixels[y, x, 1], pixels[y, x, 2]
            key = RED[red] | GREEN[green] | BLUE[blue]
            known = memo[key]
            if known == 0:
                value[0], value[1], value[2] = red, green, blue
                known = np.uint8(_class_of(value, lattice, table, modes) + 1)
                memo[key] = known
            out[y, x] = known - 1
