"""Publishing: whole or not at all, new or not at all, on a disk and in an object store's
likeness.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from maskloom.segcore.errors import StoreError
from maskloom.segcore.storage.filesystems import filesystem, version_of
from maskloom.segcore.storage.store import STAGING, Store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return Store(str(tmp_path / "out") if request.param == "disk" else f"memory://{tmp_path.name}")


def test_what_is_published_is_read_back_with_its_digest(store):
    artefact = store.publish("a/b.bin", b"one")

    assert store.read("a/b.bin") == b"one"
    assert (artefact.name, artefact.size, artefact.sha256) == (
        "a/b.bin",
        3,
        hashlib.sha256(b"one").hexdigest(),
    )
    assert store.names("a", ".bin") == ["a/b.bin"]
    assert store.names("nowhere", ".bin") == []


def test_a_writer_that_raises_publishes_nothing_and_leaves_what_was_there(store):
    store.publish("table", b"old")

    with pytest.raises(ZeroDivisionError), store.writing("table") as out:
        out.write(b"half of the ne")
        raise ZeroDivisionError

    assert store.read("table") == b"old"
    with pytest.raises(ZeroDivisionError), store.writing("other") as out:
        out.write(b"half")
        raise ZeroDivisionError
    assert not store.exists("other")


def test_nothing_but_the_target_stays_on_the_disk(tmp_path):
    store = Store(str(tmp_path))
    store.publish("masks/a.tif", b"mask")
    store.publish_new("runs/1/plan.json", b"plan")

    assert not list((tmp_path / STAGING).rglob("*"))
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.tif", "plan.json"]


def test_of_many_writers_of_a_new_name_one_wins(store):
    won: list[bytes] = []
    ready = threading.Barrier(8)

    def write(content: bytes) -> None:
        ready.wait()
        if store.publish_new("plan", content):
            won.append(content)

    writers = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    if filesystem(store.root)[0].protocol == "memory":
        assert store.read("plan") in won
    else:
        assert won == [store.read("plan")]


def test_a_name_taken_by_the_same_bytes_counts_as_written(store):
    assert store.publish_new("plan", b"x")
    assert store.publish_new("plan", b"x")
    assert not store.publish_new("plan", b"y")
    assert store.read("plan") == b"x"


def test_a_disk_that_refuses_is_a_store_error_that_names_the_place(tmp_path):
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(StoreError, match="file/a"):
        Store(str(tmp_path / "file")).publish("a", b"x")


def killed_while_writing(root: str, folder: Path) -> None:
    """A process of this machine dies in the middle of a file, as by kill -9."""
    program = """
        import os, signal, sys, tempfile
        from maskloom.segcore.storage.store import Store
        tempfile.tempdir = sys.argv[2]
        with Store(sys.argv[1]).writing("masks/a.tif") as out:
            out.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    code = "\n".join(
        line.strip() if not line.startswith(" " * 12) else line[8:] for line in program.splitlines()
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, root, str(folder)], cwd=ROOT, check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path, monkeypatch, kind):
    root = str(tmp_path / "out") if kind == "disk" else f"memory://{tmp_path.name}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    folder = tmp_path / "out" / STAGING if kind == "disk" else tmp_path / "temp"
    killed_while_writing(root, tmp_path / "temp")
    (left,) = folder.iterdir()
    # The same process number on another machine (or in another container, or before this boot) may
    # be at work.
    elsewhere = left.with_name(re.sub(r"-[0-9a-f]{12}-", "-0123456789ab-", left.name))
    foreign = left.with_name("notes-of-somebody-1.tmp")
    for path in (elsewhere, foreign):
        path.write_text("x")
    store = Store(root)
    assert store.temporaries() == sorted([left, elsewhere])

    with store.writing("masks/b.tif") as out:
        out.write(b"half")
        (living,) = set(folder.iterdir()) - {left, elsewhere, foreign}
        store.sweep()
        assert sorted(folder.iterdir()) == sorted([elsewhere, foreign, living])

    assert store.read("masks/b.tif") == b"half"
    assert not store.exists("masks/a.tif")


class Conflict(OSError):
    """What clients of object stores raise, with the HTTP status where botocore keeps it."""

    def __init__(self, status: int) -> None:
        super().__init__(22, "the store says no")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class Flaky(MemoryFileSystem):
    """A store that refuses some puts; with `after`, it does so once the bytes are there, as if its
    reply was lost.
    """

    protocol = "flaky"
    refusals: ClassVar[list[int]] = []
    after = False

    def pipe_file(self, path, value, mode="overwrite", **_):
        self._refuse(lambda: super(Flaky, self).pipe_file(path, value, mode=mode))

    def put_file(self, lpath, rpath, **_):
        self._refuse(lambda: super(Flaky, self).put_file(lpath, rpath))

    def _refuse(self, put):
        if not self.refusals:
            put()
            return
        if self.after:
            put()
        # As s3fs does it: an error of Python's caused by the client's.
        raise OSError(22, "refused") from Conflict(self.refusals.pop())


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("maskloom.segcore.storage.store._FIRST_PAUSE", 0.001)
    monkeypatch.setattr(Flaky, "after", False)
    Flaky.refusals.clear()
    return Store(f"flaky://{tmp_path.name}")


