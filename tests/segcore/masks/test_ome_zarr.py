"""Masks as OME-Zarr labels, read back by the package zarr and checked by the models of OME-Zarr."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import AXES, Lattice, Metric, Space
from maskloom.segcore.kernels.overviews import halve, halve_volume
from maskloom.segcore.masks import EncodedBlock, PublishedMask
from maskloom.segcore.masks.ome_zarr.pyramid import chunk_shape
from maskloom.segcore.masks.ome_zarr.writer import OmeZarrMasks
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store

zarr = pytest.importorskip("zarr")
CLASSES = ClassTable.of(("water", "đất trồng"))
MANY = ClassTable.of(tuple(f"class {i}" for i in range(300)))
both = pytest.mark.parametrize("version", [2, 3])


def spec_of(shape: tuple[int, ...], space: Space | None = None) -> RasterSpec:
    space = space or Space(axes=AXES[-len(shape) :])
    return RasterSpec("a.zarr", "zarr", shape, (1,), "uint8", shape, "v1", 1, space=space)


def blocks_of(
    labels: np.ndarray, tile: tuple[int, ...], spec: RasterSpec | None = None
) -> list[EncodedBlock]:
    spec = spec or spec_of(labels.shape)
    return [
        block
        for each in Grid(labels.shape, tile)
        for block in OmeZarrMasks().encode(labels[each.core.slices], each, spec, tile)
    ]


def publish(
    folder: Path,
    blocks: list[EncodedBlock],
    spec: RasterSpec,
    tile: tuple[int, ...],
    classes: ClassTable = CLASSES,
    version: int = 3,
) -> PublishedMask:
    store = Store(str(folder))
    return OmeZarrMasks(version).publish(store, "m.zarr", iter(blocks), spec, classes, tile)


def attributes(path: Path) -> dict[str, Any]:
    found = dict(zarr.open(path, mode="r").attrs)
    return found.get("ome", found)


def mode_of(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of 2 x 2 (x 2) pixels; the first one of several; without data only
    if there is no other.
    """
    nodata = np.iinfo(labels.dtype).max
    labels = np.pad(labels, [(0, n % 2) for n in labels.shape], mode="edge")
    out = np.empty([n // 2 for n in labels.shape], labels.dtype)
    for index in np.ndindex(out.shape):
        near = labels[tuple(slice(2 * i, 2 * i + 2) for i in index)].ravel().tolist()
        known = [value for value in near if value != nodata] or near
        out[index] = max(known, key=lambda value: (known.count(value), -known.index(value)))
    return out


@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=3).map(tuple),
    st.sampled_from([16, 32, 1024]),
    st.integers(0, 2**16),
)
def test_zarr_reads_the_labels_at_every_level(tmp_path_factory, shape, side, seed):
    folder = tmp_path_factory.mktemp("masks")
    draw, tile = np.random.default_rng(seed), (side,) * len(shape)
    cases = (("uint8", CLASSES, 2), ("uint16", MANY, 3), ("uint32", CLASSES, 2))
    for dtype, classes, version in cases:
        labels = (draw.integers(0, 4, shape) * 2**29).astype(dtype)
        labels[draw.random(shape) < 0.2] = np.iinfo(dtype).max
        blocks, spec = blocks_of(labels, tile), spec_of(shape)
        random.Random(seed).shuffle(blocks)
        publish(folder / dtype, blocks, spec, tile, classes, version)
        group = zarr.open_group(folder / dtype / "m.zarr", mode="r")
        assert group.metadata.zarr_format == version
        for level in itertools.count():
            array = group[str(level)]
            assert array.dtype == dtype
            np.testing.assert_array_equal(array[...], labels)
            if str(level + 1) not in group:
                assert max(labels.shape) <= max(chunk_shape(tile))
                break
            labels = mode_of(labels)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3).map(tuple), st.integers(0, 2**16))
def test_halves_have_the_most_frequent_label(shape, seed):
    labels = np.random.default_rng(seed).integers(0, 3, shape, np.uint8)
    labels[labels == 2] = 255
    np.testing.assert_array_equal(halve_volume(labels), mode_of(labels))
    np.testing.assert_array_equal(halve(labels[0]), mode_of(labels[0]))


@both
@pytest.mark.parametrize("shape", [(70, 50), (40, 33, 50)], ids=["image", "volume"])
def test_the_models_of_ome_zarr_accept_a_mask(tmp_path, version, shape):
    axes = AXES[-len(shape) :]
    units = ("micrometer",) * len(shape)
    lattice = Lattice((2.0, 0.5, 0.5)[-len(shape) :], (10.0, -3.0, 4.0)[-len(shape) :], units)
    spec = spec_of(shape, Space(axes=axes, lattice=lattice))
    labels = np.random.default_rng(1).integers(0, 2, shape, np.uint8)
    tile = (16,) * len(shape)
    for name, values, classes in (
        ("classes", labels, CLASSES),
        ("objects", labels.astype(np.uint32), CLASSES),
    ):
        publish(tmp_path / name, blocks_of(values, tile, spec), spec, tile, classes, version)
        path = tmp_path / name / "m.zarr"
        models = pytest.importorskip(f"ome_zarr_models.v0{version + 2}")
        if version == 3:
            models.ImageLabel.from_zarr(zarr.open_group(path, mode="r"))
        else:
            # The whole model of 0.4 does not build with every release of pydantic.
            from ome_zarr_models.v04.image_label_types import Label
            from ome_zarr_models.v04.multiscales import Multiscale

            found = attributes(path)
            Label.model_validate(found["image-label"])
            Multiscale.model_validate(found["multiscales"][0])


