"""Connected components: the objects of a semantic mask of an image or a volume, the same for any
tiling.

A part is a connected set of pixels of one class: across sides (connectivity 4; in volumes across
the faces of voxels, 6), also across edges (volumes: 18), or also across corners (8; in volumes 26).
Parts of different classes never join. `Components.fragment` finds the parts of a tile's core,
`Components.join` joins those that touch across tile boundaries, including edges and corners.

With `fill_holes`, a hole is a connected set of valid pixels outside all selected classes, by the
complementary connectivity (4 for 8, 8 for 4; in volumes 26 for 6, 6 for 18 and 26), whose
neighbours by that connectivity all belong to one selected class; so it touches neither nodata nor
the border of the image. It becomes part of that class before parts are found. For a single class
this is `scipy.ndimage.binary_fill_holes`. Then parts smaller than `min_size` are dropped, and with
`largest` all but that many of each class; of equally large ones, those remain whose first pixels
come first. A part inside a tile that is not among the largest there is not among the largest of the
image, so a tile has few to report.

The boundary of a tile contains what the tile cannot decide alone: parts and holes that touch
another tile. A part within an undecided hole remains a part only if the hole stays open. If it
would then be too small for an object, it is treated as part of the hole; otherwise it gets the next
number in a series for that hole, so the boundary needs only their count. This relies on a property
that images and volumes share for complementary connectivities: the boundary of a connected set
towards each component of its complement is connected (Rosenfeld 1979; Kong and Rosenfeld 1989), so
what surrounds a set without touching anything else is one set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import Tile
from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.objects.faces import Faces, neighbours
from maskloom.segcore.objects.tile_components import (
    FIRST_CLASS,
    HOLE,
    NO_DATA,
    are_largest,
    fill_holes,
    first_pixels,
    keep_parts,
    label_runs,
    paint,
    sides_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape
    from maskloom.segcore.raster.spec import RasterSpec

_REACH = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}
"""Largest number of axes along which neighbours differ, by number of axes and connectivity."""


def check_connectivity(connectivity: int | None, axes: int | None = None) -> None:
    """Raise `ValueError` unless the connectivity exists, in rasters with this number of axes. None,
    for all neighbours, always exists.
    """
    if connectivity is None:
        return
    if connectivity not in {of for each in _REACH.values() for of in each}:
        raise ValueError(
            f"connectivity: expected 4 or 8 (volumes: 6, 18 or 26); got {connectivity!r}"
        )
    if axes is not None and connectivity not in _REACH.get(axes, ()):
        raise ValueError(
            f"connectivity: {connectivity} does not suit {axes} axes; expected one of "
            f"{', '.join(map(str, _REACH.get(axes, ())))}"
        )


def require_connectivity(connectivity: int | None, spec: RasterSpec) -> None:
    """Raise `ModelMismatch` unless the connectivity exists for the number of axes of the image or
    volume.
    """
    axes = len(spec.shape)
    if connectivity is not None and connectivity not in _REACH[axes]:
        what = "a volume" if axes > min(_REACH) else "an image"
        raise ModelMismatch(
            f"connectivity: {connectivity} is not for {what}, which {spec.location} is. Set it to "
            f"one of {', '.join(map(str, _REACH[axes]))}, or leave it out for all neighbours."
        )


@dataclass(frozen=True, slots=True)
class Components:
    """Which connected parts of a mask are objects."""

    classes: tuple[int, ...]
    """Class ids whose parts are objects. All other pixels are background."""
    connectivity: int | None = None
    """4 or 8 in images; 6, 18 or 26 in volumes. None: all neighbours (8 or 26)."""
    min_size: int = 1
    """Smallest size of an object in pixels."""
    fill_holes: bool = False
    """Whether holes that a single class surrounds become part of it."""
    largest: int | None = None
    """Number of parts of each class that are kept, the largest. None: all."""

    def __post_init__(self) -> None:
        if not self.classes or min(self.classes) < 0 or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                "classes: expected one or more different class ids from 0 on; got "
                f"{list(self.classes)}"
            )
        check_connectivity(self.connectivity)
        if self.min_size < 1:
            raise ValueError(
                f"min_size: expected a number of pixels from 1 on; got {self.min_size}"
            )
        if self.largest is not None and self.largest < 1:
            raise ValueError(f"largest: expected a number of parts from 1 on; got {self.largest}")

    def reach(self, axes: int) -> tuple[int, int]:
        """The largest number of axes along which neighbours differ: within holes, and within parts.
        Raises `ValueError` if the connectivity does not match the number of axes.
        """
        check_connectivity(self.connectivity, axes)
        of_parts = axes if self.connectivity is None else _REACH[axes][self.connectivity]
        return 1 if of_parts > 1 else axes, of_parts

    def label(
        self, values: NDArray[np.unsignedinteger[Any]]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
        """The parts of a whole image or volume in memory, numbered in the order of their first
        pixels, and the class of each number.

        `values` as in `fragment`. Number 0 is the background, of class 0.
        """
        fragments = self.fragment(values, Tile.whole(values.shape), values.shape)
        return fragments.values, fragments.class_of

    def fragment(
        self, values: NDArray[np.unsignedinteger[Any]], tile: Tile, shape: Shape
    ) -> Fragments:
        """The parts of a tile's core, as far as the tile alone determines them.

        `values` are the class ids of the core, (y, x) or (z, y, x), uint8 or uint16, where the
        largest number of the type means no data; `shape` is that of the raster. Raises `ValueError`
        if `values` or the connectivity are not of this kind.
        """
        self._check(values, tile)
        reach = self.reach(values.ndim)
        found = label_runs(values, self.code_of(values.dtype), reach, sides_of(tile, shape))
        if self.fill_holes:
            order, number, boundary = fill_holes(found, reach[0], self.min_size, self.largest)
        else:
            order, number, boundary = keep_parts(found, self.min_size, self.largest)
        if self.largest is not None:
            boundary = {**boundary, "first": first_pixels(found, tile, shape)[order]}
        painted = paint(found, number).reshape(values.shape)
        class_of = np.zeros(len(order) + 1, np.uint16)
        codes = found.codes[order]
        class_of[1:] = np.where(
            codes == HOLE, 0, np.array([0, 0, 0, *self.classes], np.uint16)[codes]
        )
        return Fragments(painted, class_of, {"faces": Faces.of(painted), **boundary})

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Which fragments of all tiles are one part, from the boundaries that `fragment` made, in
        the order of the grid.
        """
        if len(grid) == 1:
            return [Equivalences.none()]
        from maskloom.segcore.kernels.disjoint import flatten
        from maskloom.segcore.kernels.joining import gather_seen, tie_pairs

        # Copies, because faces may share the memory of what they are views of.
        known = [
            [boundary[name].copy() for name in ("codes", "seen", "sizes")]
            for boundary in boundaries
        ]
        counts = np.array([len(codes) for codes, _, _ in known])
        offsets = np.cumsum([0, *counts])[:-1]
        codes, seen, sizes = (np.concatenate(arrays) for arrays in zip(*known, strict=True))
        parent, reach = np.arange(len(codes)), self.reach(len(grid.shape))
        _meet(grid, boundaries, offsets, (parent, codes, seen), reach, decided=False)
        if self.fill_holes:
            flatten(parent)
            gather_seen(parent, seen)
            _meet(grid, boundaries, offsets, (parent, codes, seen), reach, decided=True)
            for offset, boundary in zip(offsets, boundaries, strict=True):
                links = boundary["links"].astype(np.int64) + offset - 1
                tie_pairs(parent, links[seen[links[:, 0]] > HOLE])
        flatten(parent)
        codes = np.where(codes == HOLE, seen, codes)
        total = np.bincount(parent, sizes, len(parent))
        kept = (codes >= FIRST_CLASS) & (total[parent] >= self.min_size)
        islands = _open_islands(boundaries, codes, offsets)
        if self.largest is not None:
            first = np.concatenate([each["first"][: len(each["codes"])] for each in boundaries])
            self._keep_largest((parent, codes, total, first, kept), islands)
        numbers = np.cumsum(parent == np.arange(len(parent)))
        groups = np.where(kept, numbers[parent], 0)
        class_of = np.where(kept, np.array([0, 0, 0, *self.classes], np.uint16)[codes], 0).astype(
            np.uint16
        )
        return [
            _equivalences(each, groups[a : a + n], class_of[a : a + n])
            for each, a, n in zip(islands, offsets, counts, strict=True)
        ]

    def _keep_largest(self, nodes: tuple[NDArray[Any], ...], islands: Sequence[_Islands]) -> None:
        """Drop all but the largest parts of each class: clear `kept`, the last of `nodes`, and fill
        `dropped` of `islands`.
        """
        parent, codes, total, first, kept = nodes
        assert self.largest is not None
        roots = np.flatnonzero(kept & (parent == np.arange(len(parent))))
        begin = np.full(len(parent), np.iinfo(np.int64).max)
        np.minimum.at(begin, parent, first)
        parts: list[tuple[NDArray[Any], ...]] = [(codes[roots], total[roots], begin[roots])]
        parts += [tuple(array[each.stays] for array in each.parts) for each in islands]
        code, size, place = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        chosen = are_largest(code, size.astype(np.int64), place, self.largest)
        is_root_kept = np.zeros(len(parent), np.bool_)
        is_root_kept[roots] = chosen[: len(roots)]
        kept &= is_root_kept[parent]
        at = len(roots)
        for each in islands:
            count = int(np.count_nonzero(each.stays))
            each.dropped[each.stays] = ~chosen[at : at + count]
            at += count

    def _check(self, values: NDArray[Any], tile: Tile) -> None:
        if values.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                "expected class ids as uint8 or uint16, with the greatest number for no data; got "
                f"{values.dtype}"
            )
        if max(self.classes) >= np.iinfo(values.dtype).max:
            raise ValueError(
                f"classes: {max(self.classes)} is no class id of a mask of {values.dtype}"
            )
        if values.shape != tile.core.shape:
            raise ValueError(
                f"expected the class ids of the core, {tile.core.shape}; got shape {values.shape}"
            )

    def code_of(self, dtype: np.dtype[Any]) -> NDArray[np.uint16]:
        """The code of each class id in a mask of this type, as a table (id,)."""
        table = np.full(np.iinfo(dtype).max + 1, HOLE if self.fill_holes else 0, np.uint16)
        table[-1] = NO_DATA if self.fill_holes else 0
        table[list(self.classes)] = np.arange(FIRST_CLASS, FIRST_CLASS + len(self.classes))
        return table


