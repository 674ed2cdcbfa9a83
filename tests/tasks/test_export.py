"""Exported outlines, drawn by other libraries, give the masks again."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from pycocotools.coco import COCO
from rasterio.features import rasterize
from rasterio.warp import transform as transform_points
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.tasks.export import features
from maskloom.tasks.export.request import TARGETS

AFFINE = Affine(30, 0, 400_000, 0, -30, 5_500_000)
PLACES = {"a": AFFINE, "b": AFFINE * Affine.rotation(20)}
NAMES = ["dark", "bright"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A run on two scenes of noise: regions within regions, touching corners, and no data. One is
    rotated.
    """
    folder, random = tmp_path_factory.mktemp("exported"), np.random.default_rng(0)
    for name, place in PLACES.items():
        pixels = random.integers(1, 256, (90, 110)).astype(np.uint8)
        pixels[20:60, 30:70] = 200
        pixels[30:50, 40:60] = 20
        pixels[:7, :9] = 0
        profile = {"width": 110, "height": 90, "count": 1, "dtype": "uint8", "nodata": 0}
        with rasterio.open(
            folder / f"{name}.tif", "w", crs="EPSG:32633", transform=place, **profile
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
    frames = [
        geopandas.read_file(tmp_path / "classes.geojson").to_crs(32633),
        geopandas.read_file(tmp_path / "classes.gpkg"),
        geopandas.read_parquet(tmp_path / "classes.parquet"),
    ]
    for frame in frames:
        assert frame.is_valid.all()
        assert frame.crs.to_epsg() == 32633
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "coco.json")
    for number, name in enumerate("ab", 1):
        expected = mask(out, name)
        assert set(np.unique(expected)) == {0, 1, 255}
        options = {"out_shape": expected.shape, "fill": 255, "dtype": "uint8"}
        for frame in frames:
            own = frame[frame["image_id"] == name]
            drawn = rasterize(
                zip(own.geometry, own["class_id"], strict=True), transform=PLACES[name], **options
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
    """A run that makes masks of objects: in pieces, with holes and corners that touch; none."""
    folder, random = tmp_path_factory.mktemp("objects"), np.random.default_rng(1)
    pixels = (random.random((90, 110)) < 0.4).astype(np.uint8) * 200 + 20
    profile = {"width": 110, "height": 90, "count": 1, "dtype": "uint8"}
    for name, values in (("a", pixels), ("none", np.full_like(pixels, 20))):
        with rasterio.open(
            folder / f"{name}.tif", "w", crs="EPSG:32633", transform=AFFINE, **profile
        ) as file:
            file.write(values, 1)
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
    [empty] = [each for each in tmp_path.rglob("none.*") if each.is_file()]
    if to == "coco":
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(path)
        drawn = np.zeros(expected.shape, int)
        # Annotations are in the order of ids.
        for number, each in zip(sorted(table.index), coco.imgToAnns[1], strict=True):
            drawn[coco.annToMask(each).astype(bool)] = number
        assert (drawn == expected).all()
        assert json.loads(empty.read_text())["annotations"] == []
        return
    read = geopandas.read_parquet if to == "geoparquet" else geopandas.read_file
    frame = read(path)
    assert len(read(empty)) == 0
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


def test_every_category_of_coco_is_described(objects, tmp_path, monkeypatch) -> None:
    # As if no object had a class that the table of areas names.
    monkeypatch.setattr(features, "_classes", lambda _: defaultdict(dict))
    done = CliRunner().invoke(app, ["export", str(objects), "--to", "coco", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "coco.json").read_text())
    assert found["annotations"]
    described = {each["id"] for each in found["categories"]}
    assert {each["category_id"] for each in found["annotations"]} <= described


def test_help_names_all_targets() -> None:
    done = CliRunner().invoke(app, ["export", "--help"])
    assert all(each in done.output for each in TARGETS)


def run(folder: Path, *settings: str) -> None:
    command = ["segment", str(folder / "*.tif"), "-o", str(folder / "out"), "-s", "threshold"]
    command += ["-p", "value=120", "-p", f"classes={NAMES}", "--no-prefect", "-q"]
    command += [part for each in ("cluster=serial", *settings) for part in ("--set", each)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output


def write(path: Path, crs: str | None, transform: Affine, edge: int = 64) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (edge, edge)).astype(np.uint8)
    profile = {"width": edge, "height": edge, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as file:
        file.write(pixels, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("other", ["EPSG:32634", None])
def test_one_file_has_one_crs(tmp_path, other) -> None:
    write(tmp_path / "a.tif", "EPSG:32633", AFFINE)
    write(tmp_path / "b.tif", other, AFFINE if other else Affine.identity())
    run(tmp_path)
    for to in ("gpkg", "geoparquet", "geojson"):
        command = ["export", str(tmp_path / "out"), "--to", to, "-o", str(tmp_path / to)]
        done = CliRunner().invoke(app, command)
        if other is None or to != "geojson":
            assert done.exit_code == 2
            assert "--per-image" in done.output
            assert not (tmp_path / to).exists()
        assert CliRunner().invoke(app, [*command, "--per-image"]).exit_code == 0


@pytest.mark.nightly
def test_polygons_are_cut_at_the_antimeridian_and_wound_as_the_standard_says(tmp_path) -> None:
    # The 180th meridian crosses the image: zone 60 ends there.
    [x], [y] = transform_points("EPSG:4326", "EPSG:32760", [180], [-17])
    place = Affine(1000, 0, x - 32_000, 0, -1000, y + 32_000)
    write(tmp_path / "a.tif", "EPSG:32760", place)
    run(tmp_path)
    command = ["export", str(tmp_path / "out"), "--to", "geojson"]
    assert CliRunner().invoke(app, command).exit_code == 0
    frame = geopandas.read_file(tmp_path / "out/export/classes.geojson")
    assert (frame.bounds["maxx"] - frame.bounds["minx"]).max() > 359
    for part in frame.geometry.explode():
        assert -180 <= part.bounds[0] <= part.bounds[2] <= 180
        assert part.bounds[2] - part.bounds[0] < 1
        assert part.exterior.is_ccw
        assert not any(ring.is_ccw for ring in part.interiors)
    own = frame.to_crs(32760)
    expected = mask(tmp_path / "out", "a")
    drawn = rasterize(
        zip(own.geometry, own["class_id"], strict=True),
        out_shape=expected.shape,
        fill=255,
        transform=place,
        dtype="uint8",
    )
    assert (drawn == expected).all()


@pytest.mark.nightly
def test_pixels_of_a_level_are_those_of_full_resolution(tmp_path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (256, 256)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(pixels, subifds=1, metadata={"axes": "YX"})
        file.write(pixels[::4, ::4], subfiletype=1)
    run(tmp_path, "level=1")
    for to in ("qupath", "coco"):
        command = ["export", str(tmp_path / "out"), "--to", to]
        assert CliRunner().invoke(app, command).exit_code == 0
    [path] = (tmp_path / "out/masks").glob("a.ome*.tif")
    small = tifffile.imread(path)
    assert small.shape == (64, 64)
    expected = small.repeat(4, 0).repeat(4, 1)
    found = json.loads((tmp_path / "out/export/qupath/a.ome.geojson").read_text())["features"]
    drawn = rasterize(
        (
            (each["geometry"], NAMES.index(each["properties"]["classification"]["name"]))
            for each in found
        ),
        out_shape=expected.shape,
        fill=255,
        dtype="uint8",
    )
    assert (drawn == expected).all()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "out/export/coco.json")
    again = np.full(expected.shape, 255)
    for each in coco.imgToAnns[1]:
        again[coco.annToMask(each).astype(bool)] = NAMES.index(
            coco.cats[each["category_id"]]["name"]
        )
    assert (again == expected).all()
