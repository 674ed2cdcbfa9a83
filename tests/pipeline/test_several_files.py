"""Inputs and masks of several files through whole runs: discovery, records, changes, verify and
clean, with formats that a plug-in adds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from several_files import (
    Chunks,
    RowSeries,
    TileMasks,
    folder_digest,
    load_mask,
    save_chunks,
    save_rows,
    save_series,
    strips,
)
from tests_support import photograph, read_masks, read_table

import maskloom.flows.planning as planning
from maskloom.segcore.masks import MASKS
from maskloom.segcore.raster.spec import FORMATS
from maskloom.tasks import batching
from maskloom.tasks.clusters.serial import SerialCluster

PICTURE = photograph(100, 90)
NEGATIVE = 255 - PICTURE
QUIET = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial", "--set", "tiling.tile=32")
THRESHOLD = ("-s", "threshold", "-p", "value=100", "-p", "band=1")
EXPECTED, NEGATED = (pixels[..., 0] > 100 for pixels in (PICTURE, NEGATIVE))


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """Formats as if another distribution had added them."""
    for registry, name, item in (
        (FORMATS, "chunks", Chunks()),
        (FORMATS, "rows", RowSeries()),
        (MASKS, "tiles", TileMasks()),
    ):
        monkeypatch.setitem(registry._loaded, name, item)


@pytest.fixture(params=["disk", "store"])
def place(request, tmp_path) -> str:
    """Where inputs and outputs are: a disk, or an object store."""
    if request.param == "disk":
        return str(tmp_path)
    fs = fsspec.filesystem("memory")
    if fs.exists("/several"):
        fs.rm("/several", recursive=True)
    return "memory://several"


@pytest.fixture
def inputs(place) -> str:
    """A folder with an image of each sort."""
    save_chunks(f"{place}/in/below/scene.chunks", PICTURE)
    save_series(f"{place}/in/scan", PICTURE)
    save_rows(f"{place}/in/alone-0.rows", PICTURE[:32])
    with fsspec.open(f"{place}/in/plain.png", "wb", auto_mkdir=True) as file:
        Image.fromarray(PICTURE).save(file, "png")
    return f"{place}/in"


def rows_of(output: str) -> dict[str, dict[str, object]]:
    fs, path = fsspec.core.url_to_fs(output)
    return {
        row["image_id"]: row
        for name in fs.find(f"{path}/tables/images")
        for row in pq.read_table(fs.open(name)).to_pylist()
    }


def written_of(output: str) -> set[str]:
    """Names of all masks and previews."""
    fs, path = fsspec.core.url_to_fs(output)
    names = (name[len(path) + 1 :] for name in fs.find(path))
    return {name for name in names if name.startswith(("masks/", "previews/"))}


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_each_is_one_image_whose_mask_is_that_of_its_pixels(place, inputs, maskloom):
    output = f"{place}/out"
    command = ("segment", inputs, "-o", output, *THRESHOLD, *QUIET)

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    rows = rows_of(output)
    assert set(rows) == {"below/scene", "scan", "alone-0", "plain"}
    assert {row["mask_uri"] for row in rows.values()} == {
        "masks/below/scene.tiles",
        "masks/scan.png",
        "masks/alone-0.png",
        "masks/plain.png",
    }
    np.testing.assert_array_equal(load_mask(f"{output}/masks/below/scene.tiles"), EXPECTED)
    for name, expected in (("scan", EXPECTED), ("alone-0", EXPECTED[:32]), ("plain", EXPECTED)):
        with fsspec.open(f"{output}/masks/{name}.png") as file:
            np.testing.assert_array_equal(np.array(Image.open(file)), expected)
    folder = rows["below/scene"]
    assert folder["mask_sha256"] == folder_digest(f"{output}/masks/below/scene.tiles")
    assert "Nothing to do" in maskloom(*command).output
    assert maskloom("verify", output).exit_code == 0
    assert "nothing" in maskloom("clean", output).output.lower()


@pytest.mark.parametrize("given", ["folder itself", "glob of folders", "deep glob", "list"])
def test_a_folder_is_found_however_it_is_named(place, inputs, maskloom, given):
    entry = {
        "folder itself": f"{inputs}/below/scene.chunks",
        "glob of folders": f"{inputs}/*/*.chunks",
        "deep glob": f"{inputs}/below/**/*",
        "list": f"{place}/list.txt",
    }[given]
    with fsspec.open(f"{place}/list.txt", "w") as file:
        file.write(f"{inputs}/below/scene.chunks\n")

    result = maskloom("segment", entry, "-o", f"{place}/out", *THRESHOLD, *QUIET)

    assert result.exit_code == 0, result.output
    [row] = rows_of(f"{place}/out").values()
    assert row["uri"].endswith("/in/below/scene.chunks")
    assert row["image_id"].endswith("scene")


def changed(inputs: str, what: str) -> str:
    """Change one file of an image of several; the image's id."""
    if what == "folder":
        save_rows(f"{inputs}/below/scene.chunks/rows/1.npy", strips(NEGATIVE)[1])
        return "below/scene"
    save_rows(f"{inputs}/scan-1.rows", strips(NEGATIVE)[1])
    return "scan"


