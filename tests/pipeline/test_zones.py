"""Zones: areas by class in polygons, by whole runs. Oracles: shapely's areas of intersections, and
pyproj's geodesic areas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyproj
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from typer.testing import CliRunner

from maskloom.flows.cli import app

pytest.importorskip("exactextract")
pytest.importorskip("pyogrio")
RNG = np.random.default_rng(3)
SHAPE = (150, 170)
PIXELS = np.repeat(np.repeat(RNG.integers(1, 3, (30, 34), np.uint8), 5, 0), 5, 1)
PIXELS[40:60, 100:130] = 0
UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5300000)}
TURNED = {"crs": "EPSG:32633", "transform": Affine(8, 3, 500000, 2, -9, 5300000)}
GLOBE = {"crs": "EPSG:4326", "transform": Affine(0.01, 0, 179.2, 0, -0.01, 10.5)}


def write(path: Path, **place: Any) -> None:
    height, width = SHAPE
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=1,
        dtype="uint8",
        nodata=0,
        **place,
    ) as file:
        file.write(PIXELS, 1)


def zones_file(path: Path, polygons: list[Any], crs: str = "EPSG:32633") -> Path:
    import geopandas

    table = geopandas.GeoDataFrame(
        {"name": [f"parcel {i}" for i in range(len(polygons))], "crop": range(len(polygons))},
        geometry=polygons,
        crs=crs,
    )
    table.to_file(path)
    return path


def run(folder: Path, zones: Any, *more: str, exit_code: int = 0, **recipe: Any) -> Any:
    document = {
        "inputs": "images",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 1.5, "classes": ["one", "two"]},
        "cluster": "serial",
        "zones": zones,
        **recipe,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    command = ["run", str(folder / "recipe.yaml"), "--no-prefect", "--quiet", *more]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == exit_code, done.output
    return done.output


def rows(output: Path) -> list[dict[str, Any]]:
    table = ds.dataset(output / "tables" / "zones").to_table().to_pylist()
    keys = ("run_id", "fingerprint")
    return sorted(
        ({key: value for key, value in row.items() if key not in keys} for row in table),
        key=lambda row: (row["image_id"], row["zone"], row["class_id"] is None, row["class_id"]),
    )


def brute(polygon: Any, transform: Affine) -> dict[str | None, float]:
    """Area of a polygon by class, pixel by pixel."""
    height, width = SHAPE
    found: dict[str | None, float] = {"one": 0.0, "two": 0.0, None: 0.0}
    names = {0: None, 1: "one", 2: "two"}
    inside = shapely.transform(polygon, lambda xy: np.array([~transform @ tuple(p) for p in xy]))
    left, top, right, bottom = (int(n) for n in inside.bounds)
    for y in range(max(0, top), min(height, bottom + 1)):
        for x in range(max(0, left), min(width, right + 1)):
            part = shapely.box(x, y, x + 1, y + 1).intersection(inside).area
            found[names[int(PIXELS[y, x])]] += part * abs(transform.determinant)
    return found


def blob(x: float, y: float, size: float, corners: int = 9) -> Any:
    angles = np.sort(RNG.random(corners)) * 2 * np.pi
    radii = size * RNG.uniform(0.5, 1, corners)
    return shapely.make_valid(
        shapely.Polygon(np.c_[x + radii * np.cos(angles), y + radii * np.sin(angles)])
    )


@pytest.mark.parametrize("place", [UTM, TURNED], ids=["north-up", "turned"])
def test_shares_of_pixels_are_exact_for_any_tiling(tmp_path: Path, place: dict[str, Any]) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.tif", **place)
    transform = place["transform"]
    polygons = [blob(*(transform @ (x, y)), 250) for x, y in RNG.uniform(5, 145, (12, 2))]
    # Across the border, overlapping, with a hole, outside, smaller than a pixel.
    polygons += [
        shapely.box(*(transform @ (-20, 20)), *(transform @ (30, -10))).normalize(),
        polygons[0].buffer(15),
        shapely.difference(blob(*(transform @ (80, 70)), 400), blob(*(transform @ (80, 70)), 100)),
        shapely.box(0, 0, 50, 50),
        shapely.Point(*(transform @ (50.3, 51.7))).buffer(2),
    ]
    zones_file(tmp_path / "zones.gpkg", polygons)
    said = run(tmp_path, "zones.gpkg")
    assert "zones: 1 of 17 meets no image" in said
    found = rows(tmp_path / "out")
    assert {row["zone"] for row in found} == {*range(len(polygons))} - {len(polygons) - 2}
    for number, polygon in enumerate(polygons):
        wanted = brute(polygon, transform)
        held = {row["class_name"]: row for row in found if row["zone"] == number}
        for name, row in held.items():
            # UTM: pixels are up to 0.08 % larger on the ground than on the map.
            on_map = row["pixels"] * abs(transform.determinant)
            assert on_map == pytest.approx(wanted[name], rel=1e-6, abs=1e-4)
            assert row["area"] == pytest.approx(on_map, rel=1e-3)
            assert (row["zone_name"], row["zone_crop"]) == (f"parcel {number}", number)
        known = sum(row["area"] for name, row in held.items() if name is not None)
        for name, row in held.items():
            if name is None:
                assert row["fraction"] is None
            else:
                assert row["fraction"] == pytest.approx(row["area"] / known if known else None)
    for tile in (16, 64):
        run(tmp_path, "zones.gpkg", "--set", f"tiling.tile={tile}", "--set", f"output=o{tile}")
        assert rows(tmp_path / f"o{tile}") == found


def test_zones_of_another_crs_across_the_antimeridian(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.tif", **GLOBE)
    # One polygon, as people write it: cut at 180 degrees, with a jump, beyond 180.
    cut = shapely.MultiPolygon(
        [shapely.box(179.5, 9.5, 180, 10), shapely.box(-180, 9.5, -179.5, 10)]
    )
    jump = shapely.Polygon([(179.5, 9.5), (-179.5, 9.5), (-179.5, 10), (179.5, 10)])
    beyond = shapely.box(179.5, 9.5, 180.5, 10)
    (tmp_path / "zones.geojson").write_text(
        json.dumps(
            {
                "type": "FeatureCollection",
                "features": [
                    {
                        "type": "Feature",
                        "properties": {},
                        "geometry": shapely.geometry.mapping(each),
                    }
                    for each in (cut, jump, beyond)
                ],
            }
        )
    )
    run(tmp_path, "zones.geojson")
    found = rows(tmp_path / "out")
    totals = [sum(row["area"] for row in found if row["zone"] == i) for i in range(3)]
    geod = pyproj.Geod(ellps="WGS84")
    parallel = np.linspace(179.5, 180.5, 2001)
    ring = [*((x, 9.5) for x in parallel), *((x, 10.0) for x in parallel[::-1])]
    wanted, _ = geod.geometry_area_perimeter(shapely.Polygon(ring))
    assert totals == pytest.approx([abs(wanted)] * 3, rel=1e-6)


def test_invalid_polygons_are_repaired_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.tif", **UTM)
    bow = shapely.Polygon(
        [(500100, 5299800), (500300, 5299600), (500300, 5299800), (500100, 5299600)]
    )
    line = shapely.LineString([(500100, 5299800), (500300, 5299600)])
    zones_file(tmp_path / "zones.gpkg", [bow, line, shapely.box(500500, 5299000, 500600, 5299100)])
    said = run(tmp_path, {"file": "zones.gpkg", "attributes": ["crop"]})
    assert "1 of 2 polygons are invalid; repaired" in said
    assert "1 of 2 features have no area; left out" in said
    found = rows(tmp_path / "out")
    assert "zone_name" not in found[0]
    assert {row["zone"] for row in found} == {0, 2}
    assert sum(row["pixels"] for row in found if row["zone"] == 0) == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("zones", "message"),
    [
        ("nothing.gpkg", "nothing.gpkg does not exist"),
        ("text.geojson", "cannot be read as a file of vectors"),
        ("local.gpkg", "states no CRS"),
        ({"file": "good.gpkg", "attributes": ["owner"]}, "has no attribute 'owner'"),
        ({"file": "points.gpkg"}, "has no polygon"),
    ],
)
def test_what_is_no_file_of_zones_is_refused_before_work(
    tmp_path: Path, zones: Any, message: str
) -> None:
    import geopandas

    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.tif", **UTM)
    (tmp_path / "text.geojson").write_text("{}")
    zones_file(tmp_path / "good.gpkg", [shapely.box(500100, 5299600, 500300, 5299800)])
    zones_file(tmp_path / "points.gpkg", [shapely.Point(500100, 5299600)])
    nowhere = geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.box(0, 0, 1, 1)])
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        nowhere.to_file(tmp_path / "local.gpkg")
    assert message in run(tmp_path, zones, exit_code=2)
    assert not list((tmp_path / "out").rglob("*.parquet"))
