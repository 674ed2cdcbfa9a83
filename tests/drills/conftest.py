"""What all drills share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from drills_support import RUN, STARTED, Forks, forks, pictures


@pytest.fixture(scope="session")
def server() -> Iterator[Forks]:
    """Runs commands."""
    with forks() as server:
        yield server


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and the outputs of all drills over them."""
    folder = tmp_path_factory.mktemp("drills")
    pictures(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(server: Forks, folder: Path) -> Path:
    """The output of a run that nothing disturbs."""
    ended = server.run(folder, [*RUN, "-o", "undisturbed"], learn=True)
    assert ended.code == 0, ended.said
    return folder / "undisturbed"


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
