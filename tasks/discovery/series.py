"""Groups files into series, such as the slices of a scan, by their headers.

Workers read the headers. What was read is kept in `runs/headers.parquet` of the output, so that the
next run reads only the headers of new and changed files.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.segcore.errors import DamagedRecord, WorkerDied
from maskloom.segcore.pipeline.jobs import HeadersJob
from maskloom.segcore.pipeline.reading import read_headers
from maskloom.segcore.raster.spec import FORMATS, SeriesFormat
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.storage.addresses import redacted
from maskloom.segcore.storage.records import read_table

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Member
    from maskloom.segcore.storage.store import Store
    from maskloom.tasks.fanout.protocol import Fanout

ReadHeaders = Callable[[str, Sequence["Member"], ReadOptions], Sequence[str]]
"""Reads the headers of files of a format, which it names; see `SeriesFormat.headers`."""

HEADERS = "runs/headers.parquet"
_COLUMNS = ("format", "uri", "version", "header")
_SCHEMA = pa.schema([(name, pa.string()) for name in _COLUMNS])
_BATCH = 256
"""Files of a job."""


@contextlib.contextmanager
def _not_shown(_: int) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def read_headers_here(
    image_format: str, files: Sequence[Member], options: ReadOptions
) -> Sequence[str]:
    """The headers of files, read in this process."""
    return read_headers(HeadersJob(image_format, tuple(files), options))


@dataclass(frozen=True, slots=True)
class SeriesHeaders:
    """The headers of files that may belong to series, read once."""

    store: Store
    """The output."""
    open_fanout: Callable[[], Fanout] | None = None
    """Opens the workers when headers must be read. None: they are read in this process, and not
    stored.
    """
    shown: Callable[[int], AbstractContextManager[Callable[[int], None]]] = _not_shown
    """Shows the progress of a pass over so many files: what it yields takes the number of files
    that are read.
    """

    def __call__(
        self, image_format: str, files: Sequence[Member], options: ReadOptions
    ) -> Sequence[str]:
        """The headers of files; see `ReadHeaders`. A file that kills its worker has an empty one,
        which is not stored.
        """
        known = self._known()
        kind = _kind(image_format, options)
        keys = [(kind, redacted(file.uri), file.version) for file in files]
        waiting = [file for file, key in zip(files, keys, strict=True) if key not in known]
        if not waiting:
            return [known[key] for key in keys]
        try:
            for members, headers in self._read(image_format, waiting, options):
                known.update(
                    ((kind, redacted(file.uri), file.version), header)
                    for file, header in zip(members, headers, strict=True)
                )
        finally:
            # What was read before an interruption need not be read again.
            if self.open_fanout is not None:
                self._keep(known, image_format, keys)
        return [known[key] for key in keys]

    def _read(
        self, image_format: str, files: Sequence[Member], options: ReadOptions
    ) -> Iterator[tuple[Sequence[Member], Sequence[str]]]:
        """Groups of files with their headers."""
        if self.open_fanout is None:
            yield files, read_headers_here(image_format, files, options)
            return
        starts = range(0, len(files), _BATCH)
        jobs = [HeadersJob(image_format, tuple(files[i : i + _BATCH]), options) for i in starts]
        fanout, done = self.open_fanout(), 0
        with self.shown(len(files)) as advance:
            for job, answer in fanout.map(read_headers, jobs):
                done += len(job.members)
                advance(done)
                if isinstance(answer, WorkerDied):
                    yield job.members, [""] * len(job.members)
                else:
                    yield job.members, answer

    def _known(self) -> dict[tuple[str, str, str], str]:
        try:
            table = read_table(self.store, HEADERS, _COLUMNS)
        except (FileNotFoundError, DamagedRecord):
            # It saves time, and nothing else.
            return {}
        if table.schema.types != _SCHEMA.types or any(c.null_count for c in table.columns):
            return {}
        return {
            (row["format"], row["uri"], row["version"]): row["header"] for row in table.to_pylist()
        }

    def _keep(
        self,
        known: Mapping[tuple[str, str, str], str],
        image_format: str,
        present: Iterable[tuple[str, str, str]],
    ) -> None:
        """Store the headers of the present files, and those of other formats."""
        wanted = set(present)
        rows = [
            dict(zip(_COLUMNS, (*key, header), strict=True))
            for key, header in sorted(known.items())
            if header and (key in wanted or key[0].partition(" ")[0] != image_format)
        ]
        buffer = io.BytesIO()
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        pq.write_table(table, buffer, compression="zstd")
        self.store.publish(HEADERS, buffer.getvalue())


def _kind(image_format: str, options: ReadOptions) -> str:
    """The format, and the version of what it says in headers."""
    found = FORMATS[image_format]
    if not isinstance(found, SeriesFormat):
        raise TypeError(f"the format {image_format!r} has no series")
    return f"{image_format} {found.headers_version(options)}"
