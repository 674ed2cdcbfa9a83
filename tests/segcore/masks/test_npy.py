"""Masks as arrays: what NumPy reads back is what was written, whatever the tiles and their
order.
"""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid, Shape
from maskloom.segcore.ground.space import Space
from maskloom.segcore.masks import EncodedBlock
from maskloom.segcore.masks.npy import NpyMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store

CLASSES = ClassTable.of(("bone", "soft tissue", "air"))
STORE = Store("memory://npy")


def spec_of(shape: Shape) -> RasterSpec:
    axes = tuple("zyx"[-len(shape) :])
    return RasterSpec(
        "memory://a.npy", "array", shape, (1,), "uint8", shape, "1", 1, space=Space(axes=axes)
    )


def blocks_of(labels: np.ndarray, tile: Shape) -> list[EncodedBlock]:
    return [
        block
        for each in Grid(labels.shape, tile)
        for block in NpyMasks().encode(labels[each.core.slices], each, spec_of(labels.shape), tile)
    ]


def published(blocks: list[EncodedBlock], shape: Shape, tile: Shape) -> np.ndarray:
    NpyMasks().publish(STORE, "mask.npy", blocks, spec_of(shape), CLASSES, tile)
    return np.load(io.BytesIO(STORE.read("mask.npy")))


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    sides=st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from(["uint8", "uint32"]),
    seed=st.integers(0, 9),
)
def test_numpy_reads_what_was_written(
    shape: list[int], sides: tuple[int, ...], dtype: str, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, shape).astype(dtype)
    tile = sides[: len(shape)]
    blocks = blocks_of(labels, tile)
    random.Random(seed).shuffle(blocks)
    found = published(blocks, tuple(shape), tile)

    assert found.dtype == labels.dtype
    assert np.array_equal(found, labels)


def test_memory_does_not_grow_with_the_planes(tmp_path: Path) -> None:
    """A mask of 16 MB; its tiles along z are as deep as the volume."""
    labels, tile = np.arange(2**22, dtype=np.uint32).reshape(16, 512, 512) // 1000, (16, 64, 64)
    blocks = blocks_of(labels, tile)
    tracemalloc.start()
    try:
        spec = spec_of(labels.shape)
        NpyMasks().publish(Store(str(tmp_path)), "mask.npy", blocks, spec, CLASSES, tile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(np.load(tmp_path / "mask.npy"), labels)
    assert peak < labels.nbytes / 4


def test_the_names_of_the_classes_are_beside_a_mask_of_classes_only() -> None:
    labels = np.ones((2, 3, 4), np.uint8)
    mask = NpyMasks().publish(
        STORE, "a.npy", blocks_of(labels, (2, 2, 2)), spec_of((2, 3, 4)), CLASSES, (2, 2, 2)
    )
    beside = json.loads(STORE.read("a.npy.json"))
    assert mask.files.keys() == {"", ".json"}
    assert beside == {
        "classes": {"0": "bone", "1": "soft tissue", "2": "air"},
        "nodata": CLASSES.nodata,
    }
    objects = NpyMasks().publish(
        STORE,
        "b.npy",
        blocks_of(labels.astype(np.uint32), (2, 2, 2)),
        spec_of((2, 3, 4)),
        CLASSES,
        (2, 2, 2),
    )
    assert objects.files.keys() == {""}


def test_a_tile_that_is_missing_foreign_or_double_is_an_error_and_no_file() -> None:
    fs = fsspec.filesystem("memory")
    shape, tile = (2, 4, 4), (2, 2, 2)
    good = blocks_of(np.ones(shape, np.uint8), tile)
    other = blocks_of(np.zeros(shape, np.uint8), tile)
    wide = blocks_of(np.ones(shape, np.uint16), tile)
    for blocks, message in (
        (good[1:], "lacks 1 of 8 planes of tiles"),
        ([*good, EncodedBlock(0, (9, 9, 9), b"")], "does not belong"),
        ([*good, other[0]], "came with two contents"),
        ([*good[:7], wide[7]], "is not of uint8"),
        (wide, "ask for uint8"),
    ):
        with pytest.raises(RunError, match=message):
            NpyMasks().publish(STORE, "bad.npy", blocks, spec_of(shape), CLASSES, tile)
    assert not fs.exists("/npy/bad.npy")
