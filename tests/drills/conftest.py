"""What all drills share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import pytest
from drills_support import STARTED


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Ends the processes that a test which fails leaves, stopped ones too."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
