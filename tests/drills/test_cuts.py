"""Drills: a run is cut before and after everything that it writes, moves and removes, and the same
command then leaves what an undisturbed run leaves.

Cuts are fail-points of the product (`segcore/storage/failpoints.py`). The run fits a model to a
collection and has objects; one of its images is spread over parts. It works in one process, so the
N-th step is always the same.
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest
from drills_support import HANG, Ended, Forks, assert_undisturbed, assert_whole, forks
from PIL import Image
from tests_support import photograph, write_tiff

RUN = (
    "segment images -s kmeans -p clusters=3 --no-prefect --quiet "
    "--set cluster.kind=serial --set tiling.tile=128"
).split() + ["--set", "statistics=[{kind: objects, min_size: 5}]"]
FAULTS = {"kill": -signal.SIGKILL, "raise=EIO": 1}
"""How a cut run ends."""
pytestmark = pytest.mark.timeout(3 * HANG)


@pytest.fixture(scope="module")
def server():
    with forks() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small images, and one of twelve tiles in several parts."""
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "images").mkdir()
    for i in range(2):
        Image.fromarray(photograph(60, 50 + 7 * i)).save(folder / "images" / f"small{i}.png")
    write_tiff(folder / "images" / "big.tif", photograph(256, 320))
    return folder


@pytest.fixture(scope="module")
def undisturbed(server, folder):
    ended = server.run(folder, [*RUN, "-o", "undisturbed"], learn=True)
    assert ended.code == 0, ended.said
    return folder / "undisturbed"


def cut(server: Forks, output: Path, fault: str) -> Ended:
    """A run that fails at a fail-point; what it leaves below `masks` and `tables` is whole."""
    ended = server.run(output.parent, [*RUN, "-o", output.name], MASKLOOM_FAIL=fault)
    assert_whole(output)
    return ended


def assert_resumed(server: Forks, output: Path, undisturbed: Path) -> None:
    """The same command leaves what an undisturbed run leaves; a further one does nothing."""
    again = [*RUN, "-o", output.name]
    ended = server.run(output.parent, again, again, ["clean", output.name])
    assert ended.code == 0, ended.said
    assert "Nothing to do" in ended.said
    assert_undisturbed(output, undisturbed)


@pytest.mark.parametrize("action", FAULTS)
@pytest.mark.parametrize(
    "point",
    [
        "written:runs/*/plan.parquet",
        "written:runs/recipes/*/model.json",
        "write:runs/commits/*.json",
        "written:runs/commits/*.json",
        "moved:masks/*",
        "moved:tables/areas/*",
        "written:runs/*/manifest.json",
    ],
)
def test_a_run_that_is_cut_at_a_step_of_its_commit_is_finished_by_the_next(
    server, folder, undisturbed, point, action
):
    output = folder / f"{point}-{action}".replace("/", "-").replace("*", "-").replace(":", "-")
    ended = cut(server, output, f"{point}:{action}")
    assert ended.code == FAULTS[action], ended.said
    assert_resumed(server, output, undisturbed)


@pytest.mark.nightly
@pytest.mark.timeout(20 * HANG)
@pytest.mark.parametrize("action", [*FAULTS, "exit"])
def test_wherever_a_run_is_cut_the_next_finishes_it(server, folder, undisturbed, action):
    """Before and after each file that is written, moved or removed."""
    number, ends = 0, []
    for step in ("writ", "move", "remove"):
        pass
    while True:
        number += 1
        output = folder / f"{action}-{number}"
        ended = cut(server, output, f"*:*:{action}@{number}")
        ends.append(ended.code)
        if ended.code == 0 and "MASKLOOM_FAIL" not in ended.said and number > 60:
            break
        assert_resumed(server, output, undisturbed)
    assert number > 60, "a run has more steps than this"
