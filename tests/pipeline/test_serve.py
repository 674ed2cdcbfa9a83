"""Recipes that a Prefect server starts: by their schedules, by events, in a service or a work pool.
Real servers, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_support import (
    HANG,
    MASKLOOM,
    Server,
    assert_as_undisturbed,
    prefect_server,
    stage,
    wait_until,
    write_recipe,
)

pytestmark = pytest.mark.timeout(3 * HANG)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.nightly)]
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("server"), request.param) as started:
        yield started


@pytest.mark.nightly
def test_schedules_and_events_start_runs_and_a_restart_pauses_nothing(
    server: Server, tmp_path: Path
) -> None:
    schedule = {"cron": "30 2 * * *", "timezone": "Asia/Kolkata"}
    with stage(server, tmp_path / "a", "nightly", schedule=schedule) as nightly:
        often = write_recipe(tmp_path / "b", "often", schedule={"interval": "6h"})
        service = nightly.start(*MASKLOOM, "serve", nightly.recipe, often)
        hours = {"00:00", "06:00", "12:00", "18:00"}
        for name, times in (("nightly", {"21:00"}), ("often", hours)):
            runs = wait_until("scheduled runs", lambda name=name: server.runs(name), service)
            assert all(run["auto_scheduled"] for run in runs)
            assert {run["expected_start_time"][11:16] for run in runs} <= times

        server.send("often")
        (run,) = wait_until("the event's run", lambda: server.runs("often.events"), service)
        assert server.ended(run["id"], service)["type"] == "COMPLETED"
        assert_as_undisturbed(often)
        assert not (tmp_path / "a" / "out").exists()

        assert service.end() == 0, service.said()
        assert "Traceback" not in service.said()
        assert server.deployment("nightly")["paused"] is False
        assert [each["active"] for each in server.deployment("nightly")["schedules"]] == [True]
        nightly.serve()
        wait_until("scheduled runs", lambda: server.runs("nightly", "Scheduled"))


@pytest.mark.nightly
def test_runs_do_not_overlap_and_a_stop_is_made_good(server: Server, tmp_path: Path) -> None:
    with stage(server, tmp_path, "slow") as scene:
        service = scene.serve()
        first = scene.run_that_waits()
        for run in [server.start_run("slow") for _ in range(2)]:
            state = server.ended(run, service)
            assert state["type"] == "CANCELLED"
            assert state["message"] == "Deployment concurrency limit reached."
        for _ in range(3):
            server.send("slow")
        waiting = "AwaitingConcurrencySlot"
        wait_until("waiting runs", lambda: len(server.runs("slow.events", waiting)) == 3, service)

        service.process.terminate()
        wait_until("the stop", lambda: "Stopping" in service.said())
        scene.images.open()
        assert service.process.wait(HANG) == 0, service.said()
        assert server.ended(first)["type"] == "CANCELLED"
        assert len(server.runs("slow", "Scheduled") + server.runs("slow", "Late")) == 1

        # Whichever run takes the slot does the work of all: of the one that was left, and of those
        # of the events.
        service = scene.serve()
        runs = [*server.runs("slow"), *server.runs("slow.events")]
        states = [server.ended(run["id"], service)["type"] for run in runs]
        assert set(states) == {"COMPLETED", "CANCELLED"}
        assert states.count("COMPLETED") <= 2
        assert_as_undisturbed(scene.recipe)
        assert service.end() == 0


@pytest.mark.nightly
def test_a_process_worker_runs_a_recipe_with_relative_paths(server: Server, tmp_path: Path) -> None:
    with stage(server, tmp_path / "a", "pooled", schedule={"cron": "0 3 * * *"}) as scene:
        recipe = write_recipe(tmp_path / "b", "pooled", schedule={"cron": "0 3 * * *"})
        deploy = ("deploy", recipe, "--pool")
        assert "prefect work-pool create nowhere" in scene.maskloom(*deploy, "nowhere", code=2)
        server.ask("work_pools/", name="machines", type="process")
        assert "--image" in scene.maskloom(*deploy, "machines", "--image", "x", code=2)
        scene.maskloom(*deploy, "machines")
        wait_until("scheduled runs", lambda: server.runs("pooled"))
        assert "work pool machines" in scene.maskloom("serve", recipe, code=2)

        worker = scene.work()
        assert server.ended(server.start_run("pooled"), worker)["type"] == "COMPLETED"
        server.send("pooled")
        (run,) = wait_until("the event's run", lambda: server.runs("pooled.events"), worker)
        assert server.ended(run["id"], worker)["type"] == "COMPLETED"
        assert_as_undisturbed(recipe)


@pytest.mark.nightly
def test_a_dead_run_is_found_and_frees_its_slot(server: Server, tmp_path: Path) -> None:
    with stage(server, tmp_path, "doomed") as scene:
        service = scene.serve()
        dead = scene.run_that_waits()
        wait_until("a heartbeat", lambda: heartbeats(server, dead))
        service.kill()
        scene.images.open()
        state = server.ended(dead)
        assert state["type"] == "CRASHED"
        assert state["message"].startswith("No heartbeat for 90 s")

        service = scene.serve()
        assert server.ended(server.start_run("doomed"), service)["type"] == "COMPLETED"
        assert_as_undisturbed(scene.recipe)


def heartbeats(server: Server, run: str) -> int:
    """How many heartbeats of a run the server has."""
    names = {"name": ["prefect.flow-run.heartbeat"]}
    resource = {"id": [f"prefect.flow-run.{run}"]}
    return int(server.ask("events/filter", filter={"event": names, "resource": resource})["total"])


@pytest.mark.nightly
def test_prefect_deploy_makes_what_the_file_says(server: Server, tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "deploy" / "prefect.yaml"
    with stage(server, tmp_path / "a", "unused") as scene:
        recipe = write_recipe(tmp_path / "b", "nuclei")
        if "machines" not in {pool["name"] for pool in server.ask("work_pools/filter")}:
            server.ask("work_pools/", name="machines", type="process")
        changed = tmp_path / "prefect.yaml"
        changed.write_text(file.read_text().replace("/recipes/nuclei.yaml", str(recipe)))
        prefect = (sys.executable, "-m", "prefect", "--no-prompt")
        done = scene.start(*prefect, "deploy", "--all", "--prefect-file", changed)
        assert done.process.wait(HANG) == 0, done.said()
        for name, strategy in (("nuclei", "CANCEL_NEW"), ("nuclei.events", "ENQUEUE")):
            deployment = server.deployment(name)
            assert deployment["pull_steps"] == []
            assert deployment["concurrency_options"]["collision_strategy"] == strategy
            assert "maskloom-watched" in deployment["tags"]
        wait_until("scheduled runs", lambda: server.runs("nuclei"))
        worker = scene.work()
        server.send("nuclei")
        (run,) = wait_until("the event's run", lambda: server.runs("nuclei.events"), worker)
        assert server.ended(run["id"], worker)["type"] == "COMPLETED"
        assert_as_undisturbed(recipe)
