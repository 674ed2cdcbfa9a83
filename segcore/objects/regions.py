"""Regions from the weights of edges between neighbouring pixels, the same for any tiling.

Regions are defined by one order of all edges of the image, ascending by (weight, row, column, right
before down), as in Kruskal's algorithm: an edge below 1 joins the sets of its two pixels; one from
1 on joins them if one of the two is, at that moment, smaller than `min_size` (the last step of
Felzenszwalb and Huttenlocher, "Efficient graph-based image segmentation", 2004). A region without
neighbours remains, however small.

A tile processes its edges in this order as far as the result is certain. A set of pixels is
*closed* while it touches no other tile and no doubtful edge: all its edges and its true size are
known. Other sets are *open*: their known size is a lower bound. At an edge of weight 1 or more
between two sets,

    one is closed and small       they merge, whatever the other is
    both are known to be large    nothing happens, now or later
    else                          an open set that may be small meets an open or a large one: the
                                  edge is doubtful, and both sets are open from now on

so a certain merger never waits for a doubtful one. Doubtful edges, and the certain ones
that make an open small set larger, are the tile's *events*. `join_regions` replays the events of
all tiles and the edges between tiles in the one order with the true sizes. It merges *leaves*: sets
as they were when an event first met them. Sets that are large enough are left out, so boundaries
hold the border of the tile and at most about `min_size` events for each small set at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.objects.faces import Faces, neighbours
from maskloom.segcore.objects.numbering import place_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Grid, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """The edges of a tile's core: float32 arrays of its shape (y, x) with weights from 0 on,
    infinite for missing edges.

    Pixels without data have no edges. The edges to the right of the last column and down from the
    last row lead to other tiles.
    """

    right: NDArray[np.float32]
    """From each pixel to the next in its row."""
    down: NDArray[np.float32]
    """From each pixel to the next in its column."""


@dataclass(frozen=True, slots=True, eq=False)
class _Merged:
    """The result of processing a tile's edges of weight 1 or more."""

    fragments: NDArray[np.uint32]
    """Fragment of each label."""
    leaf_labels: NDArray[np.int32]
    """One label of each leaf; that of 0 is 0."""
    leaf_sizes: NDArray[np.int64]
    events: tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]
    """Keys, one leaf, the other leaf."""


def find_regions(
    edges: Edges, valid: NDArray[np.bool_], core: Box, shape: Shape, min_size: int
) -> Fragments:
    """The fragments of a tile with this `core` in an image of this `shape`; `valid` covers the
    core. All have class 1.
    """
    from maskloom.segcore.kernels.regions import label_joined

    labels = np.empty(core.shape, np.int32)
    sizes = label_joined(edges.right, edges.down, valid, labels)
    opened = _open(labels, len(sizes), core, shape)
    merged = _merge(edges, labels, sizes, opened, min_size)
    leaf_of = np.zeros(len(sizes), np.uint32)
    leaf_of[opened] = np.arange(1, len(opened) + 1)
    keys, ones, others = merged.events
    boundary: TileBoundary = {
        "faces": Faces.of(labels).apply(lambda slab: leaf_of[slab]),
        # By axis: what leads to the next tile along it.
        "edges": [edges.down[-1].copy(), edges.right[:, -1].copy()],
        "leaf_fragment": merged.fragments[merged.leaf_labels],
        "leaf_size": merged.leaf_sizes,
        "event_weight": (keys >> np.uint64(32)).astype(np.uint32).view(np.float32),
        "event_place": keys.astype(np.uint32),
        "event_one": ones,
        "event_other": others,
    }
    class_of = np.ones(int(merged.fragments.max()) + 1, np.uint16)
    class_of[0] = 0
    return Fragments(merged.fragments[labels], class_of, boundary)


def _open(labels: NDArray[np.int32], count: int, core: Box, shape: Shape) -> NDArray[np.int32]:
    """The labels other than 0, ascending, with a pixel at a side of the core that faces another
    tile.
    """
    found = np.zeros(count, np.bool_)
    sides = labels[0], labels[-1], labels[:, 0], labels[:, -1]
    goes_on = core.start[0] > 0, core.stop[0] < shape[0], core.start[1] > 0, core.stop[1] < shape[1]
    for side, more in zip(sides, goes_on, strict=True):
        if more:
            found[side] = True
    found[0] = False
    return np.flatnonzero(found).astype(np.int32)