@pytest.mark.parametrize("status", [409, 412])
@pytest.mark.parametrize("after", [False, True])
def test_a_put_that_meets_a_conflict_is_made_again(flaky, monkeypatch, status, after):
    monkeypatch.setattr(Flaky, "after", after)
    for put in (flaky.publish, flaky.publish_new):
        Flaky.refusals[:] = [status]
        assert put(f"runs/{put.__name__}", b"x")
        assert flaky.read(f"runs/{put.__name__}") == b"x"


def test_a_conflict_over_bytes_of_another_is_lost(flaky, monkeypatch):
    flaky.publish("runs/plan", b"theirs")
    monkeypatch.setattr(Flaky, "exists", lambda self, path, **_: bool(Flaky.refusals) is False)
    Flaky.refusals[:] = [412]
    assert not flaky.publish_new("runs/plan", b"mine")
    assert flaky.read("runs/plan") == b"theirs"


@pytest.mark.parametrize(("refusals", "left"), [([403], 0), ([409] * 9, 5)])
def test_what_does_not_pass_is_an_error_and_other_refusals_are_at_once(flaky, refusals, left):
    for put in (flaky.publish, flaky.publish_new):
        Flaky.refusals[:] = refusals
        with pytest.raises(StoreError, match="runs/plan"):
            put("runs/plan", b"x")
        assert len(Flaky.refusals) == left
        assert not flaky.exists("runs/plan")


def test_a_listing_says_sizes_without_reading(store):
    store.publish("masks/a/b.tif", b"four")
    store.publish("masks/empty.png", b"")
    assert {name: each.size for name, each in store.listed("masks").items()} == {
        "masks/a/b.tif": 4,
        "masks/empty.png": 0,
    }
    assert all(
        each.modified is not None and each.modified > 1e9 for each in store.listed("masks").values()
    )
    assert store.listed("nowhere") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has renames that replace nothing")
def test_without_hard_links_a_new_name_is_still_taken_once(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(errno.EPERM, "no hard links here", str(self), None, str(target))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = Store(str(tmp_path))
    assert store.publish_new("plan", b"x")
    assert store.publish_new("plan", b"x")
    assert not store.publish_new("plan", b"y")
    assert store.read("plan") == b"x"
    assert not list((tmp_path / STAGING).iterdir())

    monkeypatch.setattr("maskloom.segcore.storage.atomic.ctypes.CDLL", lambda *_, **__: object())
    with pytest.raises(StoreError, match="neither hard links"):
        store.publish_new("other", b"x")
    assert not store.exists("other")


def test_an_unknown_protocol_is_a_clear_error():
    with pytest.raises(StoreError, match="nosuch"):
        filesystem("nosuch://bucket/key")
    with pytest.raises(StoreError, match="'reference://x'"):
        filesystem("reference://x")


def test_the_version_follows_the_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    fs, name = filesystem(str(path))
    first = version_of(fs.info(name))
    assert version_of(fs.info(name)) == first
    os.utime(path, (1, 1))
    assert version_of(fs.info(name)) != first
    assert version_of({"ETag": '"abc"', "size": 3, "LastModified": "x"}) == version_of(
        {"ETag": "abc", "size": 3, "LastModified": "y"}
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Free space there,"),
        (errno.EDQUOT, "Free space there,"),
        (errno.EROFS, "Check that the folder is there and that you may write there,"),
        (errno.EACCES, "Check that the folder is there and that you may write there,"),
        (errno.EIO, "Repair the store,"),
    ],
)
def test_what_to_do_follows_from_why_a_disk_does_not_take_a_file(
    tmp_path: Path, number: int, words: str
) -> None:
    with (
        pytest.raises(
            StoreError,
            match=rf"Cannot write .*/a: .*{os.strerror(number)}.*\. "
            rf"{words} then run the same command\.$",
        ),
        Store(str(tmp_path)).writing("a"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_folder_has_one_digest_that_sha256sum_can_check(tmp_path):
    import subprocess

    store = Store(str(tmp_path))
    for name, content in (("m.zarr/zarr.json", b"{}"), ("m.zarr/c/0/1", b"a"), ("m.tif", b"b")):
        store.publish(name, content)
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    said = subprocess.run(
        command, shell=True, cwd=tmp_path / "m.zarr", capture_output=True, text=True, check=True
    )
    assert store.sha256("m.zarr") == said.stdout.split()[0]
    assert store.sha256("m.tif") == store.publish("copy.tif", b"b").sha256
    with pytest.raises(FileNotFoundError):
        store.sha256("absent.zarr")
    store.publish("m.zarr/c/0/1", b"another")
    assert store.sha256("m.zarr") != said.stdout.split()[0]
