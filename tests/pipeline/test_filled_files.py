"""A schedule of small runs does not leave small files, and readers of the tables never notice how:
new images go into table files that have room.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import duckdb
import pytest
from PIL import Image
from tests_support import assert_same_results, photograph

from maskloom.segcore.storage.store import Store
from maskloom.tasks import publish
from maskloom.tasks.commits import log

QUIET = ("--no-prefect", "--quiet")
FIXED = {"kind": "threshold", "value": 90}
"""Not fitted, so that the days do not matter."""


@pytest.fixture
def arrive(collection):
    """Puts more pictures into the inputs, which begin empty."""
    images = collection.folder / "images"
    shutil.rmtree(images)
    images.mkdir()

    def more(*names: str) -> None:
        for name in names:
            Image.fromarray(photograph(40, 30 + len(name))).save(images / f"{name}.png")

    return more


def files(collection, table: str) -> list[str]:
    return sorted(path.name for path in (collection.output / "tables" / table).iterdir())


def test_runs_of_few_images_share_files_and_the_rows_are_those_of_one_run(
    collection, arrive, maskloom, monkeypatch
):
    monkeypatch.setattr(publish, "FILE_IMAGES", 4)
    recipe = collection.recipe(segmenter=FIXED, statistics=["objects"])
    former: dict[Path, bytes] = {}
    for day in ("a", "bb", "ccc", "dddd", "eeeee", "ffffff"):
        arrive(day)
        assert maskloom("run", recipe, *QUIET).exit_code == 0
        for path, content in former.items():
            # Whoever has looked up the size before still reads the table as it was.
            assert path.read_bytes().startswith(content)
        former = {path: path.read_bytes() for path in collection.output.glob("tables/*/*")}

    assert [len(files(collection, table)) for table in ("images", "areas", "objects")] == [2, 2, 2]
    assert files(collection, "images") == files(collection, "areas")
    assert maskloom("verify", collection.output).exit_code == 0
    assert "Nothing to do" in maskloom("run", recipe, *QUIET).stdout
    assert maskloom("run", recipe, *QUIET, "--set", "output=at-once").exit_code == 0
    assert_same_results(collection.output, collection.folder / "at-once")

    # A file that is lost is made again, also its images of other runs.
    for table in ("images", "areas", "objects"):
        (collection.output / "tables" / table / files(collection, table)[0]).unlink()
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    assert_same_results(collection.output, collection.folder / "at-once")
    assert maskloom("verify", collection.output).exit_code == 0


def test_a_file_takes_no_images_of_another_recipe_and_none_when_it_is_large(
    collection, arrive, maskloom, monkeypatch
):
    recipe = collection.recipe(segmenter=FIXED)
    arrive("a")
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    shutil.move(collection.folder / "images", collection.folder / "former")
    (collection.folder / "images").mkdir()
    arrive("bb")
    other = (*QUIET, "--set", "segmenter.value=9", "--keep-other-recipes")
    assert maskloom("run", recipe, *other).exit_code == 0
    assert len(files(collection, "areas")) == 2
    for limit, name in (("FILE_BYTES", "ccc"), ("FILE_PARTS", "dddd")):
        arrive(name)
        with monkeypatch.context() as patched:
            patched.setattr(publish, limit, 1)
            assert maskloom("run", recipe, *other).exit_code == 0
    assert len(files(collection, "areas")) == 4


def test_geometries_in_degrees_and_in_pixels_stay_in_different_files(collection, maskloom):
    """Pictures and scenes with a CRS, which arrive one at a time."""
    recipe = collection.recipe(inputs="images", segmenter=FIXED, statistics=["objects"])
    images, all_images = collection.folder / "images", collection.folder / "all"
    images.rename(all_images)
    for name in ("photo.png", "scenes/utm.tif", "pixel.png", "scenes/lonlat.tif"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(all_images / name, images / name)
        assert maskloom("run", recipe, *QUIET).exit_code == 0
    assert len(files(collection, "objects")) == 2
    assert maskloom("run", recipe, *QUIET, "--set", "output=at-once").exit_code == 0
    assert_same_results(collection.output, collection.folder / "at-once")


def test_whoever_reads_the_tables_meanwhile_sees_every_image_once(collection, arrive, maskloom):
    """A reader that sums up all the time finds the sums after some commit, and no other."""
    recipe = collection.recipe(segmenter=FIXED)
    arrive("0")
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    query = (
        "SELECT count(*), count(DISTINCT (image_id, class_id)), sum(pixel_count), sum(area) FROM "
        f"'{collection.output}/tables/areas/*.parquet'"
    )
    seen, stop = set(), threading.Event()

    def read() -> None:
        with duckdb.connect() as database:
            while not stop.is_set():
                seen.add(database.sql(query).fetchall()[0])

    reader = threading.Thread(target=read)
    reader.start()
    committed = {duckdb.sql(query).fetchall()[0]}
    try:
        for day in range(1, 8):
            arrive("x" * day)
            assert maskloom("run", recipe, *QUIET).exit_code == 0
            committed.add(duckdb.sql(query).fetchall()[0])
    finally:
        stop.set()
        reader.join()
    assert seen <= committed
    assert len(seen) > 3
    assert {rows for rows, *_ in committed} == {rows for _, rows, *_ in committed}
    assert len(files(collection, "areas")) == 1


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_adds_to_a_file_may_be_stopped_at_any_step(
    collection, arrive, maskloom, monkeypatch, after
):
    """At every step that writes to the output, one after the other; the next run continues."""
    recipe = collection.recipe(segmenter=FIXED, statistics=["objects"])
    arrive("a")
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    shutil.copytree(collection.output, collection.folder / "one")
    arrive("bb", "ccc")
    at_once = (*QUIET, "--set", "output=at-once")
    assert maskloom("run", recipe, *at_once).exit_code == 0
    query = (
        "SELECT count(*), count(DISTINCT image_id) * 2 FROM "
        f"'{collection.output}/tables/areas/*.parquet'"
    )
    stopped = 0
    while True:
        shutil.rmtree(collection.output)
        shutil.copytree(collection.folder / "one", collection.output)
        steps = iter(range(10**6))

        def cut(do, at=stopped, steps=steps):
            def step(*arguments, **options):
                number = next(steps)
                if number == at and not after:
                    raise KeyboardInterrupt
                result = do(*arguments, **options)
                if number == at:
                    raise KeyboardInterrupt
                return result

            return step

        with monkeypatch.context() as patched:
            for owner, name in (
                (Store, "publish"),
                (Store, "publish_new"),
                (Store, "remove"),
                (log, "move"),
            ):
                patched.setattr(owner, name, cut(getattr(owner, name)))
            code = maskloom("run", recipe, *QUIET).exit_code
        rows, expected = duckdb.sql(query).fetchall()[0]
        assert rows == expected
        assert rows in {2, 6}
        if code == 0:
            break
        assert maskloom("run", recipe, *QUIET).exit_code == 0, stopped
        assert_same_results(collection.output, collection.folder / "at-once")
        assert maskloom("verify", collection.output).exit_code == 0
        assert len(files(collection, "objects")) == 1
        stopped += 1
    assert stopped > 10
