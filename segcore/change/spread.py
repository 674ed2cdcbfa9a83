"""How a class spread between two dates, such as the burned area of a fire: newly covered area, and
how far its front moved, by direction.

The advance of a newly covered pixel is its distance on the ground to the nearest pixel that had the
class before, from centre to centre; its direction is that from there. Positions are taken to a map
of equal distances from the middle of the image, so that distances are in metres and north is true
north there; 100 km from the middle, distances across are wrong by less than 1 in 10,000.

The mean advance is that of the new front: newly covered pixels beside pixels that the class has not
reached. The old front is held in memory, so memory grows with its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located, to_lonlat
from maskloom.segcore.processes import limits
from maskloom.segcore.statistics.exact_areas import add_areas, check_areas, quanta_in_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Tile
    from maskloom.segcore.raster.spec import RasterSpec

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

SECTORS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
_APART = len(SECTORS)
"""Number in place of a sector's where nothing had the class before."""
_STEPS = 1e6
"""Lengths are added as whole micrometres, so that sums do not depend on the tiling."""
_CROFTON = np.pi / 4
"""Length of a line per length of the sides of pixels along it, on average over all directions."""
_SIDES_OF_PIXEL = (
    ((-1, 0), (0, 0), (0, 1)),
    ((1, 0), (1, 0), (1, 1)),
    ((0, -1), (0, 0), (1, 0)),
    ((0, 1), (0, 1), (1, 1)),
)
"""Of each side of a pixel: the step (y, x) to the neighbour, and the corners (y, x) of the side."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread into one direction, or into all."""

    sector: str
    """Of `SECTORS`; `all`; or `apart`: where nothing had the class before."""
    pixels: int
    area: float
    """Newly covered, in m²."""
    greatest: float | None
    """Greatest advance in metres."""
    mean: float | None
    """Mean advance of the new front in metres."""
    front: float | None = None
    """Length of the new front in metres, for all directions."""


def spread_of(
    spec: RasterSpec, grid: Grid, read: Callable[[Box], tuple[Ints, Ints]], class_id: int
) -> tuple[Spread, ...]:
    """The spread of a class in an image. `grid` has a halo of 1; `read` gives the classes of a box
    on both sides, negative without data.

    Raises `RecipeError` for volumes, and images without a CRS.
    """
    if not is_located(spec.space) or len(spec.shape) != len("yx"):
        raise RecipeError(
            f"--spread: {spec.location} has no place on earth, so there are neither metres nor "
            "directions."
        )
    place = _Map(spec)
    old = _old_front(grid, read, class_id)
    front = _Front(old, place) if len(old) else None
    sums = _Sums()
    for tile in grid:
        limits.begin_work(tile.core.size)
        before, after = read(tile.read)
        sums.add(_Tile(spec, tile, before, after, class_id), place, front)
    return sums.rows(quanta_in_unit(spec.space), spec)


