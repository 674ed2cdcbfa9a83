"""Outputs in which overlapping runs of earlier versions have put images twice are healed by the
next run.
"""

from __future__ import annotations

import shutil

import pyarrow.dataset as ds
import pytest
from PIL import Image
from tests_support import assert_same_results, photograph, read_table

QUIET = ("--no-prefect", "--quiet")


def double(output) -> None:
    """As an earlier version left it: rows of one image in a second file of each table, and no
    records of commits.
    """
    for table in ("areas", "objects", "images"):
        (file,) = (output / "tables" / table).glob("*.parquet")
        shutil.copy(file, file.with_name("other-00000.parquet"))
    shutil.rmtree(output / "runs" / "commits")


def test_images_that_are_twice_in_the_tables_are_there_once_after_the_next_run(
    collection, maskloom, caplog
):
    recipe = collection.recipe(statistics=["objects"], inputs=["images/*.png", "images/*.jpg"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    shutil.copytree(collection.output, collection.folder / "before")
    double(collection.output)
    assert len(read_table(collection.output, "images")) == 6
    told = maskloom("verify", collection.output)
    assert (told.exit_code, told.stdout.count("is in the table twice. Run the recipe again")) == (
        1,
        3,
    )

    healed = maskloom("run", recipe, *QUIET)

    assert healed.exit_code == 0
    assert "1 table files held rows of images" in caplog.text
    assert_same_results(collection.output, collection.folder / "before")
    assert "Nothing to do" in maskloom("run", recipe, *QUIET).stdout
    assert maskloom("verify", collection.output).exit_code == 0


def test_of_two_rows_the_one_stays_whose_mask_is_there(collection, maskloom):
    """Two recipes that overlapped: the tables of both, the masks of one."""
    for path in [path for path in (collection.folder / "images").rglob("*") if path.is_file()]:
        path.unlink()
    Image.fromarray(photograph(50, 60)).save(collection.folder / "images" / "x.png")
    recipe = collection.recipe(inputs=["images/x.png"], segmenter="threshold")
    assert maskloom("run", recipe, *QUIET, "--set", "segmenter.value=10").exit_code == 0
    other = collection.folder / "other"
    assert (
        maskloom(
            "run", recipe, *QUIET, "--set", "segmenter.value=200", "--set", "output=other"
        ).exit_code
        == 0
    )
    for table in ("areas", "images", "pictures"):
        (file,) = (other / "tables" / table).glob("*.parquet")
        shutil.copy(file, collection.output / "tables" / table / "0-of-another.parquet")
    shutil.copy(other / "masks" / "x.png", collection.output / "masks" / "x.png")
    shutil.rmtree(collection.output / "runs" / "commits")

    assert maskloom("run", recipe, *QUIET, "--set", "segmenter.value=200").exit_code == 0

    assert_same_results(collection.output, other)
    images = ds.dataset(collection.output / "tables" / "images").to_table()
    assert len(images) == 1
    assert maskloom("verify", collection.output).exit_code == 0


@pytest.mark.parametrize("lost", ["images", "areas"])
def test_a_table_that_is_lost_is_made_again_and_nothing_counts_twice(collection, maskloom, lost):
    recipe = collection.recipe(inputs=["images/*.png", "images/*.jpg"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    shutil.copytree(collection.output, collection.folder / "before")
    (file,) = (collection.output / "tables" / lost).glob("*.parquet")
    file.unlink()
    if lost == "areas":
        told = maskloom("status", collection.output).stdout
        assert (told.count("lost: tables/areas/"), "done 0" in told, "left 3" in told) == (
            3,
            True,
            True,
        )

    assert maskloom("run", recipe, *QUIET).exit_code == 0

    assert_same_results(collection.output, collection.folder / "before")
    assert maskloom("verify", collection.output).exit_code == 0
    assert "Nothing to do" in maskloom("run", recipe, *QUIET).stdout


def test_a_copy_of_a_table_file_does_not_count(collection, maskloom):
    recipe = collection.recipe(inputs=["images/*.png"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    shutil.copytree(collection.output, collection.folder / "before")
    (file,) = (collection.output / "tables" / "areas").glob("*.parquet")
    shutil.copy(file, file.with_name("copy.parquet"))
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    assert_same_results(collection.output, collection.folder / "before")
    assert maskloom("verify", collection.output).exit_code == 0
