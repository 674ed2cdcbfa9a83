"""Outlines of objects: traced tile by tile along the edges of pixels, joined over tiles, written as
well-known binary.

Each edge between an object's pixel and another pixel belongs to that pixel, so to one tile. A tile
follows its edges in chains: closed ones, and open ones, whose ends are keys: the edge where a chain
starts, and the edge of another tile's pixel that follows its last. The keys of all tiles fit
together to rings, whatever the tiling. Memory grows with the length of outlines, never with areas.

A polygon is a part of an object that holds together by the sides of pixels. Rings are simple, start
at their upper left vertex and have vertices at corners only (and at the spacing of `to_lonlat`), so
every geometry is valid and the same for any tiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.ground.lonlat import is_located, poles, to_lonlat
from maskloom.segcore.statistics.objects.antimeridian import CLOSE, polygon_of
from maskloom.segcore.statistics.objects.geoparquet import BOUNDS
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_LONGEST = 2**26
"""Vertices of an object beyond which it gets no geometry: a GiB of it."""


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Chains of edges of objects, those of the first object first."""

    chains: Integers
    """(objects,) number of chains of each object."""
    ends: Integers
    """(chains, 2) keys of the first edge of each chain and of the edge after its last."""
    lengths: Integers
    """(chains,) number of vertices of each chain."""
    vertices: Integers
    """Vertices of all chains, as `segcore.kernels.polygons` packs them."""

    @classmethod
    def none(cls, rows: int) -> Outlines:
        """Objects without outlines."""
        return cls(
            np.zeros(rows, np.int64),
            np.zeros((0, 2), np.int64),
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Outlines]) -> Outlines:
        """The objects of all parts."""
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__)
        )

    def take(self, index: Integers) -> Outlines:
        """Objects by index."""
        chains = places_in_lists(self.chains, index)
        vertices = places_in_lists(self.lengths, chains)
        return Outlines(
            self.chains[index], self.ends[chains], self.lengths[chains], self.vertices[vertices]
        )

    def grouped(self, starts: Integers) -> Outlines:
        """Neighbouring objects put together; those of a group begin at `starts`."""
        return Outlines(
            np.add.reduceat(self.chains, starts), self.ends, self.lengths, self.vertices
        )

    def sizes(self) -> Integers:
        """(objects,) number of vertices of each object."""
        stops = np.cumsum(self.lengths)
        last = np.cumsum(self.chains)
        return np.diff(np.concatenate([[0], np.concatenate([[0], stops])[last]]))


def trace_outlines(
    labels: NDArray[np.uint32], rows: int, corner: tuple[int, ...], spacing: int
) -> Outlines:
    """Outlines of the labels below `rows` of a tile, whose core begins at pixel `corner` of the
    raster; row i holds that of label i.

    `labels` covers the core and a ring of 2 pixels around it. Straight edges get a vertex wherever
    their column or row is a multiple of `spacing`.
    """
    from maskloom.segcore.kernels.polygons import trace

    vertices, flat = trace(labels, corner[0], corner[1], spacing)
    chains = flat.reshape(-1, 4)
    order = np.argsort(chains[:, 0], kind="stable")
    counts = np.bincount(chains[:, 0], minlength=rows)
    return Outlines(
        counts.astype(np.int64),
        chains[order, 1:3],
        chains[order, 3],
        vertices[places_in_lists(chains[:, 3], order)],
    )


