"""Lengths: how far a step of one pixel goes, and how far two positions are apart.

Lengths are in metres along the ellipsoid for rasters with a CRS, in mm where the spacing of pixels
is known, otherwise in pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.ground.lonlat import is_located
from maskloom.segcore.ground.space import MILLIMETRES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyproj import Geod, Transformer

    from maskloom.segcore.ground.space import Space

    Floats = NDArray[np.float64]

_SAME = 1e-6
"""Relative difference up to which a frame has the volume of a spacing."""


def unit_of_length(space: Space) -> str:
    """`m` with a CRS, `mm` with a spacing, otherwise `px`."""
    return space.unit.rstrip("23")


def steps_at(space: Space, places: Floats) -> Floats:
    """The way of one step along each axis at some places.

    `places` (n, axes) are positions in pixels, from the centre of the first pixel, in array order.
    Returns vectors (n, axes, axes) or (axes, axes), if they are equal everywhere: one for each
    axis. NaN where the position on the planet is unknown.
    """
    axes = len(space.axes)
    if not is_located(space):
        if space.metric is None:
            return np.eye(axes)
        sizes = np.array(space.metric.spacing) * MILLIMETRES[space.metric.unit]
        frame = _linear(space)
        # A stack of slices may be sheared (gantry tilt): its axes are not at right angles.
        fits = frame is not None and abs(abs(np.linalg.det(frame)) - sizes.prod()) <= (
            _SAME * sizes.prod()
        )
        return frame if frame is not None and fits else np.diag(sizes)
    here = places + 0.5
    vectors = np.empty((len(places), axes, axes))
    for axis in range(axes):
        half = np.zeros(axes)
        half[axis] = 0.5
        azimuths, lengths = _inverse(space, here - half, here + half)
        vectors[:, axis] = np.stack(
            [lengths * np.cos(azimuths), lengths * np.sin(azimuths)], axis=-1
        )
    return vectors


def distances(space: Space, starts: Floats, stops: Floats) -> Floats:
    """(n,) metres between positions (n, 2) of a raster with a CRS, in pixels from the centre of the
    first pixel: row, column. NaN where the position on the planet is unknown.
    """
    return _inverse(space, starts + 0.5, stops + 0.5)[1]


def _linear(space: Space) -> Floats | None:
    """The step along each axis, in array order, that the frame states, in mm; None without one."""
    if space.frame is None:
        return None
    return np.array(space.frame.affine).reshape(3, 4)[:, 2::-1].T


def _inverse(space: Space, starts: Floats, stops: Floats) -> tuple[Floats, Floats]:
    """Azimuths at the starts, in radians, and lengths of geodesics; positions are row and column
    from the corner of the first pixel.
    """
    assert space.affine is not None
    assert space.crs is not None
    azimuths, lengths = np.full(len(starts), np.nan), np.full(len(starts), np.nan)
    found = _geodesy(space.crs)
    if found is None:
        return azimuths, lengths
    transformer, geod, radians = found
    a, b, c, d, e, f = space.affine
    ends: list[Floats] = []
    for row, column in (starts.T, stops.T):
        ends += transformer.transform(a * column + b * row + c, d * column + e * row + f)
    known = np.isfinite(ends).all(axis=0)
    x0, y0, x1, y1 = (each[known] * radians for each in ends)
    azimuths[known], _, lengths[known] = geod.inv(x0, y0, x1, y1, radians=True)
    return azimuths, lengths


@lru_cache(maxsize=256)
def _geodesy(crs_wkt: str) -> tuple[Transformer, Geod, float] | None:
    """The transformation to longitude and latitude on the ellipsoid of a CRS, the geodesics there,
    and the radians in a unit of these coordinates. None: PROJ has none.
    """
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    crs = CRS.from_wkt(crs_wkt)
    base, geod = crs.geodetic_crs, crs.get_geod()
    if base is None or geod is None:
        return None
    try:
        transformer = Transformer.from_crs(crs, base.to_2d(), always_xy=True)
    except ProjError:
        return None
    return transformer, geod, base.axis_info[0].unit_conversion_factor