def _meet(
    grid: Grid,
    boundaries: Sequence[TileBoundary],
    offsets: NDArray[np.int64],
    nodes: tuple[NDArray[Any], ...],
    reach: tuple[int, int],
    *,
    decided: bool,
) -> None:
    """Join labels that touch across tile boundaries; see `segcore.kernels.joining.meet_faces`."""
    from maskloom.segcore.kernels.joining import meet_faces

    for number, other, step in neighbours(grid):
        across = sum(map(abs, step))
        if across <= max(reach):
            one, two = (boundaries[each]["faces"] for each in (number, other))
            ours = _lines(one.towards(step), step)
            theirs = _lines(two.towards(tuple(-by for by in step)), step)
            layout = (across, offsets[number], offsets[other])
            meet_faces(ours, theirs, layout, nodes, reach, decided)


def _lines(facing: NDArray[np.uint32], step: Shape) -> NDArray[np.uint32]:
    """The pixels that face a neighbour as (lines, pixels)."""
    along = [length for length, by in zip(facing.shape, step, strict=True) if by == 0]
    return np.ascontiguousarray(facing).reshape((1, 1, *along)[-2:])


@dataclass(frozen=True, slots=True, eq=False)
class _Islands:
    """The parts of a tile that are inside undecided holes."""

    host: NDArray[np.int64]
    """The hole of each, among the fragments of the boundary."""
    stays: NDArray[np.bool_]
    """Whether the hole stays open, and the island a part."""
    dropped: NDArray[np.bool_]
    """Whether an island that stays is no object."""
    parts: tuple[NDArray[Any], ...]
    """Code, size and first pixel of each; empty unless only the largest parts count."""


