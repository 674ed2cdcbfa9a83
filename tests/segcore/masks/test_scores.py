"""Scores as files, read back by rasterio, rio-cogeo and zarr, and their sums, against NumPy and
SciPy.
"""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import rasterio
import zarr
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rio_cogeo import cog_validate
from scipy.stats import entropy

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.masks import EncodedBlock
from maskloom.segcore.masks.quantised import MOST, NODATA, Certainty, no_scores, quantised
from maskloom.segcore.masks.scores import ScoreWriter, score_writer
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.store import Store

CLASSES = ClassTable.of(("water", 'the "city"', "<soil>"))
UTM = Space((10.0, 0.0, 500000.0, 0.0, -10.0, 4600000.0), CRS.from_epsg(32633).to_wkt())


def spec_of(shape: tuple[int, ...], space: Space | None = None) -> RasterSpec:
    return RasterSpec(
        "image.tif", "geotiff", shape, (1,), "uint8", shape, "v1", 1, space=space or Space()
    )


def probabilities(shape: tuple[int, ...], classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(np.full(classes, 0.3), shape).astype(np.float32)
    drawn[rng.random(shape) < 0.2] = np.eye(classes, dtype=np.float32)[0]
    return drawn


def blocks_of(
    values: np.ndarray, side: tuple[int, ...], spec: RasterSpec
) -> tuple[ScoreWriter, list[EncodedBlock]]:
    grid, writer = Grid(spec.shape, side), score_writer(spec)
    blocks = [
        block
        for tile in grid
        for block in writer.encode(values[(slice(None), *tile.core.slices)], tile, spec, side)
    ]
    random.Random(side[0]).shuffle(blocks)
    return writer, blocks


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_numbers_entropy_and_margin_are_those_of_numpy_and_scipy(classes, seed):
    scores = probabilities((7, 9), classes, seed)
    valid = np.random.default_rng(seed).random((7, 9)) < 0.7
    values, found = quantised(scores, valid)
    assert values.shape == (classes, 7, 9)
    assert (values[:, ~valid] == NODATA).all()
    off = values[:, valid].T / MOST - scores[valid].astype(float)
    assert np.abs(off).max(initial=0) <= 0.5 / MOST + 1e-12
    assert found.pixels == valid.sum()
    if not valid.any():
        assert (found.mean_entropy, found.mean_margin) == (None, None)
        return
    inside = scores[valid].astype(float)
    if classes == 1:
        assert (found.mean_entropy, found.mean_margin) == (0, 1)
        return
    of_each = entropy(inside / inside.sum(axis=-1, keepdims=True), axis=-1, base=classes)
    assert found.mean_entropy == pytest.approx(of_each.mean(), abs=2e-6)
    ordered = np.sort(inside, axis=-1)
    assert found.mean_margin == pytest.approx((ordered[:, -1] - ordered[:, -2]).mean(), abs=1e-6)


def test_extremes_by_hand():
    """Certain, undecided, and numbers that are no probabilities."""
    valid = np.ones((1, 1), bool)

    def of(*scores: float) -> tuple[list[int], float, float]:
        values, found = quantised(np.array([[scores]], np.float32), valid)
        return values.ravel().tolist(), found.mean_entropy, found.mean_margin

    assert of(0, 1, 0) == ([0, 250, 0], 0, 1)
    numbers, uncertain, margin = of(0.25, 0.25, 0.25, 0.25)
    assert (numbers, uncertain, margin) == ([63] * 4, 1, 0)  # 62.5: halves up
    assert of(np.nan, 1.0000001, -1e-9) == ([0, 250, 0], 0, 1)


def test_sums_depend_on_neither_tiling_nor_order():
    scores, valid = probabilities((40, 56), 4), np.random.default_rng(1).random((40, 56)) < 0.9
    _, whole = quantised(scores, valid)
    parts = [
        quantised(scores[tile.core.slices], valid[tile.core.slices])[1]
        for tile in Grid((40, 56), (16, 16))
    ]
    random.Random(0).shuffle(parts)
    assert sum(parts, no_scores(4, (1, 1))[1]) == whole == whole + Certainty()


def means(band: np.ndarray) -> np.ndarray:
    """The next overview by NumPy: means of 2 x 2 where there is data, halves up."""
    rest = [(0, n % 2) for n in band.shape]
    known = np.pad(np.where(band == NODATA, np.nan, band), rest, constant_values=np.nan)
    quads = known.reshape(known.shape[0] // 2, 2, -1, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    count = (~np.isnan(quads)).sum(axis=1)
    mean = np.floor(np.nansum(quads, axis=1) / np.maximum(count, 1) + 0.5)
    return np.where(count > 0, mean, NODATA).reshape(known.shape[0] // 2, -1).astype(np.uint8)


@pytest.mark.parametrize(("shape", "side"), [((65, 100), 16), ((300, 530), 256), ((5, 3), 1024)])
def test_an_image_becomes_a_cog_with_a_band_for_each_class(tmp_path, shape, side):
    valid = np.ones(shape, bool)
    valid[: shape[0] // 3, : shape[1] // 2] = False
    values, _ = quantised(probabilities(shape, 3), valid)
    spec = spec_of(shape, UTM)
    writer, blocks = blocks_of(values, (side, side), spec)
    store = Store(str(tmp_path))
    writer.publish(store, "scores.tif", blocks, spec, CLASSES, (side, side))
    path = tmp_path / "scores.tif"
    assert cog_validate(str(path), strict=True)[0]
    with rasterio.open(path) as file:
        assert np.array_equal(file.read(), values)
        assert (file.descriptions, file.nodata) == (CLASSES.names, NODATA)
        assert (file.scales, file.offsets) == ((1 / MOST,) * 3, (0.0,) * 3)
        assert file.crs.to_epsg() == 32633
        assert tuple(file.transform)[:6] == UTM.affine
        count = len(file.overviews(3))
    for level in range(count):
        values = np.stack([means(band) for band in values])
        with rasterio.open(path, overview_level=level) as file:
            assert np.array_equal(file.read(), values)


def test_one_class_and_many(tmp_path):
    for count in (1, 300):
        table = ClassTable.of(tuple(f"class {i}" for i in range(count)))
        values = np.arange(count * 20 * 20).reshape(count, 20, 20).astype(np.uint8)
        spec = spec_of((20, 20))
        writer, blocks = blocks_of(values, (16, 16), spec)
        writer.publish(Store(str(tmp_path)), "s.tif", blocks, spec, table, (16, 16))
        with rasterio.open(tmp_path / "s.tif") as file:
            assert file.descriptions == table.names
            assert np.array_equal(file.read(), values)


def test_a_missing_block_is_noticed():
    values, spec = np.zeros((3, 40, 40), np.uint8), spec_of((40, 40))
    writer, blocks = blocks_of(values, (16, 16), spec)
    with pytest.raises(RunError, match="lacks 1 of 27 blocks"):
        writer.write(blocks[1:], spec, CLASSES, io.BytesIO(), (16, 16))


@pytest.mark.parametrize("side", [(16, 16, 16), (1, 64, 64)])
def test_a_volume_becomes_an_ome_zarr_with_a_channel_for_each_class(tmp_path, side):
    shape, space = (9, 40, 70), Space(metric=Metric((2.0, 0.5, 0.5), "mm"), axes=("z", "y", "x"))
    spec = spec_of(shape, space)
    valid = np.random.default_rng(2).random(shape) < 0.8
    values, _ = quantised(probabilities(shape, 3), valid)
    writer, blocks = blocks_of(values, side, spec)
    writer.publish(Store(str(tmp_path)), "s.zarr", blocks, spec, CLASSES, side)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert np.array_equal(group["0"][:], values)
    assert tuple(group["0"].attrs["classes"]) == CLASSES.names
    ome = group.attrs["ome"]
    (level,) = ome["multiscales"][0]["datasets"]
    assert level["coordinateTransformations"][0]["scale"] == [1.0, 2.0, 0.5, 0.5]
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == list("czyx")
    assert [channel["label"] for channel in ome["omero"]["channels"]] == list(CLASSES.names)
    pytest.importorskip("ome_zarr_models.v05").Image.from_zarr(group)
    xarray = pytest.importorskip("xarray")
    read = xarray.open_zarr(tmp_path / "s.zarr", consolidated=False)["0"]
    assert np.array_equal(np.isnan(read), values == NODATA)
    assert np.allclose(read.fillna(1.02), values / MOST)
