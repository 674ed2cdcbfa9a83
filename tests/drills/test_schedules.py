"""Drills: what a schedule depends on is killed, slow or wrong: the Prefect server, its database,
the service, the worker of a pool, the run itself, the clock.

In each, the output has in the end what an undisturbed run gives, once, and a further run does
nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving_support import (
    HANG,
    Process,
    Server,
    Stage,
    assert_as_undisturbed,
    prefect_server,
    stage,
    wait_until,
)

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(4 * HANG)]
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("server"), request.param) as started:
        yield started


@pytest.fixture
def scene(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage whose recipe is named after the test."""
    with stage(server, tmp_path, f"drill-{abs(hash(request.node.name)) % 10**8}") as opened:
        yield opened


def assert_the_next_run_is_done(scene: Stage, service: Process) -> None:
    """The slot is free again: one more run completes."""
    run = scene.server.start_run(scene.name)
    assert scene.server.ended(run, service)["type"] == "COMPLETED"
    assert_as_undisturbed(scene.recipe)


def test_the_server_is_killed_in_mid_run(scene: Stage) -> None:
    service = scene.serve()
    run = scene.run_that_waits()
    scene.server.kill()
    wait_until("the outage", lambda: "does not answer" in service.said(), service)
    scene.images.open()
    scene.server.start()
    wait_until("the server's return", lambda: "answers again" in service.said(), service)
    assert scene.server.ended(run, service)["type"] == "COMPLETED"
    assert_the_next_run_is_done(scene, service)


def test_the_server_is_away_for_longer_than_prefect_waits_between_runs(scene: Stage) -> None:
    service = scene.serve()
    scene.server.kill()
    wait_until("the outage", lambda: "does not answer" in service.said(), service)
    # Prefect's own service ends after three attempts.
    time.sleep(30)
    scene.server.start()
    scene.server.send(scene.name)
    (run,) = wait_until(
        "the event's run", lambda: scene.server.runs(f"{scene.name}.events"), service
    )
    assert scene.server.ended(run["id"], service)["type"] == "COMPLETED"
    assert_the_next_run_is_done(scene, service)
    assert service.said().count("does not answer") == 1


def test_the_database_is_stopped_in_mid_run(scene: Stage) -> None:
    database = scene.server.database
    if database is None:
        pytest.skip("SQLite has no process")
    service = scene.serve()
    run = scene.run_that_waits()
    database.stop()
    wait_until("the outage", lambda: "does not answer" in service.said(), service)
    scene.images.open()
    time.sleep(10)
    database.start()
    assert scene.server.ended(run, service)["type"] == "COMPLETED"
    assert_the_next_run_is_done(scene, service)


def test_the_server_stands_still_for_half_a_minute(scene: Stage) -> None:
    service = scene.serve()
    run = scene.run_that_waits()
    assert scene.server.process is not None
    os.kill(scene.server.process.process.pid, signal.SIGSTOP)
    scene.images.open()
    time.sleep(30)
    os.kill(scene.server.process.process.pid, signal.SIGCONT)
    assert scene.server.ended(run, service)["type"] == "COMPLETED"
    assert_the_next_run_is_done(scene, service)


