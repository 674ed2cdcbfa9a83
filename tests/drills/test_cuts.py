"""Drills: a run is cut before and after everything that it writes, moves and removes, and the same
command then leaves what an undisturbed run leaves.

Cuts are fail-points of the product (`segcore/storage/failpoints.py`). The run fits a model to a
collection and has objects; one of its images is spread over parts. It works in one process, so the
N-th step is always the same.
"""

from __future__ import annotations

import shutil
import signal
from bisect import bisect_left
from pathlib import Path

import pytest
from drills_support import HANG, RUN, Ended, Forks, assert_resumed, assert_whole

pytestmark = pytest.mark.timeout(3 * HANG)


def cut(server: Forks, output: Path, fault: str) -> Ended:
    """A run that fails at a fail-point; what it leaves below `masks` and `tables` is whole."""
    ended = server.run(output.parent, [*RUN, "-o", output.name], MASKLOOM_FAIL=fault)
    assert_whole(output)
    return ended


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("written:runs/recipes/*/model.json", "kill"),
        ("written:*.relabelled", "kill"),
        ("written:runs/commits/*.json", "kill"),
        ("moved:masks/*", "kill"),
        ("moved:scores/*", "kill"),
        ("move:tables/images/*", "kill"),
        ("written:runs/*/manifest.json", "kill"),
        ("write:runs/commits/*.json", "raise=ENOSPC"),
        ("moved:tables/areas/*", "raise=EIO"),
    ],
)
def test_a_run_that_is_cut_at_a_step_is_finished_by_the_next(
    server, folder, undisturbed, point, action
):
    output = folder / f"{action}-{point}".translate(str.maketrans("/*:", "---"))
    ended = cut(server, output, f"{point}:{action}")
    assert ended.code == -signal.SIGKILL if action == "kill" else ended.code in {0, 1}, ended.said
    assert_resumed(server, output, undisturbed)


@pytest.fixture(scope="module")
def steps(server, folder):
    """The number of steps of a run: the last at which it can be killed."""

    def ends_before(number: int) -> bool:
        output = folder / f"steps-{number}"
        return cut(server, output, f"*:*:kill@{number}").code == 0

    return bisect_left(range(1, 1_000), True, key=ends_before)


@pytest.mark.nightly
@pytest.mark.timeout(30 * HANG)
@pytest.mark.parametrize("action", ["kill", "raise=EIO"])
def test_wherever_a_run_is_cut_the_next_finishes_it(server, folder, undisturbed, steps, action):
    """Before and after each file that is written, moved or removed."""
    assert steps > 60
    for number in range(1, steps + 1):
        output = folder / f"{action}-{number}"
        ended = cut(server, output, f"*:*:{action}@{number}")
        # 0: a reply that is lost after the claim; the run finds its own commit and finishes it.
        # 3: a header that cannot be read now; the model is then fitted without this image.
        assert ended.code in {-signal.SIGKILL, 0, 1, 3}, f"step {number}: {ended.said}"
        looked = server.run(folder, ["status", output.name], ["verify", output.name])
        assert looked.code == 0 or "holds no run" in looked.said, f"step {number}: {looked.said}"
        if ended.code == 3:
            again = server.run(folder, *[[*RUN, "-o", output.name]] * 2)
            assert again.code == 0, again.said
        else:
            assert_resumed(server, output, undisturbed)
        shutil.rmtree(output)
