"""Watching a run: the work is the same with Prefect and without; with it, all of it is on record
when the flow ends.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
from prefect_support import ask, url

from maskloom.flows.orchestration import prefect as prefect_module
from maskloom.flows.orchestration import server as server_module
from maskloom.flows.orchestration.prefect import Prefect
from maskloom.flows.orchestration.server import started_early
from maskloom.flows.signals import stop_on_signals
from maskloom.flows.stages import Orchestrator, Plain, Stages, Watched
from maskloom.segcore.errors import FitError, RunError, Stopped

ROOT = Path(__file__).parents[2]
PARAMETERS = {"recipe": "/recipes/delta.yaml", "changes": ["tiling.tile=256"]}
PREFECT = f"Prefect({PARAMETERS!r})"
HANG = 200.0
"""Seconds after which something hangs. A loaded machine may be slow, so nothing here is measured by
the clock.
"""
pytestmark = pytest.mark.timeout(3 * HANG)


@dataclass(frozen=True)
class FirstRuns:
    """Two runs that began at once with a Prefect home that nobody had used."""

    said: list[tuple[str, str]]
    """What each wrote on standard output and standard error."""
    recorded: dict[str, list[tuple[str, int]]]
    """States and their numbers in the tables of the database, when both had ended."""


@pytest.fixture
def first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FirstRuns:
    home = tmp_path / "prefect"
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    processes = [driver(folder, PREFECT, 0.1) for folder in folders]
    said = [process.communicate(timeout=HANG) for process in processes]
    recorded = {}
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        for table in ("task_run", "flow_run"):
            recorded[table] = database.execute(
                f"select state_type, count(*) from {table} group by state_type"
            ).fetchall()
    return FirstRuns(said, recorded)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Prefect home for all tests of this module: to create its database takes ten seconds."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.delenv("PREFECT_API_URL", raising=False)
        yield home


@pytest.fixture(scope="module")
def prefect(home: Path) -> Iterator[Prefect]:
    """Prefect with a server that all tests of this module share, started before it."""
    with started_early(True) as server, Prefect(PARAMETERS, server) as orchestrator:
        assert orchestrator._server is server is not None
        yield orchestrator


@pytest.fixture(params=["plain", "prefect"])
def orchestrator(request: pytest.FixtureRequest) -> Orchestrator:
    return Plain() if request.param == "plain" else request.getfixturevalue("prefect")


def task_runs(prefect: Prefect) -> Counter[tuple[str, str]]:
    """Names and states of the task runs of the last flow run."""
    flow_run = {"id": {"any_": [str(prefect.flow_run_id)]}}
    runs = [
        run
        for offset in (0, 200)
        for run in ask(prefect, "task_runs/filter", flow_runs=flow_run, offset=offset)
    ]
    return Counter((run["name"], run["state_type"]) for run in runs)


def flow_run(prefect: Prefect) -> dict[str, Any]:
    """The last flow run."""
    (run,) = ask(
        prefect, "flow_runs/filter", flow_runs={"id": {"any_": [str(prefect.flow_run_id)]}}
    )
    return dict(run)


# The work


def test_a_flow_gives_what_its_body_gives(orchestrator: Orchestrator) -> None:
    assert (
        orchestrator.flow(
            Watched("sums"),
            lambda stages: stages.stage("add", sum, (1, 2, 3)) + stages.stage("add", sum, (4,)),
        )
        == 10
    )


def test_each_gives_results_as_they_come_and_keeps_to_its_width(orchestrator: Orchestrator) -> None:
    lock = threading.Lock()
    three, last = threading.Barrier(3), threading.Event()
    running = highest = 0

    def work(item: int) -> int:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        if item < 3:
            three.wait(HANG)
        if item == 0:
            assert last.wait(HANG), "the results of the others were held back"
        with lock:
            running -= 1
        return item

    def body(stages: Stages) -> list[int]:
        results = []
        for item in stages.each(work, range(12), str, 3):
            results.append(item)
            if len(results) == 11:
                last.set()
        return results

    results = orchestrator.flow(Watched("width"), body)
    assert sorted(results) == list(range(12))
    assert results[-1] == 0
    assert highest == 3
    assert (
        orchestrator.flow(Watched("nothing"), lambda stages: list(stages.each(work, [], str, 3)))
        == []
    )


def test_the_first_error_stops_feeding_and_is_raised_when_the_rest_has_ended(
    orchestrator: Orchestrator,
) -> None:
    begun, ended = set(), set()
    error = FitError("no valid pixel")
    failing = threading.Event()

    def work(item: int) -> int:
        begun.add(item)
        if item == 1:
            failing.set()
            raise error
        assert failing.wait(HANG)
        time.sleep(0.1)
        ended.add(item)
        return item

    with pytest.raises(FitError) as raised:
        orchestrator.flow(
            Watched("failing"), lambda stages: list(stages.each(work, range(1000), str, 4))
        )
    assert raised.value is error
    assert begun == ended | {1}
    # Four began before the error, and some may have while it was on its way.
    assert 4 <= len(begun) < 200


@pytest.mark.parametrize(
    "error", [FitError("too few pixels"), Stopped("asked to"), ValueError("a bug")]
)
def test_errors_pass_unchanged(orchestrator: Orchestrator, error: Exception) -> None:
    def fail() -> NoReturn:
        raise error

    with pytest.raises(type(error)) as raised:
        orchestrator.flow(Watched("failing"), lambda stages: stages.stage("fail", fail))
    assert raised.value is error
    assert raised.traceback[-1].name == "fail"


# The record


def test_every_stage_and_shard_is_on_record_when_the_flow_ends(prefect: Prefect) -> None:
    def body(stages: Stages) -> int:
        stages.stage("plan", time.sleep, 0.0)
        return len(list(stages.each(abs, range(60), lambda item: f"shard-{item}", 8)))

    assert prefect.flow(Watched("delta-landcover"), body) == 60
    assert task_runs(prefect) == Counter(
        {("plan", "COMPLETED"): 1} | {(f"shard-{item}", "COMPLETED"): 1 for item in range(60)}
    )
    run = flow_run(prefect)
    assert (run["name"], run["state_type"], run["parameters"]) == (
        "delta-landcover",
        "COMPLETED",
        {"keep_other_recipes": False, "sole_writer": False, **PARAMETERS},
    )


def test_failures_are_on_record(prefect: Prefect) -> None:
    def work(item: int) -> float:
        return 1 / item

    with pytest.raises(ZeroDivisionError):
        prefect.flow(Watched("failing"), lambda stages: list(stages.each(work, [2, 1, 0], str, 1)))
    assert task_runs(prefect) == {("2", "COMPLETED"): 1, ("1", "COMPLETED"): 1, ("0", "FAILED"): 1}
    assert flow_run(prefect)["state_type"] == "FAILED"


def test_a_stopped_flow_is_cancelled(prefect: Prefect) -> None:
    def stop(_: Stages) -> NoReturn:
        raise Stopped("somebody asked the run to stop")

    with pytest.raises(Stopped):
        prefect.flow(Watched("stopped"), stop)
    assert flow_run(prefect)["state"]["message"] == "somebody asked the run to stop"
    assert flow_run(prefect)["state_type"] == "CANCELLED"


class Private:
    """A value that nobody may look at, copy or keep."""

    secret = "correct horse battery staple"

    def _refuse(self, *_: object) -> NoReturn:
        raise AssertionError("Prefect looked at an argument")

    __repr__ = __hash__ = __eq__ = __reduce_ex__ = __deepcopy__ = __iter__ = __getstate__ = _refuse  # type: ignore[assignment]


def test_prefect_neither_looks_at_nor_keeps_what_stages_take_and_give(
    prefect: Prefect, home: Path
) -> None:
    value = Private()
    given = prefect.flow(
        Watched("private"),
        lambda stages: [
            *stages.each(lambda item: item, [value], lambda _: "shard", 1),
            stages.stage("keep", lambda x: x, value),
        ],
    )
    assert [each is value for each in given] == [True, True]
    kept = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    assert b"shard" in kept
    assert Private.secret.encode() not in kept


# The flow of deployments


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One picture, and a recipe for it."""
    from PIL import Image

    Image.new("L", (40, 30), 200).save(tmp_path / "picture.png")
    path = tmp_path / "delta.yaml"
    path.write_text(
        f"inputs: {tmp_path}/picture.png\noutput: {tmp_path}/out\n"
        "segmenter: {kind: threshold, value: 100}\ncluster: serial\n"
    )
    return path


