"""Previews: the same picture for any tiling, and a picture that people can read."""

from __future__ import annotations

import io
import itertools
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskloom.segcore.figures import sheets
from maskloom.segcore.figures.drawing import GAP, MARGIN, NO_DATA, NO_DATA_LINE, PAPER, TOP, fitting
from maskloom.segcore.figures.legends import Entry
from maskloom.segcore.figures.preview import (
    LARGEST_SIDE,
    PreviewPart,
    cells_of,
    observe_preview,
    observe_previews,
    preview_stride,
    render_preview,
)
from maskloom.segcore.figures.scale_bars import pixel_length, round_length
from maskloom.segcore.figures.sheets import Caption, legend_entries
from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.ground.space import AXES, Frame, Metric, Space
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


def areas_of(labels: np.ndarray, class_table: ClassTable) -> list[dict]:
    """Rows of the table of areas of an image without georeference."""
    counts = [int((labels == i).sum()) for i in range(len(class_table.names))]
    valid = sum(counts)
    return [
        {
            "class_name": name,
            "pixel_count": count,
            "fraction": count / valid if valid else None,
            "area": float(count),
            "area_unit": "px",
            "nodata_pixels": labels.size - valid,
            "unprocessed_pixels": 0,
        }
        for name, count in zip(class_table.names, counts, strict=True)
    ]


