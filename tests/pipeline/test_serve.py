"""Recipes that a Prefect server starts: by their schedules, by events, in a service or a work pool.
Real servers, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving_support import HANG, MASKLOOM, Process, Server, prefect_server, wait_until
from tests_support import assert_same_results, photograph

pytestmark = pytest.mark.timeout(3 * HANG)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.nightly)]
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("server"), request.param) as started:
        yield started


def write_recipe(folder: Path, name: str, **keys: object) -> Path:
    """A recipe with relative paths for the two pictures beside it."""
    from PIL import Image

    for i in range(2):
        (folder / "in").mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(60 + i, 80)).save(folder / "in" / f"a{i}.png")
    document = {
        "name": name,
        "inputs": "in",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 100},
        "cluster": "serial",
        **keys,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def started(server: Server, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a command that knows the server. All are killed at the end."""
    processes: list[Process] = []

    def start(*command: object, **environment: str) -> Process:
        processes.append(
            Process(tmp_path / "processes", *command, **{**server.environment, **environment})
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def assert_as_undisturbed(recipe: Path, maskloom: Callable[..., Any]) -> None:
    """The output has what the command line gives, once; a further run does nothing."""
    undisturbed = recipe.parent / "undisturbed"
    options = ("--no-prefect", "--quiet")
    done = maskloom("run", recipe, "--set", f"output={undisturbed}", *options)
    assert done.exit_code == 0
    output = recipe.parent / "out"
    assert_same_results(output, undisturbed)
    assert "Nothing to do" in maskloom("run", recipe, *options).stdout
    assert maskloom("verify", output).exit_code == 0


def test_schedules_and_events_start_runs_and_a_restart_pauses_nothing(
    server: Server, started: Callable[..., Process], tmp_path: Path, maskloom: Callable[..., Any]
) -> None:
    nightly = write_recipe(
        tmp_path / "a", "nightly", schedule={"cron": "30 2 * * *", "timezone": "Asia/Kolkata"}
    )
    often = write_recipe(tmp_path / "b", "often", schedule={"interval": "6h"})
    serve = (*MASKLOOM, "serve", nightly, often)
    service = started(*serve)
    for name, times in (("nightly", {"21:00"}), ("often", {"00:00", "06:00", "12:00", "18:00"})):
        scheduled = wait_until("scheduled runs", lambda name=name: server.runs(name), service)
        assert all(run["auto_scheduled"] for run in scheduled)
        assert {run["expected_start_time"][11:16] for run in scheduled} <= times

    server.send("often")
    (run,) = wait_until("the event's run", lambda: server.runs("often.events"), service)
    assert server.ended(run["id"], service)["type"] == "COMPLETED"
    assert_as_undisturbed(often, maskloom)
    assert not (tmp_path / "a" / "out").exists()

    assert service.end() == 0, service.said()
    assert "Traceback" not in service.said()
    assert server.deployment("nightly")["paused"] is False
    assert [each["active"] for each in server.deployment("nightly")["schedules"]] == [True]
    assert server.runs("nightly", "Scheduled")
