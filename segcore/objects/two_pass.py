"""Two passes over the tiles make masks of objects, or their table, from fragments.

    pack_labels    first pass, one tile: its fragments, packed
    join_tiles     once an image: joins fragments over tiles, numbers the objects, and gives each
                   tile its `Relabelling`
    relabel        second pass, one tile: the final ids of its pixels

Fragments and relabellings are kept in memory for a small image and in staged files for a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.objects.faces import Faces, number_of
from maskloom.segcore.objects.numbering import (
    Numbers,
    first_positions,
    number_objects,
    tiles_of_layer,
)
from maskloom.segcore.storage.packing import pack, packable, unpack, unpacked_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape, Tile

RING = 2
"""Width in pixels of the ring around a core whose objects the second pass knows: a perimeter needs
two.
"""
_NO_DATA = np.uint32(2**32 - 1)
_UNPACKED_BYTES = 2**25
"""Boundaries of a tile's neighbours in a volume, or of some hundred tiles of an image."""


class ObjectMerger(Protocol):
    """A rule that joins fragments."""

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary], /) -> Sequence[Equivalences]:
        """The equivalences of each tile."""
        ...


class TileToJoin(Protocol):
    """The packed values of one tile that joining needs, in memory or staged."""

    @property
    def boundary(self) -> bytes:
        """The tile's boundary. Read once; those of all tiles are in memory together, as packed."""
        ...

    @property
    def first_positions(self) -> bytes:
        """First position and class of each fragment. Read twice."""
        ...


@dataclass(frozen=True, slots=True)
class PackedLabels:
    """The result of the first pass over one tile, packed."""

    boundary: bytes
    """Input of joining: a `_Boundary`."""
    first_positions: bytes
    """First position and class of each fragment: a `_Firsts`."""
    labels: bytes
    """Fragments of the core, and the summary that the first pass keeps for the second: a
    `_Labels`.
    """


@packable
@dataclass(frozen=True, slots=True, eq=False)
class _Boundary:
    """What a tile leaves for joining."""

    fragments: TileBoundary
    """Input of `ObjectMerger.join`."""
    faces: Faces
    """Fragments at most `RING` - 1 pixels away from a side of the core."""


@packable
@dataclass(frozen=True, slots=True, eq=False)
class _Firsts:
    """First pixels and classes of the fragments of a tile."""

    positions: NDArray[np.int64]
    class_of: NDArray[np.uint16]


@packable
@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """What a tile leaves for its second pass."""

    fragments: NDArray[np.uint32]
    """Shape of the core; `_NO_DATA` where there is no data."""
    summary: Any


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Relabelling:
    """The final ids of one tile and of the ring around it."""

    numbers: Numbers
    ring: NDArray[np.uint32]
    """Final ids in the ring of `RING` pixels around the core, flattened box by box as in
    `ring_boxes`.
    """


@dataclass(frozen=True, slots=True, eq=False)
class RelabelledTile:
    """A tile's fragments and the objects that they belong to."""

    fragments: NDArray[np.uint32]
    """Shape of the core; 0: no object."""
    valid: NDArray[np.bool_]
    """Shape of the core; True where there is data."""
    numbers: Numbers
    summary: Any
    """The `summary` passed to `pack_labels`."""

    @property
    def ids(self) -> NDArray[np.uint32]:
        """The final id of each pixel's object in the core, 0 for background."""
        return self.numbers.ids[self.fragments]

    def classes(self, nodata: int, dtype: str) -> NDArray[np.integer]:
        """The class of each pixel of the core, `nodata` where there is no data."""
        values = self.numbers.class_of.astype(dtype)[self.fragments]
        return values if self.valid.all() else np.where(self.valid, values, np.array(nodata, dtype))


def pack_labels(
    fragments: Fragments, valid: NDArray[np.bool_], tile: Tile, shape: Shape, summary: Any = None
) -> PackedLabels:
    """The fragments of a tile of a raster of this shape, for the second pass. `valid` has the shape
    of the core; `summary` is a packable value that `relabel` returns.
    """
    values = fragments.values
    positions = first_positions(values, tile, shape)
    if len(positions) != len(fragments.class_of):
        raise ValueError(
            f"tile {tile.index} has fragments up to {len(positions) - 1}, and classes of "
            f"{len(fragments.class_of) - 1}"
        )
    known = values if valid.all() else np.where(valid, values, _NO_DATA)
    return PackedLabels(
        pack(_Boundary(fragments.boundary, Faces.of(values, RING))),
        pack(_Firsts(positions, fragments.class_of)),
        pack(_Labels(known, summary)),
    )


def relabel(labels: bytes, relabelling: Relabelling) -> RelabelledTile:
    """A tile with its final objects, from its `PackedLabels.labels`."""
    packed = unpack(_Labels, labels)
    valid = packed.fragments != _NO_DATA
    fragments = packed.fragments if valid.all() else np.where(valid, packed.fragments, np.uint32(0))
    return RelabelledTile(fragments, valid, relabelling.numbers, packed.summary)