def test_a_run_is_cancelled_at_a_server_that_was_away(scene: Stage) -> None:
    service = scene.serve()
    run = scene.run_that_waits()
    scene.server.kill()
    wait_until("the outage", lambda: "does not answer" in service.said(), service)
    scene.server.start()
    wait_until("the server's return", lambda: "answers again" in service.said(), service)
    scene.server.ask(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    # The run ends when the picture that it reads has come.
    time.sleep(10)
    scene.images.open()
    state = scene.server.ended(run, service)
    assert state["type"] == "CANCELLED"
    assert_the_next_run_is_done(scene, service)


def test_a_run_is_killed(scene: Stage) -> None:
    service = scene.serve()
    run = scene.run_that_waits()
    for process in service.flows():
        process.kill()
    state = scene.server.ended(run, service)
    assert (state["type"], "-9" in state["message"]) == ("CRASHED", True)
    scene.images.open()
    assert_the_next_run_is_done(scene, service)


def assert_the_orphan_finishes(
    scene: Stage, executor: Process, run: str, orphans: list[psutil.Process]
) -> None:
    """The run of a killed service or worker keeps its slot and ends."""
    other = scene.server.ended(scene.server.start_run(scene.name), executor)
    assert other["message"] == "Deployment concurrency limit reached."
    scene.images.open()
    assert scene.server.ended(run, executor)["type"] == "COMPLETED"
    assert psutil.wait_procs(orphans, HANG)[1] == []
    assert_the_next_run_is_done(scene, executor)


def test_the_service_alone_is_killed(scene: Stage) -> None:
    """Its run goes on and keeps its slot."""
    service = scene.serve()
    run = scene.run_that_waits()
    orphans = service.flows()
    service.process.kill()
    service = scene.serve()
    assert_the_orphan_finishes(scene, service, run, orphans)


def test_the_worker_of_a_pool_is_killed(scene: Stage) -> None:
    """Its run goes on and keeps its slot."""
    if not scene.server.ask("work_pools/filter"):
        scene.server.ask("work_pools/", name="machines", type="process")
    scene.maskloom("deploy", scene.recipe, "--pool", "machines")
    worker = scene.work()
    run = scene.run_that_waits()
    orphans = worker.flows()
    worker.process.kill()
    worker = scene.work()
    assert_the_orphan_finishes(scene, worker, run, orphans)


def test_two_services_execute_a_run_once(scene: Stage) -> None:
    services = [scene.serve(), scene.serve()]
    for _ in range(3):
        run = scene.server.start_run(scene.name)
        assert scene.server.ended(run)["type"] == "COMPLETED"
    said = "".join(service.said() for service in services)
    assert said.count("Beginning flow run") == 3
    assert_the_next_run_is_done(scene, services[0])


def test_two_servers_share_a_database(scene: Stage) -> None:
    if scene.server.database is None:
        pytest.skip("two servers must not share SQLite")
    second = Server(scene.server.folder, scene.server.database)
    second.start()
    try:
        here = scene.serve()
        run = scene.run_that_waits()
        there = scene.serve(PREFECT_API_URL=second.url)
        other = second.ended(second.start_run(scene.name))
        assert other["message"] == "Deployment concurrency limit reached."
        scene.server.kill()
        scene.images.open()
        scene.server.start()
        assert second.ended(run, here)["type"] == "COMPLETED"
        assert_the_next_run_is_done(scene, there)
    finally:
        second.kill()


@pytest.mark.parametrize("days", ["-1d", "+1d"])
def test_the_clock_of_a_service_is_a_day_off(scene: Stage, days: str) -> None:
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed")
    wrong = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": days, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    service = scene.serve(**wrong)
    assert "clock" in service.said()
    run = scene.server.start_run(scene.name)
    if days == "-1d":
        # It would start the run tomorrow.
        service.end()
        service = scene.serve()
    assert scene.server.ended(run, service)["type"] == "COMPLETED"
    assert_the_next_run_is_done(scene, service)


def test_a_server_forgets_its_leases(tmp_path: Path) -> None:
    """The run loses its slot, and goes on."""
    (tmp_path / "hurried").mkdir()
    # Leases are renewed every three seconds, and only once.
    (tmp_path / "hurried" / "sitecustomize.py").write_text(
        "from prefect.concurrency import _leases\n"
        "_leases._RENEWAL_FRACTION, _leases._RENEWAL_MAX_ATTEMPTS = 0.01, 1\n"
    )
    hurried = {"PYTHONPATH": str(tmp_path / "hurried")}
    leases = "prefect.server.concurrency.lease_storage.memory"
    memory = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases}
    with (
        prefect_server(tmp_path / "server", "sqlite", **memory) as server,
        stage(server, tmp_path, "forgotten") as scene,
    ):
        service = scene.serve(**hurried)
        assert "leases in memory" in service.said()
        run = scene.run_that_waits()
        server.kill()
        server.start()
        lost = "slots are no longer reserved"
        wait_until("the loss of the slot", lambda: lost in service.said(), service)
        scene.images.open()
        assert server.ended(run, service)["type"] == "COMPLETED"
        assert_the_next_run_is_done(scene, service)
