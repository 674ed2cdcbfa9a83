"""Commits on real stores: a local disk, and S3 with conditional writes. A slow process changes
nothing that a later commit has written.
"""

from __future__ import annotations

import json

import pytest

from maskloom.segcore.errors import RunError, StoreError
from maskloom.segcore.storage import conditional
from maskloom.segcore.storage.atomic import temporary_name
from maskloom.segcore.storage.conditional import Conditions, Move, conditions_of, move, versions_of
from maskloom.segcore.storage.filesystems import current_version
from maskloom.segcore.storage.object_stores import ways_to_copy
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.log import Commit, CommitLog, incomplete_folder
from maskloom.tasks.commits.presence import (
    PROCESSES,
    is_at_work,
    other_folders,
    process_folder,
    processes,
    sweep,
)


@pytest.fixture(params=["disk", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "out"))
    return Store(f"{request.getfixturevalue('s3_bucket')}/commits-{request.node.name}")


def commit(log: CommitLog, run: str, content: bytes, mask: bytes) -> bool:
    log.store.publish(f"staging/{run}/mask", mask)
    with log.draft(run, f"staging/{run}") as draft:
        for table in ("tables/areas/a.parquet", "tables/images/a.parquet"):
            with draft.table(table) as out:
                out.write(content)
        draft.files = {"masks/x.png": f"staging/{run}/mask"}
        return log.claim(draft)


def state(store: Store) -> dict[str, bytes]:
    return {
        name: store.read(name) for folder in ("tables", "masks") for name in store.names(folder, "")
    }


def test_a_commit_that_was_claimed_is_carried_out_by_whoever_comes_next(store, monkeypatch):
    dead = CommitLog(store)
    with monkeypatch.context() as patched:
        patched.setattr(CommitLog, "_complete", lambda *_: None)
        assert commit(dead, "dead", b"first", b"mask 1")
    assert state(store) == {}
    assert incomplete_folder(store) is not None
    (found,) = CommitLog(store).read_new()
    assert found.run_id == "dead"
    done = {
        "tables/areas/a.parquet": b"first",
        "tables/images/a.parquet": b"first",
        "masks/x.png": b"mask 1",
    }
    assert state(store) == done
    assert incomplete_folder(store) is None
    assert store.names("staging", "") == []


def test_a_slow_process_does_not_put_back_what_a_later_commit_has_replaced(store, monkeypatch):
    """It was stopped between its claim and the first move, another process did its moves and then
    committed something newer.
    """
    slow = CommitLog(store)
    held: list[tuple[Commit, list[Move]]] = []
    with monkeypatch.context() as patched:
        patched.setattr(
            CommitLog, "_complete", lambda self, found, moves: held.append((found, moves))
        )
        assert commit(slow, "slow", b"old", b"old mask")
    copies = {each.staged: store.read(each.staged) for each in (*held[0][1], *held[0][0].moves)}
    quick = CommitLog(store)
    quick.skip_to_end()
    assert commit(quick, "quick", b"new", b"new mask")
    newest = state(store)
    if not isinstance(conditional.filesystem(store.root)[0], conditional.LocalFileSystem):
        # Even what it has read already, on its way to the store.
        for name, content in copies.items():
            store.publish(name, content)
    slow._complete(*held[0])
    assert state(store) == newest
    assert newest["masks/x.png"] == b"new mask"


def test_of_two_claims_one_wins_and_the_other_leaves_nothing(store):
    first, second = CommitLog(store), CommitLog(store)
    assert commit(first, "first", b"1", b"1")
    assert not commit(second, "second", b"2", b"2")
    assert state(store)["tables/images/a.parquet"] == b"1"
    assert [name for name in store.names("staging", "") if "mask" not in name] == []
    assert [found.run_id for found in second.read_new()] == ["first"]
    assert commit(second, "second", b"2", b"2")
    assert state(store) == {
        "tables/areas/a.parquet": b"2",
        "tables/images/a.parquet": b"2",
        "masks/x.png": b"2",
    }