class _Map:
    """A map of equal distances from the middle of an image."""

    def __init__(self, spec: RasterSpec) -> None:
        from pyproj import CRS, Transformer
        from pyproj.exceptions import ProjError

        assert spec.space.affine is not None
        self.affine = spec.space.affine
        height, width = spec.shape
        middle = to_lonlat(spec.space, np.array([width / 2]), np.array([height / 2]))
        longitude, latitude = (float(each[0]) for each in middle)
        try:
            here = CRS.from_proj4(f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +datum=WGS84")
            self.transformer = Transformer.from_crs(spec.space.crs, here, always_xy=True)
        except ProjError as error:
            raise RecipeError(
                f"--spread: the CRS of {spec.location} has no longitude and latitude, so there is "
                f"no north: {error}."
            ) from error

    def at(self, row: Floats, column: Floats) -> Floats:
        """East and north in metres (n, 2) of positions in pixels from the first corner."""
        a, b, c, d, e, f = self.affine
        x, y = a * column + b * row + c, d * column + e * row + f
        return np.stack(self.transformer.transform(x, y), axis=-1)


def _centres(pixels: Ints) -> tuple[Floats, Floats]:
    """Rows and columns of the centres of pixels (n, 2)."""
    rows, columns = pixels.T.astype(np.float64) + 0.5
    return rows, columns


class _Front:
    """The pixels of the old front, to look up the nearest one."""

    def __init__(self, pixels: Ints, place: _Map) -> None:
        from scipy.spatial import KDTree

        # The order of tiles must not matter among pixels at equal distances.
        self.points = place.at(*_centres(pixels[np.lexsort(pixels.T[::-1])]))
        self.tree = KDTree(self.points)

    def nearest(self, points: Floats) -> tuple[Floats, Floats]:
        """The distance of each point to the front, and the way from there (east, north)."""
        distance, number = self.tree.query(points)
        return distance, points - self.points[number]


def _beside(inside: Bools, step: tuple[int, int], tile: Tile) -> Bools:
    """Which pixels of a tile's core have a neighbour at this step in `inside`, which covers what
    the tile reads. Beyond the edge of the raster there is none.
    """
    padded = np.pad(inside, 1)
    (top, left), (height, width) = tile.core.relative_to(tile.read).start, tile.core.shape
    y, x = top + 1 + step[0], left + 1 + step[1]
    return padded[y : y + height, x : x + width]


def _old_front(
    grid: Grid, read: Callable[[Box], tuple[Ints, Ints]], class_id: int
) -> NDArray[np.int64]:
    """Rows and columns (n, 2) of the pixels that had the class before, beside others."""
    found = [np.zeros((0, 2), np.int64)]
    for tile in grid:
        limits.begin_work(tile.core.size)
        before, _ = read(tile.read)
        other = before != class_id
        edge = np.zeros(tile.core.shape, np.bool_)
        for step, *_ in _SIDES_OF_PIXEL:
            edge |= _beside(other, step, tile)
        found.append(np.argwhere(edge & ~tile.trim(other)) + tile.core.start)
    return np.concatenate(found)


class _Tile:
    """The pixels of one tile: newly covered ones, and sides of the new front."""

    def __init__(
        self, spec: RasterSpec, tile: Tile, before: Ints, after: Ints, class_id: int
    ) -> None:
        self.spec, self.tile = spec, tile
        covered = tile.trim(after) == class_id
        known = tile.trim(before)
        self.new: Bools = covered & (known >= 0) & (known != class_id)
        free = (after >= 0) & (after != class_id)
        self.sides = [
            (covered & _beside(free, step, tile), corners) for step, *corners in _SIDES_OF_PIXEL
        ]


class _Sums:
    """Adds up the spread of tiles by sector."""

    def __init__(self) -> None:
        number = _APART + 2  # the last one is for pixels that are not new
        self.areas: list[int] = [0] * number
        self.pixels = np.zeros(number, np.int64)
        self.greatest = np.zeros(number, np.int64)
        self.front_pixels = np.zeros(number, np.int64)
        self.advances = np.zeros(number, np.int64)
        self.length = 0
        self.equal = True

    def add(self, tile: _Tile, place: _Map, front: _Front | None) -> None:
        """Add the new pixels of a tile and the length of their front. `front`: that of the class
        before; None if it had no pixels.
        """
        origin = np.array(tile.tile.core.start)
        for side, corners in tile.sides:
            at = np.argwhere(side) + origin
            ends = [place.at(*(at + corner).T.astype(np.float64)) for corner in corners]
            lengths = np.hypot(*(ends[1] - ends[0]).T)
            self.length += int(np.rint(lengths * _STEPS).astype(np.int64).sum())
        new = np.argwhere(tile.new)
        if not len(new):
            return
        sector = np.full(len(new), _APART)
        advance = np.zeros(len(new), np.int64)
        if front is not None:
            distance, way = front.nearest(place.at(*_centres(new + origin)))
            east, north = way.T
            turn = np.degrees(np.arctan2(east, north)) / (360 / len(SECTORS))
            sector = np.floor(turn + 0.5).astype(np.int64) % len(SECTORS)
            advance = np.rint(distance * _STEPS).astype(np.int64)
        edge = np.any([side for side, _ in tile.sides], axis=0)[tile.new]
        np.maximum.at(self.greatest, sector, advance)
        np.add.at(self.advances, sector[edge], advance[edge])
        np.add.at(self.front_pixels, sector[edge], 1)
        self._add_areas(tile, new, sector)

    def _add_areas(self, tile: _Tile, new: Ints, sector: Ints) -> None:
        values = np.full(tile.new.shape, _APART + 1, np.uint8)
        values[tuple(new.T)] = sector
        sums = np.zeros((3, _APART + 2), np.int64)
        place = np.minimum(np.arange(256), _APART + 1).astype(np.uint32)
        greatest = add_areas(values, place, tile.spec, tile.tile.core, sums)
        check_areas(greatest, tile.spec.location)
        self.equal &= greatest is None
        self.pixels += sums[0]
        for i, (low, high) in enumerate(sums[1:].T.tolist()):
            self.areas[i] += high * 2**32 + low

    def rows(self, quanta: float, spec: RasterSpec) -> tuple[Spread, ...]:
        """The spread over all sectors, in each sector with new pixels, and apart from old ones."""
        first = Box.whole((1,) * len(spec.shape))
        cell = spec.space.cell_size(first, spec.shape) if self.equal else 0.0
        rows = []
        sectors = list(range(_APART))
        for name, chosen in (
            ("all", [*sectors, _APART]),
            *((SECTORS[i], [i]) for i in sectors),
            ("apart", [_APART]),
        ):
            pixels = int(self.pixels[chosen].sum())
            if not pixels and name != "all":
                continue
            whole = pixels * float(np.asarray(cell).ravel()[0])
            area = whole if self.equal else sum(self.areas[i] for i in chosen) / quanta
            measured = [i for i in chosen if i != _APART and self.pixels[i]]
            front = int(self.front_pixels[measured].sum())
            rows.append(
                Spread(
                    name,
                    pixels,
                    area,
                    float(self.greatest[measured].max()) / _STEPS if measured else None,
                    float(self.advances[measured].sum()) / front / _STEPS if front else None,
                    self.length * _CROFTON / _STEPS if name == "all" else None,
                )
            )
        return tuple(rows)
