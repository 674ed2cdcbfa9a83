"""Drills: images that kill, hang or fail, disks that are full, slow or read-only, clocks that are
wrong, and clusters that lose their scheduler or their workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import psutil
import pytest
from drills_support import (
    HANG,
    RUN,
    Ended,
    assert_resumed,
    assert_undisturbed,
    assert_whole,
    comes,
    ended,
    start,
)
from tests_support import read_masks, read_table

WORKERS = ("--set", "cluster.kind=local", "--set", "cluster.workers=2")
pytestmark = pytest.mark.timeout(5 * HANG)


def finished(folder: Path, *arguments: str, before: str = "", **environment: str) -> Ended:
    """How the command ends in a process of its own."""
    return ended(folder, start(folder, *arguments, before=before, **environment))


# Images


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("fault", "error", "workers"),
    [
        ("open:small1.png:kill=SEGV", "WorkerDied", WORKERS),
        ("describe:small1.png:exit", "WorkerDied", WORKERS),
        ("open:small1.png:hang", "TimedOut", WORKERS),
        ("describe:small1.png:hang", "TimedOut", ()),
        ("open:small1.png:raise=EIO", "Unavailable", ()),
        ("describe:small1.png:raise=ESTALE", "Unavailable", ()),
    ],
)
def test_an_image_that_kills_hangs_or_fails_is_one_row_and_the_next_run_does_it(
    folder, server, fault, error, workers
):
    name = fault.replace(":", "-")
    run = ["segment", "images", "-s", "threshold", "-p", "value=100", "-p", "band=1"]
    run += ["--no-prefect", "--quiet", "--set", "tiling.tile=128", "--set", "cluster.kind=serial"]
    whole = server.run(folder, [*run, "-o", "threshold"])
    assert whole.code == 0, whole.said
    limit = ("--set", "limits.read=30") if "hang" in fault else ()
    once = finished(folder, *run, *workers, *limit, "-o", name, MASKLOOM_FAIL=fault)
    assert once.code == 3, once.said
    rows = {row["image_id"]: row["error_type"] for row in read_table(folder / name, "images")}
    assert rows == {"big": None, "small0": None, "small1": error}
    masks, others = read_masks(folder / name), read_masks(folder / "threshold")
    assert masks.keys() == others.keys() - {"masks/small1.png"}
    assert all((mask == others[each]).all() for each, mask in masks.items())
    again = server.run(folder, [*run, "-o", name])
    assert again.code == 0, again.said
    assert_undisturbed(folder / name, folder / "threshold")


# Disks

FILE_SIZE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
"""A write is cut at this size (a short write), and the next one fails."""


@pytest.mark.parametrize(
    "size",
    [600, *(pytest.param(size, marks=pytest.mark.nightly) for size in (900, 2_000, 4_000))],
)
def test_a_disk_that_takes_a_part_of_a_file(folder, server, undisturbed, size):
    output = folder / f"short-{size}"
    cut = server.run(folder, [*RUN, "-o", output.name], before=FILE_SIZE.format(size))
    assert cut.code == 1, cut.said
    assert cut.said.count("\n") == 1, cut.said
    assert "File too large" in cut.said
    assert_whole(output)
    assert_resumed(server, output, undisturbed)


@pytest.mark.nightly
def test_a_slow_disk(folder, server, undisturbed):
    slow = "write:*:hang=0.02;move:*:hang=0.02"
    run = server.run(folder, [*RUN, "-o", "slow"], MASKLOOM_FAIL=slow)
    assert run.code == 0, run.said
    assert_undisturbed(folder / "slow", undisturbed)


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A file system of its own. Skips the test where this process may not mount."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    place.mkdir()
    command = ["mount", *options, str(place)]
    mounting = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounting.returncode:
        pytest.skip(f"cannot mount a file system: {mounting.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.nightly
@pytest.mark.parametrize("kilobytes", [16, 40, 64, 80, 96, 112, 128])
def test_a_full_disk_that_is_enlarged(folder, server, undisturbed, kilobytes):
    place = folder / f"full-{kilobytes}"
    with mounted(place, "-t", "tmpfs", "-o", f"size={kilobytes}k", "none"):
        output = place / "out"
        cut = server.run(folder, [*RUN, "-o", str(output)])
        assert cut.code == 1, cut.said
        assert "No space left" in cut.said
        assert "Free space there" in cut.said
        assert_whole(output)
        remount(place, "size=64m")
        shutil.copytree(output, folder / f"was-full-{kilobytes}")
    assert_resumed(server, folder / f"was-full-{kilobytes}", undisturbed)


@pytest.mark.nightly
def test_a_disk_that_becomes_read_only_in_the_midst_of_a_commit(folder, undisturbed, server):
    place = folder / "read-only"
    with mounted(place, "-t", "tmpfs", "none"):
        run = start(
            folder, *RUN, "-o", str(place / "out"), MASKLOOM_FAIL="moved:masks/*:kill=STOP@1"
        )
        driver = psutil.Process(run.pid)
        assert comes(lambda: driver.status() == psutil.STATUS_STOPPED, run), ended(folder, run).said
        remount(place, "ro")
        driver.resume()
        cut = ended(folder, run)
        assert cut.code == 1, cut.said
        assert "Read-only file system" in cut.said
        assert_whole(place / "out")
        refused = finished(folder, *RUN, "-o", str(place / "out"))
        assert refused.code == 1, refused.said
        remount(place, "rw")
        shutil.copytree(place / "out", folder / "was-read-only")
    assert_resumed(server, folder / "was-read-only", undisturbed)


NO_LINKS = """
import os
def refuse(*arguments, **options):
    raise PermissionError(1, "Operation not permitted")
