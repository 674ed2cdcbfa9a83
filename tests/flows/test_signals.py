"""Ctrl-C: the first one is answered whatever the main thread does, a second one ends the process.

Every signal goes to a child process.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from PIL import Image

from maskloom.flows.signals import STOPPED

HANG = 300.0
"""Seconds after which something hangs; nothing here is measured by the clock."""
pytestmark = pytest.mark.timeout(2 * HANG)

NATIVE = """
    import hashlib, signal, sys, threading

    def native():
        # Minutes, during which this thread runs no handler.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000_000)
        print("native code has ended", flush=True)
"""

IN_NATIVE_CODE = """
    from maskloom.flows.signals import end_process, stop_on_signals

    stop = threading.Event()
    with stop_on_signals(stop, lambda number: print(number.name, flush=True), end_process):
        print("ready", flush=True)
        native()
"""


def program(*parts: str) -> list[str]:
    return [sys.executable, "-c", "".join(map(textwrap.dedent, parts))]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_native_code_in_the_main_thread_delays_no_answer(first: signal.Signals) -> None:
    with subprocess.Popen(
        program(NATIVE, IN_NATIVE_CODE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(first)
        assert child.stdout.readline() == f"{first.name}\n"
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=HANG)
    assert (output, errors, child.returncode) == ("", f"{STOPPED}\n", 1)


class Terminal:
    """A child process with a terminal of its own."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.shown = ""
        self._child, self._descriptor = pty.fork()
        if self._child == 0:
            os.chdir(folder)
            os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "80"})

    def press_ctrl_c(self) -> None:
        os.write(self._descriptor, b"\x03")

    def wait_for(self, text: str) -> None:
        """Read until this text is shown."""
        while text not in self.shown and self._read():
            continue
        assert text in self.shown, self.shown

    def ended(self) -> int:
        """Read all; returns the exit code of the child."""
        while self._read():
            continue
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

    def _read(self) -> bool:
        try:
            chunk = os.read(self._descriptor, 65536)
        except OSError:
            # So ends a terminal on Linux.
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.close(self._descriptor)


RUN = """
    import importlib
    from maskloom.flows import cli

    module, name = {where!r}.split(":")
    module = importlib.import_module(module)
    before = getattr(module, name)

    def blocking(*arguments, **options):
        print("it is reached", file=sys.stderr, flush=True)
        native()

    setattr(module, name, blocking)
    sys.argv = ["maskloom", *{command!r}]
    cli.main()
"""
NIGHTLY = pytest.mark.nightly


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures and a recipe with a model to be fitted."""
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.linear_gradient("L").save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "recipe.yaml").write_text(
        "inputs: in\noutput: out\nsegmenter: {kind: kmeans, clusters: 2}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("where", "cluster", "options"),
    [
        # In a job, in this process.
        ("maskloom.tasks.segment:perform", "serial", ["--no-prefect"]),
        # In the driver.
        pytest.param(
            "maskloom.flows.planning:write_plan", "serial", ["--no-prefect"], marks=NIGHTLY
        ),
        pytest.param("maskloom.tasks.describe:describe", "serial", ["--no-prefect"], marks=NIGHTLY),
        pytest.param("maskloom.tasks.fit:observe", "serial", ["--no-prefect"], marks=NIGHTLY),
        pytest.param("maskloom.tasks.fit:concluded", "local", ["--no-prefect"], marks=NIGHTLY),
        pytest.param("maskloom.flows.planning:write_plan", "local", ["--quiet"], marks=NIGHTLY),
        pytest.param("maskloom.tasks.segment:perform", "serial", [], marks=NIGHTLY),
    ],
)
def test_the_second_ctrl_c_stops_a_run_at_once_wherever_it_is(
    folder: Path,
    where: str,
    cluster: str,
    options: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    command = ["run", "recipe.yaml", "--set", f"cluster={cluster}", *options]
    run = program(NATIVE, RUN.format(where=where, command=command))
    with Terminal(run, folder) as terminal:
        terminal.wait_for("it is reached")
        terminal.press_ctrl_c()
        terminal.wait_for("Ctrl-C again stops at once; nothing is lost.")
        terminal.press_ctrl_c()
        assert terminal.ended() == 1
    shown = terminal.shown
    assert STOPPED in shown
    assert "Traceback" not in shown
    assert shown.endswith("\r\x1b[K\x1b[?25h"), "the bar stays, or the cursor is hidden"
    if where.endswith("perform"):
        assert "1 job is being finished" in shown


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("maskloom.tasks.regions:fit_to", ["audit", "recipe.yaml"]),
        ("maskloom.tasks.regions:fit_to", ["compare", "in/a.png", "-o", "x.png", "-s", "kmeans"]),
        ("maskloom.tasks.evaluate:score", ["evaluate", "out", "--truth", "truth"]),
        ("maskloom.flows.train:prepare", ["train", "train.yaml"]),
    ],
)
def test_so_it_is_with_all_commands_that_work_for_long(
    folder: Path, where: str, command: list[str]
) -> None:
    again = [sys.executable, "-m", "maskloom.flows.cli"]
    if command[0] == "evaluate":
        run = [*again, "run", "recipe.yaml", "--quiet", "--no-prefect"]
        subprocess.run(run, cwd=folder, check=True, timeout=HANG)
        shutil.copytree(folder / "out" / "masks", folder / "truth")
    if command[0] == "train":
        pytest.importorskip("tensorflow")
        shutil.copytree(folder / "in", folder / "labels")
        (folder / "train.yaml").write_text(
            "images: in\nmasks: labels\noutput: net\nclasses: [one, two]\nnetwork: {kind: unet}\n"
        )
    with Terminal(program(NATIVE, RUN.format(where=where, command=command)), folder) as terminal:
        terminal.wait_for("it is reached")
        terminal.press_ctrl_c()
        terminal.wait_for("Ctrl-C again stops at once; nothing is lost.")
        terminal.press_ctrl_c()
        assert terminal.ended() == 1
    assert STOPPED in terminal.shown
    assert "Traceback" not in terminal.shown


@pytest.mark.nightly
def test_ctrl_c_stops_a_listing_at_once(folder: Path) -> None:
    where = "maskloom.flows.inventory:discover"
    command = ["run", "recipe.yaml", "--set", "cluster=local"]
    run = program(NATIVE, RUN.format(where=where, command=command))
    with Terminal(run, folder) as terminal:
        terminal.wait_for("it is reached")
        terminal.press_ctrl_c()
        assert terminal.ended() == 1
    shown = terminal.shown
    assert shown.splitlines()[0] == "Reading recipe.yaml"
    assert STOPPED in shown
    assert "Traceback" not in shown
    assert not (folder / "out").exists()