def test_what_is_too_large_to_be_moved_is_not_claimed(s3_bucket, monkeypatch):
    """Once claimed, it would keep all later commits from being carried out."""
    store = Store(f"{s3_bucket}/large")
    monkeypatch.setattr(type(conditions_of(store).copies), "largest", 10)
    log = CommitLog(store)
    with pytest.raises(StoreError, match=r"staging/first/mask has .* more than S3 takes"):
        commit(log, "first", b"rows", b"more than ten bytes")
    assert log.read_new() == []
    assert commit(log, "second", b"rows", b"mask")


def test_a_store_says_which_conditions_it_honours(store, s3_bucket):
    conditional._PROBED.clear()
    found = conditions_of(store)
    assert found.several_writers
    assert conditions_of(Store("memory://somewhere")) == Conditions(create=True, replace=False)
    assert store.names("staging", "") == [], "the probe leaves nothing"


def test_a_server_that_ignores_conditions_is_found_out(s3_bucket, monkeypatch):
    """As MinIO of some years ago: the header is not known, and the write passes."""
    store = Store(f"{s3_bucket}/ignoring")
    fs, _ = conditional.filesystem(store.root)
    call = fs.call_s3

    def ignoring(method, **arguments):
        return call(
            method,
            **{
                key: value
                for key, value in arguments.items()
                if key not in {"IfMatch", "IfNoneMatch"}
            },
        )

    conditional._PROBED.clear()
    monkeypatch.setattr(fs, "call_s3", ignoring)
    assert not conditions_of(store).several_writers
    conditional._PROBED.clear()


def test_copies_on_condition_are_made_by_the_server(s3_bucket, monkeypatch):
    """The test server ignores conditions of copies, so they are checked here before it is asked."""
    store = Store(f"{s3_bucket}/copies")
    fs, _ = conditional.filesystem(store.root)
    call, asked = fs.call_s3, []

    def checking(method, **arguments):
        if method == "copy_object":
            asked.append(arguments["Key"])
            base = arguments.get("IfMatch")
            (found,) = versions_of(store, [arguments["Key"].partition("copies/")[2]])
            if base != found:
                raise OSError("the server words it as it likes") from _reply(412)
        return call(method, **arguments)

    monkeypatch.setattr(fs, "call_s3", checking)
    server_copies, _ = ways_to_copy(fs)
    monkeypatch.setitem(
        conditional._PROBED, store.root, Conditions(create=True, replace=True, copies=server_copies)
    )
    store.publish("a", b"old")
    (base,) = versions_of(store, ["a"])
    store.publish("staged", b"new")
    move(store, [Move("staged", "a", base)])
    assert (store.read("a"), store.names("", "staged")) == (b"new", [])
    store.publish("late", b"late")
    move(store, [Move("late", "a", base)])
    assert store.read("a") == b"new", "it is no longer the file that the late one was to replace"
    assert len(asked) == 2


def _reply(status: int) -> Exception:
    error = Exception(status)
    error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    return error


def test_a_file_that_somebody_has_removed_since_is_written_again(store):
    store.publish("a", b"old")
    (base,) = versions_of(store, ["a"])
    store.publish("staged", b"new")
    store.remove("a")
    move(store, [Move("staged", "a", base)])
    assert store.read("a") == b"new"


