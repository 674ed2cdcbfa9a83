"""Pictures that need more memory than a worker has: refused by their header, and tried again only
when there is more.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests_support import photograph, read_table

from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.memory import WORKER_BYTES

LARGE = (3000, 2000)
PIXELS = 3000 * 2000 * 3


def available(monkeypatch: pytest.MonkeyPatch, memory: int | None) -> None:
    monkeypatch.setattr(SerialCluster, "worker_memory", memory)


def test_a_picture_that_cannot_fit_is_a_failed_row_until_workers_have_more_memory(
    tmp_path, maskloom, monkeypatch
):
    images, output = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    Image.fromarray(np.zeros((*LARGE, 3), np.uint8)).save(images / "large.png")
    Image.fromarray(photograph(30, 40)).save(images / "small.png")
    command = (
        "segment",
        images,
        "-o",
        output,
        "-s",
        "threshold",
        "-p",
        "value=9",
        "--no-prefect",
        "--quiet",
    )
    command = (*command, "--set", "cluster.kind=serial", "--set", "tiling.tile=256")

    for memory, again in (
        (WORKER_BYTES + PIXELS - 1, False),
        (WORKER_BYTES + PIXELS - 1, True),
        (WORKER_BYTES + PIXELS // 2, True),
    ):
        available(monkeypatch, memory)
        result = maskloom(*command)
        assert result.exit_code == 3, result.output
        assert ("Nothing to do" in result.output) == again
    rows = {row["image_id"]: row for row in read_table(output, "images")}
    assert (rows["large"]["status"], rows["large"]["error_type"]) == ("failed", "OutOfMemory")
    assert "its 2000 x 3000 pixels alone take 0.02 GB" in rows["large"]["error"]
    assert rows["large"]["unprocessed_pixels"] == 6_000_000
    assert rows["small"]["status"] == "ok"
    assert len(list((output / "runs").glob("*/plan.json"))) == 1

    available(monkeypatch, WORKER_BYTES + PIXELS + 10**9)
    assert maskloom(*command).exit_code == 0
    assert {row["status"] for row in read_table(output, "images")} == {"ok"}
    assert "Nothing to do" in maskloom(*command).output


def test_where_nobody_knows_the_memory_every_picture_is_tried(tmp_path, maskloom, monkeypatch):
    Image.fromarray(photograph(30, 40)).save(tmp_path / "small.png")
    available(monkeypatch, None)
    command = (
        "segment",
        tmp_path / "small.png",
        "-o",
        tmp_path / "out",
        "-s",
        "threshold",
        "--no-prefect",
        "--set",
        "cluster.kind=serial",
    )
    assert maskloom(*command).exit_code == 0


def test_a_network_that_no_worker_can_hold_is_refused_before_the_first_image(
    tmp_path, maskloom, monkeypatch
):
    Image.fromarray(photograph(30, 40)).save(tmp_path / "small.png")
    command = ("segment", tmp_path / "small.png", "-o", tmp_path / "out", "-s", "unet")
    command = (*command, "-p", "weights=nuclei", "--no-prefect", "--set", "cluster.kind=serial")
    available(monkeypatch, WORKER_BYTES + 500_000_000)
    refused = maskloom(*command)
    assert refused.exit_code == 2
    assert "segmenter: its network, the libraries that run it and one patch need" in refused.output
    assert "a worker has 0.8 GB" in refused.output
    assert not list((tmp_path / "out").glob("masks/*"))
    # A tile is not to blame, so no smaller one is proposed.
    assert "tile: a tile" not in refused.output
