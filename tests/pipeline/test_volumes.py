"""Volumes through whole runs: masks, areas, previews, and the commands that look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.filters import threshold_otsu
from skimage.measure import label
from tests_support import assert_same_results, read_table

from maskloom.segcore import formats
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.raster.source import Source
from maskloom.tasks import batching
from maskloom.tasks.memory import without_room

SERIAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")
SHAPE = (20, 70, 50)


def volume() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    near = ((z - 6) / 3) ** 2 + ((y - 20) / 9) ** 2 + ((x - 15) / 8) ** 2
    far = ((z - 14) / 4) ** 2 + ((y - 50) / 8) ** 2 + ((x - 35) / 6) ** 2
    noise = np.random.default_rng(5).normal(0, 5, SHAPE)
    return (40 + 120 * np.exp(-near) + 160 * np.exp(-far) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "plain.npy", volume())
    np.savez_compressed(folder / "sized.npz", pixels=volume(), spacing=[2, 0.5, 0.5], unit="mm")
    return folder


def test_masks_areas_and_previews_of_volumes(inputs, maskloom, tmp_path):
    """`maskloom segment volume.npy`: counts are NumPy's, the threshold is scikit-image's."""
    out = tmp_path / "out"
    command = ("segment", f"{inputs}/*", "-o", out, "-s", "threshold", *SERIAL)
    result = maskloom(*command, "--set", "tiling.tile=[8, 32, 48]")
    assert result.exit_code == 0, result.output
    assert "2 images done, 0 failed, " in result.output

    expected = volume() > threshold_otsu(volume())
    for name in ("plain", "sized"):
        mask = np.load(out / f"masks/{name}.npy")
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, expected)
        with Image.open(out / f"previews/{name}.png") as preview:
            assert preview.width > 2 * SHAPE[2] + SHAPE[1]
            assert preview.height > 2 * SHAPE[1]
    images = {row["image_id"]: row for row in read_table(out, "images")}
    areas = read_table(out, "areas")
    for row in images.values():
        assert (row["width"], row["height"], row["depth"]) == (50, 70, 20)
        assert row["total_pixels"] == row["valid_pixels"] == volume().size
    found = {(row["image_id"], row["class_id"]): row for row in areas}
    inside = int(expected.sum())
    assert found["plain", 1]["pixel_count"] == found["sized", 1]["pixel_count"] == inside
    assert (found["plain", 1]["area"], found["plain", 1]["area_unit"]) == (inside, "px")
    assert (found["sized", 1]["area"], found["sized", 1]["area_unit"]) == (inside / 2, "mm3")
    assert "done 2" in maskloom("status", out).output
    assert maskloom("verify", out).exit_code == 0
    assert "Nothing to do" in maskloom(*command).output


@pytest.mark.parametrize(
    "segmenter",
    [
        {"kind": "kmeans", "clusters": 3},
        {"kind": "threshold", "method": "local", "window": 9},
        pytest.param(
            {"kind": "quickshift", "kernel_size": 1, "max_dist": 4}, marks=pytest.mark.nightly
        ),
    ],
    ids=lambda segmenter: segmenter["kind"],
)
def test_neither_tiles_nor_workers_change_a_volume(
    inputs, maskloom, tmp_path, segmenter, monkeypatch, two_workers
):
    """Whole volumes in this process, and parts of them on two workers. Quick shift has objects."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"inputs: images\noutput: whole\nsegmenter: {segmenter}\n")
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**13)
    monkeypatch.setattr(batching, "range_pixels", lambda _: 2**13)
    assert maskloom("run", recipe, *SERIAL).exit_code == 0
    tiled = ("--set", "output=tiled", "--set", "tiling.tile=[6, 32, 16]")
    workers = ("--set", f"cluster={two_workers}")
    assert maskloom("run", recipe, "--no-prefect", "--quiet", *tiled, *workers).exit_code == 0

    assert_same_results(tmp_path / "whole", tmp_path / "tiled")
    assert maskloom("audit", recipe).exit_code == 0


def test_sides_for_three_axes_do_not_cut_images(maskloom, tmp_path):
    np.save(tmp_path / "image.npy", volume()[0])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "inputs: image.npy\noutput: out\nsegmenter: threshold\ntiling: {tile: [8, 64, 64]}\n"
    )
    for command in (("run", recipe, *SERIAL), ("plan", recipe), ("audit", recipe)):
        result = maskloom(*command)
        assert result.exit_code == 2
        assert "tiling.tile: 8x64x64 has a side for each of the axes z, y and x" in result.output


