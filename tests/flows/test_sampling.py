"""Samples of an output: drawn, labelled, and what follows from them."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from cli_support import command

from maskloom.tasks.output import Output
from maskloom.tasks.samples import Place, looked_up

CLASSES = ("low", "high")
SHAPE = (36, 44)
UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5300000)}
NEXT = {**UTM, "transform": Affine(10, 0, 510000, 0, -10, 5300000)}
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of two georeferenced images, one with nodata, and of a broken one."""
    folder = tmp_path_factory.mktemp("sampling")
    (folder / "images").mkdir()
    for name, place in (("a", UTM), ("b", NEXT)):
        pixels = RNG.integers(1, 255, SHAPE, np.uint8)
        pixels[:5] = 0
        height, width = SHAPE
        with rasterio.open(
            folder / "images" / f"{name}.tif",
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=1,
            dtype="uint8",
            nodata=0,
            **place,
        ) as file:
            file.write(pixels, 1)
    (folder / "images" / "c.tif").write_bytes(b"II*\0 nothing")
    run = ("segment", folder / "images", "-o", folder / "out", "-s", "threshold", "-p", "value=200")
    more = ("-p", "classes=[low, high]", "--no-prefect", "-q", "--set", "cluster=serial")
    command(*run, *more, exit_code=3)
    return folder / "out"


def masks(output: Path) -> dict[str, np.ndarray]:
    found = {}
    for name in "ab":
        with rasterio.open(output / "masks" / f"{name}.tif") as file:
            found[name] = file.read(1)
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def label(folder: Path, labels: list[str]) -> Path:
    filled = [{**row, "label": text} for row, text in zip(rows(folder), labels, strict=True)]
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, filled[0])
        writer.writeheader()
        writer.writerows(filled)
    return folder / "samples.csv"


def strata(folder: Path) -> list[str]:
    design = json.loads((folder / "design.json").read_text())
    return [design["stratum_of"][row["sample_id"]] for row in rows(folder)]


def test_a_sample_is_of_its_strata_and_the_same_again(output: Path, tmp_path: Path) -> None:
    for name in "xy":
        command("sample", output, "--per-class", 30, "--out", tmp_path / name, "-q")
    drawn = rows(tmp_path / "x")
    assert drawn == rows(tmp_path / "y")
    of_mask = masks(output)
    places = [(row["image_id"], int(row["row"]), int(row["column"])) for row in drawn]
    assert len(set(places)) == len(places) == 60
    named = [CLASSES[of_mask[image][row, column]] for image, row, column in places]
    assert named == strata(tmp_path / "x")
    assert Counter(named) == {"low": 30, "high": 30}
    assert {image for image, _, _ in places} == {"a", "b"}
    assert "low" not in (tmp_path / "x" / "samples.csv").read_text()
    for row in drawn:
        assert (tmp_path / "x" / row["picture"]).read_bytes().startswith(b"\x89PNG")
        corner = UTM if row["image_id"] == "a" else NEXT
        x, y = corner["transform"] @ (int(row["column"]) + 0.5, int(row["row"]) + 0.5)
        assert (float(row["x"]), float(row["y"])) == (x, y)
    command("sample", output, "--per-class", 30, "--seed", 1, "--out", tmp_path / "z", "-q")
    assert rows(tmp_path / "z") != drawn


def test_all_pixels_are_a_sample_without_error(output: Path, tmp_path: Path) -> None:
    """A census: the estimated areas are those of the truth."""
    said = command("sample", output, "--per-class", 20_000, "--out", tmp_path, "--no-pictures")
    of_mask = masks(output)
    pixels = {
        name: sum(int((mask == i).sum()) for mask in of_mask.values())
        for i, name in enumerate(CLASSES)
    }
    assert all(f"{number:,}" in said for number in pixels.values())
    drawn = rows(tmp_path)
    assert len(drawn) == sum(pixels.values())
    truth = [CLASSES[(int(row["row"]) + int(row["column"])) % 2] for row in drawn]
    table = label(tmp_path, truth)
    command("evaluate", output, "--samples", table, "--out", tmp_path / "e")
    found = json.loads((tmp_path / "e" / "accuracy.json").read_text())
    assert found["unit"] == "m2"
    areas = {each["name"]: each["area"]["value"] for each in found["classes"]}
    wanted = Counter(truth)
    # Pixels of a UTM zone are not exactly 100 m2 on the ground.
    assert areas["low"] / wanted["low"] == pytest.approx(100, rel=2e-3)
    assert areas["low"] / areas["high"] == pytest.approx(wanted["low"] / wanted["high"], rel=1e-6)
    right = sum(a == b for a, b in zip(truth, strata(tmp_path), strict=True)) / len(truth)
    assert found["overall"]["value"] == pytest.approx(right)


