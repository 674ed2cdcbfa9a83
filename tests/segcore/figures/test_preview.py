"""Previews: the same picture for any tiling, and a picture that people can read."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskloom.segcore.figures.preview import (
    LARGEST_SIDE,
    PreviewPart,
    observe_preview,
    preview_stride,
    render_preview,
)
from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.ground.space import Frame
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import Block, RasterSpec
from maskloom.segcore.storage.packing import pack, unpack

LEGEND = ClassTable.of(("background", "field", "town"))


def spec_of(pixels: np.ndarray, interpretation: str) -> RasterSpec:
    bands = tuple(range(1, pixels.shape[2] + 1))
    shape = pixels.shape[:2]
    return RasterSpec(
        "image",
        "test",
        shape,
        bands,
        pixels.dtype.name,
        shape,
        "v1",
        len(bands),
        interpretation=interpretation,
    )


def observe(pixels, valid, labels, tile_size, stride, interpretation="rgb") -> list[PreviewPart]:
    spec = spec_of(pixels, interpretation)
    parts = []
    for tile in Grid(labels.shape, (tile_size, tile_size), 3):
        block = Block(tile, pixels[tile.read.slices], valid[tile.read.slices], spec)
        parts.append(observe_preview(block, labels[tile.core.slices], stride))
    return parts


def join(
    parts: list[PreviewPart], shape: tuple[int, int], stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cells = tuple(-(-n // stride) for n in shape)
    pixels = np.zeros((*cells, parts[0].pixels.shape[2]), parts[0].pixels.dtype)
    seen, valid, labels = (
        np.zeros(cells, int),
        np.zeros(cells, bool),
        np.zeros(cells, parts[0].labels.dtype),
    )
    for part in parts:
        place = tuple(slice(a, a + n) for a, n in zip(part.start, part.labels.shape, strict=True))
        pixels[place], valid[place], labels[place] = part.pixels, part.valid, part.labels
        seen[place] += 1
    assert (seen == 1).all()
    return pixels, valid, labels


def scene(shape, dtype, bands, seed):
    draw = np.random.default_rng(seed)
    pixels = (
        draw.normal(100, 30, (*shape, bands)).clip(0, 255) * (1 if dtype == "uint8" else 3.7)
    ).astype(dtype)
    valid = draw.random(shape) < 0.8
    valid[: shape[0] // 3, : shape[1] // 2] = False
    if dtype == "float32":
        pixels[~valid] = np.nan
    labels = np.where(valid, draw.integers(0, 3, shape), 255).astype(np.uint8)
    return pixels, valid, labels


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (1024, 5),
        (1025, 5),
        (3, 2048),
        (2049, 2049),
        (10980, 10980),
        (70000, 1),
        (10**6, 10),
    ],
)
def test_the_stride_is_the_smallest_power_of_two_that_fits(shape):
    stride = preview_stride(shape)
    assert stride.bit_count() == 1
    assert -(-max(shape) // stride) <= LARGEST_SIDE
    assert stride == 1 or -(-max(shape) // (stride // 2)) > LARGEST_SIDE


@given(
    st.integers(1, 330),
    st.integers(1, 330),
    st.sampled_from(["uint8", "uint16", "float32", "int16"]),
    st.sampled_from([1, 2, 4, 16, 32, 128]),
    st.sampled_from([16, 32, 64, 128]),
    st.integers(0, 10**6),
)
def test_any_tiling_gives_the_same_preview(height, width, dtype, stride, tile_size, seed):
    pixels, valid, labels = scene((height, width), dtype, 3, seed)
    whole = join(observe(pixels, valid, labels, 512, stride), labels.shape, stride)
    tiled = join(observe(pixels, valid, labels, tile_size, stride), labels.shape, stride)
    for a, b in zip(whole, tiled, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["uint8", "float32"]),
    st.sampled_from([1, 2, 8, 32]),
    st.integers(0, 10**6),
)
def test_a_cell_is_the_mean_of_the_valid_pixels_of_its_window(height, width, dtype, stride, seed):
    pixels, valid, labels = scene((height, width), dtype, 2, seed)
    means, any_valid, modes = join(
        observe(pixels, valid, labels, 32, stride, "bands"), labels.shape, stride
    )
    side = min(stride, 16)
    for y, x in np.ndindex(any_valid.shape):
        window = np.s_[y * stride : y * stride + side, x * stride : x * stride + side]
        data = pixels[window][valid[window]]
        assert any_valid[y, x] == bool(len(data))
        np.testing.assert_allclose(
            means[y, x], data.astype(float).mean(0) if len(data) else 0, rtol=1e-6
        )
        assert modes[y, x] in (labels[window][labels[window] != 255] if len(data) else [255])


def test_labels_of_a_cell_are_those_of_the_masks_overview():
    from maskloom.segcore.kernels.overviews import halve

    pixels, valid, labels = scene((203, 333), "uint8", 3, seed=1)
    _, _, modes = join(observe(pixels, valid, labels, 64, 4), labels.shape, 4)
    np.testing.assert_array_equal(modes, halve(halve(labels)))


def test_a_tile_smaller_than_the_stride_may_hold_no_cell():
    tile = Tile((1, 1), Box((16, 16), (32, 32)), Box((16, 16), (32, 32)))
    pixels = np.zeros((16, 16, 3), np.uint8)
    part = observe_preview(
        Block(tile, pixels, pixels[..., 0] == 0, spec_of(pixels, "rgb")), pixels[..., 0], 64
    )
    assert part.labels.size == 0
    assert unpack(PreviewPart, pack(part)).start == part.start == (1, 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_parts_survive_bytes_and_pickle(dtype):
    pixels, valid, labels = scene((50, 70), dtype, 3, seed=2)
    part = observe(pixels, valid, labels, 64, 2)[1]
    for copy in (unpack(PreviewPart, pack(part)), pickle.loads(pickle.dumps(part))):
        assert copy.start == part.start
        for a, b in (
            (copy.pixels, part.pixels),
            (copy.valid, part.valid),
            (copy.labels, part.labels),
        ):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a, b)


def render(pixels, labels, class_table=LEGEND, interpretation="rgb", valid=None) -> np.ndarray:
    stride = preview_stride(labels.shape)
    valid = np.ones(labels.shape, bool) if valid is None else valid
    parts = observe(pixels, valid, labels, 256, stride, interpretation)
    png = render_preview(iter(parts), labels.shape, interpretation, class_table, stride)
    assert render_preview(parts[::-1], labels.shape, interpretation, class_table, stride) == png
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_rgb_pictures_are_shown_as_they_are_where_there_is_background():
    pixels = np.random.default_rng(3).integers(0, 256, (90, 80, 3), np.uint8)
    np.testing.assert_array_equal(render(pixels, np.zeros((90, 80), np.uint8)), pixels)


def test_classes_are_tinted_and_their_border_is_one_pixel_wide():
    pixels = np.full((60, 64, 3), 128, np.uint8)
    labels = np.zeros((60, 64), np.uint8)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    picture = render(pixels, labels)[:60]
    assert (picture == picture[:1]).all()
    row = picture[0]
    assert (row[:19] == 128).all()
    field, town = np.array(LEGEND.colours[1]), np.array(LEGEND.colours[2])
    np.testing.assert_allclose(row[19], 0.55 * field, atol=1)
    np.testing.assert_allclose(row[39], 0.55 * town, atol=1)
    assert (np.abs(row[20:39] - (0.6 * 128 + 0.4 * field)) < 1).all()
    assert (np.abs(row[40:] - (0.6 * 128 + 0.4 * town)) < 1).all()


def test_nodata_is_dark_and_has_no_border():
    pixels, labels = np.full((64, 64, 3), 200, np.uint8), np.ones((64, 64), np.uint8)
    valid = np.ones((64, 64), bool)
    valid[:32] = False
    labels[:32] = 255
    picture = render(pixels, labels, valid=valid)
    assert picture[:32].max() <= 60
    assert len(np.unique(picture[32:64].reshape(-1, 3), axis=0)) == 1


def test_unprocessed_pixels_with_data_show_the_picture():
    pixels = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(render(pixels, np.full((64, 64), 255, np.uint8)), pixels)


@pytest.mark.parametrize(("dtype", "bands"), [("uint16", 1), ("float32", 5), ("uint8", 2)])
def test_other_pictures_are_stretched_from_the_2nd_to_the_98th_percentile(dtype, bands):
    from skimage.exposure import rescale_intensity

    pixels = (np.random.default_rng(5).random((100, 90, bands)) * 200 + 17).astype(dtype)
    picture = render(pixels, np.zeros((100, 90), np.uint8), interpretation="bands")
    for i in range(3):
        band = pixels[..., i if bands >= 3 else 0].astype(float)
        low, high = np.percentile(band, [2, 98])
        np.testing.assert_allclose(
            picture[:100, :, i], rescale_intensity(band, (low, high), (0, 255)), atol=1
        )


def test_a_deep_rgb_picture_keeps_its_hues():
    ramp = np.linspace(1000, 3000, 4096).reshape(64, 64)
    pixels = np.stack([ramp, ramp / 2, ramp / 2], axis=2).astype(np.uint16)
    picture = render(pixels, np.zeros((64, 64), np.uint8))
    assert (picture[..., 0] >= picture[..., 1]).all()
    assert (picture[..., 0] > picture[..., 1] + 50).mean() > 0.9


@pytest.mark.parametrize("filling", [0, 1000])
def test_flat_and_empty_pictures_are_no_error(filling):
    pixels = np.full((40, 40, 1), filling, np.uint16)
    assert render(pixels, np.zeros((40, 40), np.uint8), interpretation="bands").shape == (40, 40, 3)
    nothing = np.zeros((40, 40), bool)
    assert (
        render(
            pixels, np.full((40, 40), 255, np.uint8), interpretation="bands", valid=nothing
        ).max()
        <= 60
    )


def test_infinite_values_do_not_spoil_the_stretch():
    pixels = np.random.default_rng(6).random((64, 64, 1)).astype(np.float32)
    pixels[3, 3] = np.inf
    assert render(pixels, np.zeros((64, 64), np.uint8), interpretation="bands").std() > 40


def test_objects_get_colours_of_their_own():
    labels = np.zeros((64, 64), np.uint32)
    labels[10:20, 10:20], labels[10:20, 20:30], labels[40:50, 40:50] = 1, 2, 70000
    pixels = np.full((64, 64, 3), 100, np.uint8)
    picture = render(pixels, labels, ClassTable.of(("cell",)))
    assert picture.shape == (64, 64, 3)
    assert (picture[0] == 100).all()
    inside = {
        tuple(picture[15, 15]),
        tuple(picture[15, 25]),
        tuple(picture[45, 45]),
        (100, 100, 100),
    }
    assert len(inside) == 4


def test_the_legend_shows_the_colour_of_each_class_below_the_picture():
    pixels, labels = np.full((100, 200, 3), 90, np.uint8), np.zeros((100, 200), np.uint8)
    picture = render(pixels, labels)
    assert picture.shape[1] == 200
    strip = picture[100:].reshape(-1, 3).tolist()
    for colour in LEGEND.colours:
        assert strip.count(list(colour)) >= 100
    assert (picture[:100] == 90).all()


def test_a_long_legend_wraps_and_names_only_what_is_there():
    class_table = ClassTable.of(tuple(f"a rather long name {i}" for i in range(40)))
    pixels, labels = np.full((100, 300, 3), 90, np.uint8), np.zeros((100, 300), np.uint8)
    labels[:, 100:], labels[:, 200:] = 1, 5
    strip = render(pixels, labels, class_table)[100:]
    colours = strip.reshape(-1, 3).tolist()
    assert [colours.count(list(class_table.colours[i])) >= 100 for i in (0, 1, 5, 2)] == [
        True,
        True,
        True,
        False,
    ]
    assert 40 < len(strip) < 100


def test_a_preview_is_small():
    pixels = np.zeros((1500, 2100, 3), np.uint8)
    picture = render(pixels, np.ones((1500, 2100), np.uint8))
    assert picture.shape[1] == 525
    assert 375 < picture.shape[0] < 450


@pytest.mark.parametrize(
    ("columns", "rows", "flips"),
    [
        # Axial: x to the left and y to the back, as DICOM has them.
        ((-1, 0, 0), (0, -1, 0), (1, 1)),
        # Axial with both the other way, as in the standard brain of NIfTI.
        ((0.7, 0.1, 0), (-0.1, 0.7, 0.2), (-1, -1)),
        # Sagittal: columns to the front, rows to the feet.
        ((0, 1, 0), (0, 0, -1), (1, -1)),
        # Coronal: columns to the left, rows to the head.
        ((-1, 0, 0), (0, 0, 1), (-1, 1)),
    ],
)
def test_scans_are_shown_as_radiologists_look_at_them(columns, rows, flips) -> None:
    pixels = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9, 1).repeat(3, axis=-1)
    labels = np.zeros((12, 9), np.uint8)
    part = observe(pixels, np.ones((12, 9), bool), labels, 16, 1)
    affine = np.column_stack([columns, rows, np.cross(columns, rows), (1, 2, 3)])
    frame = Frame(tuple(affine.ravel().tolist()))
    shown, plain = (
        np.array(Image.open(io.BytesIO(png)).convert("RGB"))[:12, :9]
        for png in (
            render_preview(part, (12, 9), "rgb", LEGEND, 1, frame),
            render_preview(part, (12, 9), "rgb", LEGEND, 1),
        )
    )
    np.testing.assert_array_equal(shown, plain[:: flips[0], :: flips[1]])


def test_parts_that_never_came_look_like_nodata():
    pixels, valid, labels = scene((64, 64), "uint8", 3, seed=7)
    part = observe(pixels, valid, labels, 32, 1)[3]
    png = render_preview([replace(part)], (64, 64), "rgb", LEGEND, 1)
    assert np.array(Image.open(io.BytesIO(png)))[:32].max() <= 60


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "factor", "odd"),
    [
        ("float32", 1, [np.inf, -np.inf, np.nan]),
        ("float32", 1, [-3.4e38, 3.4e38]),
        ("float64", 1, [-np.finfo(float).max, np.finfo(float).max]),
        ("float64", 1e160, [-1e160]),
    ],
)
def test_extreme_values_are_shown_without_warnings(
    dtype: str, factor: float, odd: list[float], stride: int
) -> None:
    pixels = (np.linspace(1, 2, 400).reshape(20, 20, 1) * factor).astype(dtype)
    for row, value in enumerate(odd):
        pixels[3 * row : 3 * row + 3] = value
    labels = np.zeros((20, 20), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = observe(pixels, np.ones((20, 20), bool), labels, 20, stride, "bands")
        rendered = render_preview(parts, (20, 20), "bands", LEGEND, stride)
    shown = np.array(Image.open(io.BytesIO(rendered)))[: 20 // stride, : 20 // stride].astype(int)
    # The background stays as it is: grey that does not fall where the values rise.
    assert (shown[..., 0] == shown[..., 2]).all()
    assert (np.diff(shown[10 // stride :, 0, 0]) >= 0).all()
