"""Longitude and latitude of positions in a raster, as the tables report them.

With a coordinate reference system, positions are longitude and latitude in WGS84 (OGC:CRS84), so
images of different zones share a table. Without one, they remain columns and rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyproj import Transformer

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Space

    Floats = NDArray[np.float64]

NO_SPACING = 2**30
"""A spacing longer than any edge: no vertex is added."""
_LEAST_SPACING = 16
_TOLERANCE = 0.1
"""Largest deviation of a straight edge between two vertices, in pixels."""
_ONE_PLACE = 1e-3
"""A pole is a point if all its longitudes coincide within this many pixels."""
_WIDEST = 90.0
"""Largest longitude span of an edge in degrees. Beyond it, the direction around the globe would be
ambiguous.
"""


def is_located(space: Space) -> bool:
    """Whether the raster has a transform and a CRS. That CRS may still lack longitude and
    latitude.
    """
    return space.affine is not None and space.crs is not None


def to_lonlat(space: Space, column: Floats, row: Floats) -> tuple[Floats, Floats]:
    """Longitude and latitude of positions in degrees, or column and row without a CRS. Shapes (n,).

    Whole numbers are corners of pixels. NaN if the CRS has no longitude and latitude, or outside
    its domain. Longitudes may exceed 180 where those of the image do.
    """
    if space.affine is None or space.crs is None:
        return column, row
    transformer = _transformer(space.crs)
    if transformer is None:
        return np.full(len(column), np.nan), np.full(len(column), np.nan)
    a, b, c, d, e, f = space.affine
    longitude, latitude = transformer.transform(a * column + b * row + c, d * column + e * row + f)
    found = np.isfinite(longitude) & np.isfinite(latitude)
    # The outermost pixels of global grids often extend slightly beyond the poles.
    return np.where(found, longitude, np.nan), np.where(found, np.clip(latitude, -90, 90), np.nan)


def from_lonlat(
    space: Space, longitude: Floats, latitude: Floats, shape: Shape
) -> tuple[Floats, Floats]:
    """Columns and rows of positions in degrees, the inverse of `to_lonlat`, for a raster of this
    shape with a CRS. Shapes (n,). Where a map goes around the planet, they are those nearest to the
    raster. NaN if the CRS has no longitude and latitude.
    """
    assert space.affine is not None
    assert space.crs is not None
    transformer = _transformer(space.crs)
    if transformer is None:
        return np.full(len(longitude), np.nan), np.full(len(longitude), np.nan)
    a, b, c, d, e, f = space.affine
    near: tuple[Floats, Floats] | None = None
    for turn in (0, 360, -360):
        x, y = transformer.transform(longitude + turn, latitude, direction="INVERSE")
        column, row = np.linalg.solve([[a, b], [d, e]], np.stack([x - c, y - f]))
        if near is None:
            near = column, row
            continue
        # Half a pixel beyond the border is inside, as far as rounding goes.
        closer = _outside(column, shape[1]) < _outside(near[0], shape[1]) - 0.5
        near = np.where(closer, column, near[0]), np.where(closer, row, near[1])
    assert near is not None
    return near


def _outside(position: Floats, length: int) -> Floats:
    """Distance of positions from the range 0 to `length`."""
    return np.maximum(np.maximum(-position, position - length), 0)


@lru_cache(maxsize=256)
def poles(space: Space) -> dict[int, tuple[float, float]]:
    """The poles that are points of the raster's plane: (column, row) by 1 (north) and -1 (south).

    In grids of longitude and latitude, Mercator and similar maps a pole is a line or infinitely far
    away.
    """
    transformer = None if space.affine is None or space.crs is None else _transformer(space.crs)
    if transformer is None or space.affine is None:
        return {}
    a, b, c, d, e, f = space.affine
    found = {}
    for sign in (1, -1):
        longitude = np.array([-180.0, -101.0, 7.0, 93.0])
        x, y = transformer.transform(longitude, np.full(4, 90.0 * sign), direction="INVERSE")
        column, row = (
            np.linalg.solve([[a, b], [d, e]], np.stack([x - c, y - f]))
            if np.isfinite([x, y]).all()
            else (x, y)
        )
        if np.isfinite([column, row]).all() and max(np.ptp(column), np.ptp(row)) < _ONE_PLACE:
            # Exact if the pole is a corner or centre of a pixel, as it usually is.
            found[sign] = (
                float(np.round(column[0] * 2**20) / 2**20),
                float(np.round(row[0] * 2**20) / 2**20),
            )
    return found


@lru_cache(maxsize=256)
def vertex_spacing(space: Space, shape: Shape) -> int:
    """Largest distance in pixels between two vertices of a straight edge, a power of two.

    A straight line of the map is curved in longitude and latitude. Vertices at this spacing have
    the same positions for neighbouring objects, so shared edges stay shared. They keep each edge
    within a tenth of a pixel, as far as probes across the raster show.
    """
    if space.affine is None or space.crs is None or _transformer(space.crs) is None:
        return NO_SPACING
    rows, columns = (
        part.ravel()
        for part in np.meshgrid(*(np.linspace(0, size, 9) for size in shape), indexing="ij")
    )
    spacing = 1 << max(max(shape) - 1, _LEAST_SPACING).bit_length()
    while spacing > _LEAST_SPACING and not all(
        _is_straight(space, rows, columns, step) for step in ((spacing, 0), (0, spacing))
    ):
        spacing //= 2
    return spacing


def _is_straight(space: Space, rows: Floats, columns: Floats, step: tuple[int, int]) -> bool:
    """Whether edges from these positions with offset `step` (down, right) are straight enough."""
    down, right = step
    begin, middle, end = (
        np.stack(to_lonlat(space, columns + part * right, rows + part * down))
        for part in (0.0, 0.5, 1.0)
    )
    known = np.isfinite(begin + middle + end).all(axis=0) & (np.abs(end[0] - begin[0]) < 180)
    if not known.any():
        return True
    across = np.stack([np.cos(np.radians(middle[1])), np.ones_like(middle[1])])
    length = np.hypot(*((end - begin) * across)) / max(step)
    off = np.hypot(*((middle - (begin + end) / 2) * across))
    return bool(
        (off[known] <= _TOLERANCE * length[known] + 1e-12).all()
        and (np.abs(end - begin)[0, known] <= _WIDEST).all()
    )


@lru_cache(maxsize=64)
def _transformer(crs_wkt: str) -> Transformer | None:
    """The transformation from a CRS to longitude and latitude. None: PROJ has none."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(CRS.from_wkt(crs_wkt), "OGC:CRS84", always_xy=True)
    except ProjError:
        return None
