"""Outlines of objects: traced tile by tile along the edges of pixels, then joined to rings.

Each edge between an object's pixel and another pixel belongs to that pixel, so to one tile. A tile
traces its edges in chains: closed ones, and open ones, whose ends are keys: the first edge of the
chain, and the edge of another tile's pixel that follows its last edge. The keys of all tiles
combine to the same rings for any tiling. Memory grows with the length of outlines, not with areas.

A polygon is a part of an object whose pixels are connected by their sides. Rings are simple, start
at their upper left vertex and have vertices at corners only (and at the spacing of `lonlat`), so
every geometry is valid and the same for any tiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Chains of edges of objects, in the order of the objects."""

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
        """Consecutive objects merged into groups, which begin at `starts`."""
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

    `labels` covers the core and a ring of 2 pixels around it. Straight edges have a vertex at each
    column or row that is a multiple of `spacing`.
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
    """Positions of the members of the lists in `index`, in concatenated lists of these
    `lengths`.
    """
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
    """(rings + 1,) index of the first vertex of each ring, and the number of vertices."""
    owner: Integers
    """(rings,) object of each ring."""
    shell: Integers
    """(rings,) the exterior ring of each ring's polygon."""

    @property
    def exterior(self) -> NDArray[np.bool_]:
        """(rings,) True for exteriors."""
        return np.asarray(self.shell == np.arange(len(self.shell)))

    @property
    def lengths(self) -> Integers:
        """(rings,) vertices of each ring."""
        return np.diff(self.offsets)

    @property
    def corners(self) -> Integers:
        """(vertices, 2) column and row of each vertex."""
        from maskloom.segcore.kernels.polygons import PLACE

        return np.stack([self.places & ((1 << PLACE) - 1), self.places >> PLACE], axis=-1)


def find_rings(outlines: Outlines) -> Rings:
    """The rings of whole objects. Raises `MaskloomError` if a tile of an object is missing."""
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
    """The vertex that follows each after rings that pass a corner twice are cut in two there, and
    the number of cuts.

    A ring that passes corners p and q twice never does so in the order p, q, p, q, because it would
    cross itself. So all cuts can be made at once.
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
    # If an object has several polygons, find that of each hole.
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
