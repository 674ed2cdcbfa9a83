"""Disjoint sets, as arrays that hold the parent of each member (Galler and Fischer 1964; paths are
halved on the way).

The root of a set is always its smallest member.
"""

from __future__ import annotations

from maskloom.segcore.kernels.compiling import strict_njit


@strict_njit
def root_of(parent, i):  # type: ignore[no-untyped-def]
    """The smallest member of the set of i."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@strict_njit
def unite(parent, i, j):  # type: ignore[no-untyped-def]
    """Make the sets of i and j one."""
    i, j = root_of(parent, i), root_of(parent, j)
    if i < j:
        parent[j] = i
    else:
        parent[i] = j


@strict_njit
def flatten(parent):  # type: ignore[no-untyped-def]
    """Point every member at its root."""
    for i in range(parent.size):
        parent[i] = parent[parent[i]]
