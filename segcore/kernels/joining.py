"""Compiled loops of joining: disjoint sets, and what meets over the seams of a grid.

The root of a set is always its smallest member. Members have codes: `HOLE`, or numbers from
`FIRST_CLASS` on. A code is connected either through faces alone or `full`y, over edges and corners
too; `full` is a pair: that of holes, that of classes.
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import exactly
from maskloom.segcore.kernels.disjoint import unite

HOLE, NO_DATA, FIRST_CLASS = 1, 2, 3
"""Codes of what may be part of a hole (and what is `seen` by holes that are none), of pixels
without data, of the first class.
"""


@exactly
def both(seen, other):  # type: ignore[no-untyped-def]
    """What two parts of a hole see around them: nothing yet (0), one class (its code), or anything
    else (`HOLE`: no hole).
    """
    if seen == 0:
        return other
    return seen if other == 0 or other == seen else np.uint16(HOLE)  # noqa: PLR1714  numba compares no mixed tuples


@exactly
def tie_pairs(parent, pairs):  # type: ignore[no-untyped-def]
    """Join the members of each pair."""
    for i in range(pairs.shape[0]):
        unite(parent, pairs[i, 0], pairs[i, 1])


# ---- edges of tiles
# ------------------------------------------------------------------------------------------------


@exactly
def _contact(one, other, corner, nodes, full, decided):  # type: ignore[no-untyped-def]
    """Two pixels of different tiles meet: nodes from 1 on, 0 where there is nothing."""
    parent, codes, seen = nodes
    if one == 0 or other == 0:
        node = max(one, other)
        if node > 0 and codes[node - 1] == HOLE and (full[0] or not corner):
            seen[node - 1] = HOLE
        return
    one -= 1
    other -= 1
    if codes[one] == codes[other]:
        if not corner or (full[0] if codes[one] == HOLE else full[1]):
            unite(parent, one, other)
    elif (codes[one] == HOLE or codes[other] == HOLE) and (full[0] or not corner):
        if codes[one] != HOLE:
            one, other = other, one
        if not decided:
            seen[one] = both(seen[one], codes[other])
        elif seen[one] > HOLE:
            unite(parent, one, other)


@exactly
def _edge(edges, lines, nodes, full, decided):  # type: ignore[no-untyped-def]
    """Two edges meet: `lines` are the place and the node before the first of each, and their
    length.
    """
    one_place, other_place, one_offset, other_offset, length = lines
    last_here, last_there = one_offset, other_offset
    for i in range(length):
        here, there = np.int64(edges[one_place + i]), np.int64(edges[other_place + i])
        here += one_offset if here > 0 else 0
        there += other_offset if there > 0 else 0
        if i == 0 or here != last_here or there != last_there:
            _contact(here, there, False, nodes, full, decided)
            if i > 0:
                _contact(here, last_there, True, nodes, full, decided)
                _contact(last_here, there, True, nodes, full, decided)
        last_here, last_there = here, there


@exactly
def meet_edges(edges, layout, nodes, full, decided):  # type: ignore[no-untyped-def]
    """Join what meets over the seams of a grid.

    `edges` holds the fragments of each tile's top, bottom, left and right line, tile after tile.
    `layout` is (rows of each row of tiles, columns of each column of tiles, node before the first
    of each tile). `nodes` are (parents, codes, what holes have seen); with `decided`, what a hole
    has seen is what fills it, and it is joined with the classes' parts that it meets.
    """
    rows, columns, offsets = layout
    down, across = rows.size, columns.size
    places = np.empty(down * across, np.int64)
    place = 0
    for y in range(down):
        for x in range(across):
            places[y * across + x] = place
            place += 2 * (columns[x] + rows[y])
    for y in range(down):
        height = rows[y]
        for x in range(across):
            here, wide = y * across + x, columns[x]
            bottom, right = places[here] + wide, places[here] + 2 * wide + height
            if x + 1 < across:
                left = places[here + 1] + 2 * columns[x + 1]
                _edge(
                    edges,
                    (right, left, offsets[here], offsets[here + 1], height),
                    nodes,
                    full,
                    decided,
                )
            if y + 1 == down:
                continue
            below = here + across
            _edge(
                edges,
                (bottom, places[below], offsets[here], offsets[below], wide),
                nodes,
                full,
                decided,
            )
            for step, corner in ((-1, bottom), (1, bottom + wide - 1)):
                if 0 <= x + step < across:
                    beside = below + step
                    facing = places[beside] + (columns[x - 1] - 1 if step < 0 else 0)
                    one, other = np.int64(edges[corner]), np.int64(edges[facing])
                    one += offsets[here] if one > 0 else 0
                    other += offsets[beside] if other > 0 else 0
                    _contact(one, other, True, nodes, full, decided)


@exactly
def gather_seen(parent, seen):  # type: ignore[no-untyped-def]
    """Give every member of a flat set what all its members have seen."""
    for i in range(parent.size):
        seen[parent[i]] = both(seen[parent[i]], seen[i])
    for i in range(parent.size):
        seen[i] = seen[parent[i]]
