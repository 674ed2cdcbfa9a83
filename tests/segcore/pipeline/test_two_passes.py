"""An image or a volume under a run: two passes over its tiles give its mask and its rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.figures.preview import planes_shown
from maskloom.segcore.geometry import Box, Tiling
from maskloom.segcore.masks.protocol import EncodedBlock
from maskloom.segcore.pipeline.image_run import ImageRun
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.tile_results import TileResults, merge_results
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.statistics.area import Area
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.packing import unpack, unpack_table
from maskloom.segcore.testing.segmenters import Picture

SHAPES = [(37, 50), (9, 21, 17)]


class Raw:
    """A mask writer whose blocks are the labels of tiles."""

    def encode(self, labels: np.ndarray, tile: Any, *_: Any) -> list[EncodedBlock]:
        return [EncodedBlock(0, tile.index, np.ascontiguousarray(labels).tobytes())]


@pytest.fixture(autouse=True)
def raw_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageRun, "mask_writer", lambda *_: Raw())


class Pixels:
    """A reader of the bands of a picture that a run reads."""

    def __init__(self, picture: Picture, run: ImageRun) -> None:
        self.pixels = picture.pixels[..., [band - 1 for band in run.source.bands]]
        self.valid = picture.valid

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        return self.pixels[box.slices], self.valid[box.slices]


def picture_of(shape: tuple[int, ...]) -> Picture:
    generator = np.random.default_rng(len(shape))
    field = ndimage.gaussian_filter(generator.random(shape), 1.0)
    bright = field > np.quantile(field, 0.75)
    pixels = np.stack([200 * bright, generator.integers(0, 99, shape)], axis=-1).astype(np.uint8)
    return Picture(pixels, generator.random(shape) < 0.97)


def settings_of(shape: tuple[int, ...], recipe: Any, objects: Objects | None) -> RunSettings:
    tiling = Tiling(16) if len(shape) == 2 else Tiling((4, 16, 8))
    return RunSettings("", "run", recipe.start(), {"area": Area()}, tiling, objects=objects)


def results_of(run: ImageRun, picture: Picture) -> tuple[TileResults, np.ndarray]:
    """The results of both passes, and the mask."""
    first = [run.segment_tile(Pixels(picture, run), tile) for tile in run.grid]
    labels = [found for _, found in first if found is not None]
    relabellings = list(run.join(labels))
    count = max((each.numbers.greatest for each in relabellings), default=0)
    second = [
        run.relabel_tile(tile, found.labels, relabelling, count)
        for tile, found, relabelling in zip(run.grid, labels, relabellings, strict=bool(labels))
    ]
    whole = merge_results([*(each for each, _ in first), *second], run.settings.statistics)
    mask = np.zeros(picture.valid.shape, np.uint32 if run.has_object_mask else np.uint8)
    for tile, block in zip(run.grid, whole.blocks, strict=True):
        values = np.frombuffer(block.payload, mask.dtype)
        mask[tile.core.slices] = values.reshape(tile.core.shape)
    return whole, mask


def rows_of(run: ImageRun, results: TileResults) -> list[dict[str, Any]]:
    spanning = Measures.concatenate([unpack(Measures, each) for each in results.spanning])
    tables = [*(unpack_table(each) for each in results.rows), run.rows_of(spanning)]
    return sorted(
        (row for each in tables for row in each.to_pylist()), key=lambda row: row["object_id"]
    )


def expected_ids(picture: Picture, connectivity: int) -> np.ndarray:
    mask = (picture.pixels[..., 0] > 100) & picture.valid
    corners = {8: 2, 26: 3, 18: 2, 4: 1, 6: 1}[connectivity]
    return ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, corners))[0]


@pytest.mark.parametrize("shape", SHAPES, ids=["image", "volume"])
@pytest.mark.parametrize("of_objects", [False, True], ids=["classes", "objects"])
def test_mask_and_rows_are_those_of_the_whole(shape: tuple[int, ...], of_objects: bool) -> None:
    picture, threshold = picture_of(shape), Threshold(value=100, band=1)
    connectivity = 8 if len(shape) == 2 else 26
    recipe = ConnectedParts(threshold, connectivity=connectivity) if of_objects else threshold
    run = ImageRun.of(settings_of(shape, recipe, Objects(connectivity=connectivity)), picture.spec)
    results, mask = results_of(run, picture)
    ids = expected_ids(picture, connectivity)
    assert ids.max() > 3
    expected = ids if of_objects else np.where(picture.valid, ids > 0, run.class_table.nodata)
    assert np.array_equal(mask, expected)
    counts = results.states["area"]
    assert counts["counts"] == [int((ids[picture.valid] == 0).sum()), int((ids > 0).sum())]
    assert counts["nodata"] == int((~picture.valid).sum())
    rows = rows_of(run, results)
    found = regionprops(ids, picture.pixels)
    assert [row["object_id"] for row in rows] == list(range(1, len(found) + 1))
    for row, each in zip(rows, found, strict=True):
        assert row["pixel_count"] == each.num_pixels
        axes = "zyx"[-len(shape) :]
        box = [row[f"bbox_{axis}{end}"] for end in (0, 1) for axis in axes]
        assert box == list(each.bbox)
        means = [row["mean_1"], row["mean_2"]]
        np.testing.assert_allclose(means, each.intensity_mean)


@pytest.mark.parametrize("of_objects", [False, True], ids=["classes", "objects"])
@pytest.mark.parametrize("shape", SHAPES, ids=["image", "volume"])
def test_the_preview_shows_each_pixel_of_the_middle_planes_once(
    shape: tuple[int, ...], of_objects: bool
) -> None:
    picture = picture_of(shape)
    threshold = Threshold(value=100, band=1)
    recipe = ConnectedParts(threshold) if of_objects else threshold
    run = ImageRun.of(settings_of(shape, recipe, None), picture.spec)
    results, mask = results_of(run, picture)
    for across in planes_shown(shape):
        plane = mask if mask.ndim == 2 else mask.take(shape[across] // 2, axis=across)
        shown = np.full(plane.shape, 99, mask.dtype)
        seen = np.zeros(plane.shape, int)
        for part in results.previews:
            if part.across == across:
                sides = zip(part.start, part.labels.shape, strict=True)
                place = tuple(slice(a, a + n) for a, n in sides)
                shown[place] = part.labels
                seen[place] += 1
        assert (seen == 1).all()
        assert np.array_equal(shown, plane)


def test_runs_without_objects_join_nothing() -> None:
    picture = picture_of((20, 20))
    run = ImageRun.of(settings_of((20, 20), Threshold(value=100, band=1), None), picture.spec)
    assert run.merger is None
    assert list(run.join([])) == []


def test_a_connectivity_of_images_is_refused_for_volumes() -> None:
    spec, threshold = picture_of(SHAPES[1]).spec, Threshold(value=100, band=1)
    for recipe, objects in (
        (threshold, Objects(connectivity=8)),
        (ConnectedParts(threshold, connectivity=8), None),
    ):
        with pytest.raises(ModelMismatch, match=r"8 is not for a volume.*6, 18, 26"):
            ImageRun.of(settings_of(SHAPES[1], recipe, objects), spec)
    image = picture_of(SHAPES[0]).spec
    with pytest.raises(ModelMismatch, match=r"26 is not for an image.*4, 8"):
        ImageRun.of(settings_of(SHAPES[0], ConnectedParts(threshold, connectivity=26), None), image)


def test_a_model_that_is_not_fitted_is_refused() -> None:
    settings = settings_of((20, 20), Threshold(), None)
    with pytest.raises(TypeError, match="must be fitted first"):
        ImageRun.of(replace(settings), picture_of((20, 20)).spec)
