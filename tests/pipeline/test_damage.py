"""Damaged and lost files of an output: named with what to do, by every command, and whole again
once that is done.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests_support import assert_same_results, photograph, read_table

from maskloom.segcore.storage.store import Store

WELL = "All masks, tables and sums are as they were written."


@pytest.fixture
def pictures(collection):
    """Three small pictures in place of the collection's own."""
    images = collection.folder / "images"
    for path in [path for path in images.rglob("*") if path.is_file()]:
        path.unlink()
    for i in range(3):
        Image.fromarray(photograph(60, 70 + i)).save(images / f"{'abc'[i]}.png")
    return images


@pytest.fixture
def recipe(collection, pictures):
    return collection.recipe(statistics=["objects"])


def files_of(output: Path, pattern: str) -> list[Path]:
    found = sorted(output.glob(pattern))
    assert found, pattern
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def nonsense(path: Path) -> None:
    path.write_text('{"run": [1, 2]}')


def follow(line: str, path: Path) -> None:
    """Do what a line of verify says."""
    if everywhere := re.search(
        r"Remove (\S+) from all folders of (\S+), then run the recipe again", line
    ):
        for file in Path(everywhere[2]).glob(f"*/{everywhere[1]}"):
            file.unlink()
        return
    alone = re.search(r"Remove it(?: and (\S+) beside it)?, then run the recipe again", line)
    assert alone is not None, line
    for file in (path.name, alone[1]):
        if file is not None:
            path.with_name(file).unlink()


DAMAGES = [
    ("tables/images/*.parquet", cut),
    ("tables/images/*.parquet", empty),
    ("tables/images/*.parquet", foreign),
    ("tables/areas/*.parquet", cut),
    ("tables/objects/*.parquet", foreign),
    ("runs/head.json", empty),
    ("runs/head.json", nonsense),
    ("runs/*/manifest.json", empty),
    ("runs/*/manifest.json", nonsense),
    ("runs/*/plan.json", cut),
    ("runs/*/plan.parquet", empty),
]


@pytest.mark.parametrize(("pattern", "damage"), DAMAGES)
def test_verify_names_what_is_damaged_and_its_advice_heals_it(
    collection, recipe, maskloom, pattern, damage
):
    output = collection.output
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert (
        maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "output=undisturbed").exit_code
        == 0
    )
    (path,) = files_of(output, pattern)
    damage(path)
    (output / "masks" / "a.png").write_bytes(b"also this")

    found = maskloom("verify", output)

    assert found.exit_code == 1
    lines = found.stdout.splitlines()
    # The rest is still looked at, and what the damage hides is not held against it: here no table
    # says which masks there should be.
    named = [str(path)] if pattern.startswith("tables/images") else [str(path), "masks/a.png"]
    assert [line.split()[0].rstrip(":") for line in lines] == named, found.stdout
    follow(lines[0], path)
    (output / "masks" / "a.png").unlink()
    # A run without a manifest is finished first; what is lost of its masks is for the next one, as
    # `status` tells.
    for _ in range(2):
        assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert maskloom("verify", output).stdout.strip() == WELL
    assert_same_results(output, collection.folder / "undisturbed")


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        pytest.param(*damage, marks=[pytest.mark.nightly] * (damage[1] in (cut, empty)))
        for damage in DAMAGES
        if damage[0] in ("tables/images/*.parquet", "runs/head.json")
    ],
)
def test_status_and_run_name_it_too_without_a_traceback(
    collection, recipe, maskloom, pattern, damage
):
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    (path,) = files_of(collection.output, pattern)
    damage(path)
    (collection.folder / "images" / "a.png").unlink()

    for command in (
        ("status", collection.output),
        ("run", recipe, "--no-prefect", "--quiet"),
        ("clean", collection.output),
    ):
        result = maskloom(*command)
        assert result.exit_code == 1, command
        assert result.stderr.startswith(f"maskloom: {path} is damaged"), result.stderr
        assert "Remove " in result.stderr
        assert isinstance(result.exception, SystemExit), "a traceback"


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("runs/*/model.json", empty),
        ("runs/*/model.json", nonsense),
        ("runs/*/plan.json", empty),
        ("runs/*/plan.parquet", cut),
        ("tables/areas/*.parquet", cut),
        ("tables/objects/*.parquet", empty),
    ],
)
def test_a_run_that_needs_a_damaged_record_names_it(
    collection, recipe, maskloom, pictures, monkeypatch, pattern, damage
):
    """A run that was stopped in its first shard needs its plan and its model again, and rewrites
    the shard's tables.
    """
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    if pattern.startswith("tables"):
        Image.fromarray(photograph(64, 64)).save(pictures / "b.png")
    else:
        for path in (
            *files_of(collection.output, "runs/*/manifest.json"),
            collection.output / "runs" / "head.json",
        ):
            path.unlink()
    (path,) = files_of(collection.output, pattern)
    damage(path)

    result = maskloom("run", recipe, "--no-prefect", "--quiet")

    assert result.exit_code == 1
    assert f"{path} is damaged" in result.output
    assert isinstance(result.exception, SystemExit), "a traceback"


