"""True ground area of pixels: the square metres of the Earth (or another planet) that each pixel
covers.

There are three kinds of raster. Each has a frozen value that gives the area of its pixels:

1. `Plane`: all pixels are equally large. Equal-area projections, and coordinates without a geodetic
   datum.
2. `Zones`: longitude and latitude, not rotated. A cell is part of the zone between two parallels,
   whose area on the ellipsoid has a closed form (the integral that defines the authalic latitude).
3. `Surface`: all others. The ground density (square metres per square unit of the map) is measured
   at a few nodes (`segcore.ground.projection`) and interpolated to all pixels by polynomials of
   degree 6.

The polynomials cover square cells of 2048 pixels, counted from the raster's corner. A cell is split
into four if its polynomial has not converged at degree 6 or if it leaves the projection's domain,
down to 8 pixels. The rest is measured pixel by pixel, along the outlines of the pixels
(`segcore.ground.outlines`). Each polynomial is averaged over the pixel, so coarse pixels are
correct too. Cells depend on the raster alone, and all arithmetic is elementwise, so a pixel has the
same area, bit for bit, in every box.

An equal-area map whose raster extends beyond the edge of the world is also a `Surface`: its density
is known, its domain is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskloom.segcore.errors import FormatError
from maskloom.segcore.ground.outlines import pixel_areas, row_areas
from maskloom.segcore.ground.projection import Floats, Projection, probe_projection, projection_of

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Affine, Box, Shape

Integers = NDArray[np.int64]
Cells = tuple[int, Integers, Floats]
"""Cells of one size: the pixels per side, the corners (n, 2) in the raster, and the polynomials (n,
7, 7) by powers of (v, u).
"""

_LARGEST, _SMALLEST = 2048, 8
_EMPTY = 32
"""Below this size, a cell with no valid ground is accepted as empty. A larger one could contain a
small image of a planet.
"""
_WIDEST, _COARSE, _GAP = 1.0, 0.05, 0.0125
"""Cell sides in radii of the planet, if the map were true to scale. Up to the first, a polynomial
may describe a cell. From the second on, the sides of the cell are probed at intervals of the third,
because the edge of the map could pass between nodes.
"""
_EDGE_POINTS = 257
_CONVERGED = 1e-8
"""A polynomial has converged when its terms of degree 6 are below this fraction of its value. The
omitted terms are smaller still.
"""
_NODES = (-1.0, -math.sqrt(3) / 2, -0.5, 0.0, 0.5, math.sqrt(3) / 2, 1.0)
"""Where a polynomial of degree 6 is measured: Chebyshev's points of the second kind, -cos(πk/6)."""
_LEAST_PIXEL = 1e-60
"""A smaller pixel area, in any unit, means a broken header."""
_CHUNK = 256
"""Rows of a zone computed, and kept, together."""


def ground_area(
    affine: Affine, crs_wkt: str, box: Box, shape: Shape | None = None
) -> float | Floats:
    """Ground area of the pixels of `box` in square metres.

    A number if all pixels of the raster are equally large, an array of shape (y, 1) if the area
    depends on the row alone, otherwise of shape (y, x). Pixels beyond the poles or outside the
    projection's domain have area 0, and pixels cut by its edge have the area of the part inside.
    `shape` is the shape of the whole raster. Without it, an equal-area map is assumed to be ground
    everywhere. Maps with straight, evenly spaced parallels continue beyond their longitude of 180
    degrees, as rasters of longitude and latitude do.

    `affine` maps (column, row) to x = longitude or easting, y = latitude or northing in units of
    the CRS, as in GDAL. The area is measured on the ellipsoid of the CRS. Raises `FormatError` for
    an invalid CRS or transform.
    """
    return _ground(affine, crs_wkt, shape).area(box)