@pytest.mark.parametrize("what", ["folder", "series"])
def test_one_changed_file_makes_its_image_new_and_no_other(place, inputs, maskloom, what):
    output = f"{place}/out"
    command = ("segment", inputs, "-o", output, *THRESHOLD, *QUIET)
    assert maskloom(*command).exit_code == 0
    before = rows_of(output)
    name = changed(inputs, what)

    assert maskloom(*command).exit_code == 0

    after = rows_of(output)
    assert {one for one in before if before[one] != after[one]} == {name}
    assert after[name]["source_version"] != before[name]["source_version"]
    expected = EXPECTED.copy()
    expected[32:64] = NEGATED[32:64]
    if what == "folder":
        np.testing.assert_array_equal(load_mask(f"{output}/masks/below/scene.tiles"), expected)
    else:
        with fsspec.open(f"{output}/masks/scan.png") as file:
            np.testing.assert_array_equal(np.array(Image.open(file)), expected)
    assert maskloom("verify", output).exit_code == 0


@pytest.mark.parametrize("what", ["folder", "series"])
def test_a_file_that_changes_while_its_image_is_read_fails_that_image(
    place, inputs, maskloom, monkeypatch, what
):
    kind = Chunks if what == "folder" else RowSeries
    opened, once = kind.open, [what]

    def changing(self, spec):
        if once and (what == "folder" or spec.files[1:]):
            changed(inputs, once.pop())
        return opened(self, spec)

    monkeypatch.setattr(kind, "open", changing)
    command = ("segment", inputs, "-o", f"{place}/out", *THRESHOLD, *QUIET)

    assert maskloom(*command).exit_code == 3

    failed = [row for row in rows_of(f"{place}/out").values() if row["status"] == "failed"]
    assert [row["error_type"] for row in failed] == ["SourceChanged"]
    assert maskloom(*command).exit_code == 0


def test_a_smaller_mask_leaves_nothing_of_the_one_before(place, inputs, maskloom):
    output = f"{place}/out"
    command = ("segment", f"{inputs}/below", "-o", output, *THRESHOLD, *QUIET)
    assert maskloom(*command).exit_code == 0
    fs, mask = fsspec.core.url_to_fs(f"{output}/masks/scene.tiles")
    assert len(fs.find(mask)) == 4 * 3 + 1
    save_chunks(f"{inputs}/below/scene.chunks", PICTURE[:60, :60])

    assert maskloom(*command).exit_code == 0

    assert len(fs.find(mask)) == 2 * 2 + 1
    np.testing.assert_array_equal(load_mask(f"{output}/masks/scene.tiles"), EXPECTED[:60, :60])
    assert maskloom("verify", output).exit_code == 0


@pytest.mark.parametrize("killed", [False, True])
def test_an_image_that_fails_now_keeps_no_mask_and_preview(
    place, inputs, maskloom, monkeypatch, killed
):
    """Neither does it if its run is killed within the commit and the next one completes it."""
    output = f"{place}/out"
    command = ("segment", inputs, "-o", output, *THRESHOLD, *QUIET, "--sole-writer")
    assert maskloom(*command).exit_code == 0
    written = written_of(output)
    fs, path = fsspec.core.url_to_fs(inputs)
    fs.rm_file(f"{path}/below/scene.chunks/rows/1.npy")
    with fs.open(f"{path}/plain.png", "wb") as file:
        file.write(b"no picture any more")
    if killed:
        with monkeypatch.context() as patch:
            patch.setattr("maskloom.tasks.commits.log.move", stop)
            assert maskloom(*command).exit_code == 1
        assert written_of(output) == written

    assert maskloom(*command).exit_code == 3

    rows = rows_of(output)
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {
        "below/scene",
        "plain",
    }
    gone = {"masks/plain.png", "previews/plain.png", "previews/below/scene.png"}
    tiles = {name for name in written if name.startswith("masks/below/")}
    assert written_of(output) == written - gone - tiles
    assert tiles
    assert maskloom("verify", output).exit_code == 0


