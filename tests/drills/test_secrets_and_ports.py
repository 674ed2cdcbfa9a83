"""Drills: a canary stands wherever a secret may stand, and is looked for in all that a run writes,
says and starts; and every port that the run opens is one of loopback.
"""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stores_support import moto
from tests_support import photograph

CANARY = "c4n4ryS1gn4tur3"
HANG = 240
pytestmark = pytest.mark.timeout(3 * HANG)


@dataclass
class Watched:
    """What was seen of the processes of a run while it was at work."""

    listening: set[str] = field(default_factory=set)
    """Addresses at which one of them listened."""
    command_lines: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)
    """Variables of their environments whose values hold the canary."""

    def look(self, process: psutil.Process) -> None:
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                self.command_lines.add(" ".join(each.cmdline()))
                self.variables |= {
                    name for name, value in each.environ().items() if CANARY in value
                }
                self.listening |= {
                    socket.laddr.ip
                    for socket in each.net_connections("inet")
                    # A socket of UDP has no state.
                    if socket.laddr and socket.status in {"LISTEN", "NONE"}
                }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(photograph(80, 60 + 7 * i)).save(folder / f"a{i}.png")
    return folder


@pytest.fixture
def signed(images: Path) -> Iterator[str]:
    """The address of a web server that gives `a0.png` to those who sign with the canary, and
    refuses any other file with a page that repeats the request.
    """
    content = (images / "a0.png").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = content if self.path.startswith("/a0.png?") and CANARY in self.path else None
            page = given or f"No access: {self.path}".encode()
            self.send_response(200 if given else 403)
            self.send_header("Content-Length", str(len(page)))
            self.send_header("ETag", '"one"')
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def run(
    tmp_path: Path,
    signed: str,
    output: str,
    cluster: dict[str, object],
    environment: dict[str, str],
    *options: str,
) -> tuple[Watched, bytes]:
    """A run with secrets in all places, and what it said."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "inputs": [
                    "images",
                    f"{signed}/a0.png?sig=${{CANARY_SIGNATURE}}&item=1",
                    "${CANARY_ADDRESS}",
                ],
                "output": output,
                "segmenter": "kmeans",
                "storage": {"https": {"client_kwargs": {"trust_env": True}}},
                "cluster": cluster,
            }
        )
    )
    secrets = {
        "CANARY_SIGNATURE": CANARY,
        "CANARY_ADDRESS": f"{signed}/gone.png?token={CANARY}",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={CANARY}",
    }
    places = {"TMPDIR": str(tmp_path / "temporary"), "PREFECT_HOME": str(tmp_path / "prefect")}
    (tmp_path / "temporary").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    said = tmp_path / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "maskloom.flows.cli", "run", str(recipe), *options],
            env={**kept, **environment, **places, **secrets},
            stdout=log,
            stderr=log,
        )
    watched, driver = Watched(), psutil.Process(process.pid)
    deadline = time.monotonic() + HANG
    while process.poll() is None:
        watched.look(driver)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert process.returncode == 3, said.read_text()
    assert watched.variables == secrets.keys(), "inherited, and under no other name"
    return watched, said.read_bytes()


def assert_silent(folder: Path) -> None:
    """No file holds the canary, in its bytes, its name or its values."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert CANARY not in path.name
        assert CANARY.encode() not in path.read_bytes(), path
        if path.suffix == ".parquet":
            # Its pages are compressed.
            assert CANARY not in str(pq.read_table(path).to_pylist()), path


def assert_quiet(watched: Watched, said: bytes) -> None:
    assert CANARY.encode() not in said
    assert b"gone.png" in said, "it says what failed"
    assert not [line for line in watched.command_lines if CANARY in line]
    assert all(ipaddress.ip_address(each).is_loopback for each in watched.listening), (
        watched.listening
    )


def test_secrets_are_nowhere_and_a_run_in_one_process_opens_no_port(tmp_path, signed):
    watched, said = run(tmp_path, signed, "out", {"kind": "serial"}, {}, "--no-prefect")
    assert_quiet(watched, said)
    assert watched.listening == set()
    for folder in ("out", "temporary"):
        assert_silent(tmp_path / folder)
    rows = pq.read_table(next((tmp_path / "out" / "tables" / "images").iterdir())).to_pylist()
    assert {row["uri"]: row["status"] for row in rows if row["uri"].startswith("http")} == {
        f"{signed}/a0.png?item=1": "ok",
        f"{signed}/gone.png": "failed",
    }


@pytest.mark.nightly
def test_secrets_are_nowhere_with_prefect_workers_and_a_store_and_ports_are_of_loopback(
    tmp_path, signed, monkeypatch
):
    import fsspec

    with moto(tmp_path / "server") as served:
        output = f"{served.root}/out"
        workers = {"kind": "local", "workers": 2}
        watched, said = run(tmp_path, signed, output, workers, served.environment)
        assert_quiet(watched, said)
        assert watched.listening, "the driver, its workers and the server of Prefect"
        assert len(watched.command_lines) > 3
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.get(output, str(tmp_path / "copy"), recursive=True)
        assert not [path for _, path, _ in served.proxy.requests if CANARY in path]
    for folder in ("copy", "prefect", "temporary"):
        assert_silent(tmp_path / folder)
    assert (tmp_path / "prefect" / "prefect.db").exists()
