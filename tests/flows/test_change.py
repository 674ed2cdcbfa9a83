"""`maskloom change`: the masks of two outputs, or of one by date."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from cli_support import command
from skimage.measure import label

import maskloom
from maskloom.flows import change as flow
from maskloom.tasks.output import Output

UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5300000)}
FAR = {**UTM, "transform": Affine(10, 0, 600000, 0, -10, 5300000)}
SHAPE = (60, 80)
QUICK = ("--no-prefect", "--set", "cluster=serial", "--set", "report=false", "-q")


def written(path: Path, bright: np.ndarray, place: dict[str, Any] = UTM) -> None:
    """An image that is bright in some pixels, and has no data in its first rows."""
    pixels = np.where(bright, 200, 50).astype(np.uint8)
    pixels[:2] = 0
    path.parent.mkdir(exist_ok=True)
    height, width = bright.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", nodata=0, **profile, **place) as file:
        file.write(pixels, 1)


def segmented(folder: Path, *more: object) -> Path:
    output = folder.with_name(f"{folder.name}_out")
    threshold = ("-s", "threshold", "-p", "value=100", "-p", "classes=[green, burned]")
    command("segment", folder, "-o", output, *(more or threshold), *QUICK)
    return output


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "tables" / name).to_pylist()
    return rows


def square(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    bright = np.zeros(SHAPE, bool)
    bright[top:bottom, left:right] = True
    return bright


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Before and after: `hill` burns on, `lake` stays; each has an image of its own."""
    folder = tmp_path_factory.mktemp("change")
    for name, hill in (("before", square(20, 20, 40, 30)), ("after", square(20, 20, 40, 60))):
        written(folder / name / "hill.tif", hill)
        written(folder / name / "lake.tif", square(5, 5, 9, 9), FAR)
        written(folder / name / f"only_{name}.tif", square(5, 5, 9, 9))
    return segmented(folder / "before"), segmented(folder / "after")