def sheet_of(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def render(pixels, labels, class_table=LEGEND, interpretation="rgb", valid=None):
    """Source, mask and mask over source, as large as the image, and the whole sheet."""
    stride = preview_stride(labels.shape)
    valid = np.ones(labels.shape, bool) if valid is None else valid
    parts = observe(pixels, valid, labels, 256, stride, interpretation)
    spec = spec_of(pixels, interpretation)
    caption = Caption("image", "test", areas_of(labels, class_table))
    png = render_preview(iter(parts), spec, class_table, caption)
    assert render_preview(parts[::-1], spec, class_table, caption) == png
    sheet = sheet_of(png)
    height, width = (-(-n // stride) for n in labels.shape)
    factor = max(1, sheets._LEAST // max(height, width))
    column = max(sheets._NARROWEST_PANEL, width * factor) + GAP
    top = TOP + sheets._CAPTION
    panels = [
        sheet[top : top + height * factor, x : x + width * factor][::factor, ::factor]
        for x in (MARGIN + i * column for i in range(3))
    ]
    assert all(panel.shape == (height, width, 3) for panel in panels)
    return panels, sheet


def is_hatched(pixels: np.ndarray) -> bool:
    found = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    return found <= {NO_DATA, NO_DATA_LINE}


def test_rgb_pictures_are_shown_as_they_are_beside_their_mask():
    draw = np.random.default_rng(3)
    pixels = draw.integers(0, 256, (320, 301, 3), np.uint8)
    labels = draw.integers(0, 3, (320, 301)).astype(np.uint8)
    (source, mask, over), _ = render(pixels, labels)
    np.testing.assert_array_equal(source, pixels)
    np.testing.assert_array_equal(mask, np.array(LEGEND.colours)[labels])
    background = labels == 0
    # A border between background and another class has the other's colour, left or above it.
    np.testing.assert_array_equal(
        over[background & ~_has_neighbours(labels)], pixels[background & ~_has_neighbours(labels)]
    )


def _has_neighbours(labels: np.ndarray) -> np.ndarray:
    """Pixels with another label to the right or below."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def test_classes_are_tinted_and_their_border_is_one_pixel_wide():
    pixels = np.full((310, 320, 3), 128, np.uint8)
    labels = np.zeros((310, 320), np.uint8)
    labels[:, 100:200], labels[:, 200:] = 1, 2
    (_, _, picture), _ = render(pixels, labels)
    assert (picture == picture[:1]).all()
    row = picture[0]
    assert (row[:99] == 128).all()
    field, town = np.array(LEGEND.colours[1]), np.array(LEGEND.colours[2])
    np.testing.assert_allclose(row[99], 0.55 * field, atol=1)
    np.testing.assert_allclose(row[199], 0.55 * town, atol=1)
    assert (np.abs(row[100:199] - (0.55 * 128 + 0.45 * field)) <= 1).all()
    assert (np.abs(row[200:] - (0.55 * 128 + 0.45 * town)) <= 1).all()


def test_nodata_is_hatched_in_every_panel_and_named_in_the_legend():
    pixels, labels = np.full((300, 300, 3), 200, np.uint8), np.ones((300, 300), np.uint8)
    valid = np.ones((300, 300), bool)
    valid[:150] = False
    labels[:150] = 255
    panels, _ = render(pixels, labels, valid=valid)
    for panel in panels:
        assert is_hatched(panel[:150])
        assert len(np.unique(panel[150:].reshape(-1, 3), axis=0)) == 1
    caption = Caption("a", areas=areas_of(labels, LEGEND))
    *_, nodata = legend_entries(LEGEND, caption, labels.size, of_objects=False)
    assert nodata == Entry("no data, of all", (), ("45,000 px", "50.0%"), hatched=True)


def test_unprocessed_pixels_with_data_show_the_picture_and_no_class():
    pixels = np.random.default_rng(4).integers(0, 256, (300, 300, 3), np.uint8)
    (source, mask, over), _ = render(pixels, np.full((300, 300), 255, np.uint8))
    np.testing.assert_array_equal(source, pixels)
    np.testing.assert_array_equal(over, pixels)
    assert is_hatched(mask)


@pytest.mark.parametrize(("dtype", "bands"), [("uint16", 1), ("float32", 5), ("uint8", 2)])
def test_other_pictures_are_stretched_from_the_2nd_to_the_98th_percentile(dtype, bands):
    from skimage.exposure import rescale_intensity

    pixels = (np.random.default_rng(5).random((100, 90, bands)) * 200 + 17).astype(dtype)
    (picture, _, _), _ = render(pixels, np.zeros((100, 90), np.uint8), interpretation="bands")
    for i in range(3):
        band = pixels[..., i if bands >= 3 else 0].astype(float)
        low, high = np.percentile(band, [2, 98])
        np.testing.assert_allclose(
            picture[..., i], rescale_intensity(band, (low, high), (0, 255)), atol=1
        )


def test_a_dark_photo_is_stretched_and_says_so():
    pixels = np.random.default_rng(8).integers(3, 40, (300, 300, 3), np.uint8)
    (source, _, _), _ = render(pixels, np.zeros((300, 300), np.uint8))
    assert source.min() == 0
    assert source.max() == 255
    assert np.corrcoef(source.ravel(), pixels.ravel())[0, 1] > 0.99


def test_a_deep_rgb_picture_keeps_its_hues():
    ramp = np.linspace(1000, 3000, 4096).reshape(64, 64)
    pixels = np.stack([ramp, ramp / 2, ramp / 2], axis=2).astype(np.uint16)
    (picture, _, _), _ = render(pixels, np.zeros((64, 64), np.uint8))
    assert (picture[..., 0] >= picture[..., 1]).all()
    assert (picture[..., 0] > picture[..., 1] + 50).mean() > 0.9


@pytest.mark.parametrize("filling", [0, 1000])
def test_flat_and_empty_pictures_are_no_error(filling):
    pixels = np.full((40, 40, 1), filling, np.uint16)
    render(pixels, np.zeros((40, 40), np.uint8), interpretation="bands")
    nothing = np.zeros((40, 40), bool)
    labels = np.full((40, 40), 255, np.uint8)
    panels, _ = render(pixels, labels, interpretation="bands", valid=nothing)
    assert all(is_hatched(panel) for panel in panels)


def test_infinite_values_do_not_spoil_the_stretch():
    pixels = np.random.default_rng(6).random((64, 64, 1)).astype(np.float32)
    pixels[3, 3] = np.inf
    (picture, _, _), _ = render(pixels, np.zeros((64, 64), np.uint8), interpretation="bands")
    assert picture.std() > 40


def test_objects_get_colours_of_their_own_and_outlines():
    labels = np.zeros((320, 320), np.uint32)
    labels[10:50, 10:50], labels[10:50, 50:90], labels[200:280, 200:280] = 1, 2, 70000
    pixels = np.full((320, 320, 3), 150, np.uint8)
    (_, mask, over), _ = render(pixels, labels, ClassTable.of(("cell",)))
    inside = [tuple(mask[y, x]) for y, x in ((30, 30), (30, 70), (240, 240), (0, 0))]
    assert len(set(inside)) == 4
    # An outline has the colour of its object and lies in it; inside, the photo is unchanged.
    for y, x, colour in ((11, 30, 0), (30, 49, 0), (30, 50, 1), (200, 240, 2)):
        assert tuple(over[y, x]) == inside[colour]
    for y, x in ((30, 30), (30, 70), (240, 240), (9, 30), (100, 100)):
        assert (over[y, x] == 150).all()


def test_the_legend_shows_the_colour_of_each_class_below_the_picture():
    pixels, labels = np.full((100, 200, 3), 90, np.uint8), np.zeros((100, 200), np.uint8)
    _, sheet = render(pixels, labels)
    below = sheet[TOP + sheets._CAPTION + 100 :].reshape(-1, 3).tolist()
    for colour in LEGEND.colours:
        assert below.count(list(colour)) >= 100


def test_of_many_classes_the_legend_names_the_largest_and_counts_the_others():
    class_table = ClassTable.of(tuple(f"a rather long name {i}" for i in range(40)))
    labels = np.repeat(np.arange(40, dtype=np.uint8), range(1, 41)).reshape(20, 41)
    rows = areas_of(labels, class_table)
    entries = legend_entries(class_table, Caption("a", areas=rows), labels.size, of_objects=False)
    assert [entry.name for entry in entries[:-1]] == list(class_table.names[17:])
    assert entries[-1].name == "and 17 more"
    assert entries[-1].numbers == ("153 px", f"{153 / 820:.1%}")
    # Nothing is cut: the border stays paper.
    for side in (90, 300):
        pixels = np.full((300, side, 3), 90, np.uint8)
        _, sheet = render(pixels, np.resize(labels, (300, side)), class_table)
        assert (sheet[:, -8:] == PAPER).all()
        assert (sheet[-8:] == PAPER).all()


@pytest.mark.parametrize("shape", [(1500, 2100), (20, 20), (100, 900), (900, 60), (1, 1)])
def test_a_preview_has_a_size_to_look_at(shape):
    pixels, labels = np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8)
    spec = spec_of(pixels, "rgb")
    part = observe(pixels, labels > 0, labels, 4096, preview_stride(shape))
    caption = Caption("a/" + "long " * 99 + ".tif", "kmeans", areas_of(labels, LEGEND))
    height, width, _ = sheet_of(render_preview(part, spec, LEGEND, caption)).shape
    assert 400 <= width <= 2000
    assert 150 <= height <= 1000


def test_long_names_lose_their_middle():
    name = "scenes/2026/05/" + "x" * 300 + "_tile_0000017"
    shown = fitting(name, 400, middle=True)
    first, last = shown.split("…")
    assert name.startswith(first)
    assert name.endswith(last)
    assert min(len(first), len(last)) > 10


def test_any_name_of_a_class_or_file_can_be_written():
    names = (
        "line\nend\ttab",
        "\udcff undecoded",
        "long " * 60,
        "",
        "\U0001f610",
        "שלום עולם",
        "x\0y",
    )
    class_table = ClassTable.of(names)
    pixels, labels = np.full((300, 300, 3), 90, np.uint8), np.zeros((300, 300), np.uint8)
    spec = spec_of(pixels, "rgb")
    parts = observe(pixels, labels == 0, labels, 512, 1)
    for title in names:
        caption = Caption(title, areas=areas_of(labels, class_table))
        sheet = sheet_of(render_preview(parts, spec, class_table, caption))
        assert (sheet[:, -8:] == PAPER).all()
        assert (sheet[-8:] == PAPER).all()


@pytest.mark.parametrize("name", ["Москва", "航空写真", "λόγος", "한국", "čšžéüø", "m²µm×–…"])
def test_names_are_written_in_their_own_letters(name):
    from maskloom.segcore.figures.drawing import Sheet

    def drawn(text: str) -> np.ndarray:
        sheet = Sheet.blank(60, 30)
        sheet.text((5, 15), text)
        return sheet.pixels

    for letter in name:
        assert (drawn(letter) != 255).any()
        assert (drawn(letter) != drawn("?")).any()


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
def test_slices_are_shown_as_radiologists_look_at_them(columns, rows, flips) -> None:
    pixels = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9, 1).repeat(3, axis=-1)
    labels = np.zeros((12, 9), np.uint8)
    part = observe(pixels, np.ones((12, 9), bool), labels, 16, 1)
    affine = np.column_stack([columns, rows, np.cross(columns, rows), (1, 2, 3)])
    spec = spec_of(pixels, "rgb")
    framed = replace(spec, space=Space(frame=Frame(tuple(affine.ravel().tolist()))))
    top, factor = TOP + sheets._CAPTION, sheets._LEAST // 12
    shown, plain = (
        sheet_of(render_preview(part, each, LEGEND, Caption("a")))[
            top : top + 12 * factor : factor, MARGIN : MARGIN + 9 * factor : factor
        ]
        for each in (framed, spec)
    )
    np.testing.assert_array_equal(shown, plain[:: flips[0], :: flips[1]])


def test_parts_that_never_came_look_like_nodata():
    pixels, valid, labels = scene((64, 64), "uint8", 3, seed=7)
    part = observe(pixels, valid, labels, 32, 1)[3]
    png = render_preview([replace(part)], spec_of(pixels, "rgb"), LEGEND, Caption("a"))
    top, factor = TOP + sheets._CAPTION, sheets._LEAST // 64
    assert is_hatched(sheet_of(png)[top : top + 32 * factor, MARGIN : MARGIN + 64 * factor])


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
    shape = (20 // stride, 20 // stride)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = observe(pixels, np.ones((20, 20), bool), labels, 20, stride, "bands")
        spec = replace(spec_of(pixels, "bands"), shape=shape)
        rendered = render_preview(parts, spec, LEGEND, Caption("a"))
    top, enlarged = TOP + sheets._CAPTION, sheets._LEAST // shape[0]
    shown = sheet_of(rendered)[top : top + 300 : enlarged, MARGIN : MARGIN + 300 : enlarged]
    # Grey that does not fall where the values rise.
    assert (shown[..., 0] == shown[..., 2]).all()
    assert (np.diff(shown[10 // stride :, 0, 0]) >= 0).all()


# Volumes


def volume_of(shape: tuple[int, ...], **space) -> tuple[RasterSpec, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(9)
    pixels = draw.integers(0, 4000, (*shape, 1)).astype(np.int16)
    labels = draw.integers(0, 3, shape).astype(np.uint8)
    spec = RasterSpec(
        "scan", "test", shape, (1,), "int16", shape, "v1", 1, space=Space(axes=AXES, **space)
    )
    return spec, pixels, labels


@pytest.mark.parametrize("tile", [(5, 16, 16), (1, 64, 64), (40, 32, 48)])
def test_three_planes_of_a_volume_are_shown_whole_for_any_tiling(tile) -> None:
    shape = (11, 70, 50)
    spec, pixels, labels = volume_of(shape)
    parts = []
    for each in Grid(shape, tile, 0):
        box = each.core.slices
        block = Block(each, pixels[box], np.ones(labels[box].shape, bool), spec)
        parts += observe_previews(block, labels[box])
    for across in range(3):
        cells = cells_of(shape, across)
        seen, shown = np.zeros(cells, int), np.zeros(cells, np.uint8)
        for part in parts:
            if part.across == across and part.labels.size:
                place = tuple(
                    slice(a, a + n) for a, n in zip(part.start, part.labels.shape, strict=True)
                )
                seen[place] += 1
                shown[place] = part.labels
        assert (seen == 1).all()
        np.testing.assert_array_equal(shown, labels.take(shape[across] // 2, axis=across))


def test_planes_have_true_proportions() -> None:
    spec, pixels, labels = volume_of((12, 20, 16), metric=Metric((3.0, 1.0, 1.0), "mm"))
    block = Block(Tile.whole(labels.shape), pixels, np.ones(labels.shape, bool), spec)
    parts = observe_previews(block, labels)
    sheet = sheet_of(render_preview(parts, spec, LEGEND, Caption("a")))
    factor = sheets._VOLUME_SIDE // 36
    top, x = TOP + sheets._CAPTION, MARGIN
    low, high = np.percentile(np.concatenate([part.pixels.ravel() for part in parts]), [2, 98])
    for across, repeat in ((0, (1, 1)), (1, (3, 1)), (2, (3, 1))):
        plane = pixels[..., 0].take(labels.shape[across] // 2, axis=across)
        grey = np.clip((plane - low) * 255 / (high - low), 0, 255)
        expected = grey.repeat(repeat[0] * factor, axis=0).repeat(factor, axis=1)
        height, width = expected.shape
        shown = sheet[top : top + height, x : x + width]
        np.testing.assert_allclose(shown, expected[..., None].repeat(3, axis=2), atol=1)
        x += width + GAP


def test_a_body_looks_the_same_however_its_scanner_ordered_the_axes() -> None:
    """Volumes of one body with axes in any order and direction show the same planes."""
    spec, pixels, labels = volume_of((11, 19, 15))
    first = None
    orders = itertools.cycle(itertools.permutations(range(3)))
    for order, signs in zip(orders, itertools.product((1, -1), repeat=3), strict=False):
        flip = tuple(slice(None, None, sign) for sign in signs)
        turned, named = (
            np.transpose(each, (*order, *range(3, each.ndim)))[flip] for each in (pixels, labels)
        )
        # The body's axes are z, y, x; columns of the affine are x, y, z of the array.
        steps, sides = np.zeros((3, 4)), (3.0, 1.0, 1.0)
        for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
            steps[2 - axis, 2 - i] = sign * sides[axis]
        space = Space(
            metric=Metric(tuple(sides[axis] for axis in order), "mm"),
            frame=Frame(tuple(steps.ravel().tolist())),
            axes=AXES,
        )
        this = replace(spec, shape=named.shape, chunks=named.shape, space=space)
        block = Block(Tile.whole(named.shape), turned, np.ones(named.shape, bool), this)
        parts = observe_previews(block, named)
        sheet = sheet_of(render_preview(parts, this, LEGEND, Caption("a")))
        # Words aside, which name the axes of the array.
        panels = sheet[TOP + sheets._CAPTION :]
        first = panels if first is None else first
        np.testing.assert_array_equal(panels, first)


# Lengths


@pytest.mark.parametrize(
    ("space", "expected", "unit"),
    [
        (Space(), 1.0, "px"),
        (Space(metric=Metric((0.5, 0.25), "um")), 0.00025, "mm"),
        (Space((10.0, 0, 5e5, 0, -10.0, 5e6), "EPSG:32633"), 10.0, "m"),
        # Half a degree of longitude at 60 degrees north: about half as long as at the equator.
        (Space((0.5, 0, 10, 0, -0.5, 62.5), "EPSG:4326"), 27_900, "m"),
    ],
)
def test_a_pixel_has_its_true_length(space: Space, expected: float, unit: str) -> None:
    from pyproj import CRS

    if space.crs is not None:
        space = replace(space, crs=CRS.from_user_input(space.crs).to_wkt())
    spec = replace(spec_of(np.zeros((10, 10, 1), np.uint8), "bands"), space=space)
    found = pixel_length(spec)
    assert found.unit == unit
    assert found.length == pytest.approx(expected, rel=2e-3)


@given(st.floats(1e-9, 1e9))
def test_bars_have_the_longest_round_length_that_fits(most: float) -> None:
    found = round_length(most)
    assert found <= most * (1 + 1e-6)
    assert most < found * 2.5 * (1 + 1e-6)
    assert f"{found:.3e}"[:5] in ("1.000", "2.000", "5.000")
