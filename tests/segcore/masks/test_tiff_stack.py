"""Masks as stacks of TIFF pages, read back by tifffile and GDAL."""

from __future__ import annotations

import random
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import AXES, Metric, Space
from maskloom.segcore.masks import EncodedBlock, PublishedMask, tiff_stack
from maskloom.segcore.masks.tiff_stack import TiffStackMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store

CLASSES = ClassTable.of(("background", "đất & <nước>\x01"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))


def spec_of(shape: tuple[int, ...], metric: Metric | None = None) -> RasterSpec:
    space = Space(axes=AXES, metric=metric)
    return RasterSpec("a.tif", "tiff", shape, (1,), "uint8", shape, "v1", 1, space=space)


def blocks_of(labels: np.ndarray, tile: tuple[int, ...]) -> list[EncodedBlock]:
    return [
        block
        for each in Grid(labels.shape, tile)
        for block in TiffStackMasks().encode(
            labels[each.core.slices], each, spec_of(labels.shape), tile
        )
    ]


def publish(
    folder: Path,
    blocks: list[EncodedBlock],
    spec: RasterSpec,
    tile: tuple[int, ...],
    classes: ClassTable = CLASSES,
) -> PublishedMask:
    return TiffStackMasks().publish(Store(str(folder)), "m.tif", iter(blocks), spec, classes, tile)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 90), st.integers(1, 70)),
    st.sampled_from([(4, 16, 16), (1, 64, 64), (3, 128, 32), (16, 48, 7)]),
    st.integers(0, 2**16),
)
def test_tifffile_and_gdal_read_the_labels(tmp_path_factory, shape, tile, seed):
    folder = tmp_path_factory.mktemp("masks")
    draw = np.random.default_rng(seed)
    for dtype, classes in (("uint8", CLASSES), ("uint16", MANY), ("uint32", CLASSES)):
        labels = draw.integers(0, 2**31, shape).astype(dtype)
        blocks = blocks_of(labels, tile)
        random.Random(seed).shuffle(blocks)
        mask = publish(folder / dtype, blocks, spec_of(shape), tile, classes)
        assert mask.sha256 == Store(str(folder / dtype)).sha256("m.tif")
        with tifffile.TiffFile(folder / dtype / "m.tif") as file:
            [series] = file.series
            assert len(file.pages) == shape[0]
            assert series.dtype == dtype
            np.testing.assert_array_equal(series.asarray().reshape(shape), labels)
        with rasterio.open(f"GTIFF_DIR:{shape[0]}:{folder / dtype / 'm.tif'}") as page:
            np.testing.assert_array_equal(page.read(1), labels[-1])


def test_the_description_has_the_size_of_a_pixel_and_the_names(tmp_path):
    labels = np.zeros((3, 40, 50), np.uint8)
    metric = Metric((2.0, 0.5, 0.25), "um")
    publish(tmp_path, blocks_of(labels, (2, 16, 16)), spec_of(labels.shape, metric), (2, 16, 16))
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        assert file.series[0].axes == "ZYX"
        root = ET.fromstring(file.ome_metadata)
        palette = file.pages[0].colormap
    pixels = root.find("{*}Image/{*}Pixels")
    said = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
    assert [float(each) for each in said] == [2, 0.5, 0.25]
    assert {pixels.get(f"PhysicalSize{axis}Unit") for axis in "ZYX"} == {"µm"}
    names = {each.get("K"): each.text for each in root.iter() if each.tag.endswith("}M")}
    assert names == {"0": "background", "1": "đất & <nước>\ufffd", "255": "no data"}
    np.testing.assert_array_equal(palette[:, :2].T // 257, CLASSES.colours)


def test_the_file_is_the_same_whatever_the_order_of_parts(tmp_path):
    labels = np.random.default_rng(1).integers(0, 2, (5, 70, 50), np.uint8)
    blocks = blocks_of(labels, (2, 32, 32))
    spec = spec_of(labels.shape)
    masks = [
        publish(tmp_path / str(i), order, spec, (2, 32, 32))
        for i, order in enumerate((blocks, blocks[::-1], blocks + blocks[:2]))
    ]
    assert len({mask.sha256 for mask in masks}) == 1


def test_a_large_file_is_big_tiff(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_stack, "_LARGEST_CLASSIC_FILE", 1000)
    labels = np.random.default_rng(1).integers(0, 2, (5, 70, 50), np.uint8)
    publish(tmp_path, blocks_of(labels, (2, 32, 32)), spec_of(labels.shape), (2, 32, 32))
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), labels)


def test_missing_and_stray_parts_are_errors(tmp_path):
    labels = np.random.default_rng(2).integers(0, 2, (3, 70, 50), np.uint8)
    blocks, spec, tile = blocks_of(labels, (2, 32, 32)), spec_of(labels.shape), (2, 32, 32)
    for wrong, message in (
        (blocks[:-1], r"lacks 1 parts, the first at \(2, 2, 1\)"),
        ([*blocks, EncodedBlock(0, (3, 0, 0), blocks[0].payload)], "does not belong"),
        ([*blocks, EncodedBlock(1, (0, 0, 0), blocks[0].payload)], "does not belong"),
        ([*blocks, EncodedBlock(0, (0, 0, 0), blocks[1].payload)], "two contents"),
    ):
        with pytest.raises(RunError, match=message):
            publish(tmp_path, wrong, spec, tile)
    with pytest.raises(RunError, match="ask for uint16"):
        publish(tmp_path, blocks, spec, tile, MANY)
