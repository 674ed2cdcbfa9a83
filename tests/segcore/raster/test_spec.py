"""What a header tells, read by some bands, and back from its record."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.spec import Block, RasterSpec, load_spec

SPEC = RasterSpec(
    location="file:///a.tif",
    format="tiff",
    shape=(30, 40),
    bands=(1, 2, 3, 4),
    dtype="uint8",
    chunks=(16, 40),
    version="7",
    file_bands=4,
    nodata=0.0,
    interpretation="rgb",
    space=Space(affine=(10.0, 0.0, 5e5, 0.0, -10.0, 5e6), crs="EPSG:32633"),
    notes=("a note",),
)


def test_a_raster_is_a_colour_picture_while_its_first_bands_are_read_in_order():
    assert SPEC.select(None) is SPEC
    assert SPEC.select((1, 2, 3)).interpretation == "rgb"
    assert SPEC.select((3, 2, 1)).interpretation == "bands"
    assert SPEC.select((4,)).bands == (4,)
    assert SPEC.select((4,)).channels == 1


@pytest.mark.parametrize("band", [0, 5])
def test_a_band_that_the_image_lacks_is_named(band):
    with pytest.raises(ModelMismatch, match=rf"a\.tif has 4 band\(s\).* asks for band {band}"):
        SPEC.select((1, band))


def test_a_spec_comes_back_from_its_record():
    assert load_spec(json.loads(json.dumps(dataclasses.asdict(SPEC)))) == SPEC


def test_pixels_without_a_place_count_one_each():
    nowhere = dataclasses.replace(SPEC, space=Space())
    assert nowhere.space.cell_size(Box.whole((30, 40)), (30, 40)) == 1
    assert nowhere.space.unit == "px"
    assert SPEC.space.unit == "m2"


def test_samples_are_the_valid_pixels_of_the_core_in_row_order():
    read, core = Box((0, 0), (4, 5)), Box((1, 1), (3, 4))
    pixels = np.arange(40).reshape(4, 5, 2)
    valid = np.ones((4, 5), bool)
    block = Block(Tile((0, 0), core, read), pixels, valid, SPEC)
    assert block.samples().tolist() == pixels[1:3, 1:4].reshape(-1, 2).tolist()
    valid[1, 2] = valid[0, 0] = False
    assert block.samples()[:, 0].tolist() == [12, 16, 22, 24, 26]
