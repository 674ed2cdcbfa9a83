"""Drills: kill -9 of the driver or of a worker at several moments, then the same command, then the same results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from PIL import Image
from tests_support import assert_same_results, photograph

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
MOMENTS = {
    "planned": "runs/*/plan.json",
    "fitted": "runs/*/model.json",
    "a part is staged": "staging/*/*/*.part",
    "objects are joined": "staging/*/*/*.placements",
    "a part is redrawn": "staging/*/*/*.redrawn",
    "a mask is written": "masks/*.png",
    "a shard is committed": "tables/images/*.parquet",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image that spreads over the workers, and many small ones."""
    folder = tmp_path_factory.mktemp("drill")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    big = np.tile(photograph(512, 512), (9, 9, 1)) ^ rng.integers(0, 8, (4608, 4608, 1), dtype=np.uint8)
    profile = {
        "driver": "GTiff",
        "height": 4608,
        "width": 4608,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "compress": "deflate",
        "zlevel": 1,
    }
    with rasterio.open(images / "big.tif", "w", **profile) as file:
        file.write(np.moveaxis(big, -1, 0))
    for i in range(30):
        Image.fromarray(photograph(400, 300 + 7 * i)).save(images / f"small{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    run = start(folder, "undisturbed")
    assert run.wait(timeout=240) == 0
    return folder / "undisturbed"


def start(folder: Path, output: str) -> subprocess.Popen[bytes]:
    recipe = folder / "drill.yaml"
    recipe.write_text(
        json.dumps(
            {
                "inputs": "images",
                "output": "out",
                "segmenter": {"kind": "kmeans", "clusters": 3},
                "statistics": [{"kind": "objects", "min_size": 30}],
                "tiling": {"tile": 512},
                "cluster": {"kind": "local", "workers": 2},
            }
        )
    )
    with messages_of(folder, output).open("wb") as log:
        return subprocess.Popen(
            [*COMMAND, "run", str(recipe), "--no-prefect", "--quiet", "--set", f"output={output}"], stderr=log
        )


def messages_of(folder: Path, output: str) -> Path:
    return folder / f"{output}.log"


def wait_for(output: Path, pattern: str, run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        if any(output.glob(pattern)):
            return
        time.sleep(0.01)


def workers_of(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_driver_is_killed_and_the_same_command_goes_on(folder, undisturbed, moment):
    name = moment.replace(" ", "-")
    run = start(folder, name)
    wait_for(folder / name, MOMENTS[moment], run)
    children = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, "orphans after kill -9 of the driver"

    again = start(folder, name)

    assert again.wait(timeout=240) == 0, messages_of(folder, name).read_text()
    assert_same_results(folder / name, undisturbed)
    assert not list((folder / name / "staging").rglob("*.*")), "staging is not empty"


def test_a_worker_is_killed_and_the_run_does_not_notice(folder, undisturbed):
    run = start(folder, "worker")
    wait_for(folder / "worker", MOMENTS["a part is staged"], run)
    workers = workers_of(run)
    assert workers, "no worker to kill"
    os.kill(workers[0].pid, signal.SIGKILL)

    assert run.wait(timeout=240) == 0, messages_of(folder, "worker").read_text()
    assert "Traceback" not in messages_of(folder, "worker").read_text()
    assert_same_results(folder / "worker", undisturbed)


def test_sigterm_leaves_a_run_that_can_go_on(folder, undisturbed):
    run = start(folder, "term")
    wait_for(folder / "term", MOMENTS["a part is staged"], run)
    run.send_signal(signal.SIGTERM)

    assert run.wait(timeout=240) == 1, messages_of(folder, "term").read_text()
    assert "Traceback" not in messages_of(folder, "term").read_text()
    assert start(folder, "term").wait(timeout=240) == 0
    assert_same_results(folder / "term", undisturbed)
