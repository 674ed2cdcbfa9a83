"""Exported outlines, drawn by other libraries, give the masks again."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from pycocotools.coco import COCO
from rasterio.features import rasterize
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.tasks.export import features

AFFINE = Affine(30, 0, 400_000, 0, -30, 5_500_000)
NAMES = ["dark", "bright"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A run on two scenes of noise: regions within regions, touching corners, and no data."""
    folder, random = tmp_path_factory.mktemp("exported"), np.random.default_rng(0)
    for name in "ab":
        pixels = random.integers(1, 256, (90, 110)).astype(np.uint8)
        pixels[20:60, 30:70] = 200
        pixels[30:50, 40:60] = 20
        pixels[:7, :9] = 0
        profile = {"width": 110, "height": 90, "count": 1, "dtype": "uint8", "nodata": 0}
        with rasterio.open(
            folder / f"{name}.tif", "w", crs="EPSG:32633", transform=AFFINE, **profile
        ) as file:
            file.write(pixels, 1)
    command = ["segment", str(folder / "*.tif"), "-o", str(folder / "out"), "-s", "threshold"]
    command += ["-p", "value=120", "-p", f"classes={NAMES}", "--no-prefect", "-q"]
    done = CliRunner().invoke(app, [*command, "--set", "cluster=serial"])
    assert done.exit_code == 0, done.output
    return folder / "out"


def mask(out: Path, name: str) -> np.ndarray:
    with rasterio.open(out / "masks" / f"{name}.tif") as file:
        return file.read(1)


@pytest.mark.parametrize("tile", [32, 2048])
def test_drawn_again_the_outlines_are_the_mask(out, tmp_path, monkeypatch, tile) -> None:
    monkeypatch.setattr(features, "_TILE", tile)
    for kind in ("geojson", "qupath", "coco"):
        done = CliRunner().invoke(app, ["export", str(out), "--to", kind, "-o", str(tmp_path)])
        assert done.exit_code == 0, done.output
    frame = geopandas.read_file(tmp_path / "classes.geojson")
    assert frame.is_valid.all()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "coco.json")
    for number, name in enumerate("ab", 1):
        expected = mask(out, name)
        assert set(np.unique(expected)) == {0, 1, 255}
        own = frame[frame["image_id"] == name].to_crs(32633)
        options = {"out_shape": expected.shape, "fill": 255, "dtype": "uint8"}
        drawn = rasterize(
            zip(own.geometry, own["class_id"], strict=True), transform=AFFINE, **options
        )
        assert (drawn == expected).all()
        found = json.loads((tmp_path / "qupath" / f"{name}.geojson").read_text())["features"]
        drawn = rasterize(
            (
                (each["geometry"], NAMES.index(each["properties"]["classification"]["name"]))
                for each in found
            ),
            **options,
        )
        assert (drawn == expected).all()
        again = np.full(expected.shape, 255)
        for each in coco.imgToAnns[number]:
            part = coco.annToMask(each).astype(bool)
            assert each["area"] == part.sum()
            assert (again[part] == 255).all()
            again[part] = NAMES.index(coco.cats[each["category_id"]]["name"])
            rows, columns = np.nonzero(part)
            assert each["bbox"][:2] == [columns.min(), rows.min()]
        assert (again == expected).all()
