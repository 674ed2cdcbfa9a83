"""Compiled loops of window statistics.

All take, for each axis, the positions in the array of the padded positions, so that borders are
reflected without a copy; the padded array extends one radius beyond the output on all sides. The
result for a pixel depends on its window only, to the last bit: sums of integers are exact, sums of
floats have an order that is fixed relative to the pixel, and medians are values.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit

_STRIP = 512
"""Number of columns processed together, so that their sums and histograms stay in the processor's
cache.
"""
_SQUARE, _CUBE = 64, 24
"""Sides of the squares of images, and of the cubes of volumes, whose values are sorted at once for
medians.
"""
_WORD = 64


@strict_njit
def box_sums(values, rows, columns, out):  # type: ignore[no-untyped-def]
    """Sums of integers over square windows, by running sums."""
    span = rows.size - out.shape[0]
    column = np.zeros(values.shape[1], np.int64)
    for i in range(span):
        for x in range(values.shape[1]):
            column[x] += values[rows[i], x]
    for y in range(out.shape[0]):
        entering, leaving = rows[y + span], rows[y]
        for x in range(values.shape[1]):
            column[x] += values[entering, x]
        total = np.int64(0)
        for j in range(span):
            total += column[columns[j]]
        for x in range(out.shape[1]):
            total += column[columns[x + span]]
            out[y, x] = total
            total -= column[columns[x]]
        for x in range(values.shape[1]):
            column[x] -= values[leaving, x]


@strict_njit
def _weigh_line(line, weights, out):  # type: ignore[no-untyped-def]
    """Weighted sums along a line; `line` is twice the radius longer than `out`, `weights` are those
    of distance 0, 1 and so on.
    """
    radius, n = weights.size - 1, out.size
    for x in range(n):
        out[x] = weights[0] * line[x + radius]
    for k in range(1, radius + 1):
        weight = weights[k]
        for x in range(n):
            out[x] += weight * (line[x + radius - k] + line[x + radius + k])


@strict_njit
def weighted_sums(values, rows, columns, weights, out):  # type: ignore[no-untyped-def]
    """Sums over square windows, weighted by the distances along the row and along the column."""
    radius = weights.size - 1
    side = 2 * radius + 1
    line = np.empty(_STRIP + 2 * radius)
    ring = np.empty((side, _STRIP))
    for left in range(0, out.shape[1], _STRIP):
        n = min(_STRIP, out.shape[1] - left)
        for i in range(rows.size):
            for j in range(n + 2 * radius):
                line[j] = values[rows[i], columns[left + j]]
            _weigh_line(line[: n + 2 * radius], weights, ring[i % side, :n])
            y = i - 2 * radius
            if y >= 0:
                into, middle = out[y, left : left + n], ring[(y + radius) % side]
                for x in range(n):
                    into[x] = weights[0] * middle[x]
                for k in range(1, radius + 1):
                    above, below, weight = (
                        ring[(y + radius - k) % side],
                        ring[(y + radius + k) % side],
                        weights[k],
                    )
                    for x in range(n):
                        into[x] += weight * (above[x] + below[x])


@strict_njit
def box_sums_across(squares, planes, out):  # type: ignore[no-untyped-def]
    """Sums over cubes from the sums over the squares of each plane (z, y, x), which are integers,
    by running sums.
    """
    span = planes.size - out.shape[0]
    for y in range(out.shape[1]):
        total = np.zeros(out.shape[2])
        for i in range(span):
            entering = squares[planes[i], y]
            for x in range(total.size):
                total[x] += entering[x]
        for z in range(out.shape[0]):
            entering, leaving, into = squares[planes[z + span], y], squares[planes[z], y], out[z, y]
            for x in range(total.size):
                into[x] = total[x] + entering[x]
                total[x] = into[x] - leaving[x]


@strict_njit
def weighted_sums_across(squares, planes, weights, out):  # type: ignore[no-untyped-def]
    """Sums over cubes from the sums over the squares of each plane (z, y, x), weighted by the
    distance of the plane.
    """
    radius = weights.size - 1
    # Rows of many planes are far apart in memory, often by a power of two.
    lines = np.empty((planes.size, out.shape[2]))
    for y in range(out.shape[1]):
        for i in range(planes.size):
            lines[i] = squares[planes[i], y]
        for z in range(out.shape[0]):
            into, middle = out[z, y], lines[z + radius]
            for x in range(into.size):
                into[x] = weights[0] * middle[x]
            for k in range(1, radius + 1):
                above, below, weight = lines[z + radius - k], lines[z + radius + k], weights[k]
                for x in range(into.size):
                    into[x] += weight * (above[x] + below[x])


@strict_njit
def _catch_up(group, columns_fine, state, x):  # type: ignore[no-untyped-def]
    """Bring the 16 levels of a group up to the window that begins at column x of the strip."""
    fine, seen, span = state
    low, high = 16 * group, 16 * group + 16
    begin = seen[group]
    if x - begin > span:
        fine[low:high] = 0
        for j in range(x, x + span + 1):
            for level in range(low, high):
                fine[level] += columns_fine[j, level]
    else:
        for j in range(begin, x):
            for level in range(low, high):
                fine[level] += columns_fine[j + span + 1, level] - columns_fine[j, level]
    seen[group] = x


@strict_njit
def _level_at(position, coarse, columns_fine, state, x):  # type: ignore[no-untyped-def]
    """The level of the value at this position in the sorted window that begins at column x of the
    strip.
    """
    passed, group = 0, 0
    while passed + coarse[group] <= position:
        passed += coarse[group]
        group += 1
    _catch_up(group, columns_fine, state, x)
    fine, level = state[0], 16 * group
    while passed + fine[level] <= position:
        passed += fine[level]
        level += 1
    return level


@strict_njit
def _count_row(values, usable, columns, step, histograms):  # type: ignore[no-untyped-def]
    """Add the usable values of a row to the histograms of its columns, or remove them."""
    fine, coarse = histograms
    for j in range(columns.size):
        x = columns[j]
        if usable[x]:
            fine[j, values[x]] += step
            coarse[j, values[x] >> 4] += step


@strict_njit
def medians_of_bytes(values, usable, rows, columns, out):  # type: ignore[no-untyped-def]
    """Medians of the usable uint8 values of square windows, 0 where there are none.

    A histogram for each column, and one for the window that is their running sum; of that only the
    16 levels around the median are kept up to date (Perreault and Hébert 2007).
    """
    span = rows.size - out.shape[0]
    columns_fine, columns_coarse = (
        np.empty((_STRIP + span, 256), np.int16),
        np.empty((_STRIP + span, 16), np.int16),
    )
    fine, coarse, seen = np.empty(256, np.int32), np.empty(16, np.int32), np.empty(16, np.int64)
    state = fine, seen, span
    histograms = columns_fine, columns_coarse
    for left in range(0, out.shape[1], _STRIP):
        n = min(_STRIP, out.shape[1] - left)
        places = columns[left : left + n + span]
        columns_fine[:] = 0
        columns_coarse[:] = 0
        for i in range(span):
            _count_row(values[rows[i]], usable[rows[i]], places, 1, histograms)
        for y in range(out.shape[0]):
            _count_row(values[rows[y + span]], usable[rows[y + span]], places, 1, histograms)
            coarse[:] = 0
            for j in range(span):
                for group in range(16):
                    coarse[group] += columns_coarse[j, group]
            seen[:] = -span - 1
            for x in range(n):
                count = 0
                for group in range(16):
                    coarse[group] += columns_coarse[x + span, group]
                    count += coarse[group]
                out[y, left + x] = 0.0
                if count > 0:
                    low = _level_at((count - 1) // 2, coarse, columns_fine, state, x)
                    high = (
                        low if count % 2 else _level_at(count // 2, coarse, columns_fine, state, x)
                    )
                    out[y, left + x] = 0.5 * (low + high)
                for group in range(16):
                    coarse[group] -= columns_coarse[x, group]
            _count_row(values[rows[y]], usable[rows[y]], places, -1, histograms)


@strict_njit
def _rank_at(members, counts, word, before, position):  # type: ignore[no-untyped-def]
    """The rank of the member at this position in order; there are `before` members below `word`, at
    which the search begins.
    """
    while before > position:
        word -= 1
        before -= counts[word]
    while before + counts[word] <= position:
        before += counts[word]
        word += 1
    bits = members[word]
    for _ in range(position - before):
        bits &= bits - np.uint64(1)
    rank = 0
    while not (bits >> np.uint64(rank)) & np.uint64(1):
        rank += 1
    return word, before, _WORD * word + rank


@strict_njit
def _medians_of_ranks(ranks, ordered, spans, out):  # type: ignore[no-untyped-def]
    """Medians of the windows of a patch (z, y, x) from the ranks of its values (-1: not usable) and
    its values in order.

    The ranks in the window are bits of a set, and the last median is where the search for the next
    one begins (after Huang 1979).
    """
    deep, span = spans
    words = ordered.size // _WORD + 1
    members, counts = np.empty(words, np.uint64), np.empty(words, np.int64)
    for line in range(out.shape[0] * out.shape[1]):
        z, y = line // out.shape[1], line % out.shape[1]
        members[:] = 0
        counts[:] = 0
        total, word, before = 0, 0, 0
        for x in range(-span, out.shape[2]):
            for plane in range(z, z + deep + 1):
                for i in range(y, y + span + 1):
                    if x > 0 and ranks[plane, i, x - 1] >= 0:
                        gone = ranks[plane, i, x - 1]
                        members[gone // _WORD] ^= np.uint64(1) << np.uint64(gone % _WORD)
                        counts[gone // _WORD] -= 1
                        before -= gone // _WORD < word
                        total -= 1
                    come = ranks[plane, i, x + span]
                    if come >= 0:
                        members[come // _WORD] ^= np.uint64(1) << np.uint64(come % _WORD)
                        counts[come // _WORD] += 1
                        before += come // _WORD < word
                        total += 1
            if x < 0:
                continue
            out[z, y, x] = 0.0
            if total > 0:
                word, before, low = _rank_at(members, counts, word, before, (total - 1) // 2)
                high = low if total % 2 else _rank_at(members, counts, word, before, total // 2)[2]
                a, b = ordered[low], ordered[high]
                out[z, y, x] = a if a == b else 0.5 * a + 0.5 * b


@strict_njit
def _sorted_patch(values, usable, planes, rows, columns):  # type: ignore[no-untyped-def]
    """Ranks of the usable values at these positions (-1: not usable), and the values in order."""
    ranks = np.full((planes.size, rows.size, columns.size), -1, np.int64)
    flat = ranks.ravel()
    found, places = np.empty(flat.size), np.empty(flat.size, np.int64)
    n = 0
    for line in range(planes.size * rows.size):
        z, y = planes[line // rows.size], rows[line % rows.size]
        for j in range(columns.size):
            x = columns[j]
            found[n], places[n] = values[z, y, x], line * columns.size + j
            n += usable[z, y, x]
    order = np.argsort(found[:n])
    for rank in range(n):
        flat[places[order[rank]]] = rank
    return ranks, found[:n][order]


@strict_njit
def medians(values, usable, reflected, out):  # type: ignore[no-untyped-def]
    """Medians of the usable values (z, y, x) of cubes, or of squares in a single plane, 0 where
    there are none. `reflected` are the planes, rows and columns.
    """
    planes, rows, columns = reflected
    deep, span = planes.size - out.shape[0], rows.size - out.shape[1]
    side = _CUBE if deep else _SQUARE
    for front in range(0, out.shape[0], side):
        back = min(front + side, out.shape[0])
        for top in range(0, out.shape[1], side):
            bottom = min(top + side, out.shape[1])
            for left in range(0, out.shape[2], side):
                right = min(left + side, out.shape[2])
                ranks, ordered = _sorted_patch(
                    values,
                    usable,
                    planes[front : back + deep],
                    rows[top : bottom + span],
                    columns[left : right + span],
                )
                _medians_of_ranks(
                    ranks, ordered, (deep, span), out[front:back, top:bottom, left:right]
                )
