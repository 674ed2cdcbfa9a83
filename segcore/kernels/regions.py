"""Compiled loops of regions from edge weights; `segcore.objects.regions` explains the method."""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.disjoint import root_of, unite

_NO_EDGE = np.uint32(np.float32(np.inf).view(np.uint32))


@strict_njit
def label_joined(right, down, valid, labels):  # type: ignore[no-untyped-def]
    """Number the sets of valid pixels joined by edges below 1, from 1 in the order of their first
    pixels; returns their sizes ([0] is 0).
    """
    rows, columns = labels.shape
    parents = np.empty(rows * columns, np.int32)
    for row in range(rows):
        for column in range(columns):
            at = row * columns + column
            parents[at] = at
            if column > 0 and right[row, column - 1] < 1:
                unite(parents, at - 1, at)
            if row > 0 and down[row - 1, column] < 1:
                unite(parents, at - columns, at)
    count = 0
    for at in range(rows * columns):
        row, column = at // columns, at % columns
        labels[row, column] = 0
        if valid[row, column]:
            first = root_of(parents, at)
            if first == at:
                count += 1
                labels[row, column] = count
            else:
                labels[row, column] = labels[first // columns, first % columns]
    sizes = np.zeros(count + 1, np.int64)
    for row in range(rows):
        for column in range(columns):
            sizes[labels[row, column]] += 1
    sizes[0] = 0
    return sizes


@strict_njit
def _may_merge(bits, one, other, sizes, least):  # type: ignore[no-untyped-def]
    return one != other and bits < _NO_EDGE and (sizes[one] < least or sizes[other] < least)


@strict_njit
def merging_edges(right, down, labels, sizes, least):  # type: ignore[no-untyped-def]
    """Keys of the edges inside the tile between two sets of which one is smaller than `least`, in
    the order of their positions.

    `right` and `down` are the bits of the weights as uint32, which have the order of the weights. A
    key has the bits in the upper half and the position of the edge in the lower: twice the pixel,
    plus one for the edge down.
    """
    rows, columns = labels.shape
    keys = np.empty(0, np.uint64)
    for filling in range(2):
        n = 0
        for row in range(rows):
            for column in range(columns):
                here = labels[row, column]
                place = np.uint64(2 * (row * columns + column))
                if column + 1 < columns and _may_merge(
                    right[row, column], here, labels[row, column + 1], sizes, least
                ):
                    if filling:
                        keys[n] = np.uint64(right[row, column]) << np.uint64(32) | place
                    n += 1
                if row + 1 < rows and _may_merge(
                    down[row, column], here, labels[row + 1, column], sizes, least
                ):
                    if filling:
                        keys[n] = (
                            np.uint64(down[row, column]) << np.uint64(32) | place | np.uint64(1)
                        )
                    n += 1
        if not filling:
            keys = np.empty(n, np.uint64)
    return keys


@strict_njit
def merge_small(keys, labels, least, sets, events, members):  # type: ignore[no-untyped-def]
    """Perform the certain mergers along the sorted `keys`, and record the events that joining must
    replay.

    `sets` is (parents, sizes, leaves) by label; leaves is 0 for closed sets and becomes the leaf of
    sets that events touch. `events` is (keys, leaf, other leaf), `members` (labels, sizes) of each
    leaf, all long enough. Returns the numbers of events and of leaves.
    """
    parents, sizes, leaves = sets
    event_keys, ones, others = events
    leaf_labels, leaf_sizes = members
    columns = labels.shape[1]
    found, known = 0, leaves.max()
    for key in keys:
        place = np.int64(key & np.uint64(0xFFFFFFFF))
        at = place >> 1
        to = at + (columns if place & 1 else 1)
        one = root_of(parents, np.int64(labels[at // columns, at % columns]))
        other = root_of(parents, np.int64(labels[to // columns, to % columns]))
        if one == other or (sizes[one] >= least and sizes[other] >= least):
            continue
        small = sizes[one] < least, sizes[other] < least
        closed = leaves[one] == 0, leaves[other] == 0
        if (small[0] and not closed[0]) or (small[1] and not closed[1]):
            for each in (one, other):
                if leaves[each] == 0:
                    known += 1
                    leaves[each] = known
                    leaf_labels[known], leaf_sizes[known] = each, sizes[each]
            event_keys[found], ones[found], others[found] = key, leaves[one], leaves[other]
            found += 1
        if (small[0] and closed[0]) or (small[1] and closed[1]):
            first, last = min(one, other), max(one, other)
            parents[last] = first
            sizes[first] += sizes[last]
            leaves[first] = max(leaves[first], leaves[last])
    return found, known


@strict_njit
def number_sets(parents):  # type: ignore[no-untyped-def]
    """The fragment of each label, numbered from 1 on in the order of their first labels; that of 0
    is 0.
    """
    fragments = np.zeros(parents.size, np.uint32)
    count = 0
    for label in range(1, parents.size):
        root = root_of(parents, label)
        if root == label:
            count += 1
            fragments[label] = count
        else:
            fragments[label] = fragments[root]
    return fragments


@strict_njit
def replay(ones, others, sure, sizes, least):  # type: ignore[no-untyped-def]
    """Merge leaves along sorted edges: always if `sure`, otherwise if one side is smaller than
    `least`; returns the set of each leaf.
    """
    parents = np.arange(sizes.size)
    for i in range(ones.size):
        one, other = root_of(parents, ones[i]), root_of(parents, others[i])
        if one != other and (sure[i] or sizes[one] < least or sizes[other] < least):
            parents[max(one, other)] = min(one, other)
            sizes[min(one, other)] += sizes[max(one, other)]
    for node in range(parents.size):
        parents[node] = root_of(parents, node)
    return parents
