"""Boxes, tiles and the grid that cuts a raster into tiles.

A `Box` is a half-open range of pixels along each axis. A `Tile` owns the pixels of its `core` and
may use those of its `read` box, which is the core grown by a halo and clipped to the raster. A
`Grid` is the sequence of tiles of a raster: the cores partition it, so each pixel is counted in
exactly one core. A `Tiling` makes the grid of a raster of any shape.

Axes are always in array order: (y, x), or (z, y, x) for volumes. A pixel of a volume is a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

Shape = tuple[int, ...]
Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f) with x = a·column + b·row + c and y = d·column + e·row + f at pixel
corners.
"""

DEFAULT_TILE = 2048
"""Side of the tiles of a recipe that sets none, in pixels."""
_IMAGE_AXES = 2
_CUBE_STEP = 16
"""Sides of cubes are multiples of this."""


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open range of pixels along each axis.

    >>> Box((0, 2), (4, 6)) & Box((2, 0), (9, 4))
    Box(start=(2, 2), stop=(4, 4))
    """

    start: Shape
    """First pixel along each axis."""
    stop: Shape
    """One past the last pixel along each axis."""

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(
                f"start {self.start} and stop {self.stop} have different numbers of axes"
            )
        if any(a > b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"start {self.start} lies beyond stop {self.stop}")

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """The box of a whole raster of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> Shape:
        """Number of pixels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of this box in an array of the whole raster."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def __and__(self, other: Box) -> Box:
        """The intersection; an empty box (at the nearer corner) if they are disjoint."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(
            max(s, min(a, b)) for s, a, b in zip(start, self.stop, other.stop, strict=True)
        )
        return Box(start, stop)

    def grow(self, margin: Shape) -> Box:
        """This box, larger by `margin` pixels on both sides of each axis."""
        return Box(
            tuple(a - m for a, m in zip(self.start, margin, strict=True)),
            tuple(b + m for b, m in zip(self.stop, margin, strict=True)),
        )

    def relative_to(self, outer: Box) -> Box:
        """This box in the coordinates of `outer`, which contains it."""
        return Box(
            tuple(a - o for a, o in zip(self.start, outer.start, strict=True)),
            tuple(b - o for b, o in zip(self.stop, outer.start, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One unit of local work on a raster."""

    index: Shape
    """Position in the grid, counted in tiles."""
    core: Box
    """The pixels that this tile owns."""
    read: Box
    """The pixels that this tile may use: the core and its halo, clipped to the raster."""

    @classmethod
    def whole(cls, shape: Shape) -> Tile:
        """The single tile of an undivided raster of this shape."""
        box = Box.whole(shape)
        return cls((0,) * len(shape), box, box)

    def trim(self, array: Any) -> Any:
        """The part of an array that covers the core; the array covers `read` (further axes, such as
        bands, are kept).
        """
        return array[self.core.relative_to(self.read).slices]


@dataclass(frozen=True, slots=True)
class Grid(Sequence[Tile]):
    """The tiles of a raster in row order. Their cores partition it.

    >>> [tile.core.shape for tile in Grid(shape=(5, 3), tile=(4, 4))]
    [(4, 3), (1, 3)]
    """

    shape: Shape
    """Shape of the raster."""
    tile: Shape
    """Shape of a tile's core; tiles at the far border are smaller."""
    halo: int | Shape = 0
    """Width of the halo in pixels: one number for all axes, or one per axis."""
    planar: bool = False
    """Whether halos extend along the last two axes only, not across the planes of a volume."""

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.tile):
            raise ValueError(
                f"shape {self.shape} and tile {self.tile} have different numbers of axes"
            )
        narrowest = min(per_axis(self.halo, len(self.shape)))
        if min(self.tile) < 1 or narrowest < 0 or min(self.shape) < 1:
            raise ValueError(
                f"shape {self.shape} and tile {self.tile} must be positive and halo {self.halo} "
                "not negative"
            )

    @property
    def margin(self) -> Shape:
        """The halo along each axis."""
        across = max(0, len(self.shape) - _IMAGE_AXES) if self.planar else 0
        return (0,) * across + per_axis(self.halo, len(self.shape))[across:]

    @property
    def counts(self) -> Shape:
        """Number of tiles along each axis."""
        return tuple(-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    @overload
    def __getitem__(self, position: int) -> Tile: ...
    @overload
    def __getitem__(self, position: slice) -> list[Tile]: ...
    def __getitem__(self, position: int | slice) -> Tile | list[Tile]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(f"tile {position} of a grid of {len(self)} tiles")
        rest = position % len(self)
        index: list[int] = []
        for count in reversed(self.counts):
            rest, i = divmod(rest, count)
            index.insert(0, i)
        whole = Box.whole(self.shape)
        start = tuple(i * t for i, t in zip(index, self.tile, strict=True))
        core = Box(start, tuple(a + t for a, t in zip(start, self.tile, strict=True))) & whole
        return Tile(tuple(index), core, core.grow(self.margin) & whole)

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, slots=True)
class Tiling:
    """How rasters with any number of axes are cut into tiles.

    >>> Tiling(256).tile((1000, 700)), Tiling(256).tile((300, 1000, 700))
    ((256, 256), (32, 32, 32))
    >>> Tiling((8, 64, 64)).tile((300, 1000, 700))
    (8, 64, 64)
    """

    side: int | Shape
    """Side of the square tiles of images; volumes are cut into cubes with about the same number of
    voxels. Or the side along each axis, for rasters with that number of axes only.
    """

    @property
    def pixels(self) -> int:
        """Approximate number of pixels, or voxels, in the core of a tile."""
        return self.side**2 if isinstance(self.side, int) else math.prod(self.side)

    def suits(self, shape: Shape) -> bool:
        """Whether this tiling applies to rasters of this shape."""
        return isinstance(self.side, int) or len(self.side) == len(shape)

    def tile(self, shape: Shape, planar: bool = False) -> Shape:
        """Shape of the tiles of a raster of this shape; those of planar methods are one plane deep.

        Raises `ValueError` if there is a side for each axis and the raster has another number of
        axes.
        """
        if isinstance(self.side, int):
            if len(shape) <= _IMAGE_AXES:
                return (self.side,) * len(shape)
            if planar:
                return (1,) * (len(shape) - _IMAGE_AXES) + (self.side,) * _IMAGE_AXES
            # The computed root of a cube may be slightly too small.
            cube = round(self.pixels ** (1 / len(shape)))
            return (max(_CUBE_STEP, cube // _CUBE_STEP * _CUBE_STEP),) * len(shape)
        if not self.suits(shape):
            raise ValueError(f"tiles of {self.side} cannot cut a raster of shape {shape}")
        return (1,) * (len(shape) - _IMAGE_AXES) + self.side[-_IMAGE_AXES:] if planar else self.side

    def grid(self, shape: Shape, halo: int | Shape = 0, planar: bool = False) -> Grid:
        """The tiles of a raster of this shape. Raises `ValueError` as `tile` does."""
        return Grid(shape, self.tile(shape, planar), halo, planar)

    def __str__(self) -> str:
        """One side, or the sides in the order of the axes.

        >>> print(Tiling(512), Tiling((8, 64, 64)))
        512 8x64x64
        """
        return str(self.side) if isinstance(self.side, int) else "x".join(map(str, self.side))


def per_axis(value: int | Shape, axes: int) -> Shape:
    """One number per axis, from one for all axes or one for each.

    Raises `ValueError` if there are numbers for other axes.

    >>> per_axis(4, 3), per_axis((2, 4, 4), 3)
    ((4, 4, 4), (2, 4, 4))
    """
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"expected one number for each of {axes} axes; got {value}")
    return value


def by_axis(numbers: Sequence[int]) -> int | Shape:
    """One number where it is the same for all axes, else one per axis.

    >>> by_axis([4, 4, 4]), by_axis([2, 4, 4])
    (4, (2, 4, 4))
    """
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def widest(halos: Sequence[int | Shape]) -> int | Shape:
    """The largest of some halos along each axis.

    >>> widest([3, 5]), widest([7, (2, 9, 9)])
    (5, (7, 9, 9))
    """
    axes = max((len(halo) for halo in halos if not isinstance(halo, int)), default=1)
    return by_axis([max(along) for along in zip(*(per_axis(h, axes) for h in halos), strict=True)])


def wider(halo: int | Shape, pixels: int) -> int | Shape:
    """A halo with some pixels more along each axis.

    >>> wider((2, 9, 9), 3)
    (5, 12, 12)
    """
    return halo + pixels if isinstance(halo, int) else tuple(each + pixels for each in halo)


def sizes_text(value: int | Shape) -> str:
    """Numbers of pixels for users.

    >>> sizes_text(23), sizes_text((11, 23, 23))
    ('23', '11 x 23 x 23')
    """
    return str(value) if isinstance(value, int) else " x ".join(map(str, value))


def in_rows(array: Any, axes: int = 2) -> Any:
    """The planes of a volume one below the other, for loops over rows: (z, y, x) becomes (z * y,
    x), and with three `axes` (z, y, x, band) becomes (z * y, x, band). Arrays of images are
    unchanged.

    No copy if the array is contiguous.
    """
    return array.reshape(-1, *array.shape[1 - axes :])


def middle(shape: Shape, pixels: int) -> Box:
    """The middle of a raster: a box with its proportions and at most about `pixels` pixels, or all
    of a smaller raster.

    >>> middle((100, 400), 2500)
    Box(start=(37, 150), stop=(62, 250))
    """
    shrink = min(1.0, (pixels / math.prod(shape)) ** (1 / len(shape)))
    inner = tuple(max(1, int(n * shrink)) for n in shape)
    start = tuple((n - m) // 2 for n, m in zip(shape, inner, strict=True))
    return Box(start, tuple(a + m for a, m in zip(start, inner, strict=True)))