def _open_islands(
    boundaries: Sequence[TileBoundary], codes: NDArray[np.uint16], offsets: NDArray[np.int64]
) -> list[_Islands]:
    """The islands of each tile; `codes` are those of the fragments of all boundaries, after the
    holes are decided.
    """
    found = []
    for boundary, offset in zip(boundaries, offsets, strict=True):
        count = len(boundary["codes"])
        host = np.repeat(np.arange(count), boundary.get("islands", np.zeros(count, np.int64)))
        parts: tuple[NDArray[Any], ...] = ()
        if "first" in boundary:
            none = np.zeros(0, np.int64)
            names = ("island_codes", "island_sizes")
            first = boundary["first"][count : count + len(host)]
            parts = (*(boundary.get(name, none) for name in names), first)
        stays = codes[host + offset] < FIRST_CLASS
        found.append(_Islands(host, stays, np.zeros(len(host), np.bool_), parts))
    return found


def _equivalences(
    islands: _Islands, groups: NDArray[np.int64], class_of: NDArray[np.uint16]
) -> Equivalences:
    """The equivalences of a tile from the groups and classes of the fragments of its boundary:
    parts inside filled holes join them.
    """
    count = len(groups)
    fragments = np.arange(1, count + 1, dtype=np.uint32)
    listed = ~islands.stays | islands.dropped
    if not listed.any():
        return Equivalences(fragments, groups, class_of)
    host, joins = islands.host[listed], ~islands.stays[listed]
    inner = np.flatnonzero(listed) + count + 1
    return Equivalences(
        np.concatenate([fragments, inner.astype(np.uint32)]),
        np.concatenate([groups, np.where(joins, groups[host], 0)]),
        np.concatenate([class_of, np.where(joins, class_of[host], 0).astype(np.uint16)]),
    )
