"""What the drills need: commands that run in forks of one warm process, and the oracle of every
drill.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow.parquet as pq
from PIL import Image
from tests_support import assert_same_results, photograph, write_tiff

T = TypeVar("T")

HANG = 240
"""Seconds after which something hangs, however loaded the machine is."""
STARTED: list[subprocess.Popen[Any]] = []
"""Processes that `conftest.py` ends after each test."""
RUN = (
    *("segment", "images", "-s", "mixture", "-p", "components=3", "--no-prefect", "--quiet"),
    *("--set", "tiling.tile=128", "--set", "statistics=[{kind: objects, min_size: 5}]"),
    *("--set", "scores=true", "--set", "cluster.kind=serial"),
)
"""A run over `pictures`: a model is fitted to all of them, they have objects, and scores are
kept.
"""
SMALL_PARTS = (
    "from maskloom.tasks import batching\n"
    "batching.RANGE_PIXELS = 2**15\n"
    "batching.range_pixels = lambda settings: 2**15\n"
)
"""Parts are so small that an image of 80,000 pixels takes the way of a large one."""
_SERVER = f"""
import json, os, sys
{SMALL_PARTS}
from importlib import import_module
from maskloom.flows import cli
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(wanted["folder"])
        os.environ.update(wanted["environment"])
        exec(wanted["before"])
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        code = 0
        try:
            for arguments in wanted["commands"]:
                sys.argv = ["maskloom", *arguments]
                try:
                    cli.main()
                except SystemExit as ended:
                    code = ended.code or 0
                if code:
                    break
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 70
        if wanted["learn"]:
            print(*sys.modules, file=open(wanted["log"] + ".modules", "w"))
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if wanted["learn"]:
        for name in open(wanted["log"] + ".modules").read().split():
            try:
                import_module(name)
            except Exception:
                pass
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code, or the negative number of the signal that killed it."""
    said: str


class Forks:
    """Runs commands of maskloom one after the other, each in a fork of one process that has
    imported what they need and done nothing else: to start a process of its own takes four times as
    long as a small run.
    """

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        folder: Path,
        *commands: Sequence[str],
        learn: bool = False,
        before: str = "",
        **environment: str,
    ) -> Ended:
        """Commands in this folder, with more variables in their environment, until one does not end
        with 0. `learn`: import what they import before the next. `before`: Python that comes first.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        log = folder / "said"
        wanted = {
            "folder": str(folder),
            "commands": commands,
            "environment": environment,
            "before": before,
            "log": str(log),
            "learn": learn,
        }
        print(json.dumps(wanted), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, "the server of forks has ended"
        said = log.read_text()
        assert "Traceback" not in said, said
        return Ended(int(answer), said)

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@contextmanager
def forks() -> Iterator[Forks]:
    """A server of forks."""
    server = Forks()
    try:
        yield server
    finally:
        server.close()


def pictures(folder: Path) -> None:
    """A folder `images`: two small pictures, and one of six tiles in several parts."""
    (folder / "images").mkdir()
    for i in range(2):
        Image.fromarray(photograph(60, 50 + 7 * i)).save(folder / "images" / f"small{i}.png")
    write_tiff(folder / "images" / "big.tif", photograph(256, 320), block=128)


def start(
    folder: Path, *arguments: str, before: str = "", **environment: str
) -> subprocess.Popen[bytes]:
    """The command in a process of its own, which says everything to the file `said`. `before`:
    Python that comes first.
    """
    program = f"{before}\n{SMALL_PARTS}from maskloom.flows.cli import main\nmain()"
    with (folder / "said").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    STARTED.append(run)
    return run


def ended(folder: Path, run: subprocess.Popen[bytes]) -> Ended:
    """How a process of `start` ends."""
    code = run.wait(HANG)
    said = (folder / "said").read_text()
    assert "Traceback" not in said, said
    return Ended(code, said)


def comes(condition: Callable[[], T], run: subprocess.Popen[bytes] | None = None) -> T:
    """Wait until the condition is true, as long as the process runs; its value."""
    deadline = time.monotonic() + HANG
    while not (found := condition()) and time.monotonic() < deadline:
        if run is not None and run.poll() is not None:
            break
        time.sleep(0.01)
    return found


def assert_whole(output: Path) -> None:
    """Every file below `masks` and `tables` can be read, and no image is in a table twice."""
    for path in (output / "masks").rglob("*"):
        if path.suffix in {".png", ".tif"}:
            with Image.open(path) as mask:
                mask.load()
    for path in (output / "tables").rglob("*"):
        if path.is_file():
            assert path.suffix == ".parquet", path
            pq.ParquetFile(path).read()
    if list((output / "tables").glob("images/*.parquet")):
        twice = duckdb.sql(
            f"select image_id from '{output}/tables/images/*.parquet' group by 1 having count() > 1"
        ).fetchall()
        assert twice == []


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of all masks, scores and previews by name."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("masks", "scores", "previews")
        for path in sorted((output / folder).rglob("*"))
        if path.is_file()
    }


def assert_undisturbed(output: Path, undisturbed: Path) -> None:
    """The output is that of an undisturbed run, byte by byte and row by row, and nothing waits."""
    assert_whole(output)
    assert digests(output) == digests(undisturbed)
    assert_same_results(output, undisturbed)
    assert staged(output) == []


def assert_resumed(server: Forks, output: Path, undisturbed: Path) -> None:
    """The same command leaves what an undisturbed run leaves, and once more does nothing."""
    again = [*RUN, "-o", output.name]
    finished = server.run(output.parent, again, again, ["clean", output.name])
    assert finished.code == 0, finished.said
    assert "Nothing to do" in finished.said
    assert_undisturbed(output, undisturbed)


def staged(output: Path) -> list[str]:
    """Names of all files below `staging`."""
    found = (output / "staging").rglob("*")
    return sorted(str(path.relative_to(output)) for path in found if path.is_file())
