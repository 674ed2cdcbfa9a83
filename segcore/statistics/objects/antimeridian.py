"""Polygons of objects that touch the antimeridian or a pole, as in GeoJSON (RFC 7946, section
3.1.9).

All longitudes are within -180 to 180: polygons are cut at the antimeridian, and a polygon around a
pole reaches it along the antimeridian. Few objects need this, so they are processed one by one. A
ring of the raster is traced in longitude and latitude without jumps, with unbounded longitudes; it
is closed over the pole if it goes around one, and cut into strips of 360 degrees that are shifted
onto one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.ground.lonlat import poles, to_lonlat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space

    Floats = NDArray[np.float64]

CLOSE = 512
"""Distance from a pole in pixels within which outlines need more vertices: straight edges of the
map are too curved there.
"""
_BEND = 32
"""A step along an outline is one pixel, or at most the distance to the pole divided by this."""
_LEAST_DISTANCE = 1 / 32
"""In pixels: a pole closer than this does not make steps smaller."""
_GAP = 1e-9
"""Smallest gap between separate parts, in degrees of longitude."""
_AT_POLE = 1e-6
"""Distance in pixels within which a vertex is at the pole."""
_NOWHERE = (0.0, 0.0, 0.0, 0.0)
"""Bounds of an object without a geometry."""


def polygon_of(
    polygons: Sequence[Sequence[NDArray[np.int64]]], space: Space
) -> tuple[Any, tuple[float, float, float, float]]:
    """Geometry (of shapely) and bounds (xmin, ymin, xmax, ymax) of an object, given by its
    polygons: exterior rings, each with its holes.

    A ring has shape (vertices, 2), column and row of corners of pixels; its last vertex is followed
    by the first. xmin is greater than xmax where the object crosses the antimeridian (GeoParquet
    1.1, after RFC 7946, section 5.2). The geometry is None, and the bounds are 0, where a part of
    an outline has no longitude and latitude, or nothing is left of the object.
    """
    import shapely

    parts = []
    for exterior, *holes in polygons:
        regions = [_region(ring, space) for ring in (exterior, *holes)]
        if any(region is None for region in regions):
            return None, _NOWHERE
        parts.append(
            shapely.difference(regions[0], shapely.union_all(regions[1:])) if holes else regions[0]
        )
    whole = _polygons(shapely.union_all(parts))
    if whole.is_empty:
        return None, _NOWHERE
    return whole, _bounds(whole)


def _region(ring: NDArray[np.int64], space: Space) -> Any:
    """The region that a ring of the raster encloses on the planet, between -180 and 180 degrees.
    None if part of it has no position there.
    """
    import shapely

    path = _followed(_counterclockwise(ring, space), space)
    if path is None:
        return None
    longitude, latitude, turns = path
    first, last = (
        int(np.floor((longitude.min() + 180) / 360)),
        int(np.ceil((longitude.max() + 180) / 360)),
    )
    if turns:
        # All turns in sequence, without a cut between them; the area is to the left, which is north
        # if the ring goes east.
        around = np.arange(first - last, last - first + 1) * np.sign(turns)
        longitude = np.concatenate([longitude + 360.0 * (turn - first) for turn in around])
        latitude = np.tile(latitude, len(around))
        longitude = np.concatenate([longitude, longitude[[-1, 0]]])
        latitude = np.concatenate([latitude, np.full(2, 90.0 * np.sign(turns))])
        first, last = 0, 1
    region = shapely.make_valid(shapely.polygons(np.stack([longitude, latitude], axis=-1)))
    strips = []
    for strip in range(first, last):
        inside = shapely.intersection(
            region, shapely.box(360.0 * strip - 180, -90, 360.0 * strip + 180, 90)
        )
        strips.append(
            shapely.transform(inside, lambda points, by=360.0 * strip: _shifted(points, by))
        )
    region = shapely.union_all(strips)
    if _holds_both_poles(ring, space):
        # Its eastward and westward turns cancel out, and the path encloses the rest of the planet.
        region = shapely.difference(shapely.box(-180, -90, 180, 90), region)
    return _polygons(region)


def _holds_both_poles(ring: NDArray[np.int64], space: Space) -> bool:
    import shapely

    ends = poles(space)
    return len(ends) > 1 and bool(
        shapely.contains_xy(shapely.make_valid(shapely.polygons(ring)), list(ends.values())).all()
    )


def _shifted(points: Floats, by: float) -> Floats:
    # Rounding must not move a cut at 180 beyond it.
    return np.stack([np.clip(points[:, 0] - by, -180, 180), points[:, 1]], axis=-1)


def _polygons(geometry: Any) -> Any:
    """The polygons of a geometry: cuts along a vertex leave points and lines too."""
    import shapely

    found = [
        part
        for part in shapely.get_parts(shapely.get_parts(geometry))
        if part.geom_type == "Polygon" and part.area > 0
    ]
    return found[0] if len(found) == 1 else shapely.multipolygons(found)


def _counterclockwise(ring: NDArray[np.int64], space: Space) -> NDArray[np.int64]:
    """The ring in the direction with its inside to the left, on the map and so on the planet."""
    column, row = ring.astype(np.float64).T
    enclosed = np.dot(column, np.roll(row, -1)) - np.dot(row, np.roll(column, -1))
    assert space.affine is not None
    a, b, _, d, e, _ = space.affine
    return ring if enclosed * (a * e - b * d) > 0 else ring[::-1]


def _followed(ring: NDArray[np.int64], space: Space) -> tuple[Floats, Floats, int] | None:
    """Longitudes without jumps and latitudes along a ring, and its number of eastward turns around
    the planet. None if a position is unknown.
    """
    ends = poles(space)
    column, row = _with_steps(ring, ends)
    longitude, latitude = to_lonlat(space, column, row)
    at_pole = np.zeros(len(column), np.int64)
    for sign, pole in ends.items():
        at_pole[np.hypot(column - pole[0], row - pole[1]) < _AT_POLE] = sign
    if (
        not np.isfinite(longitude[at_pole == 0]).all()
        or not np.isfinite(latitude[at_pole == 0]).all()
        or (at_pole != 0).all()
    ):
        return None
    start = int(np.flatnonzero(at_pole == 0)[0])
    return _unwound(np.roll(longitude, -start), np.roll(latitude, -start), np.roll(at_pole, -start))


def _unwound(
    longitude: Floats, latitude: Floats, at_pole: NDArray[np.int64]
) -> tuple[Floats, Floats, int]:
    ordinary = np.flatnonzero(at_pole == 0)
    known = longitude[ordinary]
    steps = np.diff(np.concatenate([known, known[:1]]))
    steps -= 360 * np.rint(steps / 360)
    # If the pole is between two positions, the outline follows its parallel, with the inside to the
    # left.
    gaps = np.diff(np.concatenate([ordinary, [len(longitude)]])) > 1
    signs = at_pole[np.minimum(ordinary + 1, len(longitude) - 1)]
    over = gaps & (signs != 0)
    steps = np.where(over, np.where(signs > 0, -np.mod(-steps, 360), np.mod(steps, 360)), steps)
    along = known[0] + np.concatenate([[0.0], np.cumsum(steps)])
    out_longitude, out_latitude = [], []
    for i in range(len(ordinary)):
        out_longitude.append(along[i])
        out_latitude.append(latitude[ordinary[i]])
        if over[i]:
            out_longitude += [along[i], along[i + 1]]
            out_latitude += [90.0 * signs[i]] * 2
    return (
        np.array(out_longitude),
        np.array(out_latitude),
        int(np.rint((along[-1] - along[0]) / 360)),
    )


def _with_steps(
    ring: NDArray[np.int64], ends: dict[int, tuple[float, float]]
) -> tuple[Floats, Floats]:
    """The ring with the vertices that its edges need near a pole, and one where an edge goes
    through a pole.

    Steps are whole pixels or fractions by powers of two, so that both sides of an edge have the
    same vertices.
    """
    following = np.roll(ring, -1, axis=0)
    if not any((np.abs(ring - pole) < CLOSE).all(axis=1).any() for pole in ends.values()):
        return ring[:, 0].astype(np.float64), ring[:, 1].astype(np.float64)
    lengths = np.abs(following - ring).sum(axis=1)
    direction = np.repeat(np.sign(following - ring), lengths, axis=0)
    starts = np.repeat(ring, lengths, axis=0) + direction * _counted(lengths)[:, None]
    parts = np.ones(len(starts), np.int64)
    through = []
    for pole in ends.values():
        off = np.array(pole) - starts
        along = (off * direction).sum(axis=1)
        away = np.abs(off * (direction == 0)).sum(axis=1)
        distance = np.maximum(np.hypot(away, along - np.clip(along, 0, 1)), _LEAST_DISTANCE)
        parts = np.maximum(parts, np.exp2(np.ceil(np.log2(_BEND / distance))).astype(np.int64))
        through += [
            i + along[i] for i in np.flatnonzero((away < _AT_POLE) & (along > 0) & (along < 1))
        ]
    places = np.repeat(np.arange(len(starts)), parts) + _counted(parts) / np.repeat(parts, parts)
    places = np.union1d(places, through)
    edge = np.minimum(places.astype(np.int64), len(starts) - 1)
    points = starts[edge] + direction[edge] * (places - edge)[:, None]
    return points[:, 0], points[:, 1]


def _counted(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 to n - 1 for each length n, concatenated."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _bounds(whole: Any) -> tuple[float, float, float, float]:
    """Bounds whose longitudes span the shortest arc, across the antimeridian if necessary."""
    import shapely

    boxes = shapely.bounds(shapely.get_parts(whole))
    low, high = float(boxes[:, 1].min()), float(boxes[:, 3].max())
    order = np.argsort(boxes[:, 0])
    west, east = boxes[order, 0], np.maximum.accumulate(boxes[order, 2])
    gaps = np.concatenate([west[1:] - east[:-1], [west[0] + 360 - east[-1]]])
    widest = int(gaps.argmax())
    if gaps[widest] <= _GAP or widest == len(gaps) - 1:
        return float(west[0]), low, float(east[-1]), high
    return float(west[widest + 1]), low, float(east[widest]), high