def test_a_mask_of_another_format_replaces_the_one_before(tmp_path, maskloom):
    """Pictures with many objects have TIFF masks, others PNG masks."""
    dots = np.zeros((520, 520), np.uint8)
    dots[::2, ::2] = 255
    inside = ("-s", "connected_parts", "-p", "of={kind: threshold, value: 100}")
    command = ("segment", tmp_path / "a.png", "-o", tmp_path / "out", *inside, *QUIET[:-2])
    for pixels, suffix in ((dots, ".tif"), (PICTURE, ".png")):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        assert maskloom(*command).exit_code == 0
        masks = {name for name in written_of(str(tmp_path / "out")) if name.startswith("masks/")}
        assert {name for name in masks if not name.endswith(".xml")} == {f"masks/a{suffix}"}
    assert written_of(str(tmp_path / "out")) == {"masks/a.png", "previews/a.png"}
    assert maskloom("verify", tmp_path / "out").exit_code == 0


def test_a_damaged_or_lost_folder_is_found_and_made_again(place, inputs, maskloom):
    output = f"{place}/out"
    command = ("segment", inputs, "-o", output, *THRESHOLD, *QUIET)
    assert maskloom(*command).exit_code == 0
    fs, mask = fsspec.core.url_to_fs(f"{output}/masks/below/scene.tiles")
    fs.rm_file(f"{mask}/1/1")

    verified = maskloom("verify", output)

    assert verified.exit_code == 1
    assert "masks/below/scene.tiles: is not what was written" in verified.output
    fs.rm(mask, recursive=True)
    assert "masks/below/scene.tiles: the mask of below/scene is missing" in (
        maskloom("verify", output).output
    )
    assert maskloom(*command).exit_code == 0
    np.testing.assert_array_equal(load_mask(f"{output}/masks/below/scene.tiles"), EXPECTED)
    assert maskloom("verify", output).exit_code == 0


def test_a_large_folder_is_cut_into_parts_with_the_same_mask(tmp_path, maskloom, monkeypatch):
    pixels = photograph(300, 200)
    save_chunks(f"{tmp_path}/in/scene.chunks", pixels)
    outputs = [tmp_path / "whole", tmp_path / "parts"]
    for output in outputs:
        result = maskloom("segment", tmp_path / "in", "-o", output, *THRESHOLD, *QUIET)
        assert result.exit_code == 0, result.output
        monkeypatch.setattr(batching, "RANGE_PIXELS", 2**12)
    whole, parts = (load_mask(f"{output}/masks/scene.tiles") for output in outputs)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(whole, pixels[..., 0] > 100)


def test_a_run_that_stopped_goes_on_with_its_plan(tmp_path, maskloom, monkeypatch):
    """The plan's file holds the members of a series."""
    save_series(f"{tmp_path}/in/scan", PICTURE)
    save_chunks(f"{tmp_path}/in/scene.chunks", PICTURE)
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", *THRESHOLD, *QUIET)
    write_plan = planning.write_plan

    def killed(*arguments):
        write_plan(*arguments)
        raise RuntimeError("killed")

    monkeypatch.setattr(planning, "write_plan", killed)
    assert maskloom(*command).exit_code == 1
    monkeypatch.setattr(planning, "write_plan", write_plan)

    assert maskloom(*command).exit_code == 0
    assert len(list(Path(tmp_path / "out" / "runs").glob("*/plan.json"))) == 1
    np.testing.assert_array_equal(read_masks(tmp_path / "out")["masks/scan.png"], EXPECTED)
    assert len(read_table(tmp_path / "out", "images")) == 2


@pytest.mark.parametrize("segmenter", [THRESHOLD, ("-s", "connected_parts")])
def test_zarr_in_and_out(place, tmp_path, maskloom, segmenter):
    """A real format of folders: the mask has the labels of the same picture as TIFF."""
    zarr = pytest.importorskip("zarr")
    output, names = f"{place}/out", ("c", "y", "x")
    pixels = np.moveaxis(PICTURE, -1, 0)
    zarr.create_array(
        tmp_path / "made.zarr", data=pixels, chunks=(2, 48, 64), dimension_names=names
    )
    fs, path = fsspec.core.url_to_fs(f"{place}/in/scene.zarr")
    fs.makedirs(f"{place}/in", exist_ok=True)
    fs.put(str(tmp_path / "made.zarr"), path, recursive=True)
    with fsspec.open(f"{place}/in/same.png", "wb") as file:
        Image.fromarray(PICTURE).save(file, "png")
    command = ("segment", f"{place}/in", "-o", output, *segmenter, *QUIET)
    if "connected_parts" in segmenter:
        inside = "of={kind: threshold, value: 100, band: 1}"
        command = (*command, "-p", inside)

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    fs, path = fsspec.core.url_to_fs(f"{output}/masks/scene.zarr")
    mask = zarr.open(zarr.storage.FsspecStore.from_mapper(fs.get_mapper(path)), mode="r")["0"]
    with fsspec.open(f"{output}/masks/same.png") as file:
        np.testing.assert_array_equal(mask[...], np.array(Image.open(file)))
    assert len(np.unique(mask[...])) > 1
    assert maskloom("verify", output).exit_code == 0
    assert "Nothing to do" in maskloom(*command).output


