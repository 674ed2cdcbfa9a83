"""Seams: where fragments of different tiles meet.

A tile's `border` is the frame of a given width along the inside of its core. From the borders of
all tiles `Borders` finds which fragment owns any pixel near a seam, so that fragments can be
joined: because a tile has named a pixel of another tile that belongs to its fragment
(`join_links`), or as a segmenter finds by itself along the `crossings`. Whatever is joined is given
to `scipy`'s connected components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.models.fragments import Equivalences, TileBoundary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape


def border(values: NDArray[Any], width: int) -> NDArray[Any]:
    """The pixels of a (rows, columns) core at most `width` - 1 away from its edge, flat: top rows,
    bottom rows, left and right rest.
    """
    height, across = values.shape
    if height <= 2 * width or across <= 2 * width:
        return values.ravel()
    middle = values[width:-width]
    sides = np.concatenate([middle[:, :width], middle[:, -width:]], axis=1)
    return np.concatenate([values[:width].ravel(), values[-width:].ravel(), sides.ravel()])


def border_index(
    shape: Shape, width: int, row: NDArray[np.int64], column: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where pixels of the frame of a core of this shape stand in its `border`. Pixels outside the
    frame give -1.
    """
    height, across = shape
    if height <= 2 * width or across <= 2 * width:
        return row * across + column
    top, bottom, left = row < width, row >= height - width, column < width
    sides = (
        2 * width * across
        + (row - width) * 2 * width
        + np.where(left, column, column - across + 2 * width)
    )
    inside = ~left & (column < across - width)
    lower = width * across + (row - height + width) * across + column
    return np.where(
        top, row * across + column, np.where(bottom, lower, np.where(inside, -1, sides))
    )