@both
def test_the_mask_has_the_coordinates_names_and_colours_of_its_source(tmp_path, version):
    shape, tile = (64, 300, 200), (16, 32, 32)
    lattice = Lattice((0.5, 0.25, 0.25), (7.0, -3.0, 4.0), ("micrometer",) * 3)
    spec = spec_of(shape, Space(axes=AXES, lattice=lattice, metric=Metric(lattice.scale, "um")))
    labels = np.zeros(shape, np.uint8)
    publish(tmp_path, blocks_of(labels, tile, spec), spec, tile, version=version)
    found = attributes(tmp_path / "m.zarr")
    [image] = found["multiscales"]
    assert image["axes"] == [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"
    ]
    group = zarr.open_group(tmp_path / "m.zarr", mode="r")
    corner = np.array(lattice.translation) - np.array(lattice.scale) / 2
    assert len(image["datasets"]) == 5
    for level, dataset in enumerate(image["datasets"]):
        scale, begin = (
            np.array(step[step["type"]]) for step in dataset["coordinateTransformations"]
        )
        # Slices are twice as far apart as pixels, so planes alone become smaller.
        np.testing.assert_allclose(scale, [0.5, 0.25 * 2**level, 0.25 * 2**level])
        np.testing.assert_allclose(begin - scale / 2, corner, err_msg="levels lie on each other")
        assert group[dataset["path"]].shape == (64, -(-300 // 2**level), -(-200 // 2**level))
    label = found["image-label"]
    assert [each["name"] for each in label["properties"]] == [*CLASSES.names, "no data"]
    assert [each["label-value"] for each in label["properties"]] == [0, 1, 255]
    assert [tuple(each["rgba"]) for each in label["colors"]] == [
        *((*colour, 255) for colour in CLASSES.colours),
        (0, 0, 0, 0),
    ]


@both
def test_lost_chunks_are_no_data(tmp_path, version):
    labels = np.zeros((40, 40), np.uint8)
    spec = spec_of(labels.shape)
    publish(tmp_path, blocks_of(labels, (32, 32)), spec, (32, 32), version=version)
    (tmp_path / "m.zarr" / ("0/c/1/1" if version == 3 else "0/1/1")).unlink()
    array = zarr.open(tmp_path / "m.zarr", mode="r")["0"]
    assert (array[32:, 32:] == CLASSES.nodata).all()
    assert (array[:32] == 0).all()


def test_the_digest_is_that_of_all_files_whatever_the_order_of_blocks(tmp_path):
    labels = np.random.default_rng(1).integers(0, 2, (70, 50), np.uint8)
    blocks, spec = blocks_of(labels, (32, 32)), spec_of((70, 50))
    masks = [
        publish(tmp_path / str(i), order, spec, (32, 32))
        for i, order in enumerate((blocks, blocks[::-1], blocks + blocks[:2]))
    ]
    assert {mask.sha256 for mask in masks} == {Store(str(tmp_path / "0")).sha256("m.zarr")}


def test_missing_and_stray_chunks_are_errors(tmp_path):
    labels = np.random.default_rng(2).integers(0, 2, (70, 50), np.uint8)
    blocks, spec = blocks_of(labels, (32, 32)), spec_of((70, 50))
    for wrong, message in (
        (blocks[:-1], r"lacks 1 chunks of level 0, the first at \(2, 1\)"),
        ([*blocks, EncodedBlock(0, (3, 0), blocks[0].payload)], "does not belong"),
        ([*blocks, EncodedBlock(9, (0, 0), blocks[0].payload)], "does not belong"),
        ([*blocks, EncodedBlock(0, (0, 0), blocks[1].payload)], "two contents"),
    ):
        with pytest.raises(RunError, match=message):
            publish(tmp_path, wrong, spec, (32, 32))
    with pytest.raises(RunError, match="ask for uint16"):
        publish(tmp_path, blocks, spec, (32, 32), MANY)


@pytest.mark.parametrize(
    ("tile", "chunk"),
    [
        ((2048, 2048), (1024, 1024)),
        ((256, 256), (256, 256)),
        ((16, 2048, 2048), (16, 256, 256)),
        ((129, 2049), (129, 2049)),
    ],
)
def test_chunks_divide_tiles(tile, chunk):
    assert chunk_shape(tile) == chunk
    assert all(whole % part == 0 for whole, part in zip(tile, chunk, strict=True))


def test_ids_of_objects_have_no_classes_and_no_label_without_data(tmp_path):
    labels = np.ones((8, 8), np.uint32)
    publish(tmp_path, blocks_of(labels, (16, 16)), spec_of((8, 8)), (16, 16))
    array = json.loads((tmp_path / "m.zarr" / "0" / "zarr.json").read_text())
    assert array["fill_value"] == 0
    assert attributes(tmp_path / "m.zarr")["image-label"] == {"version": "0.5"}
