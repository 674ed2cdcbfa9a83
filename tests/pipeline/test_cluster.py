"""Runs on a local cluster of two worker processes: 1 worker = 2 workers = this process, on disk and
on an S3 server.
"""

from __future__ import annotations

import fsspec
from tests_support import assert_same_results

from maskloom.tasks import batching

LOCAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=local")


def test_two_workers_one_worker_and_none_agree(collection, maskloom):
    recipe = collection.recipe(tiling={"tile": 256})
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    for workers in (1, 2):
        result = maskloom(
            "run",
            recipe,
            *LOCAL,
            "--set",
            f"cluster.workers={workers}",
            "--set",
            f"output=local{workers}",
        )
        assert result.exit_code == 0, result.output
        assert_same_results(collection.output, collection.folder / f"local{workers}")


def test_s3_in_and_out_equals_the_local_disk(collection, maskloom, s3_server, monkeypatch):
    # Small parts, so that also what passes leave to one another lies in the store.
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)
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
