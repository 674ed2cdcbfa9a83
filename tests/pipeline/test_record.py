"""What a Prefect server shows of a run, whichever way the run was started."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from prefect_support import ask, url

from maskloom.flows.orchestration import record
from maskloom.flows.orchestration.prefect import Prefect
from maskloom.flows.recipes import run as recipes
from maskloom.flows.run import run
from maskloom.flows.stages import Stages, Watched
from maskloom.flows.terminal import recordable
from maskloom.segcore.errors import RunError, Stopped, TooManyFailures

HANG = 300.0
CANARY = "c0ffee-canary-c0ffee"
SIGNED = f"http://127.0.0.1:9/broken.png?sig={CANARY}"
"""Nobody listens there."""
pytestmark = pytest.mark.timeout(2 * HANG)

MOSTLY_DEPLOYED = pytest.mark.parametrize(
    "way", [pytest.param("command", marks=pytest.mark.nightly), "deployment"], indirect=True
)
"""Both ways share the code, which is tested by one of them every time."""
Way = Callable[[dict[str, Any]], None]
"""Runs a recipe's document."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Prefect home that nobody had used."""
    path = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(path))
        patch.delenv("PREFECT_API_URL", raising=False)
        yield path


@pytest.fixture(scope="module")
def prefect(home: Path) -> Iterator[Prefect]:
    with Prefect({"recipe": "/recipes/delta.yaml"}) as orchestrator:
        yield orchestrator


