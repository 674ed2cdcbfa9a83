"""Publishing: whole or not at all, new or not at all, on a disk and in an object store's likeness."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest

from segcore.errors import StoreError
from segcore.storage import STAGING, Store, filesystem, version_of


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return Store(str(tmp_path / "out") if request.param == "disk" else f"memory://{tmp_path.name}")


def test_what_is_published_is_read_back_with_its_digest(store):
    artefact = store.publish("a/b.bin", b"one")

    assert store.read("a/b.bin") == b"one"
    assert (artefact.name, artefact.size, artefact.sha256) == ("a/b.bin", 3, hashlib.sha256(b"one").hexdigest())
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


def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path):
    import platform

    staging = tmp_path / STAGING
    staging.mkdir()
    dead, living, foreign = (staging / f"{host}-{process}-0.tmp" for host, process in
                             ((platform.node(), 2**22 + 1), (platform.node(), os.getpid()), ("elsewhere", 1)))  # fmt: skip
    for path in (dead, living, foreign):
        path.write_text("x")

    Store(str(tmp_path)).sweep()

    assert sorted(staging.iterdir()) == sorted([living, foreign])


def test_an_unknown_protocol_is_a_clear_error():
    with pytest.raises(StoreError, match="nosuch"):
        filesystem("nosuch://bucket/key")


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
