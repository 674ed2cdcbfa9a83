"""A Prefect server with its database, services and workers, each in a process of its own, and
images that arrive when a test lets them.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from PIL import Image
from tests_support import assert_same_results, photograph
from typer.testing import CliRunner

from maskloom.flows.cli import app

HANG = 300.0
"""Seconds after which something hangs. A loaded machine may be slow."""
MASKLOOM = (sys.executable, "-m", "maskloom.flows.cli")
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    # On a loaded machine SQLite may be busy for longer than the usual 10 s.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
}


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(what: str, true: Callable[[], Any], alive: Process | None = None) -> Any:
    """The first true value that `true` returns."""
    deadline = time.monotonic() + HANG
    while True:
        if value := true():
            return value
        assert alive is None or alive.process.poll() is None, alive.said()
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


class Process:
    """A process that logs into a file."""

    def __init__(
        self, folder: Path, *command: object, cwd: Path | None = None, **environment: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"log-{len(list(folder.glob('log-*')))}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd or folder,
                env={**os.environ, **_ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        """All that it wrote."""
        return self._log.read_text(errors="replace")

    def flows(self) -> list[psutil.Process]:
        """The processes of its flow runs."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if "prefect.engine" in " ".join(_command(each))]

    def end(self) -> int:
        """Ask it to end. Its exit code."""
        self.process.terminate()
        return self.process.wait(HANG)

    def kill(self) -> None:
        """Kill it with all that it has started."""
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self.process.pid)
            for each in [this, *this.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        self.process.wait(HANG)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class PostgreSQL:
    """A database server of its own, run by the user postgres where the tests run as root."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        if not found:
            pytest.skip("PostgreSQL is not installed")
        self._programs, self._port = found[-1].parent, free_port()
        # Folders of tests are closed to the user postgres.
        self._folder = Path(tempfile.mkdtemp(prefix="maskloom-postgresql-"))
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        """The database, as Prefect names it."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and return when it answers."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-w", "-o", options, "-l", self._folder / "log", "start")

    def stop(self) -> None:
        """End it at once, as a crash does."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def close(self) -> None:
        """End it, and remove its files."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: object) -> None:
        command = [self._programs / program, "-D", self._folder / "data", *arguments]
        other: dict[str, Any] = (
            {"user": "postgres", "group": "postgres", "extra_groups": []}
            if os.getuid() == 0
            else {}
        )
        # A pipe would wait for the server, which inherits it.
        with (self._folder / "said").open("w+") as said:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=False,
                **other,
            )
            said.seek(0)
            assert done.returncode == 0, f"{program}: {said.read()}"


