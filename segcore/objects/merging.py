"""Merging: connected components over the fragments of all tiles.

The fragments to join are the `Nodes` of a graph, and the components of the graph are the objects.
`join_links` is for links from a fragment to a pixel of another tile that belongs to the same
object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.models.fragments import Equivalences, TileBoundary
from maskloom.segcore.objects.faces import values_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid


def connected(count: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,): the number of each node's connected component, where node one[i] is linked to node
    other[i].
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ties = coo_matrix((np.ones(len(one), np.bool_), (one, other)), shape=(count, count))
    return np.asarray(connected_components(ties, directed=False)[1], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The fragments of all tiles that may be joined, numbered from 0 in the order of the tiles."""

    fragments: Sequence[NDArray[np.uint32]]
    """The fragments of each tile, ascending."""
    offsets: NDArray[np.int64] = field(init=False)
    """Node of the first fragment of each tile, and the number of all nodes."""

    def __post_init__(self) -> None:
        # Stored, because computing it for each tile would be quadratic in the number of tiles.
        object.__setattr__(
            self, "offsets", np.cumsum([0, *(len(each) for each in self.fragments)], dtype=np.int64)
        )

    def of(self, tile: int, fragments: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,): nodes of these fragments of one tile; each must be one that was given for it."""
        return np.asarray(
            self.offsets[tile] + np.searchsorted(self.fragments[tile], fragments), np.int64
        )

    def of_tiles(
        self, tiles: NDArray[np.int64], fragments: NDArray[np.integer]
    ) -> NDArray[np.int64]:
        """(n,): nodes of fragments, given with the tile of each."""
        found = np.zeros(len(tiles), np.int64)
        for tile in np.unique(tiles):
            chosen = tiles == tile
            found[chosen] = self.of(int(tile), fragments[chosen])
        return found

    def equivalences(
        self, groups: NDArray[np.int64], class_of: NDArray[np.uint16]
    ) -> list[Equivalences]:
        """The equivalences of each tile from the group (0: background) and the class of all
        nodes.
        """
        starts = self.offsets
        return [
            Equivalences(each, groups[a:b], class_of[a:b])
            for each, a, b in zip(self.fragments, starts[:-1], starts[1:], strict=True)
        ]


def join_links(grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
    """Join by links: each names a fragment of its tile and a pixel of another tile, which must be
    on that tile's faces.

    A boundary holds the `faces` of its fragments, `fragments` (those on a face or with a link,
    ascending), `class_of` them, and the links as `link_fragment` and `link_place` (flat, in the
    raster). A link to background is ignored. The class of an object is that of its first fragment
    without a link, in the order of tiles and fragments, or else of its first fragment.
    """
    faces = [boundary["faces"] for boundary in boundaries]
    nodes = Nodes([boundary["fragments"] for boundary in boundaries])
    ones, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    pointing = np.zeros(int(nodes.offsets[-1]), np.bool_)
    for number, boundary in enumerate(boundaries):
        tiles, owners = values_at(grid, faces, boundary["link_place"])
        known = owners > 0
        one = nodes.of(number, boundary["link_fragment"][known])
        pointing[one] = True
        ones.append(one)
        others.append(nodes.of_tiles(tiles[known], owners[known]))
    groups = connected(len(pointing), np.concatenate(ones), np.concatenate(others)) + 1
    classes = np.concatenate([boundary["class_of"] for boundary in boundaries]).astype(np.uint16)
    # Sorted so that the node that determines the class is the first of each group.
    order = np.lexsort((np.arange(len(groups)), pointing, groups))
    _, firsts = np.unique(groups[order], return_index=True)
    return nodes.equivalences(groups, classes[order][firsts][groups - 1])
