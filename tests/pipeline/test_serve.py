"""Recipes that a Prefect server starts: by their schedules, by events, in a service or a work pool.
Real servers, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving_support import HANG, MASKLOOM, Images, Process, Server, prefect_server, wait_until
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


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    """Pictures that a run can be made to wait for."""
    with Images(tmp_path / "served", ["a.png", "b.png", "c.png"]) as serving:
        serving.planned = lambda: any((tmp_path / "out" / "runs").glob("*/plan.json"))
        yield serving
        serving.open()
        serving.shutdown()


@pytest.mark.nightly
def test_runs_do_not_overlap_and_a_stop_is_made_good(
    server: Server,
    started: Callable[..., Process],
    images: Images,
    tmp_path: Path,
    maskloom: Callable[..., Any],
) -> None:
    recipe = write_recipe(tmp_path, "slow", inputs=images.uris)
    service = started(*MASKLOOM, "serve", recipe)
    wait_until("the service", lambda: "until Ctrl-C" in service.said(), service)
    images.shut()
    first = server.start_run("slow")
    assert images.waiting.wait(HANG)
    late = [server.start_run("slow") for _ in range(2)]
    for run in late:
        state = server.ended(run, service)
        assert (state["type"], state["message"]) == (
            "CANCELLED",
            "Deployment concurrency limit reached.",
        )
    for _ in range(3):
        server.send("slow")
    waiting = "AwaitingConcurrencySlot"
    wait_until("waiting runs", lambda: len(server.runs("slow.events", waiting)) == 3, service)

    service.process.terminate()
    wait_until("the stop", lambda: "Stopping" in service.said())
    images.open()
    assert service.process.wait(HANG) == 0, service.said()
    assert "Traceback" not in service.said()
    assert server.ended(first)["type"] == "CANCELLED"
    assert len(server.runs("slow", "Scheduled") + server.runs("slow", "Late")) == 1

    service = started(*MASKLOOM, "serve", recipe)
    wait_until(
        "what was left",
        lambda: (
            not server.runs("slow.events", waiting)
            and not server.runs("slow.events", "Running")
            and server.runs("slow", "Completed")
        ),
        service,
    )
    assert_as_undisturbed(recipe, maskloom)
    assert service.end() == 0


@pytest.mark.nightly
def test_a_process_worker_runs_a_recipe_with_relative_paths(
    server: Server, started: Callable[..., Process], tmp_path: Path, maskloom: Callable[..., Any]
) -> None:
    recipe = write_recipe(tmp_path, "pooled", schedule={"cron": "0 3 * * *"})
    server.ask("work_pools/", name="machines", type="process")
    refused = started(*MASKLOOM, "deploy", recipe, "--pool", "nowhere")
    assert refused.process.wait(HANG) == 2
    assert "prefect work-pool create nowhere" in refused.said()
    deployed = started(*MASKLOOM, "deploy", recipe, "--pool", "machines")
    assert deployed.process.wait(HANG) == 0, deployed.said()
    wait_until("scheduled runs", lambda: server.runs("pooled"))
    served = started(*MASKLOOM, "serve", recipe)
    assert served.process.wait(HANG) == 2
    assert "work pool machines" in served.said()

    prefect = (sys.executable, "-m", "prefect")
    worker = started(*prefect, "worker", "start", "--pool", "machines", "--type", "process")
    assert server.ended(server.start_run("pooled"), worker)["type"] == "COMPLETED"
    server.send("pooled")
    (run,) = wait_until("the event's run", lambda: server.runs("pooled.events"), worker)
    assert server.ended(run["id"], worker)["type"] == "COMPLETED"
    assert_as_undisturbed(recipe, maskloom)


@pytest.mark.nightly
def test_a_dead_run_is_found_and_frees_its_slot(
    server: Server,
    started: Callable[..., Process],
    images: Images,
    tmp_path: Path,
    maskloom: Callable[..., Any],
) -> None:
    recipe = write_recipe(tmp_path, "doomed", inputs=images.uris)
    service = started(*MASKLOOM, "serve", recipe)
    wait_until("the service", lambda: "until Ctrl-C" in service.said(), service)
    images.shut()
    dead = server.start_run("doomed")
    assert images.waiting.wait(HANG)
    wait_until("a heartbeat", lambda: heartbeats(server, dead))
    service.kill()
    images.open()
    state = server.ended(dead)
    assert (state["type"], state["message"].split(":")[0]) == ("CRASHED", "No heartbeat for 90 s")

    service = started(*MASKLOOM, "serve", recipe)
    assert server.ended(server.start_run("doomed"), service)["type"] == "COMPLETED"
    assert_as_undisturbed(recipe, maskloom)


def heartbeats(server: Server, run: str) -> int:
    """How many heartbeats of a run the server has."""
    names = {"name": ["prefect.flow-run.heartbeat"]}
    resource = {"id": [f"prefect.flow-run.{run}"]}
    return int(server.ask("events/filter", filter={"event": names, "resource": resource})["total"])