def _merge(
    edges: Edges,
    labels: NDArray[np.int32],
    sizes: NDArray[np.int64],
    opened: NDArray[np.int32],
    min_size: int,
) -> _Merged:
    """Process the edges of weight 1 or more in order; `opened` are the labels that are open at
    first: leaves 1, 2 ...
    """
    from maskloom.segcore.kernels.regions import merge_small, merging_edges, number_sets

    keys = merging_edges(
        edges.right.view(np.uint32), edges.down.view(np.uint32), labels, sizes, min_size
    )
    keys.sort()
    parents, leaves = np.arange(len(sizes), dtype=np.int32), np.zeros(len(sizes), np.uint32)
    leaves[opened] = np.arange(1, len(opened) + 1)
    members = np.zeros(len(sizes), np.int32), np.zeros(len(sizes), np.int64)
    members[0][1 : len(opened) + 1], members[1][1 : len(opened) + 1] = opened, sizes[opened]
    events = np.empty_like(keys), np.empty(len(keys), np.uint32), np.empty(len(keys), np.uint32)
    found, known = merge_small(keys, labels, min_size, (parents, sizes, leaves), events, members)
    # If the first edge between two leaves did not join them, both were large, so later edges will
    # not either.
    one, other = (events[i][:found].astype(np.uint64) for i in (1, 2))
    pairs = np.minimum(one, other) << np.uint64(32) | np.maximum(one, other)
    first = np.sort(np.unique(pairs, return_index=True)[1])
    return _Merged(
        number_sets(parents),
        members[0][: known + 1],
        members[1][: known + 1],
        (events[0][first], events[1][first], events[2][first]),
    )


def join_regions(
    grid: Grid, boundaries: Sequence[TileBoundary], min_size: int
) -> list[Equivalences]:
    """Which fragments of `find_regions` over a grid are one region: all events and the edges
    between tiles, replayed in their order.
    """
    from maskloom.segcore.kernels.regions import replay

    # Leaf 0 of each tile means no leaf; it gets a number too, so that leaves are numbered by adding
    # an offset per tile.
    counts = [len(boundary["leaf_size"]) for boundary in boundaries]
    starts = np.cumsum([0, *counts], dtype=np.int64)
    sizes = np.concatenate([boundary["leaf_size"] for boundary in boundaries]).astype(np.int64)
    weight, place, one, other = (
        np.concatenate(parts)
        for parts in zip(
            *_edges_between_tiles(grid, boundaries, starts),
            *_events(grid, boundaries, starts),
            strict=True,
        )
    )
    sure = weight < 1
    useful = np.isfinite(weight) & (sure | (sizes[one] < min_size) | (sizes[other] < min_size))
    order = np.flatnonzero(useful)
    order = order[np.lexsort((place[order], weight[order]))]
    groups = replay(one[order], other[order], sure[order], sizes, min_size) + 1
    equivalences = []
    for start, boundary in zip(starts[:-1], boundaries, strict=True):
        fragments, firsts = np.unique(boundary["leaf_fragment"][1:], return_index=True)
        of = groups[start + 1 + firsts]
        equivalences.append(
            Equivalences(fragments.astype(np.uint32), of, np.ones(len(of), np.uint16))
        )
    return equivalences


_Listed = tuple[
    "NDArray[np.float32]", "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]"
]
"""Weights, positions in the image (twice the flat position of the pixel, plus one for the edge
down), one leaf, the other leaf.
"""


def _events(
    grid: Grid, boundaries: Sequence[TileBoundary], starts: NDArray[np.int64]
) -> list[_Listed]:
    """The events of all tiles."""
    listed: list[_Listed] = []
    for tile, boundary, start in zip(grid, boundaries, starts[:-1], strict=True):
        pixel, step = np.divmod(boundary["event_place"].astype(np.int64), 2)
        place = 2 * place_in(grid.shape, pixel, tile.core.shape, tile.core.start) + step
        one, other = (
            start + boundary[name].astype(np.int64) for name in ("event_one", "event_other")
        )
        listed.append((boundary["event_weight"], place, one, other))
    return listed


def _edges_between_tiles(
    grid: Grid, boundaries: Sequence[TileBoundary], starts: NDArray[np.int64]
) -> list[_Listed]:
    """The edges between tiles; each belongs to the tile of its upper or left pixel."""
    listed: list[_Listed] = []
    for number, neighbour, step in neighbours(grid):
        if step not in ((1, 0), (0, 1)):
            continue
        axis, core = step.index(1), grid[number].core
        pixels = [np.arange(a, b) for a, b in zip(core.start, core.stop, strict=True)]
        pixels[axis] = pixels[axis][-1:]
        place = 2 * np.ravel_multi_index(np.ix_(*pixels), grid.shape).ravel() + step[0]
        ours = boundaries[number]["faces"].towards(step).ravel()
        theirs = boundaries[neighbour]["faces"].towards((-step[0], -step[1])).ravel()
        listed.append(
            (
                boundaries[number]["edges"][axis],
                place,
                starts[number] + ours.astype(np.int64),
                starts[neighbour] + theirs.astype(np.int64),
            )
        )
    return listed
