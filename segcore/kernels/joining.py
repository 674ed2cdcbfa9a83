"""Compiled loops of joining: disjoint sets, and what meets where tiles touch.

The root of a set is always its smallest member. Members have codes: `HOLE`, or numbers from
`FIRST_CLASS` on. `reach` is the pair of connectivities of holes and of classes: the most axes along
which neighbours differ (1: faces; 2: edges too, which in images are corners; 3: corners of voxels).
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.disjoint import unite

HOLE, NO_DATA, FIRST_CLASS = 1, 2, 3
"""Codes of what may be part of a hole (and what is `seen` by holes that are none), of pixels
without data, of the first class.
"""


@strict_njit
def both(seen, other):  # type: ignore[no-untyped-def]
    """What two parts of a hole see around them: nothing yet (0), one class (its code), or anything
    else (`HOLE`: no hole).
    """
    if seen == 0:
        return other
    return seen if other == 0 or other == seen else np.uint16(HOLE)  # noqa: PLR1714  numba compares no mixed tuples


@strict_njit
def tie_pairs(parent, pairs):  # type: ignore[no-untyped-def]
    """Join the members of each pair."""
    for i in range(pairs.shape[0]):
        unite(parent, pairs[i, 0], pairs[i, 1])


# ---- faces of tiles
# ------------------------------------------------------------------------------------------------


@strict_njit
def _contact(one, other, order, nodes, reach, decided):  # type: ignore[no-untyped-def]
    """Two pixels of different tiles meet that differ along `order` axes: nodes from 1 on, 0 for no
    node.
    """
    parent, codes, seen = nodes
    if one == 0 or other == 0:
        node = max(one, other)
        if node > 0 and codes[node - 1] == HOLE and order <= reach[0]:
            seen[node - 1] = HOLE
        return
    one -= 1
    other -= 1
    if codes[one] == codes[other]:
        if order <= (reach[0] if codes[one] == HOLE else reach[1]):
            unite(parent, one, other)
    elif (codes[one] == HOLE or codes[other] == HOLE) and order <= reach[0]:
        if codes[one] != HOLE:
            one, other = other, one
        if not decided:
            seen[one] = both(seen[one], codes[other])
        elif seen[one] > HOLE:
            unite(parent, one, other)


@strict_njit
def meet_faces(one, other, layout, nodes, reach, decided):  # type: ignore[no-untyped-def]
    """Join what meets where two tiles touch.

    `one` and `other`, (lines, pixels), hold the fragments that face each other. `layout` is (number
    of axes along which the tiles differ, node before the first of the one tile, of the other).
    `nodes` are (parents, codes, what holes have seen); with `decided`, what a hole has seen is what
    fills it, and it is joined with the classes' parts that it meets.
    """
    across, one_offset, other_offset = layout
    lines, length = one.shape
    for y in range(lines):
        for beside in range(max(y - 1, 0), min(y + 2, lines)):
            order = across + (1 if beside != y else 0)
            last_here, last_there = one_offset, other_offset
            for x in range(length):
                here, there = np.int64(one[y, x]), np.int64(other[beside, x])
                here += one_offset if here > 0 else 0
                there += other_offset if there > 0 else 0
                if x == 0 or here != last_here or there != last_there:
                    _contact(here, there, order, nodes, reach, decided)
                    if x > 0:
                        _contact(here, last_there, order + 1, nodes, reach, decided)
                        _contact(last_here, there, order + 1, nodes, reach, decided)
                last_here, last_there = here, there


@strict_njit
def gather_seen(parent, seen):  # type: ignore[no-untyped-def]
    """Give every member of a flat set what all its members have seen."""
    for i in range(parent.size):
        seen[parent[i]] = both(seen[parent[i]], seen[i])
    for i in range(parent.size):
        seen[i] = seen[parent[i]]
