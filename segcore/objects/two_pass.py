"""Sketches: what the first pass over a tile leaves for the second, where masks of objects or their
table are made.

    sketch_tile     first pass, with the pixels at hand: fragments, seam, band sums
    place_objects   once an image: joins the seams, numbers the objects, and tells each tile what
                    surrounds it
    second pass     the tile's final ids, from its sketch and its `Relabelling`

All three hand over packed bytes, kept in memory for a small image and in a staged file for a large
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.objects.numbering import Numbers, first_pixels, number_objects
from maskloom.segcore.objects.seams import Borders, border
from maskloom.segcore.storage.packing import pack, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Tile

RING = 2
"""Pixels around a tile's core whose objects the second pass knows: what a perimeter needs."""
_NO_DATA = np.uint32(2**32 - 1)


class ObjectMerger(Protocol):
    """Whoever can join fragments."""

    def join(self, grid: Grid, seams: Sequence[TileBoundary]) -> Sequence[Equivalences]:
        """A grouping for each tile."""
        ...


@dataclass(frozen=True, slots=True)
class PackedTile:
    """What the first pass found in one tile, packed."""

    seam: bytes
    """The seam of its fragments, and the frame of its fragments' numbers."""
    firsts: bytes
    """First pixel and class of each fragment."""
    body: bytes
    """Fragments of the core, and what was added up of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Relabelling:
    """What joining says of one tile."""

    numbers: Numbers
    ring: NDArray[np.uint32]
    """Final ids in the frame of `RING` pixels around the core, as `ring_boxes` cut it, flat; 0
    beyond the image.
    """

    def to_bytes(self) -> bytes:
        """A compact form that `from_bytes` reads back."""
        numbers = self.numbers
        return pack(
            {
                "ids": numbers.ids,
                "class_of": numbers.class_of,
                "whole": numbers.whole,
                "ring": self.ring,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Relabelling:
        """The placement that `to_bytes` wrote."""
        arrays = unpack(data)
        return cls(Numbers(arrays["ids"], arrays["class_of"], arrays["whole"]), arrays["ring"])


@dataclass(frozen=True, slots=True, eq=False)
class RelabelledTile:
    """A tile in the end: fragments with what is known of their objects."""

    fragments: NDArray[np.uint32]
    """Shape of the core; 0: no object."""
    valid: NDArray[np.bool_]
    """Shape of the core; True where there is data."""
    numbers: Numbers
    extra: Mapping[str, NDArray[Any]]
    """What the first pass added to the sketch."""

    @property
    def ids(self) -> NDArray[np.uint32]:
        """The final id of each pixel's object, 0 for background."""
        return self.numbers.ids[self.fragments]

    def classes(self, nodata: int, dtype: str) -> NDArray[np.integer]:
        """The class of each pixel, `nodata` where there is no data."""
        values = self.numbers.class_of.astype(dtype)[self.fragments]
        return values if self.valid.all() else np.where(self.valid, values, np.array(nodata, dtype))


def sketch_tile(
    fragments: Fragments,
    valid: NDArray[np.bool_],
    tile: Tile,
    width: int,
    extra: Mapping[str, NDArray[Any]],
) -> PackedTile:
    """The sketch of a tile of an image with `width` columns. `valid` has the shape of the core;
    `extra` comes back as it is.
    """
    values = fragments.values
    frame = border(values, RING)
    firsts = first_pixels(values, tile, width)
    if len(firsts) != len(fragments.class_of):
        raise ValueError(
            f"tile {tile.index} has fragments up to {len(firsts) - 1}, and classes of "
            f"{len(fragments.class_of) - 1}"
        )
    drawn = values if valid.all() else np.where(valid, values, _NO_DATA)
    return PackedTile(
        pack({**{f"seam.{name}": array for name, array in fragments.seam.items()}, "frame": frame}),
        pack({"firsts": firsts, "class_of": fragments.class_of}),
        pack({**{f"extra.{name}": array for name, array in extra.items()}, "values": drawn}),
    )


def redraw(body: bytes, placement: Relabelling) -> RelabelledTile:
    """A tile with its final objects."""
    arrays = unpack(body)
    values, valid = arrays["values"], arrays["values"] != _NO_DATA
    fragments = values if valid.all() else np.where(valid, values, np.uint32(0))
    return RelabelledTile(fragments, valid, placement.numbers, _below(arrays, "extra."))


def place_objects(
    joiner: ObjectMerger,
    grid: Grid,
    seams: Sequence[bytes],
    firsts: Callable[[int], bytes],
    location: str,
) -> Iterator[Relabelling]:
    """The placement of each tile in the order of the grid, from the packed seams of all tiles and
    the packed firsts of any tile.

    Raises `FormatError` where there are more objects than 32 bits number.
    """
    unpacked = [unpack(data) for data in seams]
    groupings = joiner.join(grid, [_below(arrays, "seam.") for arrays in unpacked])

    def read(number: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        arrays = unpack(firsts(number))
        return arrays["firsts"], arrays["class_of"]

    frames: list[NDArray[Any]] = [arrays["frame"] for arrays in unpacked]
    borders = Borders(grid, RING, frames)
    across, waiting = grid.counts[1], []
    for number, numbers in enumerate(number_objects(grid, groupings, read, location)):
        frames[number] = numbers.ids[frames[number]]
        waiting.append(numbers)
        # A row of tiles is surrounded once the row below it is numbered.
        if (number + 1) % across == 0 and len(waiting) > across:
            start = number + 1 - 2 * across
            yield from (
                Relabelling(waiting.pop(0), _ring(borders, grid[start + i])) for i in range(across)
            )
    yield from (
        Relabelling(numbers, _ring(borders, grid[len(grid) - len(waiting) + i]))
        for i, numbers in enumerate(list(waiting))
    )


def surrounded(
    core: NDArray[np.uint32], ring: NDArray[np.uint32], tile: Tile, shape: tuple[int, ...]
) -> NDArray[np.uint32]:
    """The core's ids with the ring around it, (rows + 2 RING, columns + 2 RING); 0 beyond the image
    of this shape.
    """
    out = np.zeros(tuple(n + 2 * RING for n in tile.core.shape), np.uint32)
    out[RING:-RING, RING:-RING] = core
    outer, at = tile.core.grow((RING, RING)), 0
    for box in ring_boxes(tile, shape):
        out[box.relative_to(outer).slices] = ring[at : at + box.size].reshape(box.shape)
        at += box.size
    return out


def ring_boxes(tile: Tile, shape: tuple[int, ...]) -> tuple[Box, ...]:
    """The frame around a core, cut at the image's border, as boxes: above, below, left, right."""
    whole, (top, left), (bottom, right) = Box.whole(shape), tile.core.start, tile.core.stop
    boxes = (
        Box((top - RING, left - RING), (top, right + RING)),
        Box((bottom, left - RING), (bottom + RING, right + RING)),
        Box((top, left - RING), (bottom, left)),
        Box((top, right), (bottom, right + RING)),
    )
    return tuple(box & whole for box in boxes)


def _ring(borders: Borders, tile: Tile) -> NDArray[np.uint32]:
    parts = [np.zeros(0, np.uint32)]
    for box in ring_boxes(tile, borders.grid.shape):
        if box.size:
            rows, columns = np.mgrid[box.slices]
            parts.append(borders.at(rows.ravel(), columns.ravel())[1])
    return np.concatenate(parts).astype(np.uint32)


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
