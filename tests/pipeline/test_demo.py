"""`maskloom demo`: the only test that runs it by day, with a small mosaic and in this process."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from tests_support import read_table

from maskloom.flows.demo import cells, demonstrate

pytestmark = pytest.mark.reports


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demonstrate, "SIDE", 1500)
    monkeypatch.setattr(demonstrate, "CLUSTER", "serial")


def test_the_demo_counts_maps_and_finds_no_seam(tmp_path, maskloom, small):
    folder = tmp_path / "demo"
    result = maskloom("demo", folder, "--no-prefect", "--quiet")

    assert result.exit_code == 0, result.output
    found = read_table(folder / "cells", "objects")
    assert f"{len(found)} nuclei of " in result.output
    assert _paired(found, cells.nuclei()) > 0.95 * cells.COUNT
    assert f"0 of {1500**2:,} pixels differ" in result.output
    with rasterio.open(folder / "images" / "scene.tif") as scene:
        assert scene.res == (10, 10)
    areas = [
        row["area"]
        for row in read_table(folder / "landcover", "areas")
        if row["image_id"] == "scene" and row["area_unit"] == "m2"
    ]
    assert sum(areas) == 300 * 300 * 10 * 10
    named = result.output.split("Open", 1)[1].split()[0]
    assert (folder / "landcover" / "previews" / "scene.png").exists()
    assert named.startswith(str(folder))

    again = maskloom("demo", folder, "--no-prefect", "--quiet")
    assert again.exit_code == 0, again.output
    assert again.output == result.output

    # A single wrong pixel is found.
    path = folder / "landcover" / "masks" / "mosaic.tif"
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        place = rasterio.windows.Window(700, 1100, 1, 1)
        mask.write((mask.read(1, window=place) + 1) % 4, 1, window=place)
    seamed = maskloom("demo", folder, "--no-prefect", "--quiet")
    assert seamed.exit_code == 1
    assert f"SEAMS: please report this: 1 of {1500**2:,} pixels differ" in seamed.output


def _paired(found, nuclei):
    """Number of objects and nuclei whose centres are each other's nearest, inside both."""
    centres = np.array([(row["centroid_y"], row["centroid_x"]) for row in found])
    true = np.array([(each.y, each.x) for each in nuclei])
    distances = np.linalg.norm(centres[:, None] - true, axis=2)
    nearest, back = distances.argmin(axis=1), distances.argmin(axis=0)
    mutual = back[nearest] == np.arange(len(found))
    return np.count_nonzero(mutual & (distances.min(axis=1) < 5))


def test_the_mosaic_is_the_scene_mirrored(tmp_path, small):
    demonstrate.prepare(tmp_path)
    with rasterio.open(tmp_path / "images" / "scene.tif") as file:
        scene = file.read()
    with rasterio.open(tmp_path / "images" / "mosaic.tif") as file:
        mosaic = file.read()
        assert file.crs is not None
    true = np.pad(scene, ((0, 0), (0, 1200), (0, 1200)), mode="symmetric")
    assert np.array_equal(mosaic, true)


def test_a_file_is_no_folder_for_the_demo(tmp_path, maskloom):
    (tmp_path / "file").write_text("")
    refused = maskloom("demo", tmp_path / "file", "--no-prefect", "--quiet")
    assert refused.exit_code == 1
    assert "Name another folder" in " ".join(refused.output.split())


@pytest.mark.nightly
def test_the_whole_demo_on_workers(tmp_path, maskloom):
    result = maskloom("demo", tmp_path / "demo", "--no-prefect", "--quiet")
    assert result.exit_code == 0, result.output
    assert f"0 of {16384**2:,} pixels differ" in result.output