def test_status_tells_lost_and_empty_masks_and_the_run_makes_them_anew(
    collection, recipe, maskloom
):
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    before = read_table(collection.output, "areas")
    (collection.output / "masks" / "a.png").unlink()
    (collection.output / "masks" / "b.png").write_bytes(b"")
    # Previews are pictures for people; nothing is counted in them.
    (collection.output / "previews" / "c.png").unlink()

    told = maskloom("status", collection.output)

    assert told.exit_code == 0
    assert told.stdout.splitlines() == [
        "done 1",
        "failed 0",
        "left 2",
        "lost: masks/a.png: missing or empty",
        "lost: masks/b.png: missing or empty",
    ]
    assert "Run the recipe again" in told.stderr
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    assert maskloom("status", collection.output).stdout.splitlines() == [
        "done 3",
        "failed 0",
        "left 0",
    ]
    assert maskloom("verify", collection.output).stdout.strip() == WELL
    assert read_table(collection.output, "areas") == before


def test_status_opens_no_mask(collection, recipe, maskloom, monkeypatch):
    """It must be quick on any number of images."""
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    read = Store.read

    def reading(store: Store, name: str, *arguments: int) -> bytes:
        assert name.startswith(("runs/", "tables/images/")), f"status reads {name}"
        return read(store, name, *arguments)

    monkeypatch.setattr(Store, "read", reading)
    monkeypatch.delattr(Store, "open")
    assert maskloom("status", collection.output).stdout.splitlines() == [
        "done 3",
        "failed 0",
        "left 0",
    ]


def test_a_foreign_manifest_of_another_kind_of_json(collection, recipe, maskloom):
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    (path,) = files_of(collection.output, "runs/*/manifest.json")
    path.write_text(json.dumps([1, 2, 3]))
    assert str(path) in maskloom("verify", collection.output).stdout


@pytest.mark.parametrize("table", ["areas", "objects"])
def test_verify_compares_sums_and_not_digests_alone(tmp_path, maskloom, table):
    """A table with one number changed: pixels no longer add up, or objects exceed their class."""
    pixels = np.zeros((40, 50), np.uint8)
    pixels[10:20, 10:30] = 200
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", "-s", "threshold", "--quiet")
    settings = ("--no-prefect", "--set", "cluster=serial", "--set", "statistics=[objects]")
    assert maskloom(*command, *settings).exit_code == 0
    assert maskloom("verify", tmp_path / "out").exit_code == 0
    (path,) = (tmp_path / "out" / "tables" / table).glob("*.parquet")
    rows = pq.ParquetFile(path).read()
    column = rows.schema.get_field_index("pixel_count")
    field = rows.schema.field(column)
    pq.write_table(rows.set_column(column, field, pc.add(rows["pixel_count"], 1)), path)

    found = maskloom("verify", tmp_path / "out")

    assert found.exit_code == 1
    assert {
        "areas": "the pixels of a add up to 2002, the image has 2000",
        "objects": "the objects of class 1 of a have 201 pixels, the class has 200",
    }[table] in found.output
