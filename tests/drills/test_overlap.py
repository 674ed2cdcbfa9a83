"""Drills: runs that overlap on one output: one in a process of its own that waits at a chosen step,
and those in this process that come meanwhile. Every image ends in the tables once.

A process that is told to wait stops itself at a fail-point until it is continued; nothing depends
on how quick the machine is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import fsspec
import psutil
import pytest
from drills_support import STARTED
from PIL import Image
from tests_support import assert_same_results, photograph
from typer.testing import CliRunner

from maskloom.flows.cli import app

HANG = 240
pytestmark = pytest.mark.timeout(3 * HANG)
STEPS = {"claim": "write:runs/commits/*", "moves": "written:runs/commits/*"}
"""Fail-points: before the claim of a commit, and after it."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(5):
        Image.fromarray(photograph(120, 90 + 7 * i)).save(images / f"a{i}.png")
    return tmp_path


def command(*arguments: str, kind: str = "kmeans", output: str = "out") -> list[str]:
    """The command of a run on the images."""
    options = ["--no-prefect", "--quiet", "--set", "cluster.kind=serial"]
    return ["segment", "images", "-o", output, "-s", kind, *options, *arguments]


def run(*arguments: str, kind: str = "kmeans", output: str = "out") -> tuple[int, str]:
    """A run in this process: its exit code and what it said."""
    result = CliRunner().invoke(app, command(*arguments, kind=kind, output=output))
    return result.exit_code, result.output


def start(wait_at: str = "", output: str = "out") -> subprocess.Popen[str]:
    """A run in a process of its own."""
    fault = {"MASKLOOM_FAIL": f"{STEPS[wait_at]}:kill=STOP@1"} if wait_at else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "maskloom.flows.cli", *command(output=output)],
        env=os.environ | fault,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = "".join(process.communicate(timeout=HANG))
    assert "Traceback" not in said, said
    return process.returncode, said


def wait_for(process: subprocess.Popen[str]) -> None:
    """Wait until the process has stopped itself."""
    status = psutil.Process(process.pid).status
    deadline = time.monotonic() + HANG
    while status() != psutil.STATUS_STOPPED:
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_once(output: Path, images: int) -> None:
    rows, distinct = duckdb.sql(
        f"select count(*), count(distinct image_id) from '{output}/tables/images/*.parquet'"
    ).fetchall()[0]
    assert (rows, distinct) == (images, images)
    twice = duckdb.sql(
        f"select image_id, class_id, count(*) n from '{output}/tables/areas/*.parquet' group by "
        "all having n > 1"
    ).fetchall()
    assert twice == []
    check = CliRunner().invoke(app, ["verify", str(output)])
    assert check.exit_code == 0, check.output


def test_a_run_that_starts_again_while_the_first_works_and_an_image_has_come(folder):
    """The first run has drafted its commit when the second, which knows one image more, begins and
    ends.
    """
    first = start("claim")
    wait_for(first)
    shutil.copy(folder / "images" / "a0.png", folder / "images" / "new.png")
    assert run()[0] == 0
    first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0
    assert_once(folder / "out", 6)
    assert "Nothing to do" in run()[1]
    models = {path.read_text() for path in (folder / "out" / "runs").glob("*/model.json")}
    assert len(models) == 1, "both runs use the model that was fitted first"


@pytest.mark.nightly
def test_the_same_on_s3(folder, s3_bucket):
    output = f"{s3_bucket}/overlap"
    first = start("claim", output)
    wait_for(first)
    shutil.copy(folder / "images" / "a0.png", folder / "images" / "new.png")
    assert run(output=output)[0] == 0
    first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0
    fsspec.filesystem("s3").get(output, str(folder / "fetched"), recursive=True)
    assert_once(folder / "fetched", 6)


@pytest.mark.nightly
def test_a_run_that_sleeps_in_the_midst_of_its_commit_is_helped_and_does_no_harm_when_it_wakes(
    folder,
):
    first = start("moves")
    wait_for(first)
    assert not (folder / "out" / "masks").exists()
    assert "Nothing to do" not in run()[1], "the second finishes what the first has claimed"
    assert_once(folder / "out", 5)
    Image.fromarray(photograph(140, 140)).save(folder / "images" / "a0.png")
    assert run()[0] == 0
    first.send_signal(signal.SIGCONT)
    assert ended(first)[0] == 0
    assert_once(folder / "out", 5)
    sizes = duckdb.sql(
        f"select height from '{folder}/out/tables/images/*.parquet' where image_id = 'a0'"
    ).fetchall()
    assert sizes == [(140,)], "the newer image stays"


def test_a_run_that_was_killed_between_claim_and_moves_is_finished_by_the_next(folder):
    assert run(output="undisturbed")[0] == 0
    first = start("moves")
    wait_for(first)
    first.kill()
    first.communicate()
    assert run()[0] == 0
    assert_once(folder / "out", 5)
    assert_same_results(folder / "out", folder / "undisturbed")
    assert not list((folder / "out" / "staging").rglob("*.*"))


def test_a_run_of_another_recipe_ends_with_a_message_where_it_finds_the_first_ones_images(folder):
    first = start("claim")
    wait_for(first)
    assert run(kind="threshold")[0] == 0
    first.send_signal(signal.SIGCONT)
    code, said = ended(first)
    assert code == 1
    assert "of another recipe has committed" in said
    assert_once(folder / "out", 5)
    assert run()[0] == 0, "alone, it replaces the images of the other recipe"
    assert_once(folder / "out", 5)
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    Image.fromarray(photograph(60, 60)).save(folder / "images" / "b.png")
    code, said = run(kind="threshold")
    assert code == 2
    assert "holds 5 images of run segment-" in said
    assert "--keep-other-recipes" in said
    assert run("--keep-other-recipes", kind="threshold")[0] == 0
    groups = duckdb.sql(
        f"select fingerprint, count(distinct image_id) from '{folder}/out/tables/areas/*.parquet' "
        "group by 1 order by 2"
    ).fetchall()
    assert [images for _, images in groups] == [1, 5]


@pytest.mark.nightly
def test_three_at_once_leave_one_dataset(folder):
    processes = [start() for _ in range(3)]
    assert [ended(process)[0] for process in processes] == [0, 0, 0]
    assert_once(folder / "out", 5)
    assert "Nothing to do" in run()[1]
