"""Runs on a local cluster of two worker processes: 1 worker = 2 workers = this process, on disk and on an S3 server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import fsspec
import pytest
from tests_support import assert_same_results

from tasks import bundles

LOCAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=local")


def test_two_workers_one_worker_and_none_agree(collection, maskloom):
    recipe = collection.recipe(tiling={"tile": 256})
    assert maskloom("run", recipe, "--no-prefect", "--quiet").exit_code == 0
    for workers in (1, 2):
        result = maskloom("run", recipe, *LOCAL, "--set", f"cluster.workers={workers}", "--set", f"output=local{workers}")
        assert result.exit_code == 0, result.output
        assert_same_results(collection.output, collection.folder / f"local{workers}")


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    """moto's server process, with credentials in the environment as users have them."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as stream:
        # It takes a free port, and says which.
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "0"], stdout=stream, stderr=stream)
    deadline = time.monotonic() + 120
    while (said := re.search(r"Running on (http://127\.0\.0\.1:\d+)\s", log.read_text())) is None:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "the S3 server did not start"
        time.sleep(0.1)
    settings = {
        "AWS_ENDPOINT_URL": said[1],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    previous = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield
    server.terminate()
    server.wait()
    for name, value in previous.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def test_s3_in_and_out_equals_the_local_disk(collection, maskloom, s3_server, monkeypatch):
    # Small parts, so that also what passes leave to one another lies in the store.
    monkeypatch.setattr(bundles, "PART_PIXELS", 2**16)
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