def last_flow_run(prefect: Prefect) -> dict[str, Any]:
    (run,) = ask(prefect, "flow_runs/filter", sort="START_TIME_DESC", limit=1)
    return dict(run)


def test_a_server_can_call_the_flow_with_json_values(prefect: Prefect, recipe: Path) -> None:
    from prefect.settings import temporary_settings

    from maskloom.flows.orchestration.flow import run_recipe

    output = recipe.parent / "again"
    with temporary_settings({"api.url": url(prefect)}):
        state = run_recipe(str(recipe), [f"output={output}"], return_state=True)
    assert state.is_completed()
    assert (output / "masks" / "picture.png").is_file()
    run = last_flow_run(prefect)
    assert (run["name"], run["state_type"]) == ("delta", "COMPLETED")
    assert run["parameters"]["changes"] == [f"output={output}"]


def test_the_flow_takes_a_recipe_as_a_mapping_too(prefect: Prefect, recipe: Path) -> None:
    import yaml
    from prefect.settings import temporary_settings

    from maskloom.flows.orchestration.flow import run_recipe

    document = {**yaml.safe_load(recipe.read_text()), "name": "gamma"}
    with temporary_settings({"api.url": url(prefect)}):
        assert run_recipe(document, return_state=True).is_completed()
    assert (recipe.parent / "out" / "masks" / "picture.png").is_file()
    assert last_flow_run(prefect)["name"] == "gamma"


