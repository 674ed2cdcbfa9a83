"""Fail-points: they act where they are told to, and nowhere else."""

from __future__ import annotations

import errno
import signal

import pytest

from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.storage.conditional import Move, move
from maskloom.segcore.storage.failpoints import failpoint
from maskloom.segcore.storage.store import Store


def test_a_fail_point_acts_at_its_step_and_its_file_at_its_time(monkeypatch):
    monkeypatch.setenv("MASKLOOM_FAIL", "moved:masks/*:raise=ENOSPC; write:runs/*.json:raise=EIO@2")
    failpoint("move", "/out/masks/a.png")
    failpoint("moved", "/out/previews/a.png")
    with pytest.raises(OSError, match="MASKLOOM_FAIL") as raised:
        failpoint("moved", "/out/masks/a.png")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/out/masks/a.png")
    failpoint("write", "s3://bucket/runs/1/plan.json")
    with pytest.raises(OSError, match="Input/output error"):
        failpoint("write", "s3://bucket/runs/1/plan.json")
    failpoint("write", "s3://bucket/runs/1/plan.json")
    monkeypatch.delenv("MASKLOOM_FAIL")
    failpoint("moved", "/out/masks/a.png")


def test_a_signal_is_sent_to_this_process(monkeypatch):
    got = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    monkeypatch.setenv("MASKLOOM_FAIL", "*:*:kill=USR1")
    try:
        failpoint("open", "a.png")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [signal.SIGUSR1]


@pytest.mark.parametrize(
    "wrong",
    [
        "moved:masks/*",
        "moves:masks/*:kill",
        "moved:masks/*:die",
        "moved:masks/*:raise",
        "moved:masks/*:raise=EVIL",
        "moved:masks/*:kill=NOBODY",
        "moved:masks/*:kill@first",
        "moved:masks/*:hang=long",
    ],
)
def test_a_wrong_one_is_told_with_an_example(monkeypatch, wrong):
    monkeypatch.setenv("MASKLOOM_FAIL", wrong)
    with pytest.raises(RecipeError, match=r"expected STEP:FILE:ACTION.*plan\.json:kill; got"):
        failpoint("open", "a.png")


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (lambda store: store.publish("file", b"x"), "write", "written"),
        (lambda store: store.publish_new("file", b"x"), "write", "written"),
        (lambda store: move(store, [Move("staged", "file")]), "move", "moved"),
        (lambda store: store.remove("file"), "remove", "removed"),
    ],
    ids=["publish", "publish_new", "move", "remove"],
)
def test_every_way_to_change_a_store_can_fail_before_and_after(
    tmp_path, monkeypatch, change, before, after
):
    store = Store(str(tmp_path))
    (tmp_path / "staged").write_bytes(b"x")
    if before == "remove":
        (tmp_path / "file").write_bytes(b"x")
    was_there = (tmp_path / "file").exists()
    for step, happened in ((before, False), (after, True)):
        monkeypatch.setenv("MASKLOOM_FAIL", f"{step}:file:raise=EIO")
        with pytest.raises(StoreError, match="MASKLOOM_FAIL"):
            change(store)
        assert (tmp_path / "file").exists() == (was_there != happened)
    assert list((tmp_path / "staging").glob("*")) == []
