"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import hypothesis
import pytest

# No deadline: a busy machine is not a defect, and pytest-timeout catches tests that hang. The
# examples are the same in every run, so a failure is reproducible; `--hypothesis-profile=default`
# draws new ones.
hypothesis.settings.register_profile(
    "maskloom",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,
)
hypothesis.settings.load_profile("maskloom")


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
    """The URI of an empty bucket, shared by all tests."""
    import fsspec

    fsspec.filesystem("s3").mkdir("tests-of-stores")
    return "s3://tests-of-stores"
