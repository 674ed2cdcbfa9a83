"""Compiled loops of joining: disjoint sets, and contacts between tiles.

The root of a set is always its smallest member. Members have codes: `HOLE`, or numbers from
`FIRST_CLASS` on. `reach` is the pair of connectivities of holes and of classes: the largest number
of axes along which neighbours differ (1: faces; 2: edges too, which in images are corners; 3:
corners of voxels).
"""

from __future__ import annotations

import numpy as np

from maskloom.segcore.kernels.compiling import strict_njit
from maskloom.segcore.kernels.disjoint import unite

HOLE, NO_DATA, FIRST_CLASS = 1, 2, 3
"""Codes of pixels that may be part of a hole (also the `seen` value of sets that are not holes), of
pixels without data, and of the first class.
"""


@strict_njit
def both(seen, other):  # type: ignore[no-untyped-def]
    """Combine the surroundings of two parts of a hole: nothing yet (0), one class (its code), or
    anything else (`HOLE`: not a hole).
    """
    if seen == 0:
        return other
    # `in (0, seen)` would be a tuple of mixed types, which numba does not compare.
    return seen if other == 0 or other == seen else np.uint16(HOLE)  # noqa: PLR1714


@strict_njit
def tie_pairs(parent, pairs):  # type: ignore[no-untyped-def]
    """Join the members of each pair."""
    for i in range(pairs.shape[0]):
        unite(parent, pairs[i, 0], pairs[i, 1])


# ---- faces of tiles
# ------------------------------------------------------------------------------------------------


@strict_njit
def _contact(one, other, order, nodes, reach, decided):  # type: ignore[no-untyped-def]
    """Process the contact of two pixels of different tiles that differ along `order` axes: nodes
    from 1 on, 0 for no node.
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
    """Join nodes that touch across the boundary of two tiles.

    `one` and `other`, (lines, pixels), hold the fragments that face each other. `layout` is (number
    of axes along which the tiles differ, node before the first of the one tile, of the other).
    `nodes` are (parents, codes, surroundings of holes); with `decided`, the surroundings of a hole
    are the class that fills it, and it is joined with the parts of that class that it touches.
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
    """Give every member of a flat set the combined surroundings of its members."""
    for i in range(parent.size):
        seen[parent[i]] = both(seen[parent[i]], seen[i])
    for i in range(parent.size):
        seen[i] = seen[parent[i]]
