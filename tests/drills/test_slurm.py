"""Drills on a real SLURM of one node, which this test starts: jobs are lost in every way, and the
results are those of an undisturbed run. Skipped where SLURM is not installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import slurm_support
from PIL import Image
from tests_support import assert_same_results

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))

import fanout_jobs as jobs
from fanout_jobs import Mark, Numbers

from maskloom.segcore.errors import RunError, WorkerDied
from maskloom.tasks.clusters.slurm import SlurmCluster
from maskloom.tasks.fanout.dask import Dask

MANY = 180.0
"""Seconds after which something hangs."""
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(5 * MANY),
    pytest.mark.skipif(bool(slurm_support.missing()), reason=slurm_support.missing()),
]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm_support.slurm(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> SlurmCluster:
    """Two jobs, whose workers find the functions of these tests."""
    path = f"export PYTHONPATH={Path(jobs.__file__).parent}"
    return SlurmCluster(
        workers=2,
        memory="700 MiB",
        interface="lo",
        folder=str(tmp_path / "jobs"),
        walltime="00:10:00",
        prologue=(path,),
    )


@pytest.fixture
def cluster(recipe: SlurmCluster) -> Iterator[Dask]:
    with opened(recipe) as dask:
        yield dask
    assert comes_true(lambda: slurm_support.squeue("%A") == [])
    assert list(Path(recipe.folder).glob("certificates-*")) == []


def opened(recipe: SlurmCluster) -> Dask:
    return recipe.open(jobs.prepare, threading.Event())


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + MANY
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return true


def job_of(process: psutil.Process) -> str:
    return process.environ()["SLURM_JOB_ID"]


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_workers_of_jobs_listen_on_one_interface_and_speak_tls(
    cluster: Dask, recipe: SlurmCluster
) -> None:
    work = [Numbers((first, first + 1)) for first in range(20)]
    assert dict(cluster.map(jobs.slow_squares, work)) == {job: jobs.squares(job) for job in work}
    assert comes_true(lambda: len(cluster.client.scheduler_info(-1)["workers"]) == 2)
    found = cluster.client.scheduler_info(-1)
    assert all(address.startswith("tls://127.0.0.1:") for address in found["workers"])
    assert found["address"].startswith("tls://127.0.0.1:")

    pids = cluster.client.run(os.getpid).values()
    nannies = [psutil.Process(pid).parents()[0] for pid in pids]
    listening = {
        each.laddr.ip
        for process in [psutil.Process(), *nannies, *map(psutil.Process, pids)]
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    # Logs can be found, and the key can be read by nobody else.
    folder = Path(recipe.folder)
    numbers = slurm_support.squeue("%A")
    assert {f"maskloom-{each}.err" for each in numbers} <= {file.name for file in folder.iterdir()}
    (private,) = folder.glob("certificates-*")
    assert private.stat().st_mode & 0o077 == 0


def test_a_cancelled_job_is_replaced_and_costs_no_result(cluster: Dask, tmp_path: Path) -> None:
    work = [Mark(str(tmp_path), "victim"), *(Mark(str(tmp_path), f"{i}", 0.5) for i in range(30))]
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(lambda: list(cluster.map(jobs.wait_the_first_time, work)))
        assert comes_true(lambda: text(tmp_path / "victim") != "")
        before = set(slurm_support.squeue("%A"))
        lost = job_of(psutil.Process(int(text(tmp_path / "victim"))))
        subprocess.run(["scancel", lost], check=True)
        names = [name for _, name in results.result(MANY)]
    assert sorted(map(str, names)) == sorted(job.name for job in work)
    # Another one takes its place, at the latest when there is work again.
    assert list(cluster.map(jobs.mark_and_sleep, [Mark(str(tmp_path), "late", 15.0)]))
    after = set(slurm_support.squeue("%A"))
    assert lost in before - after
    assert len(after) == 2


def test_a_job_killed_for_its_memory_is_replaced_and_the_culprit_is_named(
    cluster: Dask,
) -> None:
    work = [*(Numbers((i, i + 1)) for i in range(0, 12, 2)), Numbers((100, -1, 101))]
    results = list(cluster.map(jobs.squares_or_hoard_in_a_child, work))
    dead = [job for job, result in results if isinstance(result, WorkerDied)]
    assert dead == [Numbers((-1,))]
    alive = sorted(
        item for job, result in results if not isinstance(result, WorkerDied) for item in job.items
    )
    assert alive == sorted(item for job in work for item in job.items if item >= 0)


def test_jobs_that_reach_their_time_limit_hand_over(recipe: SlurmCluster, tmp_path: Path) -> None:
    work = [Mark(str(tmp_path), f"{i}", 3.0) for i in range(100)]
    with opened(replace(recipe, walltime="00:02:00")) as dask:
        results = list(dask.map(jobs.mark_and_sleep, work))
    assert sorted(str(name) for _, name in results) == sorted(job.name for job in work)
    logs = list(Path(recipe.folder).glob("maskloom-*.err"))
    assert len(logs) > recipe.workers
    assert not any("DUE TO TIME LIMIT" in text(log) for log in logs)


def test_jobs_do_not_outlive_a_killed_driver(recipe: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        f"""
import sys, threading
sys.path[:0] = [{str(Path(jobs.__file__).parent)!r}]
import fanout_jobs as jobs
from maskloom.tasks.clusters.slurm import SlurmCluster

