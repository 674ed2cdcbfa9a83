"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time

import hypothesis
import pytest

# Tests leave nothing in the user's cache, and find nothing there.
os.environ["MASKLOOM_CACHE"] = ""

# No deadline: a busy machine is not a defect, and pytest-timeout catches tests that hang. A failure
# prints the line that reproduces it.
hypothesis.settings.register_profile(
    "ci",
    max_examples=10,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.register_profile(
    "nightly", hypothesis.settings.get_profile("ci"), max_examples=200
)
hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run cases marked `nightly` only with `--hypothesis-profile=nightly`."""
    if config.getoption("--hypothesis-profile") != "nightly":
        left_out = {item for item in items if item.get_closest_marker("nightly")}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is imported and collected: millions of objects, of
    which nothing goes before the end. To look at them all takes a second, which tests of memory pay
    again and again.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _without_reports(request, monkeypatch):
    """Runs of this process end without their report, which takes a third of a small run, except in
    tests marked `reports`. The first test of a process imports the module later, and has one.
    """
    module = sys.modules.get("maskloom.flows.run")
    if module is not None and request.node.get_closest_marker("reports") is None:
        monkeypatch.setattr(module, "_report", lambda *_, **__: None)


@pytest.fixture(scope="session")
def two_workers():
    """The `cluster` section for two worker processes, shared by all tests of this process: to start
    them takes seconds.
    """
    import distributed

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield json.dumps({"kind": "address", "address": cluster.scheduler_address})


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """moto's server process, with its credentials in the environment."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as stream:
        # The server chooses a free port and logs it.
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", "0"], stdout=stream, stderr=stream
        )
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


@pytest.fixture(scope="session")
def s3_bucket(s3_server):
    """The URI of a bucket, shared by all tests."""
    import fsspec

    fsspec.filesystem("s3").mkdir("tests-of-stores")
    return "s3://tests-of-stores"