@dataclass(frozen=True, slots=True, eq=False)
class Borders:
    """The borders of all tiles of a grid."""

    grid: Grid
    width: int
    values: Sequence[NDArray[Any]]
    """The `border` of each tile, in the order of the grid."""

    def at(
        self, row: NDArray[np.int64], column: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Tile number and border value of pixels of the raster, given by arrays of rows and
        columns.

        Raises `ValueError` for pixels that lie in no border.
        """
        tile_rows, tile_columns = (
            place // side for place, side in zip((row, column), self.grid.tile, strict=True)
        )
        tiles = tile_rows * self.grid.counts[1] + tile_columns
        found = np.zeros(len(row), self.values[0].dtype)
        order = np.argsort(tiles, kind="stable")
        firsts = np.flatnonzero(np.diff(tiles[order], prepend=-1))
        # Most who ask do so about one tile.
        for chosen in (
            (np.split(order, firsts[1:]) if len(firsts) > 1 else [slice(None)])
            if len(order)
            else ()
        ):
            number = int(tiles[chosen][0])
            core = self.grid[number].core
            index = border_index(
                core.shape, self.width, row[chosen] - core.start[0], column[chosen] - core.start[1]
            )
            if (index < 0).any():
                raise ValueError(
                    f"a pixel of tile {number} is asked for that lies further than {self.width} "
                    "from its edge"
                )
            found[chosen] = self.values[number][index]
        return tiles, found


def crossings(
    grid: Grid, diagonal: bool
) -> Iterator[tuple[int, int, tuple[NDArray[np.int64], ...]]]:
    """All pairs of neighbouring pixels with a seam between them, each pair once, tile by tile.

    Gives (number of the one tile, number of the other, (row, column, row, column) of the pixels in
    the raster).
    """
    down, across = grid.counts
    for number, tile in enumerate(grid):
        y, x = tile.index
        (top, left), (bottom, right) = tile.core.start, tile.core.stop
        if x + 1 < across:
            for a, b in _facing(np.arange(top, bottom), diagonal):
                yield number, number + 1, (a, np.full_like(a, right - 1), b, np.full_like(b, right))
        if y + 1 < down:
            for a, b in _facing(np.arange(left, right), diagonal):
                yield (
                    number,
                    number + across,
                    (np.full_like(a, bottom - 1), a, np.full_like(b, bottom), b),
                )
            for step, edge in ((1, right - 1), (-1, left)) if diagonal else ():
                if 0 <= x + step < across:
                    corner = (bottom - 1, edge, bottom, edge + step)
                    yield (
                        number,
                        number + across + step,
                        tuple(np.array([place]) for place in corner),
                    )


def _facing(
    places: NDArray[np.int64], diagonal: bool
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Which places of two lines side by side meet."""
    straight = [(places, places)]
    return (
        [*straight, (places[:-1], places[1:]), (places[1:], places[:-1])] if diagonal else straight
    )


def connected(count: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the connected component of each of `count` nodes, where node one[i] is tied to
    node other[i].
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ties = coo_matrix((np.ones(len(one), np.bool_), (one, other)), shape=(count, count))
    return np.asarray(connected_components(ties, directed=False)[1], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The fragments of all tiles that take part in joining, numbered through from 0 in the order of
    the tiles.
    """

    fragments: Sequence[NDArray[np.uint32]]
    """Of each tile, ascending."""
    offsets: NDArray[np.int64] = field(init=False)
    """Node of the first fragment of each tile, and the number of all nodes."""

    def __post_init__(self) -> None:
        # Kept, not found anew for each tile: that would take the square of their number.
        object.__setattr__(
            self, "offsets", np.cumsum([0, *(len(each) for each in self.fragments)], dtype=np.int64)
        )

    def of(self, tile: int, fragments: NDArray[np.integer]) -> NDArray[np.int64]:
        """Nodes of fragments of one tile, all of which take part."""
        return np.asarray(
            self.offsets[tile] + np.searchsorted(self.fragments[tile], fragments), np.int64
        )

    def groupings(
        self, groups: NDArray[np.int64], class_of: NDArray[np.uint16]
    ) -> list[Equivalences]:
        """A grouping for each tile from the group (0: background) and the class of all nodes."""
        starts = self.offsets
        return [
            Equivalences(each, groups[a:b], class_of[a:b])
            for each, a, b in zip(self.fragments, starts[:-1], starts[1:], strict=True)
        ]


def join_links(grid: Grid, seams: Sequence[TileBoundary], width: int) -> list[Equivalences]:
    """Join by links: each names a fragment of its tile and a pixel of another tile, at most `width`
    - 1 from that tile's edge.

    A seam holds `border` (of fragments, of this width), `fragments` (those in the border or with a
    link, ascending), `class_of` them, and the links as `link_fragment`, `link_row`, `link_column`
    (of the raster). A link to background is ignored. An object has the class of its fragment that
    comes first in the order of tiles and fragments and that itself has no link, else of its first.
    """
    borders = Borders(grid, width, [seam["border"] for seam in seams])
    nodes = Nodes([seam["fragments"] for seam in seams])
    ones, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    pointing = np.zeros(int(nodes.offsets[-1]), np.bool_)
    for number, seam in enumerate(seams):
        tiles, owners = borders.at(
            seam["link_row"].astype(np.int64), seam["link_column"].astype(np.int64)
        )
        known = owners > 0
        one = nodes.of(number, seam["link_fragment"][known])
        pointing[one] = True
        ones.append(one)
        others.append(_nodes_of(nodes, tiles[known], owners[known]))
    groups = connected(len(pointing), np.concatenate(ones), np.concatenate(others)) + 1
    classes = np.concatenate([seam["class_of"] for seam in seams]).astype(np.uint16)
    # Sorted so that of each group the node comes first that decides its class.
    order = np.lexsort((np.arange(len(groups)), pointing, groups))
    _, firsts = np.unique(groups[order], return_index=True)
    return nodes.groupings(groups, classes[order][firsts][groups - 1])


def _nodes_of(
    nodes: Nodes, tiles: NDArray[np.int64], fragments: NDArray[np.integer]
) -> NDArray[np.int64]:
    found = np.zeros(len(tiles), np.int64)
    for tile in np.unique(tiles):
        chosen = tiles == tile
        found[chosen] = nodes.of(int(tile), fragments[chosen])
    return found