os.link = refuse
"""


@pytest.mark.nightly
def test_a_file_system_without_hard_links(folder, server, undisturbed):
    output = folder / "no-links"
    run = [*RUN, "-o", output.name]
    cut = server.run(folder, run, before=NO_LINKS, MASKLOOM_FAIL="moved:masks/*:kill")
    assert cut.code == -signal.SIGKILL, cut.said
    again = server.run(folder, run, run, before=NO_LINKS)
    assert again.code == 0, again.said
    assert "Nothing to do" in again.said
    assert_undisturbed(output, undisturbed)


@pytest.mark.nightly
def test_a_file_system_without_any_way_to_take_a_new_name(folder, server):
    """exFAT in user space has neither hard links nor renames that replace nothing."""
    if not all(map(shutil.which, ("mkfs.exfat", "mount.exfat-fuse", "losetup"))):
        pytest.skip("needs exfat-fuse and exfatprogs")
    image = folder / "exfat.img"
    with image.open("wb") as file:
        file.truncate(2**25)
    subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True)
    found = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"needs a loop device: {found.stderr}")
    device = found.stdout.strip()
    try:
        with mounted(folder / "exfat", "-t", "exfat-fuse", device):
            run = server.run(folder, [*RUN, "-o", str(folder / "exfat" / "out")])
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert run.code == 1, run.said
    assert "neither hard links nor renames that replace nothing" in run.said


@pytest.mark.nightly
@pytest.mark.parametrize(
    "fault",
    [
        "write:runs/*/plan.json:kill",
        "written:*/process.json:kill",
        "write:*.part:kill",
        "written:runs/commits/*:kill",
        "moved:masks/*:kill@1",
        "move:tables/images/*:kill",
        "written:runs/*/manifest.json:kill",
        "the folder for temporary files is full",
    ],
)
def test_an_object_store_whose_writer_dies_or_whose_temporary_files_find_no_room(
    folder, server, undisturbed, s3_bucket, tmp_path, monkeypatch, fault
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    place = f"faults-{abs(hash(fault))}"
    output = f"{s3_bucket}/{place}"
    run = [*RUN, "-o", output]
    full = FILE_SIZE.format(600) if "full" in fault else ""
    cut = finished(folder, *run, before=full, MASKLOOM_FAIL="" if full else fault)
    assert cut.code == (1 if full else -signal.SIGKILL), cut.said
    again = finished(folder, *run)
    assert again.code == 0, again.said
    store = fsspec.filesystem("s3")
    store.invalidate_cache()
    store.get(output, str(folder / place), recursive=True)
    assert_undisturbed(folder / place, undisturbed)
    assert "Nothing to do" in finished(folder, *run).said
    assert list(tmp_path.glob("maskloom-*")) == []


# Clocks

CLOCK = "import time; _now = time.time; time.time = lambda: _now() + {}"
DAY = 86_400


@pytest.mark.nightly
@pytest.mark.parametrize("ahead", [-DAY, DAY])
def test_a_clock_that_is_a_day_off(folder, server, undisturbed, ahead):
    output = folder / f"clock{ahead}"
    run = [*RUN, "-o", output.name]
    wrong = CLOCK.format(ahead)
    cut = server.run(folder, run, before=wrong, MASKLOOM_FAIL="moved:masks/*:kill")
    assert cut.code == -signal.SIGKILL, cut.said
    for path in output.rglob("*"):
        changed = path.stat().st_mtime + ahead
        os.utime(path, (changed, changed))
    again = server.run(folder, run, before=CLOCK.format(-ahead))
    assert again.code == 0, again.said
    assert_resumed(server, output, undisturbed)


# Clusters


@contextlib.contextmanager
def dask(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, psutil.Process]]:
    """A scheduler and one worker in processes of their own, with more variables in their
    environment; the address and the scheduler.
    """
    local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    where = folder / "scheduler.json"
    where.unlink(missing_ok=True)
    with (folder / "dask.log").open("wb") as log, contextlib.ExitStack() as stack:

        def process(kind: str, *more: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *local, *more]
            started = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=os.environ | environment
            )
            stack.callback(end, started)
            return started

        def end(process: subprocess.Popen[bytes]) -> None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

        scheduler = process("scheduler", "--port", "0", "--scheduler-file", str(where))
        assert comes(where.exists, scheduler), (folder / "dask.log").read_text()
        process("worker", "--scheduler-file", str(where), "--nthreads", "1", *options)
        yield json.loads(where.read_text())["address"], psutil.Process(scheduler.pid)


def on(address: str) -> tuple[str, ...]:
    return ("--set", f"cluster={{kind: address, address: '{address}'}}")


@pytest.mark.nightly
def test_the_scheduler_of_a_shared_cluster_is_killed(folder, server, undisturbed):
    output = folder / "scheduler"
    with dask(folder) as (address, scheduler):
        run = start(folder, *RUN, *on(address), "-o", output.name)
        parts = (output / "staging").glob
        assert comes(lambda: list(parts("*/*/*.part")), run), ended(folder, run).said
        scheduler.kill()
        cut = ended(folder, run)
    assert cut.code == 1, cut.said
    assert_whole(output)
    assert_resumed(server, output, undisturbed)


@pytest.mark.nightly
def test_workers_with_a_lifetime_take_turns(folder, undisturbed):
    """As under the wall time of a batch system. Reading is so slow that one life does not do."""
    lifetime = ("--lifetime", "45 s", "--lifetime-restart")
    with dask(folder, *lifetime, MASKLOOM_FAIL="open:*:hang=8") as (address, _):
        run = start(folder, *RUN, *on(address), "-o", "lifetime")
        done = ended(folder, run)
        assert done.code == 0, done.said
    assert "worker-lifetime-reached" in (folder / "dask.log").read_text()
    assert_undisturbed(folder / "lifetime", undisturbed)


# Networks


@pytest.mark.nightly
def test_a_run_of_a_network(folder):
    run = ["segment", "images", "-s", "unet", "-p", "weights=nuclei", "--no-prefect", "--quiet"]
    run += ["-p", "engine=tensorflow", "-p", "precision=float32"]
    run += ["--set", "cluster.kind=serial", "--set", "tiling.tile=128"]
    assert finished(folder, *run, "-o", "network").code == 0
    cut = finished(folder, *run, "-o", "cut-network", MASKLOOM_FAIL="moved:masks/*:kill")
    assert cut.code == -signal.SIGKILL, cut.said
    again = finished(folder, *run, "-o", "cut-network")
    assert again.code == 0, again.said
    assert_undisturbed(folder / "cut-network", folder / "network")


# Records of Prefect


@pytest.mark.nightly
def test_the_records_of_prefect_are_lost(folder, server, undisturbed, tmp_path):
    run = [argument for argument in RUN if argument != "--no-prefect"]
    output = folder / "prefect"
    for number, fault in enumerate(["moved:masks/*:kill", ""]):
        home = tmp_path / str(number)
        done = finished(
            folder, *run, "-o", output.name, MASKLOOM_FAIL=fault, PREFECT_HOME=str(home)
        )
        assert done.code == (-signal.SIGKILL if fault else 0), done.said
        shutil.rmtree(home)
    assert_resumed(server, output, undisturbed)
