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
    for kind in ("geojson", "gpkg", "geoparquet", "qupath", "coco"):
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


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    """A run that makes a mask of objects, in pieces, with holes and corners that touch."""
    folder, random = tmp_path_factory.mktemp("objects"), np.random.default_rng(1)
    pixels = (random.random((90, 110)) < 0.4).astype(np.uint8) * 200 + 20
    profile = {"width": 110, "height": 90, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        folder / "a.tif", "w", crs="EPSG:32633", transform=AFFINE, **profile
    ) as file:
        file.write(pixels, 1)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"{{inputs: '{folder}/*.tif', output: '{folder}/out', cluster: serial, segmenter: "
        "{kind: connected_parts, connectivity: 8, of: {kind: threshold, value: 100}}}"
    )
    done = CliRunner().invoke(app, ["run", str(recipe), "--no-prefect", "-q"])
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.mark.parametrize(
    "to",
    [
        "gpkg",
        *(
            pytest.param(to, marks=pytest.mark.nightly)
            for to in ("geojson", "geoparquet", "qupath", "coco")
        ),
    ],
)
def test_objects_come_with_their_measures(objects, tmp_path, monkeypatch, to) -> None:
    monkeypatch.setattr(features, "_TILE", 32)
    command = ["export", str(objects), "--to", to, "-o", str(tmp_path), "--per-image"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    expected = mask(objects, "a")
    table = geopandas.read_parquet(objects / "tables" / "objects").set_index("object_id")
    [path] = [each for each in tmp_path.rglob("a.*") if each.is_file()]
    if to == "coco":
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(path)
        drawn = np.zeros(expected.shape, int)
        # Annotations are in the order of ids.
        for number, each in zip(sorted(table.index), coco.imgToAnns[1], strict=True):
            drawn[coco.annToMask(each).astype(bool)] = number
        assert (drawn == expected).all()
        return
    read = geopandas.read_parquet if to == "geoparquet" else geopandas.read_file
    frame = read(path)
    assert frame.is_valid.all()
    transform = Affine.identity() if to == "qupath" else AFFINE
    if to == "qupath":
        ids = [
            each["properties"]["measurements"]["object_id"]
            for each in json.loads(path.read_text())["features"]
        ]
    else:
        frame = frame.to_crs(32633) if to == "geojson" else frame
        assert frame.crs.to_epsg() == 32633
        ids = frame["object_id"].tolist()
        assert frame["area"].tolist() == table.loc[ids, "area"].tolist()
    drawn = rasterize(
        zip(frame.geometry, ids, strict=True),
        out_shape=expected.shape,
        transform=transform,
        dtype="uint32",
    )
    assert (drawn == expected).all()
