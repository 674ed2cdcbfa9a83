"""Masks as PNG, read back by PIL, OpenCV and imagecodecs."""

from __future__ import annotations

import io
import json
import random

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskloom.segcore.errors import FormatError, RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks import EncodedBlock
from maskloom.segcore.masks.png import PngMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec

LEGEND = ClassTable.of(("background", "cell", "đất trồng & <b>"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))


def spec_of(shape: tuple[int, ...]) -> RasterSpec:
    return RasterSpec(
        "photo.png", "picture", shape, (1, 2, 3), "uint8", shape, "v1", 3, interpretation="rgb"
    )


def pieces_of(labels: np.ndarray, tile_size: int) -> list[EncodedBlock]:
    spec = spec_of(labels.shape)
    grid = Grid(labels.shape, (tile_size, tile_size))
    return [
        piece
        for tile in grid
        for piece in PngMasks().encode(labels[tile.core.slices], tile, spec, grid.tile)
    ]


def written(labels: np.ndarray, tile_size: int, class_table: ClassTable = LEGEND) -> bytes:
    out = io.BytesIO()
    pieces = pieces_of(labels, tile_size)
    random.Random(tile_size).shuffle(pieces)
    PngMasks().write(iter(pieces), spec_of(labels.shape), class_table, out, (tile_size, tile_size))
    return out.getvalue()


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([16, 32, 64, 128, 256, 768]),
    st.integers(0, 10**6),
)
def test_the_values_of_the_palette_picture_are_the_labels(height, width, tile_size, seed):
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    image = Image.open(io.BytesIO(written(labels, tile_size)))
    assert (image.mode, image.size) == ("P", (width, height))
    np.testing.assert_array_equal(np.array(image), labels)


@given(
    st.integers(1, 150), st.integers(1, 150), st.sampled_from([16, 64, 256]), st.integers(0, 10**6)
)
def test_more_than_255_classes_make_16_bits(height, width, tile_size, seed):
    labels = np.random.default_rng(seed).integers(0, 2**16, (height, width), np.uint16)
    file = written(labels, tile_size, MANY)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED), labels
    )
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(file))), labels)


def test_viewers_see_the_colours_of_the_legend_and_nothing_where_there_is_no_data():
    labels = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (70, 90))
    file = written(labels, 32)
    rgba = np.array(Image.open(io.BytesIO(file)).convert("RGBA"))
    for i, colour in enumerate(LEGEND.colours):
        assert (rgba[labels == i] == (*colour, 255)).all()
    assert (rgba[labels == 255, 3] == 0).all()
    np.testing.assert_array_equal(
        imagecodecs.png_decode(file)[..., :3][labels != 255], rgba[..., :3][labels != 255]
    )


def test_the_palette_has_the_used_entries_only():
    for values, entries in (([0, 2], 3), ([0, 1, 2, 255], 256)):
        labels = np.resize(np.array(values, np.uint8), (40, 50))
        image = Image.open(io.BytesIO(written(labels, 32)))
        palette = np.array(image.getpalette()).reshape(-1, 3)
        assert len(palette) == entries
        assert [tuple(each) for each in palette[:3].tolist()] == list(LEGEND.colours)
        np.testing.assert_array_equal(np.array(image), labels)


@pytest.mark.parametrize("class_table", [LEGEND, MANY], ids=["uint8", "uint16"])
def test_the_names_of_the_classes_are_in_the_file(class_table):
    image = Image.open(io.BytesIO(written(np.zeros((20, 20), class_table.dtype), 16, class_table)))
    assert json.loads(image.text["classes"]) == {
        str(i): name for i, name in enumerate(class_table.names)
    }


def test_the_same_labels_give_the_same_bytes():
    labels = np.random.default_rng(2).integers(0, 3, (100, 100), np.uint8)
    pieces, files = pieces_of(labels, 64), []
    for order in (pieces, pieces[::-1], pieces + pieces[:1]):
        out = io.BytesIO()
        PngMasks().write(order, spec_of(labels.shape), LEGEND, out, (64, 64))
        files.append(out.getvalue())
    assert files[0] == files[1] == files[2]


def test_object_masks_keep_their_numbers_up_to_16_bits():
    labels = np.random.default_rng(3).integers(0, 2**16, (60, 50)).astype(np.uint32)
    file = written(labels, 32)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED), labels
    )
    labels[40, 40] = 70000
    with pytest.raises(FormatError, match="70000"):
        written(labels, 32)


def test_missing_and_stray_pieces_are_errors():
    labels = np.zeros((100, 100), np.uint8)
    pieces, spec = pieces_of(labels, 64), spec_of(labels.shape)
    for wrong in (pieces[:-1], [*pieces, EncodedBlock(0, (2, 0), pieces[0].payload)]):
        out = io.BytesIO()
        with pytest.raises(RunError, match="missing or does not"):
            PngMasks().write(wrong, spec, LEGEND, out, (64, 64))
        assert not out.getvalue()
    with pytest.raises(RunError, match="two contents"):
        PngMasks().write(
            [*pieces, EncodedBlock(0, (0, 0), pieces[1].payload)],
            spec,
            LEGEND,
            io.BytesIO(),
            (64, 64),
        )
    with pytest.raises(RunError, match="bytes"):
        PngMasks().write(
            [EncodedBlock(0, (0, 0), pieces[1].payload), *pieces[1:]],
            spec,
            LEGEND,
            io.BytesIO(),
            (64, 64),
        )


@pytest.mark.parametrize(("dtype", "class_table"), [("uint16", LEGEND), ("uint8", MANY)])
def test_labels_of_another_type_than_the_legend_are_refused(dtype, class_table):
    with pytest.raises(RunError, match=class_table.dtype):
        written(np.zeros((20, 20), dtype), 16, class_table)