def join_tiles(
    merger: ObjectMerger, grid: Grid, tiles: Sequence[TileToJoin], location: str
) -> Iterator[Relabelling]:
    """The relabelling of each tile in the order of the grid.

    Raises `FormatError` if there are more objects than 32 bits can number.
    """
    boundaries = _Boundaries([tile.boundary for tile in tiles])
    equivalences = merger.join(grid, boundaries)

    def read(number: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        firsts = unpack(_Firsts, tiles[number].first_positions)
        return firsts.positions, firsts.class_of

    # The ring of a layer of tiles is complete once the adjacent layers are numbered.
    across, reach, done = tiles_of_layer(grid), -(-RING // grid.tile[0]), 0
    numbered: dict[int, Numbers] = {}

    def ids_at(number: int, index: list[NDArray[np.int64]]) -> NDArray[np.uint32]:
        found: NDArray[np.uint32] = numbered[number].ids[
            boundaries.unpacked(number).faces.at(index)
        ]
        return found

    for number, numbers in enumerate(number_objects(grid, equivalences, read, location)):
        numbered[number] = numbers
        if (number + 1) % across == 0 and number + 1 - done > across * reach:
            for _ in range(across):
                yield Relabelling(numbered[done], _ring(grid, ids_at, grid[done]))
                done += 1
            for passed in range(done - across * (reach + 1), done - across * reach):
                numbered.pop(passed, None)
    for number in range(done, len(grid)):
        yield Relabelling(numbered[number], _ring(grid, ids_at, grid[number]))


class _Boundaries(Sequence[TileBoundary]):
    """What `fragment` left for `join`, of all tiles. They are kept as packed; those used last are
    unpacked too.
    """

    def __init__(self, packed: Sequence[bytes]) -> None:
        self._packed = packed
        self._recent: dict[int, _Boundary] = {}
        self._bytes = 0

    def unpacked(self, number: int) -> _Boundary:
        """All that a tile left."""
        found = self._recent.pop(number, None)
        if found is None:
            found = unpack(_Boundary, self._packed[number])
            self._bytes += unpacked_size(self._packed[number])
        self._recent[number] = found
        while self._bytes > _UNPACKED_BYTES and len(self._recent) > 1:
            oldest = next(iter(self._recent))
            del self._recent[oldest]
            self._bytes -= unpacked_size(self._packed[oldest])
        return found

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, number: int) -> TileBoundary: ...
    @overload
    def __getitem__(self, number: slice) -> list[TileBoundary]: ...
    def __getitem__(self, number: int | slice) -> TileBoundary | list[TileBoundary]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)} tiles")
        return self.unpacked(number).fragments


def with_ring(
    core: NDArray[np.uint32], ring: NDArray[np.uint32], tile: Tile, shape: Shape
) -> NDArray[np.uint32]:
    """The values of the core with the ring around it, 2 * `RING` longer along each axis; 0 outside
    the raster of this shape.
    """
    outer, at = tile.core.grow((RING,) * core.ndim), 0
    out = np.zeros(outer.shape, np.uint32)
    out[tile.core.relative_to(outer).slices] = core
    for box in ring_boxes(tile, shape):
        out[box.relative_to(outer).slices] = ring[at : at + box.size].reshape(box.shape)
        at += box.size
    return out


def ring_boxes(tile: Tile, shape: Shape) -> list[Box]:
    """The ring around a core, clipped to the raster, as boxes: for each axis one before and one
    behind the core. In images: above, below, left, right.
    """
    whole, boxes = Box.whole(shape), []
    start, stop = list(tile.core.start), list(tile.core.stop)
    outer = tile.core.grow((RING,) * len(shape))
    for axis in range(len(shape)):
        # Axes already done extend over the core only, later axes over the whole ring.
        low, high = (*start[:axis], *outer.start[axis:]), (*stop[:axis], *outer.stop[axis:])
        before = (*high[:axis], start[axis], *high[axis + 1 :])
        behind = (*low[:axis], stop[axis], *low[axis + 1 :])
        boxes += [Box(low, before) & whole, Box(behind, high) & whole]
    return boxes


def _ring(
    grid: Grid,
    ids_at: Callable[[int, list[NDArray[np.int64]]], NDArray[np.uint32]],
    tile: Tile,
) -> NDArray[np.uint32]:
    """The ring around a tile, from the ids of the tiles around it: `ids_at` takes the number of a
    tile and the index of pixels in its faces.
    """
    parts = [np.zeros(0, np.uint32)]
    for box in ring_boxes(tile, grid.shape):
        ids = np.zeros(box.shape, np.uint32)
        for number, part in _tiles_over(grid, box):
            core = grid[number].core
            index = np.ogrid[part.relative_to(core).slices]
            flat = [each.ravel() for each in np.broadcast_arrays(*index)]
            ids[part.relative_to(box).slices] = ids_at(number, flat).reshape(part.shape)
        parts.append(ids.ravel())
    return np.concatenate(parts)


def _tiles_over(grid: Grid, box: Box) -> Iterator[tuple[int, Box]]:
    """The tiles whose cores contain pixels of a box: the number of each, and the box of these
    pixels.
    """
    if box.size:
        first = [start // side for start, side in zip(box.start, grid.tile, strict=True)]
        last = [(stop - 1) // side for stop, side in zip(box.stop, grid.tile, strict=True)]
        counts = [b - a + 1 for a, b in zip(first, last, strict=True)]
        for step in np.ndindex(*counts):
            index = tuple(at + by for at, by in zip(first, step, strict=True))
            number = number_of(index, grid.counts)
            yield number, grid[number].core & box
