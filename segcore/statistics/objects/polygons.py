"""Geometries of objects: their rings on the planet, or in pixels, as polygons in well-known binary.

Polygons are built, oriented and encoded by shapely. What is special here is longitude: it is made
continuous along each ring, and objects that meet the antimeridian or a pole are cut
(`antimeridian`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskloom.segcore.ground.lonlat import is_located, poles, to_lonlat
from maskloom.segcore.statistics.objects.antimeridian import CLOSE, polygon_of
from maskloom.segcore.statistics.objects.geoparquet import BOUNDS
from maskloom.segcore.statistics.objects.outlines import find_rings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space
    from maskloom.segcore.statistics.objects.outlines import Outlines, Rings

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_LONGEST = 2**26
"""Vertices of an object beyond which it gets no geometry: a GiB of it."""
_TURN = 360
"""Degrees of longitude around the planet."""


def polygons(outlines: Outlines, space: Space) -> tuple[pa.Array, pa.StructArray]:
    """Geometry of whole objects as well-known binary, and its bounds (xmin, ymin, xmax, ymax).

    Coordinates are those of `lonlat.to_lonlat`. Exteriors go counter-clockwise for x to the right
    and y upwards. Longitudes are within -180 to 180: objects that meet the antimeridian or a pole
    are cut (`antimeridian.polygon_of`, which gives their bounds too). Null where there is no
    outline, where part of it has no coordinates, and where it has more than 2**26 vertices.
    """
    import shapely

    objects = len(outlines.chains)
    shapes, bounds = np.full(objects, None, object), np.zeros((objects, 4))
    drawn = np.flatnonzero((outlines.chains > 0) & (outlines.sizes() <= _LONGEST))
    if len(drawn):
        rings = find_rings(outlines if len(drawn) == objects else outlines.take(drawn))
        shapes[drawn], bounds[drawn] = _on_the_planet(rings, space)
    oriented = shapely.orient_polygons(shapes, exterior_cw=False)
    encoded = pa.array(shapely.to_wkb(oriented, byte_order=1), pa.binary())
    columns = [pa.array(column) for column in bounds.T]
    return encoded, pa.StructArray.from_arrays(columns, fields=list(BOUNDS), mask=encoded.is_null())


def geometries(rings: Rings, space: Space) -> NDArray[Any]:
    """The geometry of each owner of rings as shapely has it, oriented as those of `polygons`; None
    where part of it has no coordinates. Each owner has a ring.
    """
    import shapely

    found, _ = _on_the_planet(rings, space)
    return np.asarray(shapely.orient_polygons(found, exterior_cw=False))


def _on_the_planet(rings: Rings, space: Space) -> tuple[NDArray[Any], Floats]:
    """The geometry of each object, None where a vertex has no coordinates, and bounds (objects, 4);
    0 where there is no geometry. Each object has a ring.
    """
    corners = rings.corners.astype(np.float64)
    points = np.stack(to_lonlat(space, *corners.T), axis=-1)
    known = np.logical_and.reduceat(np.isfinite(points).all(axis=1), _firsts(rings))
    cut = np.zeros(len(known), np.bool_)
    if is_located(space):
        points[:, 0], around_pole = _continuous(points[:, 0], rings)
        cut = known & (
            around_pole | _beyond(_bounds(points, rings)) | _at_poles(corners, rings, space)
        )
    bounds = np.where(known[:, None], _bounds(points, rings), 0)
    shapes = _assembled(points, rings, known & ~cut)
    for index in np.flatnonzero(cut):
        shapes[index], bounds[index] = polygon_of(_polygons_of(rings, int(index)), space)
    return shapes, bounds


def _assembled(points: Floats, rings: Rings, wanted: NDArray[np.bool_]) -> NDArray[Any]:
    """The geometry of each wanted object, None for others, from the coordinates of all vertices."""
    import shapely

    shapes = np.full(len(wanted), None, object)
    kept = wanted[rings.owner]
    if not kept.any():
        return shapes
    points, lengths = points[np.repeat(kept, rings.lengths)], rings.lengths[kept]
    stops = np.cumsum(lengths)
    closed = np.insert(points, stops, points[stops - lengths], axis=0)
    ring_offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    exteriors = np.flatnonzero(rings.exterior[kept])
    polygon_offsets = np.append(exteriors, len(lengths))
    parts = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, closed, (ring_offsets, polygon_offsets)
    )
    owner = rings.owner[kept][exteriors]
    shapes[owner] = parts
    several = np.bincount(owner)[owner] > 1
    if several.any():
        shapely.multipolygons(parts[several], indices=owner[several], out=shapes)
    return shapes


def _firsts(rings: Rings) -> Integers:
    """The first vertex of each object."""
    return np.asarray(rings.offsets[:-1][np.diff(rings.owner, prepend=-1) != 0])


def _bounds(points: Floats, rings: Rings) -> Floats:
    """(objects, 4) least and greatest x and y: xmin, ymin, xmax, ymax."""
    firsts = _firsts(rings)
    extremes = np.minimum.reduceat(points, firsts), np.maximum.reduceat(points, firsts)
    return np.concatenate(extremes, axis=1)


def _beyond(bounds: Floats) -> NDArray[np.bool_]:
    """Which objects have longitudes beyond 180, or parts on both sides of the antimeridian."""
    west, _, east, _ = bounds.T
    return np.asarray((west < -180) | (east > 180) | (east - west > 180))


def _at_poles(corners: Floats, rings: Rings, space: Space) -> NDArray[np.bool_]:
    """Which objects come so near to a pole that their edges bend, or may hold one."""
    left, top, right, bottom = _bounds(corners, rings).T
    near = np.zeros(len(left), np.bool_)
    for x, y in poles(space).values():
        near |= (left < x) & (x < right) & (top < y) & (y < bottom)
        close = (abs(corners - (x, y)) < CLOSE).all(axis=1)
        near |= np.logical_or.reduceat(close, _firsts(rings))
    return near


def _continuous(longitudes: Floats, rings: Rings) -> tuple[Floats, NDArray[np.bool_]]:
    """Longitudes without jumps along each ring, with the middle of each exterior from -180 to 180
    and its holes beside it; and which objects have a ring that goes around a pole.
    """
    starts, lengths = rings.offsets[:-1], rings.lengths
    before = np.roll(longitudes, 1)
    before[starts] = longitudes[rings.offsets[1:] - 1]
    steps = longitudes - before
    turns = _TURN * ((steps < -_TURN / 2).astype(np.int64) - (steps > _TURN / 2))
    around = np.add.reduceat(turns, starts) != 0
    turned = np.cumsum(turns)
    continuous = longitudes + (turned - np.repeat(turned[starts], lengths))
    west, east = np.minimum.reduceat(continuous, starts), np.maximum.reduceat(continuous, starts)
    middle = (west + east) / 2
    of_shell = middle[rings.shell]
    shifts = np.rint((of_shell - middle) / _TURN) - np.ceil((of_shell - 180) / _TURN)
    shifts[~np.isfinite(shifts)] = 0
    objects = int(rings.owner[-1]) + 1
    return (
        continuous + np.repeat(_TURN * shifts, lengths),
        np.bincount(rings.owner[around], minlength=objects) > 0,
    )


def _polygons_of(rings: Rings, index: int) -> list[list[Integers]]:
    """The polygons of one object, each with its exterior first; rings are columns and rows of
    corners, (vertices, 2).
    """
    first, last = np.searchsorted(rings.owner, [index, index + 1])
    corners = np.split(rings.corners, rings.offsets[1:-1])[first:last]
    exteriors = np.flatnonzero(rings.exterior[first:last])
    return [corners[start:stop] for start, stop in pairwise([*exteriors, last - first])]
