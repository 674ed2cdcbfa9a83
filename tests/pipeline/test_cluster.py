"""Runs on a local cluster of worker processes give what one in this process gives, on disk and on
an S3 server.
"""

from __future__ import annotations

import fsspec
import pytest
from tests_support import assert_same_results

from maskloom.tasks import batching

LOCAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=local")


# By day the next test compares two workers with this process.
@pytest.mark.nightly
@pytest.mark.parametrize("workers", [2, 1])
def test_workers_give_what_this_process_gives(collection, maskloom, workers):
    recipe = collection.recipe(tiling={"tile": 256})
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    changes = (f"cluster.workers={workers}", "output=local")
    result = maskloom(
        "run", recipe, *LOCAL, *(part for each in changes for part in ("--set", each))
    )
    assert result.exit_code == 0, result.output
    assert_same_results(collection.output, collection.folder / "local")


def test_s3_in_and_out_equals_the_local_disk(collection, maskloom, s3_server, monkeypatch):
    # Small parts, so that also what passes leave to one another lies in the store.
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)
    for name in ("scenes/lonlat.tif", "photo.jpg"):
        (collection.folder / "images" / name).unlink()
    fs = fsspec.filesystem("s3")
    fs.mkdir("scenes")
    fs.mkdir("masks")
    fs.put(str(collection.folder / "images"), "scenes/2026", recursive=True)
    recipe = collection.recipe(tiling={"tile": 256}, statistics=["objects"])
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    arguments = (
        "run",
        recipe,
        *LOCAL,
        "--set",
        "cluster.workers=2",
        "--set",
        "inputs=s3://scenes/2026/**/*.*",
        "--set",
        "output=s3://masks/out",
    )

    result = maskloom(*arguments)

    assert result.exit_code == 0, result.output
    fs.get("masks/out", str(collection.folder / "from-s3"), recursive=True)
    mine, theirs = (collection.output, collection.folder / "from-s3")
    assert_same_results_but_locations(mine, theirs)
    assert maskloom("verify", "s3://masks/out").exit_code == 0
    assert "Nothing to do" in maskloom(*arguments).output


def assert_same_results_but_locations(a, b):
    """As `assert_same_results`, without what names the store of the inputs."""
    import numpy as np
    from tests_support import VOLATILE, read_masks, read_table

    volatile = (*VOLATILE, "uri", "source_version")
    for name, mask in read_masks(a).items():
        np.testing.assert_array_equal(mask, read_masks(b)[name])
    for table in ("images", "areas", "objects"):
        assert read_table(a, table, volatile) == read_table(b, table, volatile)
