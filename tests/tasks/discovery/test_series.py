"""Headers of files that may belong to series: who reads them, how often, and what is kept."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskloom.segcore.errors import Stopped, WorkerDied
from maskloom.segcore.pipeline.jobs import HeadersJob
from maskloom.segcore.raster.source import Grouping, Member
from maskloom.segcore.raster.spec import FORMATS, FileKind
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.storage.store import Store
from maskloom.tasks.discovery import series
from maskloom.tasks.discovery.series import HEADERS, SeriesHeaders


class Slices:
    """A format of series that counts what it reads."""

    kinds = (FileKind("slices", (".slice",)),)
    mask = "png"

    def __init__(self) -> None:
        self.read: list[str] = []

    def headers_version(self, options: Any) -> str:
        return "1"

    def headers(self, files: Sequence[Member], options: Any) -> list[str]:
        self.read += [file.uri for file in files]
        return [f"header of {file.uri} {file.version}" for file in files]

    def group(self, files: Sequence[Member], headers: Sequence[str]) -> Grouping:
        return Grouping([])

    def describe(self, location: str, version: str) -> Any: ...
    def open(self, spec: Any) -> Any: ...
    def parts(self, image: Any, options: Any) -> Any: ...
    def describe_image(self, image: Any, options: Any) -> Any: ...


class Workers:
    """Workers of which some die of their files, and whose driver may be stopped."""

    def __init__(self, deadly: str = "", stops_after: int | None = None) -> None:
        self.deadly, self.stops_after, self.opened = deadly, stops_after, 0

    def open(self) -> Workers:
        self.opened += 1
        return self

    def map(self, work: Any, jobs: Sequence[HeadersJob]) -> Iterator[tuple[HeadersJob, Any]]:
        for number, job in enumerate(jobs):
            if number == self.stops_after:
                raise Stopped
            for part in job.split() if self.deadly else (job,):
                dies = self.deadly and self.deadly in [member.uri for member in part.members]
                yield part, WorkerDied("killed") if dies else work(part)


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Slices:
    found = Slices()
    monkeypatch.setitem(FORMATS._loaded, "slices", found)  # type: ignore[arg-type]
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


FILES = tuple(Member(f"scan/{i}.slice", f"v{i}", 10) for i in range(5))
EXPECTED = [f"header of {file.uri} {file.version}" for file in FILES]


def test_workers_read_each_file_once(slices: Slices, store: Store) -> None:
    workers = Workers()
    headers = SeriesHeaders(store, workers.open)
    assert headers("slices", FILES, ReadOptions()) == EXPECTED
    assert headers("slices", FILES, ReadOptions()) == EXPECTED
    assert headers("slices", FILES[::-1], ReadOptions()) == EXPECTED[::-1]
    assert (slices.read, workers.opened) == ([file.uri for file in FILES], 1)


def test_new_and_changed_files_alone_are_read_again(slices: Slices, store: Store) -> None:
    headers = SeriesHeaders(store, Workers().open)
    headers("slices", FILES[:4], ReadOptions())
    slices.read.clear()
    changed = (*FILES[:2], Member(FILES[2].uri, "new", 10), *FILES[3:])

    found = headers("slices", changed, ReadOptions())

    assert slices.read == [FILES[2].uri, FILES[4].uri]
    assert found == [*EXPECTED[:2], "header of scan/2.slice new", *EXPECTED[3:]]
    # Headers of files that are gone are not kept for ever.
    assert len(pq.read_table(store.uri(HEADERS))) == len(FILES)


def test_what_the_driver_reads_itself_is_not_stored(slices: Slices, store: Store) -> None:
    assert SeriesHeaders(store)("slices", FILES, ReadOptions()) == EXPECTED
    assert not store.exists(HEADERS)
    SeriesHeaders(store, Workers().open)("slices", FILES, ReadOptions())
    slices.read.clear()
    assert SeriesHeaders(store)("slices", FILES, ReadOptions()) == EXPECTED
    assert slices.read == []


def _other_columns() -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), out)
    return bytes(out.getvalue())


def _numbers() -> bytes:
    out = pa.BufferOutputStream()
    names = ("format", "uri", "version", "header")
    pq.write_table(pa.table({name: [1] for name in names}), out)
    return bytes(out.getvalue())


def _nulls() -> bytes:
    out = pa.BufferOutputStream()
    columns = {"format": "slices", "uri": FILES[0].uri, "version": FILES[0].version}
    table = pa.table({**{name: [value] for name, value in columns.items()}, "header": [None]})
    pq.write_table(table.cast(series._SCHEMA), out)
    return bytes(out.getvalue())


@pytest.mark.parametrize(
    "content",
    [b"", b"no table", _other_columns(), _numbers(), _nulls()],
    ids=["empty", "garbage", "columns", "numbers", "nulls"],
)
def test_a_damaged_record_is_ignored_and_replaced(
    slices: Slices, store: Store, content: bytes
) -> None:
    store.publish(HEADERS, content)
    headers = SeriesHeaders(store, Workers().open)
    assert headers("slices", FILES, ReadOptions()) == EXPECTED
    slices.read.clear()
    assert headers("slices", FILES, ReadOptions()) == EXPECTED
    assert slices.read == []


def test_a_file_that_kills_its_worker_belongs_to_no_series(slices: Slices, store: Store) -> None:
    headers = SeriesHeaders(store, Workers(deadly=FILES[3].uri).open)
    assert headers("slices", FILES, ReadOptions()) == [*EXPECTED[:3], "", EXPECTED[4]]


def test_what_was_read_before_a_stop_is_kept(
    slices: Slices, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "_BATCH", 2)
    with pytest.raises(Stopped):
        SeriesHeaders(store, Workers(stops_after=1).open)("slices", FILES, ReadOptions())
    slices.read.clear()
    assert SeriesHeaders(store, Workers().open)("slices", FILES, ReadOptions()) == EXPECTED
    assert slices.read == [file.uri for file in FILES[2:]]


def test_formats_keep_their_headers_apart(
    slices: Slices, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Slices()
    monkeypatch.setitem(FORMATS._loaded, "others", other)  # type: ignore[arg-type]
    headers = SeriesHeaders(store, Workers().open)
    for name in ("slices", "others", "slices"):
        headers(name, FILES, ReadOptions())
    assert slices.read == other.read == [file.uri for file in FILES]


def test_an_interrupt_while_headers_are_read_stops_the_run(
    slices: Slices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C: the run ends with a sentence, and the same command continues it."""
    from typer.testing import CliRunner

    from maskloom.flows.cli import app

    monkeypatch.setattr(series, "_BATCH", 1)
    for i in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.slice").write_bytes(b"")
    read = Slices.headers

    def interrupted(self: Slices, files: Sequence[Member], options: ReadOptions) -> list[str]:
        if len(self.read) == 1:
            # Not a true signal: if it came too late, it would end the test process.
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, None)
        return read(self, files, options)

    monkeypatch.setattr(Slices, "headers", interrupted)
    command = ["segment", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-s", "threshold"]
    command += ["--no-prefect", "--quiet", "--set", "cluster.kind=serial"]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 1, result.output
    assert "Run the same command again" in result.output
    assert len(pq.read_table(tmp_path / "out" / HEADERS)) < 3


def test_progress_counts_the_files_that_are_read(
    slices: Slices, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "_BATCH", 2)
    shown: list[object] = []

    @contextlib.contextmanager
    def show(total: int) -> Iterator[Callable[[int], None]]:
        shown.append(f"of {total}")
        yield shown.append
        shown.append("closed")

    SeriesHeaders(store, Workers().open)("slices", FILES[:1], ReadOptions())
    headers = SeriesHeaders(store, Workers().open, show)
    assert headers("slices", FILES, ReadOptions()) == EXPECTED
    assert headers("slices", FILES, ReadOptions()) == EXPECTED
    assert shown == ["of 4", 2, 4, "closed"]