def test_without_conditional_writes_a_second_run_is_refused(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    monkeypatch.setitem(conditional._PROBED, store.root, Conditions(create=True, replace=False))
    with process_folder(store, "first") as folder:
        assert is_at_work(store, "first")
        with (
            pytest.raises(RunError, match=r"only one run .* Run first on .* --sole-writer"),
            process_folder(store, "second"),
        ):
            pass
        assert other_folders(store, folder) == [], "who is refused leaves no mark"
        with process_folder(store, "second", sole_writer=True):
            pass
    with process_folder(store, "third"):
        pass
    assert store.names("staging", "") == []


def test_what_a_dead_process_left_is_swept_but_for_a_commit_that_is_not_carried_out(
    tmp_path, monkeypatch
):
    store = Store(str(tmp_path))
    name = temporary_name().replace(f"-{__import__('os').getpid()}-", "-999999999-")
    dead = f"{PROCESSES}/{name}"
    store.publish(
        f"{dead}/process.json",
        json.dumps({"run_id": "dead", "host": "h", "process": 999999999}).encode(),
    )
    store.publish(f"{dead}/results/mask", b"mask")
    assert not is_at_work(store, "dead")
    log = CommitLog(store)
    with monkeypatch.context() as patched, log.draft("dead", dead) as draft:
        patched.setattr(CommitLog, "_complete", lambda *_: None)
        with draft.table("tables/images/a.parquet") as out:
            out.write(b"rows")
        draft.files = {"masks/x.png": f"{dead}/results/mask"}
        assert log.claim(draft)
    sweep(store)
    CommitLog(store).skip_to_end()
    assert state(store) == {"tables/images/a.parquet": b"rows", "masks/x.png": b"mask"}
    sweep(store)
    assert store.names("staging", "") == []


def test_a_file_goes_where_it_is_what_was_seen_and_a_later_one_stays(store):
    """Files of a mask of many files that its new version does not have."""
    for name in ("m/old", "m/later"):
        store.publish(name, b"before")
    going = [Move(None, name, current_version(store.uri(name))) for name in ("m/old", "m/later")]
    store.publish("m/later", b"of a later commit")

    for _ in range(2):
        move(store, going)

    assert store.names("m", "") == ["m/later"]
    assert store.read("m/later") == b"of a later commit"


def test_a_folder_is_replaced_as_a_whole(store):
    log = CommitLog(store)
    for run, blocks in (("first", "abc"), ("second", "bd")):
        for block in blocks:
            store.publish(f"staging/{run}/mask/{block}", run.encode())
        log.read_new()
        with log.draft(run, f"staging/{run}") as draft:
            with draft.table("tables/images/a.parquet") as out:
                out.write(run.encode())
            draft.files = {f"masks/x.zarr/{each}": f"staging/{run}/mask/{each}" for each in blocks}
            draft.folders = frozenset({"masks/x.zarr"})
            assert log.claim(draft)
    expected = {"masks/x.zarr/b": b"second", "masks/x.zarr/d": b"second"}
    assert state(store) == {"tables/images/a.parquet": b"second", **expected}


def test_whoever_finds_an_unfinished_commit_replaces_the_folder_too(store, monkeypatch):
    store.publish("masks/x.zarr/old", b"old")
    store.publish("staging/dead/mask/new", b"new")
    log = CommitLog(store)
    monkeypatch.setattr(CommitLog, "_complete", lambda *_: None)
    with log.draft("dead", "staging/dead") as draft:
        with draft.table("tables/images/a.parquet") as out:
            out.write(b"rows")
        draft.files = {"masks/x.zarr/new": "staging/dead/mask/new"}
        draft.folders = frozenset({"masks/x.zarr"})
        assert log.claim(draft)
    monkeypatch.undo()
    assert store.names("masks", "") == ["masks/x.zarr/old"]

    CommitLog(store).read_new()

    assert store.names("masks", "") == ["masks/x.zarr/new"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"run_id": "a"}'])
def test_a_mark_that_was_cut_is_no_process(tmp_path, content):
    """As a machine leaves it that loses its power while it writes."""
    store = Store(str(tmp_path))
    folder = f"{PROCESSES}/maskloom-host-7-{'0' * 12}-{7:032x}.tmp"
    store.publish(f"{folder}/process.json", content)
    assert processes(store) == []
    assert other_folders(store, "") == [folder], "it is left to `maskloom clean`"
