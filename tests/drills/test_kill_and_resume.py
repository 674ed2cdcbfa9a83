"""Drills: workers and the driver are killed, or asked to stop, and the same command goes on.

`test_cuts.py` cuts a run at each of its steps, in one process. The runs here have workers, which
show what that cannot: processes that must not outlive the driver, and parts that others finish.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from drills_support import (
    HANG,
    RUN,
    assert_resumed,
    assert_undisturbed,
    comes,
    ended,
    start,
)

WORKERS = ("--set", "cluster.kind=local", "--set", "cluster.workers=2")
MOMENTS = {
    "planned": "written:runs/*/plan.json",
    "fitted": "written:runs/recipes/*/model.json",
    "a commit is drafted": "write:runs/commits/*",
    "a mask has its name": "moved:masks/*",
    "all tables but one have their names": "move:tables/images/*",
    "all is committed": "write:runs/*/manifest.json",
}
pytestmark = pytest.mark.timeout(5 * HANG)


def run_with_workers(folder: Path, output: str, **environment: str) -> subprocess.Popen[bytes]:
    return start(folder, *RUN, *WORKERS, "-o", output, **environment)


def assert_no_orphans(run: subprocess.Popen[bytes], end: signal.Signals) -> None:
    """No process outlives the driver when it is killed."""
    children = psutil.Process(run.pid).children(recursive=True)
    assert children
    run.send_signal(end)
    run.wait(HANG)
    assert psutil.wait_procs(children, timeout=HANG)[1] == [], "orphans"


def wait_for_parts(folder: Path, output: str, run: subprocess.Popen[bytes]) -> None:
    parts = (folder / output / "staging").glob
    assert comes(lambda: list(parts("*/*/*.part")), run), ended(folder, run).said


def kill_a_worker(run: subprocess.Popen[bytes]) -> None:
    worker = next(
        child
        for child in psutil.Process(run.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    )
    os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=() if moment == "a mask has its name" else pytest.mark.nightly)
        for moment in MOMENTS
    ],
)
def test_the_driver_is_killed_and_the_same_command_goes_on(folder, server, undisturbed, moment):
    output = f"killed-{list(MOMENTS).index(moment)}"
    run = run_with_workers(folder, output, MASKLOOM_FAIL=f"{MOMENTS[moment]}:kill=STOP")
    driver = psutil.Process(run.pid)
    assert comes(lambda: driver.status() == psutil.STATUS_STOPPED, run), ended(folder, run).said
    assert_no_orphans(run, signal.SIGKILL)
    assert_resumed(server, folder / output, undisturbed)


def test_a_worker_is_killed_and_then_the_run_is_asked_to_stop(folder, server, undisturbed):
    run = run_with_workers(folder, "stopped")
    wait_for_parts(folder, "stopped", run)
    kill_a_worker(run)
    run.terminate()
    finished = ended(folder, run)
    assert finished.code == 1, finished.said
    assert_resumed(server, folder / "stopped", undisturbed)


@pytest.mark.nightly
def test_a_worker_is_killed_and_the_run_does_not_notice(folder, undisturbed):
    run = run_with_workers(folder, "worker")
    wait_for_parts(folder, "worker", run)
    kill_a_worker(run)
    finished = ended(folder, run)
    assert finished.code == 0, finished.said
    assert_undisturbed(folder / "worker", undisturbed)


@pytest.mark.nightly
def test_a_run_that_is_killed_while_it_stops(folder, server, undisturbed):
    """What batch systems and systemd do: SIGTERM, some seconds, SIGKILL."""
    run = run_with_workers(folder, "term-kill")
    wait_for_parts(folder, "term-kill", run)
    run.terminate()
    time.sleep(0.2)
    assert_no_orphans(run, signal.SIGKILL)
    assert_resumed(server, folder / "term-kill", undisturbed)