def places_in_lists(lengths: Integers, index: Integers) -> Integers:
    """Where the members of chosen lists stand, of lists that lie one after another."""
    starts, chosen = np.cumsum(lengths) - lengths, lengths[index]
    return np.repeat(starts[index] - (np.cumsum(chosen) - chosen), chosen) + np.arange(chosen.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Simple rings of objects: those of an object together, each polygon's exterior before its
    holes.
    """

    places: Integers
    """Vertices of all rings, as `segcore.kernels.polygons` packs places."""
    offsets: Integers
    """(rings + 1,) where each ring's vertices start."""
    owner: Integers
    """(rings,) object of each ring."""
    shell: Integers
    """(rings,) the exterior ring of each ring's polygon."""

    @property
    def exterior(self) -> NDArray[np.bool_]:
        """(rings,) which rings are exteriors."""
        return np.asarray(self.shell == np.arange(len(self.shell)))

    @property
    def lengths(self) -> Integers:
        """(rings,) vertices of each ring."""
        return np.diff(self.offsets)


def find_rings(outlines: Outlines) -> Rings:
    """The rings of whole objects. Raises `MaskloomError` where a tile of an object is missing."""
    from maskloom.segcore.kernels.polygons import join, split

    owner = np.repeat(np.arange(len(outlines.chains)), outlines.chains)
    offsets = np.concatenate([[0], np.cumsum(outlines.lengths)])
    vertices, stops, owner = join(_followers(outlines.ends), offsets, outlines.vertices, owner)
    following, cuts = _cut(vertices, stops)
    places, stops, rings, areas = split(vertices >> 1, following, stops, len(stops) + cuts)
    offsets, owners = np.concatenate([[0], stops]), owner[rings]
    shells = _shells(places, offsets, owners, areas)
    first = places[offsets[:-1]]
    order = np.arange(len(owners))
    # Only objects of several rings need sorting.
    several = np.flatnonzero(np.bincount(owners, minlength=len(outlines.chains))[owners] > 1)
    keys = first[several], shells[several] != several, first[shells[several]], owners[several]
    order[several] = several[np.lexsort(keys)]
    placed = np.empty_like(order)
    placed[order] = np.arange(len(order))
    lengths = np.diff(offsets)
    if len(several):
        places = places[places_in_lists(lengths, order)]
    return Rings(
        places,
        np.concatenate([[0], np.cumsum(lengths[order])]),
        owners[order],
        placed[shells[order]],
    )


def _cut(vertices: Integers, stops: Integers) -> tuple[Integers, int]:
    """The vertex that follows each once rings are cut in two where they come through a corner
    twice, and the number of cuts.

    A ring that comes twice through corners p and q never does so in the order p, q, p, q, or it
    would cross itself. So cuts can be made at once.
    """
    following = np.arange(1, len(vertices) + 1)
    following[stops - 1] = np.concatenate([[0], stops[:-1]])[: len(stops)]
    touching = np.flatnonzero(vertices & 1)
    places, rings = vertices[touching], np.searchsorted(stops, touching, side="right")
    order = np.lexsort((places, rings))
    twice = np.flatnonzero((np.diff(places[order]) == 0) & (np.diff(rings[order]) == 0))
    one, other = touching[order[twice]], touching[order[twice + 1]]
    following[one], following[other] = following[other], following[one]
    return following, len(twice)


def _shells(places: Integers, offsets: Integers, owner: Integers, areas: Integers) -> Integers:
    """The exterior ring of each ring's polygon."""
    from maskloom.segcore.kernels.polygons import PLACE, sweep

    outer = np.flatnonzero(areas > 0)
    objects = int(owner.max(initial=-1)) + 1
    only = np.zeros(objects, np.int64)
    only[owner[outer]] = outer
    shells = only[owner]
    shells[outer] = outer
    exteriors = np.bincount(owner[outer], minlength=objects)
    # Where an object has several polygons, each hole has to find its own.
    holes = (areas < 0) & (exteriors[owner] > 1)
    if not holes.any():
        return shells
    shells[holes] = -1
    swept = np.flatnonzero(np.isin(owner, owner[holes]))
    lengths = np.diff(offsets)
    here, ring = places_in_lists(lengths, swept), np.repeat(swept, lengths[swept])
    following = here + 1
    following[np.cumsum(lengths[swept]) - 1] = offsets[swept]
    a, b, mask = places[here], places[following], (1 << PLACE) - 1
    upright = np.flatnonzero(a & mask == b & mask)
    upright = upright[np.lexsort((a[upright] & mask, owner[ring[upright]]))]
    low, high = np.minimum(a, b)[upright] >> PLACE, np.maximum(a, b)[upright] >> PLACE
    sweep(low, high, ring[upright], shells)
    return shells


def _followers(ends: Integers) -> Integers:
    """The chain that follows each."""
    followers = np.arange(len(ends))
    unfinished = np.flatnonzero(ends[:, 0] != ends[:, 1])
    starts = ends[unfinished, 0]
    order = np.argsort(starts)
    found = np.searchsorted(starts, ends[unfinished, 1], sorter=order)
    matching = found < len(starts)
    matching[matching] = starts[order[found[matching]]] == ends[unfinished[matching], 1]
    if not matching.all():
        raise MaskloomError(
            "Expected the outlines of whole objects, got an open one: a tile that the object "
            "reaches is missing. "
            "This is an error in maskloom; please report it."
        )
    followers[unfinished] = unfinished[order[found]]
    return followers


def polygons(outlines: Outlines, space: Space) -> tuple[pa.Array, pa.StructArray]:
    """Geometry of whole objects as well-known binary, and its bounds (xmin, ymin, xmax, ymax).

    Coordinates are those of `lonlat.world`. Exteriors go counter-clockwise for x to the right and y
    upwards. Longitudes are within -180 to 180: objects that meet the antimeridian or a pole are cut
    (`antimeridian.polygon_of`, which tells their bounds too). Null where there is no outline, where
    part of it has no coordinates, and where it has more than 2**26 vertices.
    """
    from maskloom.segcore.kernels.polygons import PLACE
    from maskloom.segcore.kernels.wkb import orient, write_wkb

    objects = len(outlines.chains)
    too_long = np.flatnonzero(outlines.sizes() > _LONGEST)
    if len(too_long):
        rest = np.flatnonzero(outlines.sizes() <= _LONGEST)
        geometry, bounds = polygons(outlines.take(rest), space)
        place = np.full(objects, -1)
        place[rest] = np.arange(len(rest))
        index = pa.array(place, mask=place < 0)
        return geometry.take(index), bounds.take(index)
    rings = find_rings(outlines)
    column, row = (
        (rings.places & ((1 << PLACE) - 1)).astype(np.float64),
        (rings.places >> PLACE).astype(np.float64),
    )
    points = np.stack(to_lonlat(space, column, row), axis=-1)
    missing = (
        np.bincount(
            np.repeat(rings.owner, rings.lengths)[~np.isfinite(points).all(axis=1)],
            minlength=objects,
        )
        > 0
    )
    missing |= outlines.chains == 0
    special = np.zeros(objects, np.bool_)
    around = _unwound(points, rings, objects) if is_located(space) else special
    bounds = _bounds(points, rings, objects)
    if is_located(space):
        special = ~missing & (
            around | _beyond(bounds) | _at_poles(column, row, rings, space, objects)
        )
    exterior = rings.exterior
    orient(points, rings.offsets, exterior)
    cut = {
        int(index): _cut_at_antimeridian(rings, int(index), space)
        for index in np.flatnonzero(special)
    }
    missing[[index for index, found in cut.items() if found is None]] = True
    starts = _starts(rings, missing | special)
    data = np.empty(starts[-1], np.uint8)
    firsts = np.searchsorted(rings.owner, np.arange(objects + 1))
    write_wkb(data, starts, firsts, exterior, rings.offsets, points.view(np.uint8).ravel())
    valid = pa.array(~(missing | special)).buffers()[1]
    offsets = pa.py_buffer(starts.astype(np.int32))
    geometry = pa.BinaryArray.from_buffers(
        pa.binary(), objects, [valid, offsets, pa.py_buffer(data)]
    )
    if cut:
        found = {index: each for index, each in cut.items() if each is not None}
        geometry = pa.array(
            [found[i][0] if i in found else each for i, each in enumerate(geometry.to_pylist())],
            pa.binary(),
        )
        for index, (_, box) in found.items():
            bounds[index] = box
    columns = [pa.array(np.where(missing, 0, bound)) for bound in bounds.T]
    return geometry, pa.StructArray.from_arrays(
        columns, fields=list(BOUNDS), mask=pa.array(missing)
    )


def _beyond(bounds: Floats) -> NDArray[np.bool_]:
    """Which objects have longitudes beyond 180, or parts that lie on both sides of the
    antimeridian.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(
            (bounds[:, 0] < -180) | (bounds[:, 2] > 180) | (bounds[:, 2] - bounds[:, 0] > 180)
        )


def _at_poles(
    column: Floats, row: Floats, rings: Rings, space: Space, objects: int
) -> NDArray[np.bool_]:
    """Which objects come so near to a pole that their edges bend, or may hold one."""
    near = np.zeros(objects, np.bool_)
    if not poles(space) or not len(column):
        return near
    left, top, right, bottom = _bounds(np.stack([column, row], axis=-1), rings, objects).T
    for x, y in poles(space).values():
        near |= (left < x) & (x < right) & (top < y) & (y < bottom)
        if (
            column.min() - CLOSE < x < column.max() + CLOSE
            and row.min() - CLOSE < y < row.max() + CLOSE
        ):
            close = np.repeat(rings.owner, rings.lengths)[
                (abs(column - x) < CLOSE) & (abs(row - y) < CLOSE)
            ]
            near[close] = True
    return near


def _cut_at_antimeridian(
    rings: Rings, index: int, space: Space
) -> tuple[bytes, tuple[float, float, float, float]] | None:
    """Geometry and bounds of one object."""
    first, last = np.searchsorted(rings.owner, [index, index + 1])
    from maskloom.segcore.kernels.polygons import PLACE

    places = [
        rings.places[rings.offsets[ring] : rings.offsets[ring + 1]] for ring in range(first, last)
    ]
    corners = [np.stack([each & ((1 << PLACE) - 1), each >> PLACE], axis=-1) for each in places]
    polygons: dict[int, list[Integers]] = {}
    for ring in range(first, last):
        polygons.setdefault(int(rings.shell[ring]), []).append(corners[ring - first])
    return polygon_of(list(polygons.values()), space)


def _unwound(points: NDArray[np.float64], rings: Rings, objects: int) -> NDArray[np.bool_]:
    """Give each polygon one run of longitudes, with its middle from -180 to 180; says which objects
    go around a pole.
    """
    from maskloom.segcore.kernels.wkb import unwind

    broken = np.zeros(len(rings.owner), np.bool_)
    if not len(broken):
        return np.zeros(objects, np.bool_)
    longitudes = np.ascontiguousarray(points[:, 0])
    unwind(longitudes, rings.offsets, broken)
    starts = rings.offsets[:-1]
    middle = (np.minimum.reduceat(longitudes, starts) + np.maximum.reduceat(longitudes, starts)) / 2
    turns = np.rint((middle[rings.shell] - middle) / 360) - np.ceil(
        (middle[rings.shell] - 180) / 360
    )
    turns[~np.isfinite(turns)] = 0
    points[:, 0] = longitudes + np.repeat(360 * turns, rings.lengths)
    return np.bincount(rings.owner[broken], minlength=objects) > 0


def _starts(rings: Rings, missing: NDArray[np.bool_]) -> Integers:
    """Where the bytes of each object start, and where the last end."""
    objects = len(missing)
    members = np.bincount(rings.owner[rings.exterior], minlength=objects)
    sizes = np.bincount(rings.owner, 4 + 16 * (rings.lengths + 1), minlength=objects).astype(
        np.int64
    )
    sizes += 9 * members + 9 * (members > 1)
    sizes[missing] = 0
    return np.concatenate([[0], np.cumsum(sizes)])


def _bounds(points: Floats, rings: Rings, objects: int) -> Floats:
    """(objects, 4) least and greatest x and y: xmin, ymin, xmax, ymax. 0 for objects without
    rings.
    """
    counts = np.bincount(rings.owner, rings.lengths, minlength=objects).astype(np.int64)
    some = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[some]
    bounds = np.zeros((objects, 4))
    for i, (reduce, axis) in enumerate(
        ((np.minimum, 0), (np.minimum, 1), (np.maximum, 0), (np.maximum, 1))
    ):
        if len(some):
            bounds[some, i] = reduce.reduceat(points[:, axis], starts)
    return bounds