def ground_cells(
    affine: Affine, crs_wkt: str, box: Box, shape: Shape | None = None
) -> tuple[Cells, ...] | None:
    """The polynomials behind `ground_area` if it varies along the rows, otherwise None. They are
    much smaller than the array.

    Each pixel of `box` is in exactly one cell. Pixels without a polynomial are cells of size 1 with
    arrays (n, 1, 1). Raises as `ground_area`.
    """
    ground = _ground(affine, crs_wkt, shape)
    return (
        _cells(ground, box.start, box.stop)
        if isinstance(ground, Surface) and not ground.equal_columns
        else None
    )


def nominal_area(affine: Affine, crs_wkt: str) -> float:
    """Area of a pixel in square metres if the map were true to scale: positive, and of the right
    order of magnitude.
    """
    projection = projection_of(crs_wkt)
    return _determinant(affine) * (
        projection if isinstance(projection, float) else projection.unit**2
    )


@dataclass(frozen=True, slots=True)
class Plane:
    """Pixels of equal size."""

    cell: float
    """Area of a pixel in square metres."""

    def area(self, _box: Box) -> float:
        """Area of every pixel in square metres."""
        return self.cell


@dataclass(frozen=True, slots=True)
class Zones:
    """Unrotated cells of longitude and latitude."""

    latitude: float
    """Latitude of the raster's first edge in radians."""
    height: float
    """Latitude step per row in radians; negative if north is up."""
    width: float
    """Longitude step per column in radians, positive."""
    semi_major: float
    """Semi-axes of the ellipsoid in metres."""
    semi_minor: float

    def area(self, box: Box) -> Floats:
        """Area of the cells in square metres, shape (y, 1)."""
        return _by_chunks(self, box.start[0], box.stop[0])

    def chunk(self, index: int) -> Floats:
        """Area of the cells in the `_CHUNK` rows from row `_CHUNK * index`, in square metres.

        The zone between the equator and the latitude with sine s has the area b²/2 · (s/(1-e²s²) +
        atanh(e·s)/e) per radian of longitude (Snyder, Map Projections, 1987, equation 3-12).
        Differences of both terms are taken in closed form, because the terms at the two edges of a
        small cell are nearly equal.
        """
        from maskloom.segcore.kernels.areas import fill_zones

        a, b, zones = self.semi_major, self.semi_minor, np.empty(_CHUNK)
        squared = (a - b) * (a + b) / a**2
        fill_zones(zones, _CHUNK * index, self.latitude, self.height, squared)
        zones *= self.width * b**2 / 2
        zones.setflags(write=False)
        return zones


@lru_cache(maxsize=4096)
def _chunk(zones: Zones, index: int) -> Floats:
    return zones.chunk(index)


