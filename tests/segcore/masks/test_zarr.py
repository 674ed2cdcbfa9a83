"""Masks as Zarr, read back by the package zarr."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import AXES, Space
from maskloom.segcore.masks import EncodedBlock, PublishedMask
from maskloom.segcore.masks.zarr import ZarrMasks, chunk_shape
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store

zarr = pytest.importorskip("zarr")
CLASSES = ClassTable.of(("water", "đất trồng"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))


def spec_of(shape: tuple[int, ...]) -> RasterSpec:
    space = Space(axes=AXES[-len(shape) :])
    return RasterSpec("a.zarr", "zarr", shape, (1,), "uint8", shape, "v1", 1, space=space)


def blocks_of(labels: np.ndarray, tile: tuple[int, ...]) -> list[EncodedBlock]:
    spec = spec_of(labels.shape)
    return [
        block
        for each in Grid(labels.shape, tile)
        for block in ZarrMasks().encode(labels[each.core.slices], each, spec, tile)
    ]


def publish(
    folder: Path,
    blocks: list[EncodedBlock],
    shape: tuple[int, ...],
    tile: tuple[int, ...],
    classes: ClassTable = CLASSES,
) -> PublishedMask:
    store = Store(str(folder))
    return ZarrMasks().publish(store, "m.zarr", iter(blocks), spec_of(shape), classes, tile)


@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=3).map(tuple),
    st.sampled_from([16, 32, 1024]),
    st.integers(0, 2**16),
)
def test_zarr_reads_the_labels(tmp_path_factory, shape, side, seed):
    folder = tmp_path_factory.mktemp("masks")
    draw, tile = np.random.default_rng(seed), (side,) * len(shape)
    for dtype, classes in (("uint8", CLASSES), ("uint16", MANY), ("uint32", CLASSES)):
        labels = draw.integers(0, 2**31, shape).astype(dtype)
        blocks = blocks_of(labels, tile)
        random.Random(seed).shuffle(blocks)
        publish(folder / dtype, blocks, labels.shape, tile, classes)
        array = zarr.open(folder / dtype / "m.zarr", mode="r")
        assert array.dtype == dtype
        np.testing.assert_array_equal(array[...], labels)


def test_names_and_colours_are_attributes_and_lost_chunks_are_no_data(tmp_path):
    labels = np.zeros((40, 40), np.uint8)
    publish(tmp_path, blocks_of(labels, (32, 32)), labels.shape, (32, 32))
    (tmp_path / "m.zarr" / "c" / "1" / "1").unlink()
    array = zarr.open(tmp_path / "m.zarr", mode="r")
    assert array.attrs["classes"] == {"0": "water", "1": "đất trồng"}
    assert len(array.attrs["colours"]) == 2
    assert array.metadata.dimension_names == ("y", "x")
    assert (array[32:, 32:] == CLASSES.nodata).all()


def test_the_digest_is_that_of_all_files_whatever_the_order_of_blocks(tmp_path):
    labels = np.random.default_rng(1).integers(0, 2, (70, 50), np.uint8)
    blocks = blocks_of(labels, (32, 32))
    masks = [
        publish(tmp_path / str(i), order, labels.shape, (32, 32))
        for i, order in enumerate((blocks, blocks[::-1], blocks + blocks[:2]))
    ]
    assert {mask.sha256 for mask in masks} == {Store(str(tmp_path / "0")).sha256("m.zarr")}


def test_missing_and_stray_chunks_are_errors(tmp_path):
    labels = np.random.default_rng(2).integers(0, 2, (70, 50), np.uint8)
    blocks = blocks_of(labels, (32, 32))
    for wrong, message in (
        (blocks[:-1], r"lacks 1 chunks, the first at \(2, 1\)"),
        ([*blocks, EncodedBlock(0, (3, 0), blocks[0].payload)], "does not belong"),
        ([*blocks, EncodedBlock(0, (0, 0), blocks[1].payload)], "two contents"),
    ):
        with pytest.raises(RunError, match=message):
            publish(tmp_path, wrong, labels.shape, (32, 32))
    with pytest.raises(RunError, match="ask for uint16"):
        publish(tmp_path, blocks, labels.shape, (32, 32), MANY)


@pytest.mark.parametrize(
    ("tile", "chunk"),
    [
        ((2048, 2048), (512, 512)),
        ((256, 256), (256, 256)),
        ((16, 2048, 2048), (16, 128, 128)),
        ((129, 2049), (129, 2049)),
    ],
)
def test_chunks_divide_tiles(tile, chunk):
    assert chunk_shape(tile) == chunk
    assert all(whole % part == 0 for whole, part in zip(tile, chunk, strict=True))


def test_the_metadata_is_plain_json(tmp_path):
    labels = np.ones((8, 8), np.uint32)
    publish(tmp_path, blocks_of(labels, (16, 16)), labels.shape, (16, 16))
    about = json.loads((tmp_path / "m.zarr" / "zarr.json").read_text())
    assert about["fill_value"] == 0
    assert about["attributes"] == {}, "ids of objects have no classes"
