"""What dead runs leave is removed, and nothing that a living one may still write."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests_support import assert_same_results, photograph

from maskloom.segcore.storage import atomic
from maskloom.segcore.storage.filesystems import filesystem
from maskloom.segcore.storage.store import Store
from maskloom.segcore.storage.uploads import unfinished_uploads
from maskloom.tasks.clean import leftovers, remove
from maskloom.tasks.commits import presence
from maskloom.tasks.publish import Tables

WELL = "All masks, tables and sums are as they were written."
DAYS = 2 * 86400
PREVIEW = "previews/b.png"


@pytest.fixture
def recipe(collection):
    """Two small pictures in place of the collection's own."""
    images = collection.folder / "images"
    for path in [path for path in images.rglob("*") if path.is_file()]:
        path.unlink()
    for name in "ab":
        Image.fromarray(photograph(60, 70)).save(images / f"{name}.png")
    return collection.recipe(segmenter={"kind": "threshold", "value": 90})


def killed_before_its_rows(maskloom, recipe, monkeypatch) -> None:
    """A run that is stopped before its commit; masks are there all the same, as versions before
    commits were numbered left them.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "publish", stop)
        assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 1
    store = Store(str(recipe.parent / "out"))
    for name in "ab":
        store.publish(f"masks/{name}.png", b"a mask")
        store.publish(f"previews/{name}.png", b"a preview")


def age(folder: Path) -> None:
    """Make all files look as if they were written two days ago."""
    then = time.time() - DAYS
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_masks_of_an_image_that_went_after_a_kill(collection, recipe, maskloom, monkeypatch):
    output = collection.output
    killed_before_its_rows(maskloom, recipe, monkeypatch)
    # The next run may go on with it: nothing is left over, however old.
    age(output)
    assert maskloom("clean", output).stdout == ""
    assert maskloom("verify", output).stdout.strip() == WELL

    (collection.folder / "images" / "b.png").unlink()
    (output / "masks" / "notes.txt").write_text("mine")
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    told = maskloom("verify", output)
    assert told.exit_code == 1
    assert [line.partition(":")[0] for line in told.stdout.splitlines()] == [
        "masks/b.png",
        "previews/b.png",
    ]
    assert f"maskloom clean {output}" in told.stdout

    # The stopped run might be at work on another machine, and something of it was just written.
    os.utime(output / "masks" / "b.png")
    kept = maskloom("clean", output)
    assert (kept.exit_code, kept.stdout) == (0, "")
    assert [line.split(":")[1].strip() for line in kept.stderr.splitlines()] == [
        "masks/b.png",
        "previews/b.png",
    ]
    assert "0.0 hours ago" in kept.stderr

    age(output)
    before = names(output)
    assert maskloom("clean", output, "--dry-run").stdout.count("would remove: ") == 2
    assert names(output) == before
    assert maskloom("clean", output).stdout.count("removed: ") == 2
    assert before - names(output) == {"masks/b.png", "previews/b.png"}
    assert maskloom("verify", output).stdout.strip() == WELL
    (output / "masks" / "notes.txt").unlink()
    assert (
        maskloom("run", recipe, "--no-prefect", "--quiet", "--set", "output=undisturbed").exit_code
        == 0
    )
    assert_same_results(output, collection.folder / "undisturbed")


def failed_since(collection, recipe, maskloom) -> None:
    """An image that has failed since, whose mask and preview were left, as versions that did not
    remove them did.
    """
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    old = {name: (collection.output / name).read_bytes() for name in ("masks/b.png", PREVIEW)}
    (collection.folder / "images" / "b.png").write_bytes(b"no picture any more")
    command = ("run", recipe, "--no-prefect", "--quiet", "--set", "max_failed_fraction=1")
    assert maskloom(*command).exit_code == 3
    for name, content in old.items():
        (collection.output / name).write_bytes(content)


def test_the_mask_of_an_image_that_has_failed_since(collection, recipe, maskloom):
    failed_since(collection, recipe, maskloom)
    assert (
        "masks/b.png: no image in the tables has it" in maskloom("verify", collection.output).stdout
    )

    # No run that could write it is unfinished, so it may go at once.
    assert maskloom("clean", collection.output).stdout.count("removed: ") == 2
    assert names(collection.output / "masks") == {"a.png"}
    assert maskloom("verify", collection.output).exit_code == 0


def test_a_mask_that_is_written_anew_meanwhile_stays(collection, recipe, maskloom):
    failed_since(collection, recipe, maskloom)
    found = leftovers(str(collection.output))
    (collection.output / "masks" / "b.png").write_bytes(b"new")
    assert [remove(str(collection.output), each) for each in found] == [False, True]
    assert names(collection.output / "masks") == {"a.png", "b.png"}


def test_what_a_finished_run_staged_goes_when_there_is_nothing_to_do(collection, recipe, maskloom):
    """As after kill -9 between the manifest and the head."""
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    output = collection.output
    (run,) = [path.parent.name for path in output.glob("runs/*/manifest.json")]
    (output / "runs" / "head.json").unlink()
    Store(str(output)).publish(f"staging/{run}/a-1/0.part", b"part")
    Store(str(output)).publish("staging/another-run/a-1/0.part", b"part")

    assert "Nothing to do" in maskloom("run", recipe, "--no-prefect").output

    assert names(output / "staging") == {"another-run/a-1/0.part"}


@pytest.mark.parametrize("store", ["disk", "memory"])
def test_temporary_files_of_other_machines_must_be_idle(
    collection, recipe, maskloom, monkeypatch, store
):
    monkeypatch.setattr(tempfile, "tempdir", str(collection.folder / "temp"))
    (collection.folder / "temp").mkdir()
    output = str(collection.output) if store == "disk" else f"memory://{collection.folder.name}"
    assert (
        maskloom("run", recipe, "--no-prefect", "--quiet", "--set", f"output={output}").exit_code
        == 0
    )
    folder = collection.output / "staging" if store == "disk" else collection.folder / "temp"
    with Store(output).writing("masks/x") as out:
        out.write(b"x")
        (mine,) = folder.glob("*.tmp")
        host, process, _, unique = mine.name.rsplit("-", 3)
        for path in (
            folder / f"{host}-{process}-0123456789ab-{unique}",
            folder / "elsewhere-7-0123456789abcdef0123456789abcdef.tmp",  # of an earlier version
            folder / "some other.tmp",
        ):
            path.write_text("x")
        assert maskloom("clean", output).stderr.count("kept: ") == 2
        age(folder)
        assert maskloom("clean", output).stdout.count("removed: ") == 2
        assert {path.name for path in folder.glob("*.tmp")} == {mine.name, "some other.tmp"}


def test_a_folder_that_is_no_output_is_left_alone(tmp_path, maskloom):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("mine")
    result = maskloom("clean", tmp_path)
    assert result.exit_code == 2
    assert "is not an output of maskloom" in result.output
    assert names(tmp_path) == {"masks/a.png"}


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.nightly)])
def store(request, tmp_path) -> Store:
    """An output without runs, on a disk and in an object store."""
    if request.param == "disk":
        return Store(str(tmp_path / "out"))
    return Store(f"{request.getfixturevalue('s3_bucket')}/clean-{tmp_path.name}")


def test_a_run_of_another_machine_is_left_alone_for_as_long_as_it_gives_signs_of_life(
    store, monkeypatch
):
    """Two processes of another machine: one at work, though all that it has staged is old, and one
    that was killed two days ago. Also a killed one of this machine.
    """
    now = store.now()
    monkeypatch.setattr(presence, "RENEWED_SECONDS", 0.05)
    store.publish("runs/a/plan.json", b'{"parent": "overtaken", "fingerprint": "f"}')
    rows = {"image_id": ["x"], "uri": ["x"], "version": ["1"], "shard": ["a.parquet"]}
    with store.writing("runs/a/plan.parquet") as out:
        pq.write_table(pa.table(rows), out)
    store.publish("staging/a/x/0.part", b"part")

    def named(machine: str, process: int = 7) -> str:
        return f"maskloom-host-{process}-{machine}-{process:032x}.tmp"

    mark = b'{"run_id": "a", "host": "elsewhere", "process": 7}'
    store.publish(f"{presence.PROCESSES}/{named('0' * 12)}/process.json", mark)
    mine = atomic._machine()
    store.publish(f"{presence.PROCESSES}/{named(mine, 999999999)}/process.json", mark)
    # The other machine's clock of files: everything is two days old from now on.
    monkeypatch.setattr(Store, "now", lambda _: now + DAYS)
    monkeypatch.setattr(presence, "temporary_name", lambda: named("1" * 12, 8))
    listed = Store.listed
    renewed = []

    def aged(self: Store, folder: str):
        """What the live process writes is new by the clock of the store."""
        return {
            name: replace(found, modified=now + DAYS if "-8-" in name else found.modified)
            for name, found in listed(self, folder).items()
        }

    monkeypatch.setattr(Store, "listed", aged)
    with presence.process_folder(store, "a", lambda: renewed.append(1) or {"stage": "fit"}):
        while len(renewed) < 3:
            time.sleep(0.01)
        found = {each.name.rpartition("/")[2]: each for each in leftovers(store.root)}
        kept = {name for name, each in found.items() if each.kept is not None}
        assert kept == {named("1" * 12, 8), "a"}
        assert found.keys() - kept == {named("0" * 12), named(mine, 999999999)}
        for each in found.values():
            if each.kept is None:
                assert remove(store.root, each)
        (left,) = presence.processes(store)
        assert (left.run_id, left.position, left.alive) == ("a", {"stage": "fit"}, None)
    # It has ended, so what it staged may go, since another run has overtaken it.
    (rest,) = leftovers(store.root)
    assert (rest.name, rest.kept) == ("staging/a", None)
    assert remove(store.root, rest)
    assert store.names("staging", "") == []
    assert leftovers(store.root) == []


def test_an_upload_that_was_never_finished_goes_when_it_is_old(s3_bucket, monkeypatch):
    store = Store(f"{s3_bucket}/uploads")
    store.publish("runs/a/plan.json", b'{"parent": null, "fingerprint": "f"}')
    with store.writing("runs/a/plan.parquet") as out:
        pq.write_table(
            pa.table({name: [] for name in ("image_id", "uri", "version", "shard")}), out
        )
    fs, path = filesystem(store.uri("staging/processes/p/results/mask"))
    bucket, key, _ = fs.split_path(path)
    begun = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    fs.call_s3(
        "upload_part",
        Bucket=bucket,
        Key=key,
        UploadId=begun["UploadId"],
        PartNumber=1,
        Body=b"part",
    )
    # The test server says of every upload that it began in 2010.
    (upload,) = unfinished_uploads(store)
    monkeypatch.setattr(Store, "now", lambda _: upload.began + 3600)
    (young,) = leftovers(store.root)
    assert young.name == "staging/processes/p/results/mask"
    assert "1.0 hours ago" in (young.kept or "")
    monkeypatch.setattr(Store, "now", lambda _: upload.began + DAYS)
    (old,) = leftovers(store.root)
    assert old.kept is None
    assert remove(store.root, old)
    assert leftovers(store.root) == []
