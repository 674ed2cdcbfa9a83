"""Areas of single pixels by their outlines, for pixels without a polynomial: those of world maps
with few pixels, and those cut by the edge of the map or a pole of the projection.

The outline of a pixel is traced on the ellipsoid. The area inside is that of a polygon on the
authalic sphere, where areas equal those of the ellipsoid. Polygons with 2, 4 and 8 steps per side
are extrapolated (Romberg), and a pixel whose polygons disagree is split into four.

If the map ends inside a pixel, the outline is traced from edge to edge of the map, each found by
bisection, and closed along a great circle. World maps are cut along meridians and end at poles. On
the sphere, both sides of a cut are one great circle and a pole is a point, so nothing is lost
however coarse the pixel. Other edges, for example the limb of a planet, are divided into short
chords.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Affine
    from maskloom.segcore.ground.projection import Projection

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

_DEEPEST = 14
"""Largest number of times that a pixel is split into four."""
_WIDEST = 0.125
"""Largest side of a patch on the map, in radii of the planet, for which its area is reliable."""
_COARSE = 0.02
"""From this side on, a patch is probed at many points, so no edge of the map passes between
them.
"""
_LONGEST_STEP = 0.3
"""Largest accepted distance between two points of an outline, in radii."""
_LONGEST_CHORD, _ON_MERIDIAN = 2e-3, 1e-8
"""Largest chord of an edge of the map, and largest distance of a longer chord from a meridian, in
radii.
"""
_CONVERGED, _CONVERGED_TOTAL = 1e-6, 1e-7
"""Largest relative change of an area by the last step of the extrapolation; the remaining error is
some hundred times smaller. Pixels of fine rasters may be less accurate, because so few of them meet
the edge: the second bound applies to all of them together.
"""
_BISECTIONS = 44
"""Halvings of a step to find the edge of a map."""


def pixel_areas(projection: Projection, affine: Affine, pixels: Integers) -> Floats:
    """Ground area in square metres of pixels (row, column), shape (n,): of the part inside the map.

    The area of a pixel depends on its position alone.
    """
    areas = np.zeros(len(pixels))
    owner, corners, size = np.arange(len(pixels)), pixels.astype(np.float64), 1.0
    side = projection.side(affine)
    for depth in range(_DEEPEST + 1):
        if not len(owner):
            break
        angles, converged = _patches(projection, affine, corners, size, size * side)
        if depth == _DEEPEST:
            converged[:] = True
        np.add.at(areas, owner[converged], angles[converged])
        size /= 2
        owner = np.repeat(owner[~converged], 4)
        corners = (
            corners[~converged][:, None] + size * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        ).reshape(-1, 2)
    return areas * projection.squared_radius


def row_areas(projection: Projection, x: float, width: float, edges: Floats) -> Floats:
    """Ground area in square metres of the pixels of rows, shape (n,), for a map with straight,
    evenly spaced parallels.

    `edges` (n, 2) are the y of the edges of each row. Pixels are `width` wide in x, and `x` is any
    position on the map.
    """
    from maskloom.segcore.kernels.outlines import zones

    # A row may extend beyond both poles, or contain the whole planet.
    steps = edges[:, :1] + (edges[:, 1:] - edges[:, :1]) * np.linspace(0, 1, 33)
    column = np.full_like(steps, x)
    inside = projection.contains(column, steps)
    some = inside.any(axis=1)
    first = np.where(some, inside.argmax(axis=1), 0)
    last = np.where(some, 32 - inside[:, ::-1].argmax(axis=1), 0)
    every, at = np.arange(len(steps)), np.full(len(steps), x)
    ends = []
    for index, outward in ((first, -1), (last, 1)):
        ends.append(
            _edge(
                projection,
                at,
                at,
                steps[every, index],
                steps[every, np.clip(index + outward, 0, 32)],
            )
        )
    (_, low), (_, high) = (projection.locate(at, end) for _, end in ends)
    middle = steps[every, (first + last) // 2]
    reach = 1e-3 * projection.semi_major / projection.unit
    west, east = (projection.locate(at + sign * reach, middle)[0] for sign in (-1, 1))
    turn = np.abs(east - west) % (2 * np.pi)
    areas = np.zeros(len(steps))
    zones(
        np.where(some, low, 0.0), np.where(some, high, 0.0), projection.squared_eccentricity, areas
    )
    found: Floats = (
        areas * np.where(some, turn, 0.0) * (width / (2 * reach) * projection.semi_minor**2 / 2)
    )
    return found


def _patches(
    projection: Projection, affine: Affine, corners: Floats, size: float, side: float
) -> tuple[Floats, Flags]:
    """Solid angles of square parts of the raster on the authalic sphere, and which of them are
    reliable.
    """
    steps = 32 if side > _COARSE else 2
    angles, converged = np.zeros(len(corners)), np.zeros(len(corners), np.bool_)
    accuracy = max(_CONVERGED, _CONVERGED_TOTAL * size / side)
    if side > _WIDEST:
        return angles, converged
    around = projection.contains(
        *_on_map(affine, *_along(corners[:, None], size / steps, steps, np.arange(4.0 * steps)))
    )
    middle = projection.contains(*_on_map(affine, *(corners.T + size / 2)))
    changes = around ^ np.roll(around, 1, axis=1)
    everywhere, nowhere = around.all(axis=1) & middle, ~(around.any(axis=1) | middle)
    once: Flags = np.asarray(changes.sum(axis=1) == 2)
    converged |= nowhere
    # Positions along the outline are counted in lattice steps from the first corner.
    step, full, cut = size / steps, np.flatnonzero(everywhere), np.flatnonzero(once)
    ends = _ends(projection, affine, corners[cut], step, around[cut], changes[cut])
    whole = np.zeros(len(full)), np.full(len(full), 4.0 * steps)
    for chosen, (begin, end) in ((full, whole), (cut, ends)):
        if len(chosen):
            traces = _Traces(corners[chosen], step, steps, begin, end, cut=chosen is cut)
            found, changed, followed = _polygons(projection, affine, traces)
            angles[chosen] = found
            converged[chosen] = followed & (changed <= accuracy * np.maximum(found, side**2 / size))
    return angles, converged


def _ends(
    projection: Projection,
    affine: Affine,
    corners: Floats,
    step: float,
    around: Flags,
    changes: Flags,
) -> tuple[Floats, Floats]:
    """Positions where outlines that leave the map once enter and leave it."""
    count = around.shape[1]
    # Point i and the one before it are on different sides.
    inward = (changes & around).argmax(axis=1).astype(np.float64)
    outward = (changes & ~around).argmax(axis=1).astype(np.float64)

    def refined(inner: Floats, outer: Floats) -> Floats:
        for _ in range(_BISECTIONS):
            middle = (inner + outer) / 2
            here = projection.contains(*_on_map(affine, *_along(corners, step, count // 4, middle)))
            inner, outer = np.where(here, middle, inner), np.where(here, outer, middle)
        return inner

    begin, end = refined(inward, inward - 1), refined(outward - 1, outward)
    return begin, np.where(end < begin, end + count, end)


@dataclass(frozen=True, slots=True, eq=False)
class _Traces:
    """Parts of the outlines of squares to be traced."""

    corners: Floats
    """(n, 2) first corners (row, column) of the squares."""
    step: float
    """Length of a lattice step in pixels."""
    steps: int
    """Number of steps per side."""
    begin: Floats
    end: Floats
    """(n,) ends of the parts, in steps from the first corner."""
    cut: bool
    """Whether the parts end at the edge of the map."""


def _polygons(
    projection: Projection, affine: Affine, traces: _Traces
) -> tuple[Floats, Floats, Flags]:
    """Extrapolated solid angles, their change by the last step of the extrapolation, and whether
    the outlines are traced closely enough.
    """
    from maskloom.segcore.kernels.outlines import patches

    begin, end, steps, points = traces.begin, traces.end, traces.steps, 16
    turns = (np.floor(begin / steps)[:, None] + np.arange(1, 5)) * steps
    stops = np.concatenate([begin[:, None], np.minimum(turns, end[:, None]), end[:, None]], axis=1)
    parts = np.arange(points) / points
    if traces.cut:
        # Points are denser at the ends, where latitude and longitude may change like a square root.
        parts = (1 - np.cos(np.pi * parts)) / 2
    places = (stops[:, :-1, None] + np.diff(stops)[:, :, None] * parts).reshape(len(begin), -1)
    places = np.concatenate([places, end[:, None]], axis=1)
    longitudes, latitudes = projection.locate(
        *_on_map(affine, *_along(traces.corners[:, None], traces.step, steps, places))
    )
    known: Flags = np.isfinite(longitudes + latitudes).min(axis=1)
    angles, gaps = np.zeros((len(begin), 3)), np.zeros((len(begin), 3))
    patches(
        np.where(known[:, None], longitudes, 0.0),
        np.where(known[:, None], latitudes, 0.0),
        projection.squared_eccentricity,
        angles,
        gaps,
    )
    once, twice = (4 * angles[:, 1] - angles[:, 0]) / 3, (4 * angles[:, 2] - angles[:, 1]) / 3
    best = (16 * twice - once) / 15
    longest, closing, aside = gaps.T
    followed = (
        known
        & (longest <= _LONGEST_STEP)
        & ((closing <= _LONGEST_CHORD) | (aside <= _ON_MERIDIAN) & (closing <= 1))
    )
    return np.abs(best), np.maximum(np.abs(best - twice), np.abs(best - once) / 100), followed


def _along(corners: Floats, step: float, steps: int, place: Floats) -> tuple[Floats, Floats]:
    """Rows and columns of positions along the outlines of squares."""
    place = place % (4 * steps)
    down = np.clip(place - steps, 0, steps) - np.clip(place - 3 * steps, 0, steps)
    right = np.clip(place, 0, steps) - np.clip(place - 2 * steps, 0, steps)
    return corners[..., 0] + step * down, corners[..., 1] + step * right


def _on_map(affine: Affine, row: Floats, column: Floats) -> tuple[Floats, Floats]:
    a, b, c, d, e, f = affine
    return a * column + b * row + c, d * column + e * row + f


def _edge(
    projection: Projection, inner_x: Floats, outer_x: Floats, inner: Floats, outer: Floats
) -> tuple[Floats, Floats]:
    """Points where lines from positions inside the map leave it; the ends of lines that do not."""
    whole = projection.contains(outer_x, outer)
    low, high = np.zeros(len(inner)), np.ones(len(inner))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        here = projection.contains(
            inner_x + (outer_x - inner_x) * middle, inner + (outer - inner) * middle
        )
        low, high = np.where(here, middle, low), np.where(here, high, middle)
    part = np.where(whole, 1.0, low)
    return inner_x + (outer_x - inner_x) * part, inner + (outer - inner) * part
