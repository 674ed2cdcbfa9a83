"""Slides through the whole pipeline: found in folders, measured in mm2, masks on the slide."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import tifffile
from skimage import data
from skimage.filters import threshold_otsu
from slides_support import LABEL, write_aperio
from tests_support import read_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TISSUE = data.immunohistochemistry()[:239, :311]
QUIET = ("--no-prefect", "--quiet", "--set", "cluster=serial")
DATA = os.environ.get("MASKLOOM_TEST_DATA")


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    return read_table(output, table)  # type: ignore[return-value]


def test_slides_in_a_folder_are_found_and_measured(
    tmp_path: Path, maskloom: Callable[..., Any]
) -> None:
    (tmp_path / "in").mkdir()
    write_aperio(tmp_path / "in" / "a.svs", TISSUE)
    write_aperio(tmp_path / "in" / "b.svs", TISSUE, mpp=None)
    (tmp_path / "in" / "c.svs").write_bytes(b"II*\0" + bytes(200))
    threshold = ("-s", "threshold", "-p", "value=128", "-p", "band=1", "--set", "tiling.tile=64")
    result = maskloom("segment", tmp_path / "in", "-o", tmp_path / "out", *threshold, *QUIET)
    assert result.exit_code == 3, result.output
    images = {row["image_id"]: row for row in rows(tmp_path / "out", "images")}
    assert [images[name]["status"] for name in "abc"] == ["ok", "ok", "failed"]
    assert "cannot be read as a slide" in images["c"]["error"]
    assert images["a"]["mask_uri"] == "masks/a.ome.tif"
    areas = {(row["image_id"], row["class_id"]): row for row in rows(tmp_path / "out", "areas")}
    with tifffile.TiffFile(tmp_path / "in" / "a.svs") as slide:
        expected = slide.pages[0].asarray()[..., 0] > 128
    mask = tifffile.imread(tmp_path / "out" / "masks" / "a.ome.tif")
    np.testing.assert_array_equal(mask, expected)
    count = int((mask == 1).sum())
    assert areas["a", 1]["pixel_count"] == count
    assert areas["a", 1]["area_unit"] == "mm2"
    assert areas["a", 1]["area"] == pytest.approx(count * 0.25e-6)
    assert (areas["b", 1]["area"], areas["b", 1]["area_unit"]) == (count, "px")


def test_a_level_is_read_recorded_and_laid_on_the_slide(
    tmp_path: Path, maskloom: Callable[..., Any]
) -> None:
    write_aperio(tmp_path / "a.svs", TISSUE)
    arguments = ("-s", "threshold", "-p", "band=1", "--set", "level=2.1 um", *QUIET)
    result = maskloom("segment", tmp_path / "a.svs", "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    (image,) = rows(tmp_path / "out", "images")
    assert (image["height"], image["width"]) == (59, 77)
    assert image["warning"] == "level 1 of the pyramid was read, not full resolution"
    areas = rows(tmp_path / "out", "areas")
    assert sum(row["area"] for row in areas) == pytest.approx(239 * 311 * 0.25e-6)
    with tifffile.TiffFile(tmp_path / "a.svs") as slide:
        level = slide.series[0].levels[1].asarray()
    with rasterio.open(tmp_path / "out" / "masks" / "a.ome.tif") as mask:
        found = mask.read(1)
        assert mask.transform @ (77, 59) == pytest.approx((311, 239))
    np.testing.assert_array_equal(found, level[..., 0] > threshold_otsu(level[..., 0]))


def test_the_label_is_in_no_preview(tmp_path: Path, maskloom: Callable[..., Any]) -> None:
    from PIL import Image

    write_aperio(tmp_path / "a.svs", TISSUE)
    for level in (0, 1, 2):
        output = tmp_path / f"out{level}"
        arguments = ("-s", "threshold", "--set", f"level={level}", *QUIET)
        assert maskloom("segment", tmp_path / "a.svs", "-o", output, *arguments).exit_code == 0
        for path in (output / "previews").rglob("*.png"):
            pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
            assert not (np.abs(pixels - LABEL).max(axis=-1) < 40).any()


@pytest.mark.skipif(DATA is None, reason="MASKLOOM_TEST_DATA is not set")
def test_every_slide_of_the_test_data_is_right_or_fails_for_its_true_reason(
    tmp_path: Path, maskloom: Callable[..., Any]
) -> None:
    (tmp_path / "in").mkdir()
    for path in Path(str(DATA), "wsi").rglob("*.svs"):
        shutil.copy(path, tmp_path / "in")
    result = maskloom("segment", tmp_path / "in", "-o", tmp_path / "out", "-s", "threshold", *QUIET)
    assert result.exit_code == 3, result.output
    images = {Path(str(row["uri"])).name: row for row in rows(tmp_path / "out", "images")}
    failed = {name: row["error"] for name, row in images.items() if row["status"] == "failed"}
    assert failed.keys() == {"unreadable.svs"}
    assert "tile of rows 0 to 16" in failed["unreadable.svs"]
    assert {"small.svs", "CMU-1-Small-Region.svs", "\U0001f610.svs"} < images.keys()
    units = {row["area_unit"] for row in rows(tmp_path / "out", "areas") if row["fraction"]}
    assert units == {"mm2"}
