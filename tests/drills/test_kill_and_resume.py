"""Drills: kill -9 of the driver or of a worker at several moments, then the same command, then the
same results.

Parts are small, so that an image of a few megapixels takes the way of a large one.
"""

from __future__ import annotations

import contextlib
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
from PIL import Image
from tests_support import assert_same_results, photograph, write_tiff

COMMAND = [
    sys.executable,
    "-c",
    (
        "from maskloom.tasks import batching; batching.RANGE_PIXELS = 2**17\n"
        "from maskloom.flows.cli import main; main()"
    ),
]
MOMENTS = {
    "planned": "runs/*/plan.json",
    "fitted": "runs/*/model.json",
    "a part is staged": "staging/*/*/*.part",
    "objects are joined": "staging/*/*/*.relabellings",
    "a part is relabelled": "staging/*/*/*.relabelled",
    "a mask waits for its commit": "staging/processes/*/results/*",
    "a commit is drafted": "staging/processes/*/commits/*/tables/areas/*",
    "a commit is claimed": "runs/commits/*.json",
}
"""What each leaves behind, in the order in which they come."""
HANG = 240
"""Seconds after which something hangs, however loaded the machine is."""
pytestmark = pytest.mark.timeout(10 * HANG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image that spreads over the workers, and many small ones."""
    folder = tmp_path_factory.mktemp("drill")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    write_tiff(
        images / "big.tif",
        photograph(1152, 1152) ^ rng.integers(0, 8, (1152, 1152, 1), dtype=np.uint8),
    )
    for i in range(12):
        Image.fromarray(photograph(200, 150 + 7 * i)).save(images / f"small{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    run = start(folder, "undisturbed")
    assert run.wait(HANG) == 0, messages_of(folder, "undisturbed").read_text()
    return folder / "undisturbed"


def start(folder: Path, output: str, workers: int = 2) -> subprocess.Popen[bytes]:
    recipe = folder / "drill.yaml"
    recipe.write_text(
        json.dumps(
            {
                "inputs": "images",
                "output": "out",
                "segmenter": {"kind": "kmeans", "clusters": 3},
                "statistics": [{"kind": "objects", "min_size": 30}],
                "tiling": {"tile": 128},
                "cluster": {"kind": "local", "workers": workers},
            }
        )
    )
    with messages_of(folder, output).open("wb") as log:
        return subprocess.Popen(
            [*COMMAND, "run", str(recipe), "--no-prefect", "--quiet", "--set", f"output={output}"],
            stderr=log,
        )


def messages_of(folder: Path, output: str) -> Path:
    return folder / f"{output}.log"


def came(
    output: Path, moment: str, before: set[tuple[str, int]], run: subprocess.Popen[bytes]
) -> bool:
    """Waits for what a moment leaves behind and was not there before; False where the run ends
    without it.
    """
    deadline = time.monotonic() + HANG
    going_on = True
    while going_on and time.monotonic() < deadline:
        going_on = run.poll() is None
        if left_behind(output, moment) - before:
            return True
        time.sleep(0.01)
    return False


def left_behind(output: Path, moment: str) -> set[tuple[str, int]]:
    """Files and when they were written; without those that vanish at this very moment."""
    found = set()
    for path in output.glob(MOMENTS[moment]):
        with contextlib.suppress(FileNotFoundError):
            found.add((str(path), path.stat().st_mtime_ns))
    return found


def workers_of(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(run.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]


def test_the_driver_is_killed_again_and_again_and_the_same_command_goes_on(folder, undisturbed):
    """On one worker, while the undisturbed run has two."""
    output = folder / "killed"
    for moment in MOMENTS:
        before = left_behind(output, moment)
        run = start(folder, "killed", workers=1)
        assert came(output, moment, before, run), (
            f"{moment}? {messages_of(folder, 'killed').read_text()}"
        )
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.wait()
        assert psutil.wait_procs(children, timeout=HANG)[1] == [], (
            f"orphans after kill -9 of the driver when {moment}"
        )

    assert start(folder, "killed", workers=1).wait(HANG) == 0, messages_of(
        folder, "killed"
    ).read_text()
    assert_same_results(output, undisturbed)
    assert not list((output / "staging").rglob("*.*")), "staging is not empty"


def test_a_worker_is_killed_and_the_run_does_not_notice(folder, undisturbed):
    run = start(folder, "worker")
    assert came(folder / "worker", "a part is staged", set(), run)
    os.kill(workers_of(run)[0].pid, signal.SIGKILL)

    assert run.wait(HANG) == 0, messages_of(folder, "worker").read_text()
    assert "Traceback" not in messages_of(folder, "worker").read_text()
    assert_same_results(folder / "worker", undisturbed)


def test_sigterm_leaves_a_run_that_can_go_on(folder, undisturbed):
    run = start(folder, "term")
    assert came(folder / "term", "a part is staged", set(), run)
    run.send_signal(signal.SIGTERM)

    assert run.wait(HANG) == 1, messages_of(folder, "term").read_text()
    assert "Traceback" not in messages_of(folder, "term").read_text()
    assert start(folder, "term").wait(HANG) == 0, messages_of(folder, "term").read_text()
    assert_same_results(folder / "term", undisturbed)
