"""Settings and fixtures of all tests."""

from __future__ import annotations

import functools
import gc
import json
import os
import sys

import hypothesis
import pytest
import typer.testing
from shared_support import once, serve

# Tests leave nothing in the user's cache, and find nothing there. Neither they nor what they start
# keep converted networks: each converts its own.
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

# What every test would do again: build the commands from their signatures, and wait for the disk.
# No test of this process cuts the power, and the drills run commands in processes of their own.
typer.testing._get_command = functools.cache(typer.main.get_command)
os.fsync = lambda file: None


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
def two_workers(tmp_path_factory):
    """The `cluster` section for two worker processes, shared by all tests: to start them takes
    seconds.
    """
    address = once(tmp_path_factory, "cluster", functools.partial(serve, "dask"))
    return json.dumps({"kind": "address", "address": address})


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """moto's server process, shared by all tests, with its credentials in the environment."""
    settings = {
        "AWS_ENDPOINT_URL": once(tmp_path_factory, "s3", functools.partial(serve, "s3")),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_bucket(s3_server):
    """The URI of a bucket, shared by all tests of this process."""
    import fsspec

    name = f"tests-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
