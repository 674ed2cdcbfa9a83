"""Drills: runs with alerts are killed between all that they do about them; each alert is on record
once, and delivered at least once with one id.

Images arrive one after the other; each run is killed at the same moment, and started again.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from applications_support import prepare
from drills_support import HANG, Forks, assert_whole
from hooks_support import Hook

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(5 * HANG)]

MOMENTS = (
    "moved:masks/*",
    "write:tables/alerts/*",
    "written:tables/alerts/*",
    "write:runs/alerts/*",
    "written:runs/alerts/*",
)
ARRIVALS = {
    "burned-area": ("S2_20260701.tif", "S2_20260705.tif", "S2_20260707.tif", "S2_20260708.tif"),
    "weeds": ("clean.png", "weedy.png"),
}
EVENTS = {"burned-area": ["unknown", "raised", "ended"], "weeds": ["raised"]}
"""States on record after the last arrival: growth has no earlier date, the fire spreads, and a day
later it stands still.
"""


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.close()


def arrive(server: Forks, folder: Path, name: str, hook: Hook, point: str = "") -> list[Any]:
    """Run an application after each arrival of an image, killed at this point; its events."""
    recipe = prepare(name, folder)
    (arrived,) = (path for path in folder.iterdir() if path.name in ("fire", "field"))
    if name == "burned-area":
        shutil.copy(arrived / "S2_20260707.tif", arrived / "S2_20260708.tif")
    waiting = arrived.rename(folder / "waiting")
    arrived.mkdir()
    notify = f"notify={json.dumps([{'webhook': hook.url}])}"
    command = ["run", recipe.name, "--no-prefect", "--quiet", "--set", "cluster=serial"]
    command += ["--set", notify]
    kills = 0
    for image in ARRIVALS[name]:
        shutil.move(waiting / image, arrived)
        if point:
            ended = server.run(folder, command, MASKLOOM_FAIL=f"{point}:kill")
            assert ended.code in (0, -signal.SIGKILL), ended.said
            kills += ended.code != 0
            assert_whole(folder / name)
        ended = server.run(folder, command, learn=not point)
        assert ended.code == 0, ended.said
    assert kills or not point, "the run did not come to this point"
    table = ds.dataset(folder / name / "tables" / "alerts").to_table()
    return sorted(table.drop_columns(["at"]).to_pylist(), key=lambda row: row["sequence"])


@pytest.mark.parametrize("name", ARRIVALS)
def test_alerts_are_counted_once_wherever_runs_are_killed(server, tmp_path, hook, name):
    (tmp_path / "undisturbed").mkdir()
    undisturbed = arrive(server, tmp_path / "undisturbed", name, hook)
    assert [event["state"] for event in undisturbed] == EVENTS[name]
    told = [event["event_id"] for event in undisturbed if event["state"] != "unknown"]
    assert hook.keys == told
    for number, point in enumerate(MOMENTS):
        hook.keys.clear()
        folder = tmp_path / str(number)
        folder.mkdir()
        assert arrive(server, folder, name, hook, point) == undisturbed, point
        again = 2 if point == "write:runs/alerts/*" else 1
        assert Counter(hook.keys) == dict.fromkeys(told, again), point
