"""Comparison of the labels that overlapping tiles gave the same pixels, for any number of axes.

A tile sends its labels near the sides of its core as runs in C order (`frame_runs`, `expand`).
`Pairs` are the labels of two arrays of the same box that share pixels, with their intersection over
union; `pieces_of` are the connected pieces of labels. `OverlapMatches` gathers the comparisons of
all pairs of tiles; `segcore.objects.stitching` decides what is one object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.geometry import per_axis
from maskloom.segcore.objects.faces import neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Grid, Shape, Tile
    from maskloom.segcore.models.fragments import TileBoundary
    from maskloom.segcore.objects.merging import Nodes


def interior_of(tile: Tile, halo: int | Shape, shape: Shape) -> tuple[slice, ...]:
    """The part of a read-sized array that no other tile reads: the core without a halo along the
    sides where other tiles are.
    """
    parts = []
    for axis, width in enumerate(per_axis(halo, len(shape))):
        start, stop, origin = tile.core.start[axis], tile.core.stop[axis], tile.read.start[axis]
        first = start - origin + (width if start > 0 else 0)
        parts.append(slice(first, max(first, stop - origin - (width if stop < shape[axis] else 0))))
    return tuple(parts)


def frame_runs(
    numbers: NDArray[np.uint32], interior: tuple[slice, ...]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Lengths and values of the runs of a read-sized array in C order, with 0 in the interior."""
    frame = numbers.copy()
    frame[interior] = 0
    flat = frame.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return np.diff(starts, append=flat.size).astype(np.uint32), flat[starts]


def expand(
    lengths: NDArray[np.uint32], values: NDArray[np.uint32], read: Box, box: Box
) -> NDArray[np.uint32]:
    """The labels of a box inside a tile's `read` box, from the runs of the `read` box; the interior
    is 0.
    """
    across = prod(read.shape[1:])
    first_axis, *others = box.relative_to(read).slices
    ends = np.cumsum(lengths, dtype=np.int64)
    begin, end = first_axis.start * across, first_axis.stop * across
    first, last = (
        np.searchsorted(ends, begin, side="right"),
        np.searchsorted(ends, end, side="left"),
    )
    stops = np.clip(ends[first : last + 1], begin, end)
    counts = stops - np.concatenate([[begin], stops[:-1]])
    whole = np.repeat(values[first : last + 1], counts).reshape(-1, *read.shape[1:])
    return whole[:, *others]


def cut_by(numbers: NDArray[Any], read: Box, shape: Shape) -> NDArray[Any]:
    """The instances in `numbers`, of the shape of the read box, that are cut by a side of it that
    is not the border of the raster; in ascending order.
    """
    sides = [np.zeros(0, numbers.dtype)]
    for axis, length in enumerate(shape):
        if read.start[axis] > 0:
            sides.append(numbers.take(0, axis).ravel())
        if read.stop[axis] < length:
            sides.append(numbers.take(-1, axis).ravel())
    return np.unique(np.concatenate(sides))


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Labels of two arrays of the same box that share pixels, each pair once."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    shared: NDArray[np.int64]
    """Pixels in common."""
    size_one: NDArray[np.int64]
    size_other: NDArray[np.int64]
    """Pixels of each label in its array."""

    @classmethod
    def of(cls, one: NDArray[Any], other: NDArray[Any]) -> Pairs:
        """The pairs of two arrays of one shape, without background (0). Counted by runs, of which
        there are fewer than pixels.
        """
        keys = one.astype(np.int64).ravel() << 32 | other.ravel().astype(np.int64)
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        found, run = np.unique(keys[starts], return_inverse=True)
        shared = np.zeros(len(found), np.int64)
        np.add.at(shared, run, np.diff(starts, append=keys.size))
        a, b = found >> 32, found & 0xFFFFFFFF
        size_a, size_b = (
            np.zeros(int(a.max(initial=0)) + 1, np.int64),
            np.zeros(int(b.max(initial=0)) + 1, np.int64),
        )
        np.add.at(size_a, a, shared)
        np.add.at(size_b, b, shared)
        both = (a > 0) & (b > 0)
        a, b = a[both], b[both]
        return cls(a, b, shared[both], size_a[a], size_b[b])

    @property
    def iou(self) -> NDArray[np.float64]:
        """(pair,): intersection over union."""
        return np.asarray(self.shared / (self.size_one + self.size_other - self.shared), np.float64)

    def turned(self) -> Pairs:
        """The same pairs with the arrays exchanged."""
        return Pairs(self.other, self.one, self.shared, self.size_other, self.size_one)

    def mutual_best(self) -> NDArray[np.bool_]:
        """(pairs,) True for pairs that are the best of both labels: the largest intersection over
        union, of equals the lowest partner.
        """
        mutual = np.ones(len(self.one), np.bool_)
        for label, partner in ((self.one, self.other), (self.other, self.one)):
            order = np.lexsort((partner, -self.iou, label))
            best = np.zeros(len(order), np.bool_)
            best[order[np.diff(label[order], prepend=-1) != 0]] = True
            mutual &= best
        return mutual