@pytest.fixture(params=["command", "deployment"])
def way(request: pytest.FixtureRequest, prefect: Prefect) -> Way:
    """How a run is started: by a command, or by a server."""

    def by_command(document: dict[str, Any]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", url(prefect))
            recipe = recipes.make(document, Path.cwd())
            run(recipe, None, Prefect({"recipe": recordable(document)}), lambda _: None)

    def by_deployment(document: dict[str, Any]) -> None:
        from prefect.settings import temporary_settings

        from maskloom.flows.orchestration.flow import run_recipe

        path = Path(document["output"]).parent / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        with temporary_settings({"api.url": url(prefect)}):
            run_recipe(str(path), return_state=True)
            settle()

    return by_command if request.param == "command" else by_deployment


def settle() -> None:
    """Wait until what was sent has arrived."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=HANG)


def last_flow_run(prefect: Prefect) -> dict[str, Any]:
    (found,) = ask(prefect, "flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=1)
    return dict(found)


def lines(prefect: Prefect, flow_run: str) -> list[str]:
    """The lines of our own in the log of a flow run."""
    of_run = {"flow_run_id": {"any_": [flow_run]}}
    found: list[dict[str, Any]] = []
    while page := ask(prefect, "logs/filter", logs=of_run, offset=len(found), sort="TIMESTAMP_ASC"):
        found += page
    return [each["message"] for each in found if each["name"].startswith("maskloom")]


def artifacts(prefect: Prefect, flow_run: str) -> dict[str, Any]:
    """Data of the artifacts of a flow run, by key."""
    found = ask(prefect, "artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run]}})
    return {each["key"]: each["data"] for each in found}


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A recipe for two good pictures and a broken one."""
    for name in "ab":
        Image.new("L", (40, 30), 200).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return {
        "name": "delta",
        "inputs": [str(tmp_path / f"{name}.png") for name in ("a", "b", "broken")],
        "output": str(tmp_path / "out"),
        "segmenter": {"kind": "threshold", "value": 100},
        "cluster": "serial",
    }


def test_a_run_in_which_some_fail_is_partial(
    prefect: Prefect, way: Way, document: dict[str, Any]
) -> None:
    way(document)
    found = last_flow_run(prefect)
    state = found["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Partial")
    assert state["message"] == "2 images done, 1 failed, 2.4 kpx"
    output = document["output"]
    assert set(found["tags"]) == {"recipe: delta", f"output: {output}"}
    shown = artifacts(prefect, found["id"])
    assert json.loads(shown["delta-areas"]) == [
        {"class": "foreground", "area": "2,400 px", "share": "100.0%"}
    ]
    (failure,) = json.loads(shown["delta-failures"])
    assert failure["image"] == document["inputs"][2]
    assert failure["error"] == "FormatError"
    assert f"`{output}/previews`" in shown["delta-results"]
    said = lines(prefect, found["id"])
    assert [line for line in said if line.startswith(f"failed: {document['inputs'][2]}")]
    assert f"2 images done, 1 failed, 2.4 kpx. Results: {output}" in said
    runs = ask(prefect, "task_runs/filter", flow_runs={"id": {"any_": [found["id"]]}})
    shard = next(each for each in runs if each["name"].startswith("segment 3 images: "))
    assert shard["state"]["message"] == "2 images done, 1 failed"

    del document["inputs"][2]
    document["output"] += "-again"
    way(document)
    state = last_flow_run(prefect)["state"]
    assert (state["name"], state["message"]) == ("Completed", "2 images done, 0 failed, 2.4 kpx")


@MOSTLY_DEPLOYED
def test_a_run_in_which_too_many_fail_has_failed(
    prefect: Prefect, way: Way, document: dict[str, Any]
) -> None:
    with suppress(TooManyFailures):
        way({**document, "max_failed_fraction": 0.1})
    state = last_flow_run(prefect)["state"]
    assert (state["type"], state["name"]) == ("FAILED", "Failed")
    assert state["message"].startswith("2 of 3 images done, 1 failed. 1 of 3 images failed, more")


@MOSTLY_DEPLOYED
def test_no_secret_reaches_the_server(
    prefect: Prefect, way: Way, document: dict[str, Any], home: Path
) -> None:
    pytest.importorskip("aiohttp")
    way({**document, "inputs": [document["inputs"][0], SIGNED]})
    assert last_flow_run(prefect)["state"]["name"] == "Partial"
    assert CANARY not in json.dumps(lines(prefect, last_flow_run(prefect)["id"]))

    def stage() -> None:
        logging.getLogger("maskloom.run").warning("403 for %s", SIGNED)
        raise ValueError(f"403 for {SIGNED}")

    with pytest.raises(ValueError, match=CANARY):
        prefect.flow(Watched("faulty", SIGNED), lambda stages: stages.stage("get", stage))
    found = last_flow_run(prefect)
    assert found["state"]["message"] == f"ValueError: 403 for {SIGNED.replace(CANARY, '***')}"
    assert [line for line in lines(prefect, found["id"]) if "Traceback" in line]
    kept = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    assert b"broken.png" in kept
    assert CANARY.encode() not in kept


def test_parameters_with_secrets_are_refused(prefect: Prefect, document: dict[str, Any]) -> None:
    from prefect.settings import temporary_settings

    from maskloom.flows.orchestration.flow import run_recipe

    with temporary_settings({"api.url": url(prefect)}):
        # Another secret: Prefect has recorded these parameters before they are looked at.
        signed = SIGNED.replace(CANARY, "another-canary")
        state = run_recipe({**document, "inputs": [signed]}, return_state=True)
    assert state.is_failed()
    assert "take the secret out" in str(state.message)


def test_a_cancel_at_the_server_stops_a_run(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "SECONDS", 0.05)
    asked: list[str] = []
    stop = threading.Event()

    def stopped(reason: str) -> None:
        asked.append(reason)
        stop.set()

    def body(stages: Stages) -> None:
        import httpx

        assert prefect.flow_run_id is not None
        address = f"{url(prefect)}/flow_runs/{prefect.flow_run_id}/set_state"
        answer = httpx.post(address, json={"state": {"type": "CANCELLING"}})
        assert answer.json()["status"] == "ACCEPT", answer.text
        assert stop.wait(HANG)
        error = Stopped("asked to stop")
        error.add_note("3 of 9 images done, 0 failed.")
        raise error

    with pytest.raises(Stopped):
        prefect.flow(Watched("cancelled", "out", stopped), body)
    assert asked[0] == "cancelled at the Prefect server"
    state = last_flow_run(prefect)["state"]
    assert state["type"] == "CANCELLED"
    assert state["message"] == "3 of 9 images done, 0 failed. asked to stop"


def test_progress_is_on_record_and_ends_where_the_run_is(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskloom.flows.progress.displays import Quiet
    from maskloom.flows.progress.run import RunProgress

    monkeypatch.setattr(record, "SECONDS", 0.05)

    def body(stages: Stages) -> None:
        read = RunProgress(stages.shown_by(Quiet())).items("read headers", "files", 4)
        read(3)
        deadline = threading.Event()
        flow_run = str(prefect.flow_run_id)
        while artifacts(prefect, flow_run).get("delta-progress") != 75.0:
            assert not deadline.wait(0.05)

    prefect.flow(Watched("delta"), body)
    assert "read headers: 0/4 files" in lines(prefect, str(prefect.flow_run_id))


def test_a_log_has_so_many_lines(prefect: Prefect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LINES", 7)

    def body(_: Stages) -> None:
        # Not in the thread of the flow: workers' messages come from others.
        def talk() -> None:
            for i in range(100):
                logging.getLogger("maskloom.cluster").warning("line %d", i)

        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()

    prefect.flow(Watched("talkative"), body)
    said = lines(prefect, str(prefect.flow_run_id))
    assert said == [
        *(f"line {i}" for i in range(7)),
        "93 more lines were not sent; the run's own log has them.",
    ]


@pytest.mark.nightly
def test_a_server_that_takes_nothing_fails_no_run(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RunError("no")

    monkeypatch.setattr(record.RunRecord, "_tag", refuse)
    assert prefect.flow(Watched("untagged"), lambda _: 5) == 5
