"""Planes: planar methods process volumes plane by plane.

A planar method is marked in its `Requirements`; volumes are then cut into tiles one plane deep
without a halo across planes. It is written for blocks (y, x, band); the decorators of this module
pass it volumes (z, y, x, band) one plane after the other. Each plane is segmented as a separate
image. Objects do not extend across planes, but their ids are unique in the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.raster.spec import Block, Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary

PLANAR = "plane by plane, each as an image of its own"
"""How planar segmenters process volumes, for users."""


def planes_of(block: Block) -> Iterator[Block]:
    """The planes of a block's core, each as a block of an image; the block itself if it is one."""
    if len(block.spec.shape) == 2:
        yield block
        return
    core, read = block.tile.core, block.tile.read
    tile = Tile(block.tile.index[1:], _plane(core), _plane(read))
    for z in range(core.start[0] - read.start[0], core.stop[0] - read.start[0]):
        yield Block(tile, block.pixels[z], block.valid[z], block.spec.plane)


def segment_by_plane(
    segment: Callable[[Any, Block], Labels],
) -> Callable[[Any, Block], Labels]:
    """Extend `Segmenter.segment` to blocks of volumes. Instances are numbered across all planes.

    A model whose requirements are not planar gets the blocks of volumes as they are.
    """

    @wraps(segment)
    def over_planes(self: Any, block: Block) -> Labels:
        if len(block.spec.shape) == 2 or not self.requirements.planar:
            return segment(self, block)
        return _stacked([segment(self, plane) for plane in planes_of(block)], block)

    return over_planes


def score_by_plane(
    scores: Callable[[Any, Block], NDArray[np.float32]],
) -> Callable[[Any, Block], NDArray[np.float32]]:
    """Extend `Scorer.scores` to blocks of volumes, as `segment_by_plane` does."""

    @wraps(scores)
    def over_planes(self: Any, block: Block) -> NDArray[np.float32]:
        if len(block.spec.shape) == 2 or not self.requirements.planar:
            return scores(self, block)
        return _scores_stacked([scores(self, plane) for plane in planes_of(block)], block)

    return over_planes


def segment_and_score_by_plane(
    together: Callable[[Any, Block], tuple[Labels, NDArray[np.float32]]],
) -> Callable[[Any, Block], tuple[Labels, NDArray[np.float32]]]:
    """Extend `LabellingScorer.segment_and_score` to blocks of volumes, as `segment_by_plane`
    does.
    """

    @wraps(together)
    def over_planes(self: Any, block: Block) -> tuple[Labels, NDArray[np.float32]]:
        if len(block.spec.shape) == 2 or not self.requirements.planar:
            return together(self, block)
        labels, scores = zip(*(together(self, plane) for plane in planes_of(block)), strict=True)
        return _stacked(list(labels), block), _scores_stacked(scores, block)

    return over_planes


def fragment_by_plane(
    fragment: Callable[[Any, Block], Fragments],
) -> Callable[[Any, Block], Fragments]:
    """Extend `ObjectSegmenter.fragment` to tiles of volumes, which must be one plane deep."""

    @wraps(fragment)
    def on_plane(self: Any, block: Block) -> Fragments:
        """Fragments of the one plane of a tile."""
        if len(block.spec.shape) == 2:
            return fragment(self, block)
        if block.tile.core.shape[0] != 1:
            raise ValueError(
                f"a planar method takes tiles one plane deep; this one has {block.tile.core.shape}"
            )
        found = fragment(self, next(planes_of(block)))
        return replace(found, values=found.values[np.newaxis])

    return on_plane


def join_by_plane(
    join: Callable[[Any, Grid, Sequence[TileBoundary]], Sequence[Equivalences]],
) -> Callable[[Any, Grid, Sequence[TileBoundary]], Sequence[Equivalences]]:
    """Extend `ObjectSegmenter.join` to grids of volumes, whose tiles are one plane deep."""

    @wraps(join)
    def over_planes(
        self: Any, grid: Grid, boundaries: Sequence[TileBoundary]
    ) -> Sequence[Equivalences]:
        if len(grid.shape) == 2:
            return join(self, grid, boundaries)
        plane = Grid(grid.shape[1:], grid.tile[1:], grid.halo)
        joined: list[Equivalences] = []
        groups = 0
        for first in range(0, len(grid), len(plane)):
            found = [
                replace(each, groups=np.where(each.groups > 0, each.groups + groups, 0))
                for each in join(self, plane, boundaries[first : first + len(plane)])
            ]
            groups = max([groups, *(int(each.groups.max(initial=0)) for each in found)])
            joined += found
        return joined

    return over_planes


def _plane(box: Box) -> Box:
    return Box(box.start[1:], box.stop[1:])


def _core_planes(block: Block) -> slice:
    return block.tile.core.relative_to(block.tile.read).slices[0]


def _scores_stacked(found: Sequence[NDArray[np.float32]], block: Block) -> NDArray[np.float32]:
    """The scores of a block from those of the planes of its core."""
    whole = np.zeros((*block.valid.shape, found[0].shape[-1]), np.float32)
    whole[_core_planes(block)] = found
    return whole


def _stacked(found: list[Labels], block: Block) -> Labels:
    """The labels of a block from those of the planes of its core."""
    class_of, score_of = found[0].class_of, found[0].score_of
    kind = found[0].values.dtype if class_of is None else np.uint32
    values = np.zeros(block.valid.shape, kind)
    core = values[_core_planes(block)]
    for plane, labels in zip(core, found, strict=True):
        plane[...] = labels.values
    if class_of is None:
        return Labels(values)
    for plane, labels in zip(core[1:], found[1:], strict=True):
        plane[plane > 0] += len(class_of) - 1
        class_of += (labels.class_of or ())[1:]
        score_of = None if score_of is None else score_of + (labels.score_of or ())[1:]
    return Labels(values, class_of, score_of)
