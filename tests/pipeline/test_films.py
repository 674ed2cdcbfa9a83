"""Files that hold several images, of a format that a plug-in adds, through whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image
from several_files import BROKEN, Film, save_rows
from tests_support import photograph, read_masks, read_table

from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.testing.formats import check_parts
from maskloom.tasks import plan
from maskloom.tasks.publish import Tables

FRAMES = np.stack([photograph(60, 50) // (1 + i % 3) for i in range(12)])
QUIET = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial", "--set", "tiling.tile=32")
THRESHOLD = ("-s", "threshold", "-p", "value=60", "-p", "band=1")
OBJECTS = ("--set", "statistics=[area, objects]")


@pytest.fixture(autouse=True)
def film(monkeypatch):
    """The format as if another distribution had added it."""
    monkeypatch.setitem(FORMATS._loaded, "film", Film())


@pytest.fixture
def inputs(tmp_path) -> Path:
    folder = tmp_path / "in"
    save_rows(f"{folder}/a.film", FRAMES)
    Image.fromarray(FRAMES[0]).save(folder / "b.png")
    return folder


@pytest.fixture
def command(inputs, tmp_path) -> tuple[object, ...]:
    return ("segment", inputs, "-o", tmp_path / "out", *THRESHOLD, *QUIET, *OBJECTS)


def names(count: int, stem: str = "a") -> set[str]:
    return {f"{stem}_t{i + 1:04d}" for i in range(count)} if count > 1 else {stem}


def ids_of(output: Path) -> dict[str, set[str]]:
    """The image ids in each table."""
    tables = sorted(path.name for path in (output / "tables").iterdir())
    return {
        name: set(
            ds.dataset(output / "tables" / name, format="parquet")
            .to_table(columns=["image_id"])["image_id"]
            .to_pylist()
        )
        for name in tables
    }


def files_of(output: Path) -> set[str]:
    """The ids of images that have a mask; each has a preview too."""
    found = [{path.stem for path in (output / kind).iterdir()} for kind in ("masks", "previews")]
    assert found[0] == found[1]
    return found[0]


def assert_whole(output: Path, frames: np.ndarray, maskloom, others: set[str]) -> None:
    """Every table, mask and preview has the images of the film and the others, and no more."""
    ids = names(len(frames)) | others
    assert ids_of(output) == dict.fromkeys(("areas", "images", "objects", "pictures"), ids)
    assert files_of(output) == ids
    masks = read_masks(output)
    for image_id, frame in zip(sorted(names(len(frames))), frames, strict=True):
        np.testing.assert_array_equal(masks[f"masks/{image_id}.png"], frame[..., 0] > 60)
    images = read_table(output, "images", ())
    assert len(images) == len(ids)
    verified = maskloom("verify", output)
    assert verified.exit_code == 0, verified.output
    assert "nothing" in maskloom("clean", output).output.lower()


def test_each_image_of_a_file_has_rows_a_mask_and_a_preview(tmp_path, command, maskloom):
    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    assert "13 images done, 0 failed" in result.output
    assert_whole(tmp_path / "out", FRAMES, maskloom, {"b"})
    uris = {row["image_id"]: row["uri"] for row in read_table(tmp_path / "out", "images")}
    assert uris["a_t0003"] == f"{tmp_path}/in/a.film#part=t0003/12"
    again = maskloom(*command)
    assert again.exit_code == 0
    assert "Nothing to do: 13 images are unchanged" in again.output
    status = maskloom("status", tmp_path / "out").output
    assert status.splitlines()[:3] == ["done 13", "failed 0", "left 0"]


@pytest.mark.parametrize(
    ("before", "after"),
    [(12, 10), (1, 3), *(pytest.param(3, after, marks=pytest.mark.nightly) for after in (1, 3))],
)
def test_a_file_that_changes_leaves_nothing_of_what_it_was(
    inputs, tmp_path, command, maskloom, before, after
):
    save_rows(f"{inputs}/a.film", FRAMES[:before])
    assert maskloom(*command).exit_code == 0
    assert_whole(tmp_path / "out", FRAMES[:before], maskloom, {"b"})
    (b,) = (row for row in read_table(tmp_path / "out", "images", ()) if row["image_id"] == "b")
    frames = 255 - FRAMES[:after]
    save_rows(f"{inputs}/a.film", frames)

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    assert f"{after} image{'s' * (after > 1)} done, 0 failed, " in result.output
    assert ", 1 unchanged in " in result.output
    assert_whole(tmp_path / "out", frames, maskloom, {"b"})
    assert b in read_table(tmp_path / "out", "images", ())
    assert "Nothing to do" in maskloom(*command).output


def test_many_shards_and_a_kill_between_them(inputs, tmp_path, command, maskloom, monkeypatch):
    """The images of one file are committed in several steps; a run stops after the first."""
    assert maskloom(*command).exit_code == 0
    frames = 255 - FRAMES[:7]
    save_rows(f"{inputs}/a.film", frames)
    publish, commits = Tables.publish, []

    def once(self, shard, results):
        if commits:
            raise KeyboardInterrupt
        commits.append(shard)
        publish(self, shard, results)

    monkeypatch.setattr(plan, "SHARD_IMAGES", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "publish", once)
        assert maskloom(*command).exit_code == 1
    # What the file held before is gone with the first step, and no image is there twice.
    committed = {image.source.image_id for image in commits[0].images}
    assert len(committed) in (1, 3)
    assert ids_of(tmp_path / "out")["images"] == committed | {"b"}

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    assert len({run.parent for run in (tmp_path / "out" / "runs").glob("*/manifest.json")}) == 2
    assert_whole(tmp_path / "out", frames, maskloom, {"b"})


FIRST = ("film", "picture", "both")


@pytest.mark.parametrize(
    "first",
    [*(pytest.param(one, marks=pytest.mark.nightly) for one in ("film", "picture")), "both"],
)
def test_a_neighbour_whose_name_is_the_id_of_an_image_in_a_file(
    tmp_path, command, inputs, maskloom, first
):
    picture, film = inputs / "a_t0002.png", inputs / "a.film"
    Image.fromarray(255 - FRAMES[0]).save(picture)
    aside = {"film": picture, "picture": film, "both": None}[first]
    if aside is not None:
        shutil.move(aside, tmp_path / aside.name)
        assert maskloom(*command).exit_code == 0
        shutil.move(tmp_path / aside.name, aside)

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    rows = {row["uri"]: row["image_id"] for row in read_table(tmp_path / "out", "images")}
    assert len(rows) == len(set(rows.values())) == 14
    masks = read_masks(tmp_path / "out")
    expected = {str(picture): 255 - FRAMES[0], f"{film}#part=t0002/12": FRAMES[1]}
    for uri, pixels in expected.items():
        np.testing.assert_array_equal(masks[f"masks/{rows[uri]}.png"], pixels[..., 0] > 60)
    assert maskloom("verify", tmp_path / "out").exit_code == 0
    assert "Nothing to do" in maskloom(*command).output
    save_rows(str(film), FRAMES + 1)
    assert maskloom(*command).exit_code == 0
    assert {row["uri"]: row["image_id"] for row in read_table(tmp_path / "out", "images")} == rows


def test_a_broken_image_does_not_hide_the_others_of_its_file(inputs, tmp_path, command, maskloom):
    frames = FRAMES[:4].copy()
    frames[1] = BROKEN
    save_rows(f"{inputs}/a.film", frames)

    assert maskloom(*command).exit_code == 3

    rows = {row["image_id"]: row for row in read_table(tmp_path / "out", "images")}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"a_t0002"}
    assert rows["a_t0002"]["error"].endswith("a.film is broken at t0002.")
    again = maskloom(*command)
    assert again.exit_code == 3
    assert "Nothing to do" in again.output


def test_a_file_that_cannot_be_read_any_more_keeps_no_masks(inputs, tmp_path, command, maskloom):
    assert maskloom(*command).exit_code == 0
    (inputs / "a.film").write_bytes(b"cut off")

    assert maskloom(*command).exit_code == 3

    assert ids_of(tmp_path / "out")["images"] == {"a", "b"}
    assert files_of(tmp_path / "out") == {"b"}
    assert maskloom("verify", tmp_path / "out").exit_code == 0


def test_one_lost_mask_is_made_again(tmp_path, command, maskloom):
    assert maskloom(*command).exit_code == 0
    before = (tmp_path / "out" / "masks" / "a_t0005.png").read_bytes()
    (tmp_path / "out" / "masks" / "a_t0005.png").unlink()
    assert "done 12\nfailed 0\nleft 1" in maskloom("status", tmp_path / "out").output

    assert maskloom(*command).exit_code == 0

    assert (tmp_path / "out" / "masks" / "a_t0005.png").read_bytes() == before
    assert_whole(tmp_path / "out", FRAMES, maskloom, {"b"})


def test_another_recipe_in_the_same_output(inputs, tmp_path, command, maskloom):
    assert maskloom(*command).exit_code == 0
    save_rows(f"{tmp_path}/more/c.film", FRAMES[:2])
    other = (
        *("segment", tmp_path / "more", "-o", tmp_path / "out", "-s", "threshold"),
        *("-p", "value=20", "-p", "band=1", *QUIET, *OBJECTS),
    )

    refused, kept = maskloom(*other), maskloom(*other, "--keep-other-recipes")

    assert refused.exit_code == 2
    assert kept.exit_code == 0, kept.output
    ids = names(12) | names(2, "c") | {"b"}
    assert ids_of(tmp_path / "out") == dict.fromkeys(
        ("areas", "images", "objects", "pictures"), ids
    )


def test_a_run_of_an_older_listing_does_not_undo_a_newer_one(
    inputs, tmp_path, command, maskloom, monkeypatch
):
    """While a run is at work, the file changes, and another run finishes with what it is now."""
    publish, nested = Tables.publish, []

    def late(self, shard, results):
        if not nested:
            nested.append(True)
            save_rows(f"{inputs}/a.film", 255 - FRAMES[:3])
            assert maskloom(*command).exit_code == 0
        publish(self, shard, results)

    monkeypatch.setattr(Tables, "publish", late)
    maskloom(*command)

    assert maskloom(*command).exit_code == 0
    assert_whole(tmp_path / "out", 255 - FRAMES[:3], maskloom, {"b"})


def recipe(tmp_path: Path, **keys: object) -> Path:
    document = {
        "inputs": ["in"],
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 60, "band": 1},
        "cluster": {"kind": "serial"},
        **keys,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(document))
    return path


def test_plan_counts_all_times_and_audit_takes_a_film(inputs, tmp_path, maskloom):
    planned = maskloom("plan", recipe(tmp_path))
    assert planned.exit_code == 0, planned.output
    assert "images 13 of 13 (0 unreadable)" in planned.output
    assert f"pixels {13 * 60 * 50}" in planned.output
    size = sum(path.stat().st_size for path in inputs.iterdir())
    assert f"bytes to read {size} " in planned.output
    audited = maskloom("audit", recipe(tmp_path, inputs=["in/a.film"]), "--tile", "16")
    assert audited.exit_code == 0, audited.output


@pytest.mark.parametrize("kind", ["one file", "a file for each image"])
def test_truth_of_each_image(inputs, tmp_path, command, maskloom, kind):
    """The truth is exact, but for the pixels of one image."""
    assert maskloom(*command[:1], inputs / "a.film", *command[2:]).exit_code == 0
    truth = (FRAMES[..., :1] > 60).astype(np.uint8)
    truth[2] = 1 - truth[2]
    (tmp_path / "truth").mkdir()
    if kind == "one file":
        save_rows(f"{tmp_path}/truth/a.film", truth)
    else:
        for i, each in enumerate(truth):
            Image.fromarray(each[..., 0]).save(tmp_path / "truth" / f"a_t{i + 1:04d}.png")

    result = maskloom("evaluate", tmp_path / "out", "--truth", tmp_path / "truth", "--quiet")

    assert result.exit_code == 0, result.output
    rows = ds.dataset(tmp_path / "out" / "evaluation" / "images.parquet").to_table().to_pylist()
    accuracy = {row["image_id"]: row["accuracy"] for row in rows if row["image_id"]}
    assert accuracy == {name: float(name != "a_t0003") for name in names(12)}


def test_compare_shows_the_first_image(inputs, tmp_path, maskloom):
    result = maskloom("compare", inputs / "a.film", "-o", tmp_path / "c.png", "-s", "threshold")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c.png").stat().st_size


def test_the_format_keeps_its_contract(tmp_path):
    for count in (1, 5):
        save_rows(f"{tmp_path}/{count}.film", FRAMES[:count])
        images = check_parts(Film(), f"{tmp_path}/{count}.film", ReadOptions())
        assert len(images) == count
        for (pixels, valid), frame in zip(images, FRAMES, strict=False):
            np.testing.assert_array_equal(pixels, frame)
            assert valid.all()


@pytest.mark.parametrize("names", [["a/b"], ["a", "a"], ["é"], ["a b"], ["../x"], ["a#1"]])
def test_names_of_parts_that_suit_no_file_are_refused(tmp_path, monkeypatch, names):
    save_rows(f"{tmp_path}/a.film", FRAMES[:1])
    monkeypatch.setattr(Film, "parts", lambda *_: names)
    with pytest.raises((ValueError, AssertionError)):
        check_parts(Film(), f"{tmp_path}/a.film", ReadOptions())