def test_a_zarr_volume_in_cubes_has_the_mask_of_the_whole(tmp_path, maskloom, monkeypatch):
    zarr = pytest.importorskip("zarr")
    volume = np.stack([photograph(60, 70)[..., 0] // (1 + i % 3) for i in range(20)])
    zarr.create_array(tmp_path / "in" / "v.zarr", data=volume, chunks=(8, 32, 32))
    masks = []
    for tile, part in ((16, 2**12), (512, 2**26)):
        monkeypatch.setattr(batching, "RANGE_PIXELS", part)
        output = tmp_path / str(tile)
        command = ("segment", tmp_path / "in", "-o", output, *THRESHOLD, *QUIET)
        result = maskloom(*command, "--set", f"tiling.tile={tile}")
        assert result.exit_code == 0, result.output
        masks.append(zarr.open(output / "masks" / "v.zarr", mode="r")["0"])
        assert maskloom("verify", output).exit_code == 0
    for mask in masks:
        np.testing.assert_array_equal(mask[...], volume > 100)
    assert masks[0].chunks != masks[1].chunks


def test_files_of_a_mask_that_no_image_has_are_found_and_removed(tmp_path, maskloom):
    save_chunks(f"{tmp_path}/in/scene.chunks", PICTURE)
    output = tmp_path / "out"
    assert maskloom("segment", tmp_path / "in", "-o", output, *THRESHOLD, *QUIET).exit_code == 0
    left = output / "masks" / "scene.zarr" / "c" / "0"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"left by a run that died")

    assert "masks/scene.zarr/c/0/0: no image in the tables has it" in (
        maskloom("verify", output).output
    )
    assert maskloom("clean", output).exit_code == 0

    assert not (left / "0").exists()
    assert maskloom("verify", output).exit_code == 0
    np.testing.assert_array_equal(load_mask(f"{output}/masks/scene.tiles"), EXPECTED)


def test_headers_are_read_by_workers_once_and_a_run_without_work_opens_no_cluster(
    tmp_path, maskloom, monkeypatch
):
    save_series(f"{tmp_path}/in/scan", PICTURE)
    read, opened = [], []
    headers, serial = RowSeries.headers, SerialCluster.open
    monkeypatch.setattr(
        RowSeries,
        "headers",
        lambda self, files, options: (
            [read.append(file.uri) for file in files] and headers(self, files, options)
        ),
    )
    monkeypatch.setattr(
        SerialCluster, "open", lambda self, *given: opened.append(1) or serial(self, *given)
    )
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", *THRESHOLD, *QUIET)
    assert maskloom(*command).exit_code == 0
    assert len(read) == len(set(read)) == 4
    assert len(opened) == 1

    assert "Nothing to do" in maskloom(*command).output

    assert (len(read), len(opened)) == (4, 1)
    assert maskloom("verify", tmp_path / "out").exit_code == 0
    save_rows(f"{tmp_path}/in/scan-1.rows", strips(NEGATIVE)[1])
    assert maskloom(*command).exit_code == 0
    assert [Path(uri).name for uri in read[4:]] == ["scan-1.rows"]


@pytest.mark.parametrize("named", [False, True])
def test_files_that_hold_no_image_are_counted_or_fail_if_they_are_named(
    tmp_path, maskloom, monkeypatch, named
):
    save_series(f"{tmp_path}/in/scan", PICTURE)
    save_rows(f"{tmp_path}/in/report-0.rows", PICTURE[:1, :1, 0])
    group = RowSeries.group

    def grouped(self, files, headers, options):
        reports = {file.uri: "reports" for file in files if "report" in file.uri}
        return replace(group(self, files, headers, options), passed_over=reports)

    monkeypatch.setattr(RowSeries, "group", grouped)
    inputs = [f"{tmp_path}/in", f"{tmp_path}/in/report-0.rows"][: 1 + named]

    result = maskloom("segment", *inputs, "-o", tmp_path / "out", *THRESHOLD, *QUIET)

    assert result.exit_code == (3 if named else 0), result.output
    note = "Passed over in folders, since they hold no image: 1 reports."
    assert (note in result.output) != named
    statuses = {row["image_id"]: row["status"] for row in read_table(tmp_path / "out", "images")}
    assert statuses == {"scan": "ok"} | ({"report-0": "failed"} if named else {})