def test_points_and_polygons_find_their_pixels(output: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    command("sample", output, "--per-class", 10, "--out", tmp_path, "-q")
    drawn, named = rows(tmp_path), strata(tmp_path)
    lonlat = [(float(row["longitude"]), float(row["latitude"])) for row in drawn]

    def feature(geometry: dict[str, Any], name: str) -> dict[str, Any]:
        return {"type": "Feature", "properties": {"kind": name}, "geometry": geometry}

    def polygon(x: float, y: float) -> dict[str, Any]:
        ring = [(x + dx, y + dy) for dx, dy in ((-1e-5, -1e-5), (1e-5, -1e-5), (0, 1e-5))]
        return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}

    for kind in ("Point", "Polygon"):
        shapes = [
            {"type": "Point", "coordinates": place} if kind == "Point" else polygon(*place)
            for place in lonlat
        ]
        features = [feature(shape, name) for shape, name in zip(shapes, named, strict=True)]
        outside = feature({"type": "Point", "coordinates": (0, 0)}, "low")
        path = tmp_path / f"{kind}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [*features, outside]}))
        folder = tmp_path / f"e{kind}"
        said = command(
            "evaluate", output, "--samples", path, "--attribute", "kind", "--out", folder
        )
        assert "1 sample left out: outside all images" in said
        assert "taken as a random sample within each class" in said
        assert "20 samples: overall accuracy 1.000" in said
        held = pq.read_table(folder / "samples.parquet").to_pylist()
        assert [row["mapped"] for row in held] == [*named, None]
        assert held[-1]["left_out"] == "outside all images"


def test_what_is_no_pixel_with_a_class_has_a_reason(output: Path) -> None:
    places = [
        Place("a", (2, 3)),
        Place("a", (36, 3)),
        Place("a", (1, 2, 3)),
        Place("c", (9, 9)),
        Place("d", (9, 9)),
    ]
    found = looked_up(Output.open(str(output)), places)
    assert [each.name for each in found] == [""] * 5
    for each, reason in zip(
        found,
        (
            "no data there",
            "outside the image",
            "expected 2 numbers",
            "image failed",
            "no image 'd'",
        ),
        strict=True,
    ):
        assert reason in each.reason


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1,2\n", "expected columns image_id, row, column and label"),
        ("image_id,row,column,label\na,9,9,\n", "none of 1 sample has a label"),
        ("image_id,row,column,label\na,9,9,hihg\n", "no class of the output. Did you mean `high`"),
        ("image_id,row,column,label\na,x,9,high\n", "line 2: expected numbers"),
        ("image_id,row,column,label\na,0,0,high\n", "no sample is on a pixel with a class"),
        ("image_id,row,column,label\na,9,9,high\n", "pixels and no labelled sample"),
        ("image_id,row,column,label,stratum\na,9,9,high,zone\n", "have no known size"),
    ],
)
def test_a_table_that_says_nothing_is_refused(
    output: Path, tmp_path: Path, table: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    assert message in command("evaluate", output, "--samples", tmp_path / "t.csv", exit_code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", 20, "--interval", 0.1), "expected one of them"),
        (("--interval", 0.1, "--expect", "lwo=0.9"), "no class 'lwo'"),
        (("--interval", 0.1, "--expect", "low=9"), "a share from 0 to 1"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(
    output: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    assert message in command("sample", output, "--out", tmp_path, *words, exit_code=2)


def test_labels_are_not_overwritten(output: Path, tmp_path: Path) -> None:
    command("sample", output, "--out", tmp_path, "--no-pictures")
    assert "may hold labels" in command("sample", output, "--out", tmp_path, exit_code=2)
    command("evaluate", output, exit_code=2)