def _by_chunks(zones: Zones, first: int, stop: int) -> Floats:
    chunks = range(first // _CHUNK, -(-stop // _CHUNK))
    rows = np.concatenate([_chunk(zones, i) for i in chunks]) if chunks else np.empty(0)
    return rows[first - chunks.start * _CHUNK :][: stop - first, None].copy()


@dataclass(frozen=True, slots=True)
class Surface:
    """Pixels whose size varies over the map."""

    projection: Projection
    affine: Affine
    """Transform of the points to measure. If the size depends on the row alone, it maps all columns
    to one x.
    """
    determinant: float
    """Area of a pixel in square units of the map."""
    constant: float | None = None
    """The density inside the domain, if it is constant."""

    def area(self, box: Box) -> Floats:
        """Area of the pixels in square metres, shape (y, x), or (y, 1) if all columns are equal."""
        from maskloom.segcore.kernels.areas import fill_cells

        (top, left), (bottom, right) = box.start, box.stop
        if self.equal_columns:
            left, right = 0, 1
        out = np.empty((bottom - top, right - left))
        for cells in _cells(self, (top, left), (bottom, right)):
            fill_cells(out, (top, left), cells)
        return out

    @property
    def equal_columns(self) -> bool:
        """Whether the area depends on the row alone."""
        return self.affine[0] == self.affine[1] == self.affine[3] == 0

    def subdivide(self, window: Integers) -> tuple[Cells, ...]:
        """All cells of the window ((top, left), (bottom, right))."""
        size, cells = _LARGEST, []
        corners = _meeting(_corners(window[0] // size * size, window[1], size), size, window)
        while len(corners) and size >= _SMALLEST:
            polynomials, converged = self._fit(corners, size)
            cells.append((size, corners[converged], np.ascontiguousarray(polynomials[converged])))
            size //= 2
            quarters = (
                corners[~converged][:, None] + size * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
            ).reshape(-1, 2)
            corners = _meeting(quarters, size, window)
        # The rest are the quarters of the smallest cells.
        inside = _corners(np.zeros(2, int), np.full(2, _SMALLEST // 2), 1)
        pixels = _meeting((corners[:, None] + inside).reshape(-1, 2), 1, window)
        return (*cells, (1, pixels, self._single(pixels)[:, None, None]))

    def _single(self, pixels: Integers) -> Floats:
        """Areas of single pixels (row, column)."""
        if not self.equal_columns:
            return pixel_areas(self.projection, self.affine, pixels)
        _, _, x, _, e, f = self.affine
        return row_areas(
            self.projection,
            x,
            self.determinant / abs(e),
            e * (pixels[:, :1] + np.array([0, 1])) + f,
        )

    def _fit(self, corners: Integers, size: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Polynomials (n, 7, 7) of cells by powers of (v, u) from -1 to 1, and whether each is
        accurate.
        """
        nodes, interpolate, average = _scheme(size)
        rows, columns = corners[:, :1] + size * nodes, corners[:, 1:] + size * nodes
        values = self._at(*np.broadcast_arrays(rows[:, :, None], columns[:, None, :]))
        terms = _apply(interpolate, _apply(interpolate, values, 1), 2)
        last = np.maximum(np.abs(terms[:, -1, :]).max(axis=1), np.abs(terms[:, :, -1]).max(axis=1))
        # The Chebyshev polynomial of degree 6 starts with 2**5 times t**6.
        converged = last / 32 <= _CONVERGED * np.abs(terms[:, 0, 0])
        ground = (values > 0).reshape(len(values), -1)
        side = size * self.projection.side(self.affine)
        converged &= ground.all(axis=1) | (
            ~ground.any(axis=1) & (size <= _EMPTY) & (side <= _WIDEST)
        )
        if side > _COARSE and not self.equal_columns:
            converged &= (side <= _WIDEST) & self._uncut(
                corners, size, math.ceil(min(side, _WIDEST) / _GAP)
            )
        return _apply(average, _apply(average, terms, 1), 2), converged

    def _uncut(self, corners: Integers, size: int, steps: int) -> NDArray[np.bool_]:
        """Whether the sides of each cell are entirely inside the map or entirely outside."""
        row, column = _sides((size, size), steps)
        shown = self.projection.contains(
            *_on_map(self.affine, corners[:, :1] + row, corners[:, 1:] + column)
        )
        return np.asarray(shown.all(axis=1) | ~shown.any(axis=1))

    def _at(self, row: Floats, column: Floats) -> Floats:
        """Square metres per pixel at points of the raster, in the shape of `row`."""
        x, y = _on_map(self.affine, row, column)
        if self.constant is not None:
            return np.where(self.projection.contains(x, y), self.determinant * self.constant, 0.0)
        return self.determinant * self.projection.density(x.ravel(), y.ravel()).reshape(row.shape)


def _sides(shape: Shape, steps: int) -> tuple[Floats, Floats]:
    """Rows and columns of points around a rectangle, `steps` per side."""
    t, zero = np.arange(steps) / steps, np.zeros(steps)
    around = np.concatenate([zero, t, zero + 1, 1 - t]), np.concatenate([t, zero + 1, 1 - t, zero])
    return shape[0] * around[0], shape[1] * around[1]


def _on_map(affine: Affine, row: Floats, column: Floats) -> tuple[Floats, Floats]:
    a, b, c, d, e, f = affine
    return a * column + b * row + c, d * column + e * row + f


@lru_cache(maxsize=16)
def _cells(surface: Surface, start: Shape, stop: Shape) -> tuple[Cells, ...]:
    # Cached, because images of one sensor often share a grid. Usually a few kB, some MB at the limb
    # of a planet.
    return surface.subdivide(np.array([start, stop]))


def _corners(start: Integers, stop: Integers, size: int) -> Integers:
    """Corners of the cells of this size from `start` to `stop`, shape (n, 2)."""
    rows, columns = (np.arange(first, last, size) for first, last in zip(start, stop, strict=True))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def _meeting(corners: Integers, size: int, window: Integers) -> Integers:
    """The cells that intersect the window ((top, left), (bottom, right))."""
    meeting: Integers = corners[((corners < window[1]) & (corners + size > window[0])).all(axis=1)]
    return meeting


def _apply(matrix: Floats, values: Floats, axis: int) -> Floats:
    """The matrix times `values` along an axis, summed in a fixed order, which library products do
    not guarantee.
    """
    moved = np.moveaxis(values, axis, -1)
    total = moved[..., :1] * matrix[:, 0]
    for k in range(1, matrix.shape[1]):
        total = total + moved[..., k : k + 1] * matrix[:, k]
    return np.moveaxis(total, -1, axis)


@lru_cache(maxsize=16)
def _scheme(size: int) -> tuple[Floats, Floats, Floats]:
    """Nodes of a cell as fractions of its side; the matrix from values to powers; and the matrix
    from powers to powers averaged over pixels.
    """
    average = np.eye(7)
    for power in range(7):
        for order in range(2, power + 1, 2):
            # Mean of (t + s)**power for s within half a pixel, that is 1 / size, of 0.
            average[power - order, power] = math.comb(power, order) / (order + 1) / size**order
    return (np.array(_NODES) + 1) / 2, _to_powers(), average


@cache
def _to_powers() -> Floats:
    """The matrix from the values at the nodes to powers, the inverse of Vandermonde's, computed in
    whole numbers: library inverses have other last bits on other processors.
    """
    nodes, zero, columns = [Fraction(node) for node in _NODES], Fraction(0), []
    for node in nodes:
        # The polynomial that is 1 at this node and 0 at the others (Lagrange).
        terms = [Fraction(1)]
        for other in nodes:
            if other != node:
                span = node - other
                by_power = zip([zero, *terms], [*terms, zero], strict=True)
                terms = [(lower - other * own) / span for lower, own in by_power]
        columns.append([float(term) for term in terms])
    return np.array(columns).T


@lru_cache(maxsize=1024)
def _ground(affine: Affine, crs_wkt: str, shape: Shape | None) -> Plane | Zones | Surface:
    determinant, projection = _determinant(affine), projection_of(crs_wkt)
    if isinstance(projection, float):
        return Plane(determinant * projection)
    a, b, _, d, e, f = affine
    upright = b == 0 and d == 0
    if projection.is_lonlat:
        radians = math.radians(projection.degrees)
        zones = Zones(
            radians * f, radians * e, radians * abs(a), projection.semi_major, projection.semi_minor
        )
        return zones if upright else Surface(projection, affine, determinant)
    density, column = probe_projection(crs_wkt)
    if upright and column is not None:
        affine = (0, 0, column, 0, e, f)
    if density is not None and (shape is None or _covered(projection, affine, shape, column)):
        return Plane(determinant * density)
    return Surface(projection, affine, determinant, density)


def _covered(projection: Projection, affine: Affine, shape: Shape, column: float | None) -> bool:
    """Whether a raster is entirely inside the map. The outside is connected, so a raster that
    reaches it has a side that does.
    """
    x, y = _on_map(affine, *_sides(shape, _EDGE_POINTS))
    return bool(projection.contains(x if column is None else np.full_like(x, column), y).all())


def _determinant(affine: Affine) -> float:
    a, b, _, d, e, _ = affine
    determinant = abs(a * e - b * d)
    if not all(map(math.isfinite, affine)) or not _LEAST_PIXEL < determinant < 1 / _LEAST_PIXEL:
        raise FormatError(
            f"Expected a transform of finite numbers with a*e - b*d other than 0, got {affine}. "
            "Correct the image, "
            "or remove its CRS to count in pixels."
        )
    return determinant