def test_transitions_add_up_to_the_areas_of_both_outputs(
    outputs: tuple[Path, Path], tmp_path: Path
) -> None:
    said = command("change", *outputs, "-o", tmp_path, "--spread", "burned", "--days", 2, "-q")
    assert "only_before" in said
    assert "only_after" in said
    pairs = {row["pair"]: row for row in table(tmp_path, "pairs")}
    assert {name: row["status"] for name, row in pairs.items()} == {"hill": "ok", "lake": "ok"}
    rows = table(tmp_path, "change")
    for output, column in zip(outputs, ("from_class", "to_class"), strict=True):
        areas = Output.open(str(output)).areas().to_pylist()
        for name, area in itertools.product(pairs, areas):
            if area["image_id"] != name:
                continue
            mine = [
                row for row in rows if row["pair"] == name and row[column] == area["class_name"]
            ]
            assert sum(row["pixel_count"] for row in mine) == area["pixel_count"]
            assert sum(row["area"] for row in mine) == pytest.approx(area["area"], rel=1e-12)
            assert {row["area_unit"] for row in mine} <= {area["area_unit"]}
    moved = [row for row in rows if row["from_class"] != row["to_class"]]
    assert [(row["pair"], row["from_class"], row["to_class"]) for row in moved] == [
        ("hill", "green", "burned")
    ]
    assert moved[0]["pixel_count"] == 20 * 30
    assert pairs["hill"]["changed_area"] == moved[0]["area"]
    assert pairs["lake"]["changed_area"] == 0

    # Metres and hectares per day of a front that went 300 m to the east in two days.
    east = next(r for r in table(tmp_path, "spread") if (r["pair"], r["sector"]) == ("hill", "E"))
    assert east["max_metres_per_day"] == pytest.approx(150, rel=1e-3)
    whole = next(r for r in table(tmp_path, "spread") if r["sector"] == "all")
    assert whole["hectares_per_day"] == pytest.approx(moved[0]["area"] / 1e4 / 2)

    # The same from Python.
    found = maskloom.change(*outputs, out=tmp_path, spread="burned", days=2)
    assert found.transitions["area"].tolist() == [row["area"] for row in rows]
    assert found.spread["area"].tolist() == [row["area"] for row in table(tmp_path, "spread")]

    # GDAL and QGIS see the names of the transitions and their colours.
    with rasterio.open(tmp_path / pairs["hill"]["mask_uri"]) as mask:
        values = mask.read(1)
        assert (values == 1).sum() == 600
        assert mask.tags(1).get("CLASS_1", mask.tags().get("CLASS_1")) == "green_to_burned"
        assert (mask.transform, mask.crs) == (UTM["transform"], rasterio.CRS.from_epsg(32633))
    assert 'label="green_to_burned"' in (tmp_path / "masks" / "hill.qml").read_text()
    assert (tmp_path / "change.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_comparison_leaves_no_tables_and_can_be_repeated(
    outputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("change", *outputs, "-o", tmp_path, "-q")
    command(*words)
    first = {name: table(tmp_path, name) for name in ("pairs", "change")}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(flow, "view_pairs", killed)
        command(*words, exit_code=1)
    assert not list((tmp_path / "tables").rglob("*.parquet"))
    command(*words)
    assert {name: table(tmp_path, name) for name in ("pairs", "change")} == first
    # Other pairs in the same folder: what is no longer described is gone.
    command("change", outputs[0], outputs[0], "-o", tmp_path, "-q")
    assert {row["pair"] for row in table(tmp_path, "pairs")} == {"hill", "lake", "only_before"}
    command(*words)
    assert {path.name for path in (tmp_path / "masks").glob("*.tif")} == {"hill.tif", "lake.tif"}
    assert not (tmp_path / "masks" / "only_before.qml").exists()


def test_images_of_one_place_in_the_order_of_their_dates(tmp_path: Path) -> None:
    growing = [square(20, 20, 40, right) for right in (30, 40, 60)]
    for day, bright in zip((1, 3, 7), growing, strict=True):
        written(tmp_path / "all" / f"hill_2024050{day}.tif", bright)
    written(tmp_path / "all" / "lake_20240502.tif", growing[0], FAR)
    written(tmp_path / "all" / "lake_20240502b.tif", growing[0], FAR)
    written(tmp_path / "all" / "undated.tif", growing[0])
    threshold = ("-s", "threshold", "-p", "value=100", "--set", 'acquired="%Y%m%d"')
    output = segmented(tmp_path / "all", *threshold)
    said = command("change", output, "--by-date", "-q", exit_code=3)
    rows = {row["pair"]: row for row in table(output / "change", "pairs")}
    done = {name: row["days"] for name, row in rows.items() if row["status"] == "ok"}
    assert done == {
        "hill_20240501_to_hill_20240503": 2,
        "hill_20240503_to_hill_20240507": 4,
    }
    assert "same date" in rows["lake_20240502_to_lake_20240502b"]["error"]
    assert "date is not known" in rows["undated"]["error"]
    assert "undated" in said

    keyed = ("--by-date", "--key", "^([a-z]+)_", "-o", tmp_path / "keyed", "-q")
    command("change", output, *keyed, exit_code=3)
    assert table(tmp_path / "keyed", "change") == table(output / "change", "change")


def test_objects_are_followed_by_the_ids_of_the_masks(tmp_path: Path) -> None:
    before = square(10, 5, 20, 15) | square(10, 30, 20, 50) | square(40, 5, 50, 15)
    after = square(10, 5, 20, 18) | square(10, 30, 20, 38) | square(10, 42, 20, 50)
    written(tmp_path / "a" / "x.tif", before)
    written(tmp_path / "b" / "y.tif", after)
    parts = ("-s", "connected_parts", "-p", "of={kind: threshold, value: 100}")
    outputs = [segmented(tmp_path / name, *parts) for name in "ab"]
    # Two outputs of one image each are a pair, whatever the names.
    said = command("change", *outputs, "-o", tmp_path / "out", "-q")
    rows = table(tmp_path / "out", "objects")
    ids = [label(bright, connectivity=1) for bright in (before, after)]
    found = {(row["object_a"], row["object_b"]): row["event"] for row in rows}
    assert found == {(1, 1): "grown", (2, 2): "split", (2, 3): "split", (3, None): "gone"}
    for row in rows:
        for side, numbered in zip("ab", ids, strict=True):
            if row[f"object_{side}"] is not None:
                pixels = int((numbered == row[f"object_{side}"]).sum())
                assert row[f"pixel_count_{side}"] == pixels
    assert "1 gone, 1 grown, 1 split" in said


@pytest.mark.nightly
def test_workers_change_nothing(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    for workers in (1, 2):
        where = ("-o", tmp_path / str(workers), "--workers", workers)
        command("change", *outputs, *where, "--spread", "burned", "-q")
    for name in ("pairs", "change", "spread"):
        assert table(tmp_path / "1", name) == table(tmp_path / "2", name)
    for mask in ("hill.tif", "lake.tif"):
        one, other = (tmp_path / each / "masks" / mask for each in "12")
        assert one.read_bytes() == other.read_bytes()


def test_wrong_usage_is_told_before_any_work(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = outputs
    for words, said in (
        ((before,), "second output or --by-date"),
        ((before, after, "--by-date"), "second output or --by-date"),
        ((before, after, "--by", "name"), "id or place"),
        ((before, after, "--key", "x"), "--by-date"),
        ((before, after, "--spread", "flooded"), "green, burned"),
        ((before, after, "--days", "0"), "above 0"),
        ((before, after, "-o", before), "output of a run"),
        ((before, after, "--by", "place", "--warp"), "same grid"),
        ((before, "--by-date", "--key", "("), "regular expression"),
        ((before, "--by-date"), "date is not known"),
        ((before, tmp_path), "not an output"),
    ):
        output = command("change", *words, "-q", exit_code=2)
        assert said in output.replace("\n", " "), output
    assert not (after / "change").exists()