TERMINATED = """
import signal, sys
from maskloom.flows import planning
from maskloom.flows.orchestration.flow import run_recipe

before = planning.write_plan

def terminated(*arguments):
    before(*arguments)
    signal.raise_signal(signal.SIGTERM)

planning.write_plan = terminated
state = run_recipe(sys.argv[1], return_state=True)
print(state.type.value, state.message)
"""


def test_a_termination_cancels_the_flow_of_a_deployment(prefect: Prefect, recipe: Path) -> None:
    from prefect.settings import temporary_settings

    from maskloom.flows.orchestration.flow import run_recipe

    ended = subprocess.run(
        [sys.executable, "-c", TERMINATED, str(recipe)],
        env={**os.environ, "PREFECT_API_URL": url(prefect)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert ended.returncode == 0, ended.stderr
    assert "CANCELLED" in ended.stdout
    assert "Run the same command again to continue" in ended.stdout
    assert not (recipe.parent / "out" / "masks").exists()
    with temporary_settings({"api.url": url(prefect)}):
        assert run_recipe(str(recipe), return_state=True).is_completed()
    assert (recipe.parent / "out" / "masks" / "picture.png").is_file()


def test_the_flow_can_be_deployed(prefect: Prefect) -> None:
    import cloudpickle  # type: ignore[import-untyped]
    from prefect.flows import EntrypointType, load_flow_from_entrypoint
    from prefect.settings import temporary_settings

    from maskloom.flows.orchestration.flow import run_recipe

    with temporary_settings({"api.url": url(prefect)}):
        deployment = run_recipe.to_deployment(
            "nightly", entrypoint_type=EntrypointType.MODULE_PATH, parameters=PARAMETERS
        )
    assert deployment.entrypoint == "maskloom.flows.orchestration.flow.run_recipe"
    assert load_flow_from_entrypoint(deployment.entrypoint).fn is run_recipe.fn
    assert cloudpickle.loads(cloudpickle.dumps(run_recipe)) is run_recipe
    assert set(deployment._parameter_openapi_schema.properties) == {
        "recipe",
        "changes",
        "keep_other_recipes",
        "sole_writer",
    }


# The server


def test_a_configured_server_is_used(
    prefect: Prefect, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url(prefect))
    with Prefect(PARAMETERS) as other:
        assert (
            other.flow(Watched("elsewhere"), lambda stages: stages.stage("add", sum, (1, 2))) == 3
        )
        assert url(other) == url(prefect)
        assert task_runs(other) == {("add", "COMPLETED"): 1}
    assert ask(prefect, "flow_runs/count") > 0


def test_a_server_that_no_run_needs_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started_early(True) as server:
        assert server is not None
    server._child.wait(HANG)
    # One that a run has used is waited for at the end, after the workers.
    with started_early(True) as server:
        assert server is not None
        Prefect(PARAMETERS, server).close()
        assert server._child.returncode is None
    assert server._child.returncode == 0
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for wanted in (True, False):
        with started_early(wanted) as server:
            assert server is None


def test_a_database_is_migrated_where_it_may_have_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prefect.db"
    migrated: list[str] = []

    def write(revision: str) -> None:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("create table if not exists alembic_version (version_num text)")
            database.execute("delete from alembic_version")
            database.execute("insert into alembic_version values (?)", (revision,))

    async def create_db() -> None:
        migrated.append("newest")
        write("newest")

    url = f"sqlite+aiosqlite:///{file}"
    database = SimpleNamespace(
        database_config=SimpleNamespace(connection_url=url), create_db=create_db
    )
    monkeypatch.setattr("prefect.server.database.provide_database_interface", lambda: database)

    def migrations() -> int:
        before = len(migrated)
        with server_module._exclusive(tmp_path) as known:
            server_module._migrate(known)
        return len(migrated) - before

    assert [migrations(), migrations()] == [1, 0]
    write("of an older Prefect")
    assert [migrations(), migrations()] == [1, 0]
    file.unlink()
    assert [migrations(), migrations()] == [1, 0]
    monkeypatch.setattr("prefect.__version__", "4.0.0")
    assert [migrations(), migrations()] == [1, 0]
    database.database_config.connection_url = "postgresql+asyncpg://localhost/prefect"
    assert [migrations(), migrations()] == [1, 1]


def test_a_configured_server_that_does_not_answer_ends_the_run(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with (
        Prefect(PARAMETERS) as orchestrator,
        pytest.raises(RunError, match=r"PREFECT_API_URL.*--no-prefect"),
    ):
        orchestrator.flow(
            Watched("nowhere"), lambda _: pytest.fail("the work began without a record")
        )


def test_what_is_done_counts_where_the_server_dies(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_module, "_RETRIES", 1)
    with Prefect(PARAMETERS) as orchestrator:

        def body(stages: Stages) -> int:
            before = stages.stage("add", sum, (1, 2))
            assert orchestrator._server is not None
            orchestrator._server._child.kill()
            orchestrator._server._child.wait()
            return before + stages.stage("add", sum, (3, 4))

        assert orchestrator.flow(Watched("orphan"), body) == 10


DRIVER = """
    import logging, sys, threading, time
    from pathlib import Path
    from maskloom.flows.orchestration.prefect import Prefect
    from maskloom.flows.signals import stop_on_signals
    from maskloom.flows.stages import Plain, Watched
    from maskloom.segcore.errors import Stopped

    def body(stages):
        Path({ready!r}).touch()
        return sum(stages.each(wait, range(3), str, 2))

    def wait(item):
        if stop.wait({seconds}):
            raise Stopped("asked to stop")
        return item

    stop = threading.Event()
    with stop_on_signals(stop), {orchestrator} as orchestrator:
        try:
            print(orchestrator.flow(Watched("driver"), body), flush=True)
        except Stopped as stopped:
            print(stopped, flush=True)
    assert logging.getLogger().handlers == []
"""


def driver(tmp_path: Path, orchestrator: str, seconds: float) -> subprocess.Popen[str]:
    """A run in a process group of its own, as a shell would start it; `tmp_path / "ready"` says
    that its flow runs.
    """
    program = textwrap.dedent(DRIVER).format(
        ready=str(tmp_path / "ready"), orchestrator=orchestrator, seconds=seconds
    )
    command = [sys.executable, "-c", program]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + HANG
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


@pytest.mark.parametrize(
    ("orchestrator", "number"),
    [
        ("Plain()", signal.SIGINT),
        # Prefect has its own handler of SIGTERM.
        (PREFECT, signal.SIGTERM),
        pytest.param("Plain()", signal.SIGTERM, marks=pytest.mark.nightly),
        pytest.param(PREFECT, signal.SIGINT, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_stops_the_run_in_order(
    home: Path, tmp_path: Path, orchestrator: str, number: signal.Signals
) -> None:
    with driver(tmp_path, orchestrator, 60.0) as process:
        wait_for(tmp_path / "ready")
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=HANG)
    assert (output, errors, process.returncode) == ("asked to stop\n", "", 0)
    assert psutil.wait_procs(family, timeout=HANG)[1] == []


@pytest.mark.nightly
def test_runs_with_a_common_new_home_do_not_disturb_each_other(first_runs: FirstRuns) -> None:
    assert first_runs.said == [("3\n", "")] * 2
    assert first_runs.recorded == {"task_run": [("COMPLETED", 6)], "flow_run": [("COMPLETED", 2)]}


def test_a_killed_run_leaves_no_server(home: Path, tmp_path: Path) -> None:
    with driver(tmp_path, PREFECT, 60.0) as process:
        wait_for(tmp_path / "ready")
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.kill()
        process.communicate(timeout=HANG)
    assert psutil.wait_procs(family, timeout=HANG)[1] == []


def test_plain_runs_need_no_prefect() -> None:
    program = """
        import sys
        from maskloom.flows.stages import Plain, Watched
        body = lambda stages: sorted(stages.each(abs, [-1, -2], str, 2))
        assert Plain().flow(Watched("plain"), body) == [1, 2]
        assert not {"prefect", "distributed", "dask"} & set(sys.modules)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=True, timeout=HANG
    )


def test_a_second_interrupt_breaks_off() -> None:
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals(stop):
        interrupt = signal.getsignal(signal.SIGINT)
        assert callable(interrupt)
        interrupt(signal.SIGINT, None)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            interrupt(signal.SIGINT, None)
    assert signal.getsignal(signal.SIGINT) is before
