"""Sources that change while a run is under way: never a row that says one version and a mask of
another.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from tests_support import photograph, read_masks, read_table, write_tiff

import maskloom.flows.planning
from maskloom.segcore.raster.spec import FORMATS
from maskloom.tasks import batching

PICTURE = photograph(60, 80)
NEGATIVE = 255 - PICTURE
QUIET = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")
THRESHOLD = ("-s", "threshold", "-p", "value=100", "-p", "band=1")


def put(location: str, pixels: np.ndarray) -> None:
    """Replace a picture by one of the same size in pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    with fsspec.open(location, "wb") as file:
        file.write(buffer.getvalue())


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    location = str(tmp_path / "in") if request.param == "disk" else "memory://changed"
    fs, path = fsspec.core.url_to_fs(location)
    if fs.exists(path):
        fs.rm(path, recursive=True)
    fs.makedirs(path, exist_ok=True)
    for name in ("changes", "stays"):
        put(f"{location}/{name}.png", PICTURE)
    return location


def at(moment: str, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let something happen once, at a moment of the run."""
    once = [act]
    module, name = {
        "planned": (maskloom.flows.planning, "write_plan"),
        "opened": (type(FORMATS["picture"]), "open"),
    }[moment]
    before = getattr(module, name)

    def changed(*arguments: object) -> object:
        result = before(*arguments)
        if once and (moment == "planned" or "changes" in arguments[1].location):  # type: ignore[attr-defined]
            once.pop()()
        return result

    monkeypatch.setattr(module, name, changed)


@pytest.mark.parametrize("moment", ["planned", "opened"])
def test_a_source_that_changes_is_a_failed_row_and_done_by_the_next_run(
    folder, tmp_path, maskloom, monkeypatch, moment
):
    output = tmp_path / "out"
    command = ("segment", folder, "-o", output, *THRESHOLD, *QUIET)
    at(moment, monkeypatch, lambda: put(f"{folder}/changes.png", NEGATIVE))

    result = maskloom(*command)

    assert result.exit_code == 3, result.output
    rows = {row["image_id"]: row for row in read_table(output, "images")}
    assert (rows["changes"]["status"], rows["changes"]["error_type"]) == ("failed", "SourceChanged")
    assert rows["changes"]["unprocessed_pixels"] == 60 * 80
    assert "changes.png was changed or replaced" in rows["changes"]["error"]
    assert rows["stays"]["status"] == "ok"

    assert maskloom(*command).exit_code == 0

    assert {row["status"] for row in read_table(output, "images")} == {"ok"}
    masks = read_masks(output)
    np.testing.assert_array_equal(masks["masks/changes.png"], NEGATIVE[..., 0] > 100)
    np.testing.assert_array_equal(masks["masks/stays.png"], PICTURE[..., 0] > 100)
    assert "Nothing to do" in maskloom(*command).output


def test_a_source_that_changes_while_a_model_is_fitted_to_all_ends_the_run_and_the_next_takes_it(
    folder, tmp_path, maskloom, monkeypatch
):
    """As with every fault that passes: a model without this image would stay."""
    output = tmp_path / "out"
    command = ("segment", folder, "-o", output, "-s", "threshold", "--fit", "collection", *QUIET)
    at("planned", monkeypatch, lambda: put(f"{folder}/changes.png", NEGATIVE))
    result = maskloom(*command)
    assert result.exit_code == 1
    assert "changes.png was changed or replaced" in result.output
    assert maskloom(*command).exit_code == 0


def test_a_large_source_that_changes_while_its_own_model_is_fitted_hurts_no_other(
    tmp_path, maskloom, monkeypatch
):
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)
    images, output = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    write_tiff(images / "changes.tif", photograph(600, 600))
    Image.fromarray(PICTURE).save(images / "stays.png")
    at(
        "planned",
        monkeypatch,
        lambda: write_tiff(images / "changes.tif", 255 - photograph(600, 600)),
    )
    command = (
        "segment",
        images,
        "-o",
        output,
        "-s",
        "threshold",
        "--fit",
        "image",
        "--set",
        "tiling.tile=256",
        *QUIET,
    )

    assert maskloom(*command).exit_code == 3
    assert {row["image_id"]: row["error_type"] for row in read_table(output, "images")} == {
        "changes": "SourceChanged",
        "stays": None,
    }
    assert maskloom(*command).exit_code == 0


def test_a_source_that_vanishes_is_a_failed_row(folder, tmp_path, maskloom, monkeypatch):
    fs, path = fsspec.core.url_to_fs(f"{folder}/changes.png")
    at("opened", monkeypatch, lambda: fs.rm(path))
    assert maskloom("segment", folder, "-o", tmp_path / "out", *THRESHOLD, *QUIET).exit_code == 3
    rows = {row["image_id"]: row["error_type"] for row in read_table(tmp_path / "out", "images")}
    assert rows == {"changes": "Unavailable", "stays": None}