@pytest.mark.parametrize("of_objects", [False, True], ids=["classes", "ids"])
def test_by_default_all_neighbours_are_connected(maskloom, tmp_path, of_objects):
    """In an image and a volume of one run, cut into tiles."""
    dark = np.random.default_rng(8).random((6, 40, 50)) < 0.85
    for name, array in (("image", dark[0]), ("volume", dark)):
        np.save(tmp_path / f"{name}.npy", np.where(array, 0, 200).astype(np.uint8))
    threshold = {"kind": "threshold", "value": 100}
    segmenter = {"kind": "connected_parts", "of": threshold} if of_objects else threshold
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"inputs: '*.npy'\noutput: out\nsegmenter: {segmenter}\nstatistics: [area, objects]\n"
        "tiling: {tile: 16}\n"
    )
    assert maskloom("run", recipe, *SERIAL).exit_code == 0

    rows = read_table(tmp_path / "out", "objects")
    for name, bright in (("image", ~dark[0]), ("volume", ~dark)):
        wanted = label(bright, connectivity=bright.ndim)
        sizes = [row["pixel_count"] for row in rows if row["image_id"] == name]
        assert sizes == np.bincount(wanted.ravel())[1:].tolist()
        assert len(sizes) < label(bright, connectivity=1).max()


def test_nodata_in_the_recipe_hides_the_outside_of_an_organ(maskloom, tmp_path):
    """Neither fitted nor counted, in runs and in audits."""
    outside = np.indices(SHAPE)[1] < 30
    np.save(tmp_path / "scan.npy", np.where(outside, 0, volume().clip(1)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inputs: scan.npy\noutput: out\nsegmenter: threshold\nnodata: 0\n")
    assert maskloom("run", recipe, *SERIAL, "--set", "tiling.tile=[8, 32, 32]").exit_code == 0

    mask = np.load(tmp_path / "out/masks/scan.npy")
    threshold = threshold_otsu(volume().clip(1)[~outside])
    assert np.array_equal(mask, np.where(outside, 255, volume() > threshold))
    (row,) = read_table(tmp_path / "out", "images")
    assert row["nodata_pixels"] == np.count_nonzero(outside)
    assert threshold != threshold_otsu(np.where(outside, 0, volume()))
    assert maskloom("audit", recipe).exit_code == 0

    assert maskloom("run", recipe, *SERIAL, "--set", "nodata=40").exit_code == 0
    hidden = np.load(tmp_path / "out/masks/scan.npy") == 255
    assert np.array_equal(hidden, ~outside & (volume() == 40))
    for wrong in ("x", ".nan", "true", "[0]"):
        result = maskloom("run", recipe, *SERIAL, "--set", f"nodata={wrong}")
        assert result.exit_code == 2
        assert "nodata: expected a" in result.output


def test_masks_of_maskloom_are_truth_without_options(tmp_path, maskloom):
    """The nodata label of a mask of NumPy is in the file beside it; other arrays have none."""
    values = volume().astype(np.float32)
    values[:, 5:9] = np.nan
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", values)
    given = (*("segment", tmp_path / "in", "-s", "threshold", "-p", "value=90"), *SERIAL)
    for output in ("one", "other"):
        assert maskloom(*given, "-o", tmp_path / output).exit_code == 0
    truth = tmp_path / "one" / "masks"
    evaluated = ("evaluate", tmp_path / "other", "--truth", f"{truth}/*.npy", "--quiet")

    result = maskloom(*evaluated)

    assert result.exit_code == 0, result.output
    known = np.isfinite(values).sum() / 1e6
    assert f"1 image, {known:.2f} megavoxels: accuracy 1.000" in result.output
    for beside in (b"", b"{}", b"[255]", b'{"nodata": "255"}', None):
        if beside is None:
            (truth / "a.npy.json").unlink()
        else:
            (truth / "a.npy.json").write_bytes(beside)
        refused = maskloom(*evaluated)
        assert refused.exit_code == 2
        assert "255" in refused.output


def test_a_volume_that_is_too_large_is_told_a_format_of_volumes(tmp_path):
    spec = formats.describe(str(_archive(tmp_path)))
    (refused,) = without_room([PlannedImage(Source("v.npz", "v", "", 0), spec)], 1)
    assert refused.failure is not None
    assert "convert the volume to Zarr" in refused.failure.error
    assert "TIFF" not in refused.failure.error


def _archive(folder: Path) -> Path:
    np.savez(folder / "v.npz", pixels=volume())
    return folder / "v.npz"