def pieces_of(values: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The connected pieces of the instances (corners included), numbered from 1, in an array of the
    same shape, and the instance of each piece (piece + 1,).
    """
    from skimage.measure import label

    pieces = label(values.astype(np.int64), background=0, connectivity=values.ndim)
    whose = np.zeros(int(pieces.max(initial=0)) + 1, np.int64)
    whose[pieces.ravel()] = values.ravel()
    return pieces, whose


@dataclass(frozen=True, slots=True, eq=False)
class OverlapMatches:
    """Matches between the fragments of overlapping tiles, by nodes."""

    link_one: NDArray[np.int64]
    """Fragments whose anchor another tile owns ..."""
    link_other: NDArray[np.int64]
    """... and the fragment there."""
    match_one: NDArray[np.int64]
    match_other: NDArray[np.int64]
    """Fragments with pieces that match each other best."""
    match_iou: NDArray[np.float64]
    common_one: NDArray[np.int64]
    common_other: NDArray[np.int64]
    """Fragments whose instances have pixels in common."""
    common_pixels: NDArray[np.int64]
    """Number of these pixels."""
    rejected: NDArray[np.int64]
    """Fragments whose instance is more than half background in another tile."""

    @classmethod
    def gather(
        cls,
        grid: Grid,
        boundaries: Sequence[TileBoundary],
        nodes: Nodes,
        by_ownership: NDArray[np.bool_],
    ) -> OverlapMatches:
        """The matches between all tiles of an image; `by_ownership`: nodes joined by their
        anchors.
        """
        none: Any = np.zeros(0, np.int64)
        parts = [_compare(nodes, meeting, by_ownership) for meeting in _meetings(grid, boundaries)]
        return cls(
            **{
                field.name: np.concatenate([none, *(getattr(part, field.name) for part in parts)])
                for field in fields(cls)
            }
        )


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The overlap of the read boxes of two tiles, with the labels of one of them."""

    number: int
    boundary: TileBoundary
    core: Box
    overlap: Box
    values: NDArray[np.uint32]

    def are_fragments(self, instances: NDArray[Any]) -> NDArray[np.bool_]:
        """True for instances with pixels in the tile's core."""
        return np.asarray(instances <= int(self.boundary["count"][0]))


def _meetings(grid: Grid, boundaries: Sequence[TileBoundary]) -> Iterator[tuple[_View, _View]]:
    """All pairs of tiles, each once, of which one reads pixels of the other's core: neighbours, and
    more if tiles are smaller than the halo.
    """
    reach = tuple(-(-halo // side) for halo, side in zip(grid.margin, grid.tile, strict=True))
    for number, other, _ in neighbours(grid, reach):
        overlap = grid[number].read & grid[other].read
        yield (
            _view(grid, number, boundaries[number], overlap),
            _view(grid, other, boundaries[other], overlap),
        )


def _view(grid: Grid, number: int, boundary: TileBoundary, overlap: Box) -> _View:
    tile = grid[number]
    values = expand(boundary["run_length"], boundary["run_value"], tile.read, overlap)
    return _View(number, boundary, tile.core, overlap, values)


def _compare(
    nodes: Nodes, meeting: tuple[_View, _View], by_ownership: NDArray[np.bool_]
) -> OverlapMatches:
    """The matches between the fragments of two tiles."""
    one, other = meeting
    (pieces_one, whose_one), (pieces_other, whose_other) = (
        pieces_of(one.values),
        pieces_of(other.values),
    )
    pieces = Pairs.of(pieces_one, pieces_other)
    best = pieces.mutual_best()
    a, b = whose_one[pieces.one[best]], whose_other[pieces.other[best]]
    fragments = one.are_fragments(a) & other.are_fragments(b)
    instances = Pairs.of(one.values, other.values)
    ways = [
        _seen_one_way(nodes, meeting, instances, by_ownership),
        _seen_one_way(nodes, (other, one), instances.turned(), by_ownership),
    ]
    link_one, link_other, common_one, common_other, common_pixels, rejected = (
        np.concatenate(both) for both in zip(*ways, strict=True)
    )
    return OverlapMatches(
        link_one,
        link_other,
        nodes.of(one.number, a[fragments]),
        nodes.of(other.number, b[fragments]),
        pieces.iou[best][fragments],
        common_one,
        common_other,
        common_pixels,
        rejected,
    )


def _seen_one_way(
    nodes: Nodes, meeting: tuple[_View, _View], instances: Pairs, by_ownership: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], ...]:
    """The links from one tile to the other, the pixels that their fragments share, and the
    fragments of the first that the second rejects.
    """
    view, owner = meeting
    known = view.are_fragments(instances.one) & owner.are_fragments(instances.other)
    common_one, common_other = (
        nodes.of(view.number, instances.one[known]),
        nodes.of(owner.number, instances.other[known]),
    )
    mostly = (2 * instances.shared >= instances.size_one)[known]

    anchor = view.boundary["anchor"]
    there = view.boundary["complete"].astype(np.bool_)
    there &= (anchor >= owner.core.start).all(axis=1) & (anchor < owner.core.stop).all(axis=1)
    fragments = view.boundary["fragments"]
    pointing = nodes.of(view.number, fragments)[there]
    found = owner.values[tuple((anchor[there] - view.overlap.start).T)]
    linked = (found > 0) & by_ownership[pointing]
    pointing, target = pointing[linked], nodes.of(owner.number, found[linked])
    count = int(nodes.offsets[-1])
    agreed = np.isin(pointing * count + target, (common_one * count + common_other)[mostly])

    seen = np.bincount(view.values.ravel(), minlength=int(fragments.max(initial=0)) + 1)[fragments]
    objects = np.bincount(
        view.values[owner.values > 0], minlength=int(fragments.max(initial=0)) + 1
    )[fragments]
    rejected = nodes.of(view.number, fragments[2 * objects < seen])
    return (
        pointing[agreed],
        target[agreed],
        common_one,
        common_other,
        instances.shared[known],
        rejected,
    )
