"""Planar methods on volumes: each plane as an image of its own, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from maskloom.segcore.geometry import Grid, Shape, Tile
from maskloom.segcore.models.fragments import Equivalences, Fragments
from maskloom.segcore.models.planes import (
    fragment_by_plane,
    join_by_plane,
    planes_of,
    score_by_plane,
    segment_by_plane,
)
from maskloom.segcore.models.protocols import Requirements
from maskloom.segcore.raster.spec import Block, Labels
from maskloom.segcore.testing.segmenters import Picture

SHAPE = (5, 12, 14)
PIXELS = (np.random.default_rng(2).random((*SHAPE, 2)) > 0.6).astype(np.uint8)
VOLUME = Picture(PIXELS, np.ones(SHAPE, np.bool_))


def block_of(tile: Tile) -> Block:
    return VOLUME.block(tile, VOLUME.spec)


class Instances:
    """Connected parts of the bright pixels of one block, each with a class and a score."""

    requirements = Requirements(planar=True)

    @segment_by_plane
    def segment(self, block: Block) -> Labels:
        assert block.valid.ndim == block.pixels.ndim - 1 == len(block.spec.shape) == 2
        values, count = ndimage.label(block.pixels[..., 0])
        return Labels(values, (0, *[1, 2] * count)[: count + 1], (0.0, *np.arange(count) / 100))

    @score_by_plane
    def scores(self, block: Block) -> np.ndarray:
        bright = block.pixels[..., 0].astype(np.float32)
        return np.stack([1 - bright, bright], axis=-1)

    @fragment_by_plane
    def fragment(self, block: Block) -> Fragments:
        values, count = ndimage.label(block.tile.trim(block.pixels)[..., 0])
        return Fragments(values.astype(np.uint32), np.ones(count + 1, np.uint16), {})

    @join_by_plane
    def join(self, grid: Grid, seams: Any) -> list[Equivalences]:
        """All first fragments are one object, and all second ones."""
        assert len(grid.shape) == 2
        assert len(seams) == len(grid)
        numbers = np.arange(3)
        return [Equivalences(numbers.astype(np.uint32), numbers, numbers.astype(np.uint16))] * len(
            grid
        )


@pytest.mark.parametrize("tile", [SHAPE, (2, 5, 14), (1, 12, 6)])
def test_planes_are_those_of_the_core_with_all_that_the_tile_reads_of_them(tile: Shape) -> None:
    for each in Grid(SHAPE, tile, 2):
        planes = list(planes_of(block_of(each)))
        assert len(planes) == each.core.shape[0]
        for z, plane in enumerate(planes, each.core.start[0]):
            read = plane.tile.read
            assert (plane.tile.core.start, read.start) == (each.core.start[1:], each.read.start[1:])
            assert np.array_equal(plane.pixels, PIXELS[z][read.slices])
            assert plane.spec.shape == SHAPE[1:]


def test_an_image_is_its_own_plane() -> None:
    image = Picture(PIXELS[0], VOLUME.valid[0])
    block = image.block(Tile.whole(SHAPE[1:]), image.spec)
    (plane,) = planes_of(block)
    assert plane is block


def test_instances_are_numbered_through_all_planes_of_the_core() -> None:
    tile = Grid(SHAPE, (2, 12, 14), 1)[1]
    labels = Instances().segment(block_of(tile))
    assert labels.values.shape == tile.read.shape
    assert labels.class_of is not None
    assert labels.score_of is not None
    last = 0
    for z, found in zip((2, 3), tile.trim(labels.values), strict=True):
        expected, count = ndimage.label(PIXELS[z, ..., 0])
        assert np.array_equal(found, np.where(expected > 0, expected + last, 0))
        own = slice(last + 1, last + 1 + count)
        assert labels.class_of[own] == tuple([1, 2] * count)[:count]
        assert labels.score_of[own] == tuple(np.arange(count) / 100)
        last += count
    assert len(labels.class_of) == len(labels.score_of) == last + 1


def test_scores_are_those_of_each_plane() -> None:
    tile = Grid(SHAPE, (2, 5, 14), 1)[2]
    scores = Instances().scores(block_of(tile))
    assert scores.shape == (*tile.read.shape, 2)
    assert np.array_equal(tile.trim(scores)[..., 1], PIXELS[tile.core.slices][..., 0])


def test_objects_of_different_planes_are_never_one() -> None:
    grid = Grid((3, 4, 6), (1, 2, 3), planar=True)
    joined = Instances().join(grid, [{}] * len(grid))
    assert len(joined) == len(grid)
    groups = [set(joined[i].groups[joined[i].groups > 0].tolist()) for i in range(len(grid))]
    tiles_of_a_plane = len(grid) // 3
    for i, mine in enumerate(groups):
        for k, theirs in enumerate(groups):
            assert (mine == theirs) == (i // tiles_of_a_plane == k // tiles_of_a_plane)
            assert mine == theirs or not mine & theirs


def test_fragments_need_tiles_one_plane_deep() -> None:
    model = Instances()
    (flat, *_) = Grid(SHAPE, (1, 12, 14), planar=True)
    assert np.array_equal(
        model.fragment(block_of(flat)).values[0] > 0, PIXELS[0, ..., 0].astype(bool)
    )
    with pytest.raises(ValueError, match="one plane deep"):
        model.fragment(block_of(Grid(SHAPE, (2, 12, 14))[0]))
