"""Segmentation in memory: regions of files, and the whole picture from any tiling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskloom.segcore.errors import NothingToFit
from maskloom.segcore.geometry import Box
from maskloom.segcore.pipeline.in_memory import Region, blocks, fit_to, segment_source
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing.segmenters import Picture

TILES = [None, (16, 16), (7, 70), (1, 9)]


@pytest.fixture
def picture(pixels):
    valid = np.ones(pixels.shape[:2], bool)
    valid[10:20, 30:60] = False
    return Picture(pixels, valid, "rgb")


@pytest.mark.parametrize("tile", TILES)
def test_blocks_partition_the_picture(picture, brighter, tile):
    seen = np.zeros(picture.valid.shape, int)
    for block in blocks(picture, brighter(band=2), tile):
        seen[block.tile.core.slices] += 1
        np.testing.assert_array_equal(
            block.tile.trim(block.pixels)[..., 0], picture.pixels[block.tile.core.slices][..., 1]
        )
    assert (seen == 1).all()


@pytest.mark.parametrize("tile", TILES)
def test_the_mask_is_what_the_model_says_of_each_pixel(picture, brighter, tile):
    mask = segment_source(brighter(), picture, tile)

    expected = picture.pixels[..., 0] > 100
    np.testing.assert_array_equal(mask.valid, picture.valid)
    np.testing.assert_array_equal(mask.values[mask.valid], expected[mask.valid])
    np.testing.assert_array_equal(mask.classes, mask.values)


@pytest.mark.parametrize("tile", TILES)
def test_a_mask_of_objects_has_their_ids_and_their_classes(picture, tile):
    from skimage.measure import label

    model = ConnectedParts(Threshold(value=140, band=1)).start()

    mask = segment_source(model, picture, tile)

    bright = (picture.pixels[..., 0] > 140) & picture.valid
    np.testing.assert_array_equal(mask.values, label(bright, connectivity=2))
    np.testing.assert_array_equal(mask.classes[picture.valid], bright[picture.valid])


def test_a_model_is_fitted_to_all_pictures_together(picture, brighter_than_mean):
    darker = replace(picture, pixels=picture.pixels // 3)
    values = np.concatenate([each.pixels[each.valid][:, 0] for each in (picture, darker)])

    model = fit_to(brighter_than_mean(), [picture, darker], (16, 16))

    assert model.above == values.sum(dtype=int) / values.size
    assert fit_to(model, [darker]) is model


def test_a_picture_without_data_fits_nothing(picture, brighter_than_mean):
    blank = replace(picture, valid=np.zeros_like(picture.valid))
    with pytest.raises(NothingToFit):
        fit_to(brighter_than_mean(), [blank])


def test_a_region_of_a_file_is_an_image_of_its_own(bench, pixels, brighter):
    region = Region(bench.plan("photo", pixels).spec, Box((5, 11), (38, 60)))
    cut = Picture(pixels[5:38, 11:60], np.ones((33, 49), bool))

    assert region.spec.shape == (33, 49)
    for tile in TILES:
        np.testing.assert_array_equal(
            segment_source(brighter(band=3), region, tile).values,
            segment_source(brighter(band=3), cut).values,
        )


def test_the_middle_of_an_image_is_the_whole_where_it_is_small(bench, pixels):
    spec = bench.plan("photo", pixels).spec

    assert Region.middle(spec, 10**6).box == Box.whole((45, 70))
    box = Region.middle(spec, 800).box
    assert box.size <= 1000
    assert box.shape[1] / box.shape[0] == pytest.approx(70 / 45, rel=0.2)
