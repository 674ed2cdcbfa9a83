"""Ground control points: the best-fitting affine transform and its largest residual.

Control points give the positions of some pixels only, so the area of a pixel needs a model. An
affine one suits scanned maps and small, nearly flat satellite scenes. It is rejected if it misses a
point by more than a hundredth of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.ground.space import Space

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Affine, Shape

_BELIEVED = 0.01
"""Largest accepted residual, as a fraction of the longer side of the image; at least one pixel."""
_SPREAD = 1e-3
"""Points are collinear if their spread across the main direction is below this fraction of that
along it.
"""
_ROUNDING = 1e-9
_STEPS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def fit_affine(gcps: Sequence[tuple[float, ...]], *, degrees: bool) -> tuple[Affine, float] | None:
    """The least-squares affine transform for ground control points, and its largest residual in
    pixels.

    `gcps` are (column, row, x, y, ...). With `degrees`, x are longitudes and may be on both sides
    of
    180. None: fewer than three distinct points, or all of them collinear.
    """
    points = np.asarray([point[:4] for point in gcps], np.float64).reshape(-1, 4)
    pixels, ground = points[:, :2], points[:, 2:].copy()
    if degrees and len(ground):
        ground[:, 0] = ground[0, 0] + (ground[:, 0] - ground[0, 0] + 180) % 360 - 180
    # Centred, so that coordinates in millions keep their digits.
    centre, middle = (
        array.mean(axis=0) if len(points) else np.zeros(2) for array in (pixels, ground)
    )
    linear, _, rank, _ = np.linalg.lstsq(pixels - centre, ground - middle, rcond=_SPREAD)
    if rank < 2 or abs(np.linalg.det(linear)) <= np.finfo(float).tiny:
        return None
    missed = (ground - middle - (pixels - centre) @ linear) @ np.linalg.inv(linear)
    # Terms that are only rounding errors become 0, so an unrotated grid stays unrotated.
    moves = np.abs(linear * np.ptp(pixels, axis=0)[:, np.newaxis])
    linear[moves < _ROUNDING * moves.max(axis=0)] = 0
    (a, d), (b, e) = linear.tolist()
    c, f = (middle - centre @ linear).tolist()
    return (a, b, c, d, e, f), float(np.hypot(*missed.T).max())


def with_fitted_affine(space: Space, shape: Shape) -> tuple[Space, str]:
    """A space with the transform that fits its control points, and a note about the fit. The space
    is unchanged if no fit is accepted.
    """
    if space.affine is not None or not space.gcps:
        return space, ""
    count, reason = len(space.gcps), "do not say in which coordinate system they are"
    if space.gcp_crs is not None:
        from pyproj import CRS

        fit = fit_affine(space.gcps, degrees=CRS.from_wkt(space.gcp_crs).is_geographic)
        if fit is not None and fit[1] <= max(1.0, _BELIEVED * max(shape)):
            bound = next((step for step in _STEPS if fit[1] <= step), None)
            said = f"at most {bound:g} px" if bound is not None else f"{fit[1]:.0f} px at most"
            note = (
                "it is placed by the transform that fits its ground control points best, and "
                f"misses them by {said}"
            )
            return replace(space, affine=fit[0], crs=space.gcp_crs, gcps=(), gcp_crs=None), note
        reason = "lie on a line" if fit is None else "do not lie on an affine grid"
    return (
        space,
        (
            f"its {count} ground control points {reason}, so it gets no transform: "
            "the mask keeps the "
            "points, and areas are in px"
        ),
    )
