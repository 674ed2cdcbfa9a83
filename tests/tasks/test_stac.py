"""The STAC collection of an output that is written while things go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.tasks import stac
from maskloom.tasks.output import Output
from maskloom.tasks.stac import write_stac

RUN = ("--no-prefect", "--quiet", "--set", "cluster=serial", "-s", "threshold")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_collection_that_was_interrupted_is_made_as_if_it_was_not(tmp_path, monkeypatch):
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (20, 20), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in "abc"]
    command = ["segment", *images, "-o", str(tmp_path / "out"), *RUN]
    assert CliRunner().invoke(app, command).exit_code == 0
    output = Output.open(str(tmp_path / "out"))

    def broken(*job):
        if job[1]["image_id"] == "b":
            raise KeyboardInterrupt
        return whole(*job)

    whole = stac._publish
    with monkeypatch.context() as patch:
        patch.setattr(stac, "_publish", broken)
        with pytest.raises(KeyboardInterrupt):
            write_stac(output)
    # No collection names items that are not there.
    assert not (tmp_path / "out" / "stac" / "collection.json").exists()
    write_stac(output)
    first = files(tmp_path / "out" / "stac")
    assert {"collection.json", *(f"items/{name}.json" for name in "abc")} <= first.keys()
    write_stac(output)
    assert files(tmp_path / "out" / "stac") == first
    # Elsewhere, the same items lead to the same files.
    write_stac(output, str(tmp_path / "elsewhere"))
    for name in "abc":
        item = json.loads((tmp_path / "elsewhere" / "items" / f"{name}.json").read_text())
        assert Path(item["assets"]["mask"]["href"]).is_file()
        assert (tmp_path / "elsewhere" / "items" / item["links"][0]["href"]).is_file()


@pytest.mark.parametrize(
    ("spans", "west", "east"),
    [
        ([], -180, 180),
        ([(10, 20), (15, 30)], 10, 30),
        ([(170, 175), (-179, -170)], 170, -170),
        ([(179, 181), (-179, -170)], 179, -170),
        ([(-180, 180), (10, 20)], -180, 180),
        ([(170, 190), (-175, -172)], 170, -170),
        ([(170, 190)], 170, -170),
        ([(-170, -160), (10, 20), (160, 170)], 10, -160),
    ],
)
def test_the_box_around_all_items_is_the_smallest(spans, west, east):
    extent = stac._Extent(list(spans), -1.0, 1.0)
    found = extent.bbox
    assert (found[0], found[2]) == (west, east)