with {recipe!r}.open(jobs.prepare, threading.Event()) as dask:
    list(dask.map(jobs.mark_and_sleep, [jobs.Mark({str(tmp_path)!r}, "begun", 600.0)]))
"""
    )
    with subprocess.Popen([sys.executable, str(script)]) as driver:
        assert comes_true(lambda: text(tmp_path / "begun") != "")
        assert slurm_support.squeue("%A")
        driver.send_signal(signal.SIGKILL)
    assert comes_true(lambda: slurm_support.squeue("%A") == [])


def test_what_sbatch_refuses_is_said(recipe: SlurmCluster) -> None:
    with (
        pytest.raises(RunError, match=r"SLURM refused a job: sbatch: .*partition.*nowhere"),
        opened(replace(recipe, partition="nowhere")) as dask,
    ):
        assert dask.client


def test_jobs_that_cannot_start_end_the_run_with_their_last_words(recipe: SlurmCluster) -> None:
    broken = replace(recipe, prologue=("echo no such module >&2", "exit 3"))
    with (
        pytest.raises(RunError, match=r"ended before their workers joined.*\.err: no such module"),
        opened(broken) as dask,
    ):
        list(dask.map(jobs.squares, [Numbers((1,))]))


def test_a_run_that_loses_a_job_is_as_one_in_this_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 256, (200, 300), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number:02}.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inputs: in\noutput: here\nsegmenter: kmeans\ncluster: serial\n")
    command = [
        *(sys.executable, "-m", "maskloom.flows.cli", "run", str(recipe)),
        *("--no-prefect", "--quiet"),
    ]
    subprocess.run(command, check=True)
    section = (
        "cluster={kind: slurm, workers: 2, memory: 1 GiB, interface: lo, folder: jobs, "
        "walltime: '00:10:00'}"
    )
    more = ("--set", section, "--set", "output=on-slurm")
    with subprocess.Popen([*command, *more]) as run:
        assert comes_true(lambda: "RUNNING" in slurm_support.squeue("%T"))
        subprocess.run(["scancel", slurm_support.squeue("%A")[0]], check=True)
        assert run.wait(MANY) == 0
    assert_same_results(tmp_path / "here", tmp_path / "on-slurm")
    assert comes_true(lambda: slurm_support.squeue("%A") == [])


def test_an_interrupt_while_jobs_wait_cancels_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "inputs: in\noutput: out\nsegmenter: threshold\n"
        "cluster: {kind: slurm, workers: 2, memory: 1 GiB, interface: lo, folder: jobs}\n"
    )
    others = ["sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 900"]
    other = subprocess.run(others, capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "-m", "maskloom.flows.cli", "run", str(recipe), "--no-prefect"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        said = next(line for line in run.stderr if "SLURM" in line)
        assert "2 jobs wait in SLURM's queue" in said
        assert len(slurm_support.squeue("%A")) == 3
        run.send_signal(signal.SIGINT)
        assert "asked to stop" in run.stderr.read()
        assert run.wait(MANY) == 1
    assert slurm_support.squeue("%A") == [other]
    subprocess.run(["scancel", other], check=True)


def test_the_driver_may_be_a_job_itself(tmp_path: Path) -> None:
    """`deploy/slurm/driver.sbatch`, with the node's memory shared with its workers."""
    (tmp_path / "in").mkdir()
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    (tmp_path / "recipe.yaml").write_text(
        "inputs: in\noutput: out\nsegmenter: threshold\n"
        "cluster: {kind: slurm, workers: 1, memory: 1 GiB, interface: lo, folder: jobs}\n"
    )
    script = Path(__file__).parents[2] / "deploy" / "slurm" / "driver.sbatch"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    submitted = subprocess.run(
        ["sbatch", "--parsable", str(script), "recipe.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    number = submitted.stdout.strip()
    assert comes_true(lambda: number not in slurm_support.squeue("%A"))
    log = text(tmp_path / f"maskloom-driver-{number}.out")
    assert "1 image done, 0 failed" in log, log
    assert comes_true(lambda: slurm_support.squeue("%A") == [])


def test_what_slurm_would_refuse_is_said_before_a_run_and_nothing_is_submitted(
    recipe: SlurmCluster,
) -> None:
    assert recipe.look() == "SLURM would take its jobs"
    for changes, words in (
        ({"gpu": True}, "offers GPUs.*remove cluster.gpu"),
        ({"partition": "nowhere"}, "invalid partition.*Correct the section `cluster`"),
        ({"memory": "70 GiB"}, "not available"),
    ):
        with pytest.raises(RunError, match=words):
            replace(recipe, **changes).look()
    assert slurm_support.squeue("%A") == []