@dataclass
class Server:
    """A Prefect server that can be killed and started again."""

    folder: Path
    database: PostgreSQL | None = None
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: Process | None = None

    @property
    def url(self) -> str:
        """Address of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need to find it."""
        return {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.folder / "client")}

    def start(self) -> None:
        """Start it, and return when it answers."""
        settings = {"PREFECT_HOME": str(self.folder / "home"), **self.settings}
        if self.database is not None:
            settings["PREFECT_API_DATABASE_CONNECTION_URL"] = self.database.url
        prefect = (sys.executable, "-m", "prefect", "server", "start")
        self.process = Process(
            self.folder, *prefect, "--host", "127.0.0.1", "--port", self.port, **settings
        )
        wait_until("the server", self._answers, self.process)

    def kill(self) -> None:
        """Kill it."""
        assert self.process is not None
        self.process.kill()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, path: str, **query: Any) -> Any:
        """What it answers to a POST."""
        return self._answer("POST", path, query)

    def _answer(self, method: str, path: str, content: Any = None) -> Any:
        """What it answers, asked again while its database is busy."""

        def answered() -> httpx.Response | None:
            answer = httpx.request(method, f"{self.url}/{path}", json=content, timeout=60)
            return None if answer.status_code == 503 else answer

        answer = wait_until("an answer", answered, self.process)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, name: str, state: str | None = None) -> list[dict[str, Any]]:
        """The runs of a deployment in a state, by the time for which they were expected."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter",
            deployments={"name": {"any_": [name]}},
            sort="EXPECTED_START_TIME_ASC",
            limit=200,
            **({"flow_runs": {"state": {"name": {"any_": [state]}}}} if state else {}),
        )
        return found

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment."""
        return dict(self._answer("GET", f"deployments/name/maskloom/{name}"))

    def start_run(self, name: str) -> str:
        """Start a run of a deployment by hand. Its id."""
        run = self.ask(
            f"deployments/{self.deployment(name)['id']}/create_flow_run",
            state={"type": "SCHEDULED"},
        )
        return str(run["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A run."""
        return dict(self._answer("GET", f"flow_runs/{run_id}"))

    def ended(self, run_id: str, alive: Process | None = None) -> dict[str, Any]:
        """The state of a run, once it is final."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        return wait_until(
            "the end of a run",
            lambda: (run := self.run(run_id))["state_type"] in final and run["state"],
            alive,
        )

    def send(self, recipe: str) -> None:
        """Tell it by its event that new objects have come."""
        from datetime import UTC, datetime
        from uuid import uuid4

        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "maskloom.objects.arrived",
            "resource": {"prefect.resource.id": f"maskloom.recipe.{recipe}"},
        }
        self._answer("POST", "events", [event])


@contextmanager
def prefect_server(folder: Path, database: str, **settings: str) -> Iterator[Server]:
    """A Prefect server on a database of the kind sqlite or postgresql."""
    postgresql = PostgreSQL() if database == "postgresql" else None
    server = Server(folder, postgresql, settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        if postgresql is not None:
            postgresql.close()


class Images(http.server.ThreadingHTTPServer):
    """Serves pictures; while it is shut, those that a run asks for once it has planned wait."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        folder.mkdir(parents=True)
        for i, name in enumerate(names):
            Image.fromarray(photograph(60 + i, 80)).save(folder / name)
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.names = names
        self.planned: Callable[[], bool] = lambda: False
        self.opened = threading.Event()
        self.opened.set()
        self.waiting = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uris(self) -> list[str]:
        """Addresses of the pictures."""
        return [f"http://127.0.0.1:{self.server_port}/{name}" for name in self.names]

    def shut(self) -> None:
        """Let the next reads wait."""
        self.waiting.clear()
        self.opened.clear()

    def open(self) -> None:
        """Let all reads go on."""
        self.opened.set()


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Images

    def do_GET(self) -> None:
        if not self.server.opened.is_set() and self.server.planned():
            self.server.waiting.set()
            self.server.opened.wait(HANG)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class Stage:
    """A recipe for pictures that a run can be made to wait for, and processes that know a
    server.
    """

    def __init__(self, server: Server, folder: Path, name: str, **keys: object) -> None:
        self.server, self.name = server, name
        self._folder = folder
        self._processes: list[Process] = []
        self.images = Images(folder / "served", ["a.png", "b.png", "c.png"])
        self.images.planned = lambda: any((folder / "out" / "runs").glob("*/plan.json"))
        self.recipe = write_recipe(folder, name, inputs=self.images.uris, **keys)

    def start(self, *command: object, **environment: str) -> Process:
        """Start a command."""
        settings = {**self.server.environment, **environment}
        self._processes.append(Process(self._folder / "processes", *command, **settings))
        return self._processes[-1]

    def maskloom(self, *arguments: object, code: int = 0) -> str:
        """What a command of maskloom says, once it has ended with this code."""
        process = self.start(*MASKLOOM, *arguments)
        assert process.process.wait(HANG) == code, process.said()
        return process.said()

    def serve(self, **environment: str) -> Process:
        """A service for the recipe."""
        service = self.start(*MASKLOOM, "serve", self.recipe, **environment)
        wait_until("the service", lambda: "until Ctrl-C" in service.said(), service)
        return service

    def work(self) -> Process:
        """A process worker of the pool `machines`."""
        prefect = (sys.executable, "-m", "prefect", "worker", "start")
        return self.start(*prefect, "--pool", "machines", "--type", "process")

    def run_that_waits(self) -> str:
        """Start a run by hand, and return its id when it waits for pictures."""
        self.images.shut()
        run = self.server.start_run(self.name)
        assert self.images.waiting.wait(HANG)
        return run

    def close(self) -> None:
        """End everything."""
        self.images.open()
        for process in self._processes:
            process.kill()
        self.images.shutdown()
        self.images.server_close()


@contextmanager
def stage(server: Server, folder: Path, name: str, **keys: object) -> Iterator[Stage]:
    """A stage that is closed at the end."""
    opened = Stage(server, folder, name, **keys)
    try:
        yield opened
    finally:
        opened.close()


def write_recipe(folder: Path, name: str, **keys: object) -> Path:
    """A recipe with relative paths for the two pictures beside it."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    for i in range(2):
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


def assert_as_undisturbed(recipe: Path) -> None:
    """The output has what the command line gives, once; a further run does nothing."""
    run = ("run", recipe, "--no-prefect", "--quiet")
    undisturbed, output = recipe.parent / "undisturbed", recipe.parent / "out"
    _invoke(*run, "--set", f"output={undisturbed}")
    assert_same_results(output, undisturbed)
    assert "Nothing to do" in _invoke(*run)
    _invoke("verify", output)


def _invoke(*arguments: object) -> str:
    """What a command says that ends well, run in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout
