"""Compiled loops of connected parts.

A raster is processed as lines of runs of equal code, without code 0. Runs are joined by disjoint
sets whose root is always the smallest member, so parts are in the order of their first pixels (two
passes with union-find on runs: He, Chao, Suzuki 2008; Wu, Otoo, Suzuki 2009). Images are volumes of
one layer. Codes and `reach` are those of `segcore.kernels.joining`.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.disjoint import unite
from maskloom.segcore.kernels.joining import HOLE, NO_DATA, both

_SHORT = 8
"""Number of pixels painted at once; most runs of noise are shorter. The next run overwrites the
excess.
"""


# ---- runs
# --------------------------------------------------------------------------------------------------


@strict_njit
def count_changes(lines):  # type: ignore[no-untyped-def]
    """The number of adjacent pixels in lines that differ."""
    changes = 0
    for y in range(lines.shape[0]):
        line = lines[y]
        here = 0
        for x in range(1, line.size):
            here += line[x] != line[x - 1]
        changes += here
    return changes


@strict_njit
def _find_starts(line, changed, words, starts, n):  # type: ignore[no-untyped-def]
    """Write the positions where values change to `starts`, from index n on; returns the index after
    the last. `words` are `changed`, 8 at a time.
    """
    for x in range(1, line.size):
        changed[x] = line[x] != line[x - 1]
    place = np.uint64(n)
    for at in range(words.size):
        if words[at] != 0:
            for x in range(8 * at, 8 * at + 8):
                # Always written, kept only if there is a change: faster than an unpredictable
                # branch.
                starts[place] = x
                place += np.uint64(changed[x])
    return np.int64(place)


@strict_njit
def find_runs(lines, table, starts, stops, codes):  # type: ignore[no-untyped-def]
    """Write the runs of equal `table[value]`, except 0, into the three arrays; returns the first
    run of each line, and their number at the end.

    The arrays have room for one run per change and line, and 9 more.
    """
    height, width = lines.shape
    first = np.empty(height + 1, np.int64)
    changed = np.zeros(-(-width // 8) * 8, np.uint8)
    words = changed.view(np.uint64)
    n = 0
    for y in range(height):
        line = lines[y]
        first[y] = n
        starts[n] = 0
        end = _find_starts(line, changed, words, starts, n + 1)
        starts[end] = width
        last = table[line[0]]
        start = 0
        # Runs of code 0 are removed and those of equal codes joined, in place.
        for i in range(n + 1, end + 1):
            stop = starts[i]
            code = table[line[stop]] if stop < width else np.uint16(0)
            if stop < width and code == last:
                continue
            starts[n], stops[n], codes[n] = start, stop, last
            n += last != 0
            start, last = stop, code
    first[height] = n
    return first


@strict_njit
def _tie_alike(starts, stops, parent, lines, limit):  # type: ignore[no-untyped-def]
    """Join runs of two lines, each a range of runs, whose codes are all equal, if their distance is
    below the limit.
    """
    i, i_end, j, j_end = lines
    while i < i_end and j < j_end:
        i_stop, j_stop = stops[i], stops[j]
        distance = max(starts[i], starts[j]) - min(i_stop, j_stop)
        # One branch that is rarely taken: most runs that touch have been joined before.
        if (distance < limit) & (parent[i] != parent[j]):
            unite(parent, i, j)
        i += i_stop <= j_stop
        j += j_stop <= i_stop


@strict_njit
def _tie_mixed(runs, parent, lines, limits):  # type: ignore[no-untyped-def]
    """Join runs of two lines, each a range of runs. Runs join if their distance is below the limit
    for holes or for classes.

    The distance is 0 at a corner, negative if they overlap.
    """
    starts, stops, codes = runs
    i, i_end, j, j_end = lines
    of_holes, of_classes, _ = limits
    while i < i_end and j < j_end:
        i_stop, j_stop = stops[i], stops[j]
        distance = max(starts[i], starts[j]) - min(i_stop, j_stop)
        limit = of_holes if codes[i] == HOLE else of_classes
        if (codes[i] == codes[j]) & (distance < limit) & (parent[i] != parent[j]):
            unite(parent, i, j)
        if i_stop == j_stop:
            # Runs that are not compared otherwise touch only if both stop together and runs of
            # other codes follow.
            next_i, next_j = (
                i + 1 < i_end and starts[i + 1] == i_stop,
                j + 1 < j_end and starts[j + 1] == j_stop,
            )
            if (
                next_j
                and codes[j + 1] == codes[i]
                and (of_holes if codes[i] == HOLE else of_classes) > 0
            ):
                unite(parent, i, j + 1)
            if (
                next_i
                and codes[i + 1] == codes[j]
                and (of_holes if codes[j] == HOLE else of_classes) > 0
            ):
                unite(parent, i + 1, j)
        i += i_stop <= j_stop
        j += j_stop <= i_stop


@strict_njit
def _tie(runs, parent, lines, limits):  # type: ignore[no-untyped-def]
    """Join runs of two lines, which may have several codes if the last of the `limits` says so."""
    if limits[2]:
        _tie_mixed(runs, parent, lines, limits)
    else:
        _tie_alike(runs[0], runs[1], parent, lines, limits[1])


@strict_njit
def _limit(reach, order, width):  # type: ignore[no-untyped-def]
    """The limit of distance below which runs join, in lines of this width that differ along `order`
    axes.
    """
    if order > reach:
        return -width
    return 1 if order < reach else 0


@strict_njit
def tie_runs(runs, first, shape, reach, mixed):  # type: ignore[no-untyped-def]
    """Disjoint sets of the runs (starts, stops, codes) of a volume (layers, rows, columns): the
    parent of each run.

    `mixed`: there may be runs of several codes.
    """
    layers, rows, width = shape
    faces = (_limit(reach[0], 1, width), _limit(reach[1], 1, width), mixed)
    edges = (_limit(reach[0], 2, width), _limit(reach[1], 2, width), mixed)
    over_edges = reach[1] > 1 or (mixed and reach[0] > 1)
    parent = np.arange(runs[0].size).astype(np.int32)
    for z in range(layers):
        for y in range(rows):
            here = z * rows + y
            start, stop = first[here], first[here + 1]
            if y > 0:
                _tie(runs, parent, (start, stop, first[here - 1], start), faces)
            if z > 0:
                below = here - rows
                _tie(runs, parent, (start, stop, first[below], first[below + 1]), faces)
                if over_edges and y > 0:
                    _tie(runs, parent, (start, stop, first[below - 1], first[below]), edges)
                if over_edges and y + 1 < rows:
                    _tie(runs, parent, (start, stop, first[below + 1], first[below + 2]), edges)
    return parent


@strict_njit
def number_sets(parent, codes):  # type: ignore[no-untyped-def]
    """Replace parents by labels 1, 2 ... in the order of the roots, 0 for no data; returns their
    number.
    """
    count = 0
    for i in range(parent.size):
        if codes[i] == NO_DATA:
            parent[i] = 0
        elif parent[i] == i:
            count += 1
            parent[i] = count
        else:
            parent[i] = parent[parent[i]]
    return count


@strict_njit
def measure_runs(runs, labels, first, shape, sides, measures):  # type: ignore[no-untyped-def]
    """Fill in the `measures` of each label: pixels, flags of the `sides` (axis, end) that it
    touches, code.
    """
    starts, stops, codes = runs
    layers, rows, width = shape
    sizes, touched, code_of = measures
    for here in range(layers * rows):
        z, y = here // rows, here % rows
        line = (sides[0, 0] if z == 0 else 0) | (sides[0, 1] if z == layers - 1 else 0)
        line |= (sides[1, 0] if y == 0 else 0) | (sides[1, 1] if y == rows - 1 else 0)
        for i in range(first[here], first[here + 1]):
            label = labels[i]
            sizes[label] += stops[i] - starts[i]
            code_of[label] = codes[i]
            touched[label] |= (
                line
                | (sides[2, 0] if starts[i] == 0 else 0)
                | (sides[2, 1] if stops[i] == width else 0)
            )


@strict_njit
def _paint(flat, start, stop, value):  # type: ignore[no-untyped-def]
    """Write `value` from `start` to before `stop`, and possibly beyond."""
    at = np.uint64(start)
    for i in range(_SHORT):
        flat[at + np.uint64(i)] = value
    for place in range(start + _SHORT, stop):
        flat[place] = value


@strict_njit
def paint_runs(runs, labels, first, number, lines):  # type: ignore[no-untyped-def]
    """Write `number[label]` to the pixels of each run, and 0 to all others."""
    starts, stops, _ = runs
    height, width = lines.shape
    flat = lines.reshape(-1)
    # Runs near the end are painted pixel by pixel.
    safe = max(0, height - 1 - _SHORT // width)
    for y in range(safe):
        begin = last = y * width
        for i in range(first[y], first[y + 1]):
            start = begin + starts[i]
            if last < start:
                _paint(flat, last, start, 0)
            last = begin + stops[i]
            _paint(flat, start, last, number[labels[i]])
        if last < begin + width:
            _paint(flat, last, begin + width, 0)
    for y in range(safe, height):
        lines[y] = 0
        for i in range(first[y], first[y + 1]):
            lines[y, starts[i] : stops[i]] = number[labels[i]]


# ---- holes
# --------------------------------------------------------------------------------------------------


@strict_njit
def _note(one, other, runs, seen, pairs, n):  # type: ignore[no-untyped-def]
    """Record the contact of two runs if one is of a hole; returns the number of pairs. `runs` are
    codes and labels.
    """
    codes, labels = runs
    if (codes[one] == HOLE) == (codes[other] == HOLE):
        return n
    if codes[one] != HOLE:
        one, other = other, one
    hole, part, code = labels[one], labels[other], codes[other]
    known, last = seen
    if last[hole] == part or known[hole] == HOLE:
        return n
    last[hole] = part
    known[hole] = HOLE if code == NO_DATA else both(known[hole], code)
    pairs[n, 0], pairs[n, 1] = hole, part
    return n + (known[hole] != HOLE)


@strict_njit
def _meet(runs, lines, limit, seen, pairs, n):  # type: ignore[no-untyped-def]
    """Record the contacts of the runs of two lines, traversed as in `_tie`; `limit` is that of
    holes.
    """
    starts, stops, met = runs
    i, i_end, j, j_end = lines
    while i < i_end and j < j_end:
        i_stop, j_stop = stops[i], stops[j]
        if max(starts[i], starts[j]) - min(i_stop, j_stop) < limit:
            n = _note(i, j, met, seen, pairs, n)
        if limit > 0 and i_stop == j_stop:
            if j + 1 < j_end and starts[j + 1] == i_stop:
                n = _note(i, j + 1, met, seen, pairs, n)
            if i + 1 < i_end and starts[i + 1] == j_stop:
                n = _note(i + 1, j, met, seen, pairs, n)
        i += i_stop <= j_stop
        j += j_stop <= i_stop
    return n


@strict_njit
def meet_runs(runs, first, shape, reach, known):  # type: ignore[no-untyped-def]
    """Pairs of labels of holes and of the parts of classes that they touch; records the
    surroundings of each hole in `known`.

    `runs` are starts, stops and (codes, labels), `reach` is the connectivity of holes. Pairs of
    sets that turn out not to be holes may be missing, others may be repeated.
    """
    starts, stops, met = runs
    layers, rows, width = shape
    # A step along two lines gives at most three pairs; pages that are not written take no memory.
    pairs = np.empty((starts.size * (7 if layers == 1 else 25) + 1, 2), np.int32)
    seen = (known, np.full(known.size, -1, np.int32))
    n = 0
    faces, edges = _limit(reach, 1, width), _limit(reach, 2, width)
    for z in range(layers):
        for y in range(rows):
            here = z * rows + y
            start, stop = first[here], first[here + 1]
            for i in range(start, stop - 1):
                if stops[i] == starts[i + 1]:
                    n = _note(i, i + 1, met, seen, pairs, n)
            if y > 0:
                n = _meet(runs, (start, stop, first[here - 1], start), faces, seen, pairs, n)
            if z > 0:
                below = here - rows
                n = _meet(
                    runs, (start, stop, first[below], first[below + 1]), faces, seen, pairs, n
                )
                if reach > 1 and y > 0:
                    n = _meet(
                        runs, (start, stop, first[below - 1], first[below]), edges, seen, pairs, n
                    )
                if reach > 1 and y + 1 < rows:
                    n = _meet(
                        runs,
                        (start, stop, first[below + 1], first[below + 2]),
                        edges,
                        seen,
                        pairs,
                        n,
                    )
    return pairs[:n].copy()
