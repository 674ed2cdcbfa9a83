"""Files of the table of objects: rows that workers staged, and rows of earlier runs, copied some
row groups at a time.

The geometries of images with a CRS are in degrees, those of others in pixels. Plans keep the two
apart; where an image has since gained or lost its CRS, a file of degrees leaves out geometries in
pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskloom.segcore.pipeline.records import ImageResult
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.objects.geoparquet import geo_metadata, nulls, schema
from maskloom.segcore.storage.parquet import extending, extends
from maskloom.segcore.storage.records import record_errors
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.log import Draft

KEYS = (
    pa.field("run_id", pa.string()),
    pa.field("image_id", pa.string()),
    pa.field("fingerprint", pa.string()),
)
"""Columns that every table begins with."""
ROW_GROUP = 100_000
_GEOMETRY = ("geometry", "bbox")


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """One shard's file of the table."""

    store: Store
    name: str
    run_id: str
    fingerprint: str

    def write(
        self,
        draft: Draft,
        staged: Mapping[str, str],
        results: Sequence[ImageResult],
        specs: Sequence[RasterSpec],
        former: Set[str] = frozenset(),
    ) -> None:
        """Add the file to the draft: the staged rows of these results, and its present rows of
        other images, without `former` ones. `staged`: files of rows by image id; `specs`: headers
        of all images of the run, whose tables have the same columns.
        """
        with self._opened() as (file, old):
            self._write(draft, file, old, staged, results, specs, former)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], pq.ParquetFile | None]]:
        """The present file, and its table, of which a row group at a time is read. None: there is
        no such file.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self.store.open(self.name))
            except FileNotFoundError:
                yield io.BytesIO(), None
                return
            with record_errors(self.store, self.name):
                old = stack.enter_context(pq.ParquetFile(file, pre_buffer=False))
            yield file, old

    def _write(
        self,
        draft: Draft,
        file: IO[bytes],
        old: pq.ParquetFile | None,
        staged: Mapping[str, str],
        results: Sequence[ImageResult],
        specs: Sequence[RasterSpec],
        former: Set[str],
    ) -> None:
        located = {
            result.source.image_id
            for result in results
            if result.spec is not None and result.spec.space.crs is not None
        }
        was_located = old is not None and _is_located(old.schema_arrow)
        replaced = sorted(former | {result.source.image_id for result in results})
        kept = [] if old is None else self._kept(old, replaced)
        names = [] if old is None else old.schema_arrow.names
        bands = [sum(name.startswith("mean_") for name in names)]
        bands += [spec.file_bands for spec in specs]
        axes = [3 if "centroid_z" in names else 2, *(len(spec.shape) for spec in specs)]
        wanted = objects_schema(max(bands), bool(located) or was_located, max(axes))
        new = (
            _conformed(batch, wanted, image_id in located)
            for image_id, file in staged.items()
            for batch in self._staged(image_id, file)
        )
        if old is not None and not self._has(old, replaced) and extends(file, wanted):
            with draft.table(self.name) as out, extending(file, out, wanted) as writer:
                for group in _row_groups(new):
                    writer.write_table(group, row_group_size=ROW_GROUP)
            return
        rows = chain((_conformed(group, wanted, was_located) for group in kept), new)
        with (
            draft.table(self.name) as out,
            pq.ParquetWriter(out, wanted, compression="zstd") as writer,
        ):
            for group in _row_groups(rows):
                writer.write_table(group, row_group_size=ROW_GROUP)

    def _has(self, old: pq.ParquetFile, image_ids: Sequence[str]) -> bool:
        """Whether the file has rows of one of these images."""
        with record_errors(self.store, self.name):
            found = old.read(["image_id"], use_threads=False)["image_id"]
        return bool(pc.any(pc.is_in(found, value_set=pa.array(image_ids, pa.string()))).as_py())

    def _kept(self, old: pq.ParquetFile, replaced: Sequence[str]) -> Iterator[pa.Table]:
        for i in range(old.num_row_groups):
            with record_errors(self.store, self.name):
                group = old.read_row_group(i, use_threads=False)
                kept = group.filter(
                    pc.invert(
                        pc.is_in(group["image_id"], value_set=pa.array(replaced, pa.string()))
                    )
                )
            yield kept

    def _staged(self, image_id: str, file_name: str) -> Iterator[pa.Table]:
        with self.store.open(file_name) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield pa.table(
                    {
                        "run_id": pa.repeat(self.run_id, len(batch)),
                        "image_id": pa.repeat(image_id, len(batch)),
                        "fingerprint": pa.repeat(self.fingerprint, len(batch)),
                        **columns,
                    }
                )


def objects_schema(bands: int, located: bool, axes: int = 2) -> pa.Schema:
    """The full schema of the table, for images of up to so many bands and axes, in degrees or in
    pixels.
    """
    return pa.schema(
        [*KEYS, *schema(bands, axes)], metadata={b"maskloom_schema": b"1", **geo_metadata(located)}
    )


def _is_located(found: pa.Schema) -> bool:
    geo = json.loads((found.metadata or {}).get(b"geo", b"{}"))
    return "crs" not in geo.get("columns", {}).get("geometry", {"crs": None})


def _conformed(table: pa.Table, wanted: pa.Schema, located: bool) -> pa.Table:
    """The table with all columns of a schema; geometries in pixels are left out of a file of
    degrees.
    """
    keeps_geometry = located == _is_located(wanted)

    def column(field: pa.Field) -> Any:
        absent = field.name not in table.column_names or (
            field.name in _GEOMETRY and not keeps_geometry
        )
        return nulls(field.type, len(table)) if absent else table[field.name]

    return pa.table([column(field) for field in wanted], schema=wanted)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of many small tables in few large ones."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        if rows >= ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting)
