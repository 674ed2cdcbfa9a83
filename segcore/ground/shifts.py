"""How far two rasters of one size lie apart on earth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Space


def largest_shift(there: Space, here: Space, shape: Shape) -> float:
    """Largest distance of the corners of two rasters of one shape, in pixels of `here`; 0 if one of
    them has no place on earth.
    """
    if there.affine is None or here.affine is None:
        return 0.0
    rows, columns = shape[-2:]
    corners = np.array([[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]], np.float64)
    theirs, ours = (
        np.array(affine, np.float64).reshape(2, 3) for affine in (there.affine, here.affine)
    )
    places = theirs @ corners
    if there.crs is not None and here.crs is not None and there.crs != here.crs:
        places = _transformed(places, there.crs, here.crs)
    shifts = places - ours @ corners
    if here.crs is not None and (turn := _full_circle(here.crs)) is not None:
        # The same meridian may be given as 179.9 and as -180.1 degrees.
        with np.errstate(invalid="ignore"):
            shifts[0] -= turn * np.rint(shifts[0] / turn)
    pixels = np.abs(np.linalg.solve(ours[:, :2], shifts))
    return float(np.nan_to_num(pixels, nan=np.inf, posinf=np.inf).max())


def _full_circle(crs: str) -> float | None:
    """360 degrees in the unit of a geographic reference system; None for others."""
    from pyproj import CRS

    system = CRS.from_user_input(crs)
    if not system.is_geographic:
        return None
    return float(round(2 * np.pi / system.axis_info[0].unit_conversion_factor, 9))


def _transformed(places: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    """Places (x and y, place) in another reference system; infinite without a transformation
    between both.
    """
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return np.array(Transformer.from_crs(source, target, always_xy=True).transform(*places))
    except ProjError:
        return np.full_like(places, np.inf)
