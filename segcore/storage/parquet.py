"""Parquet files: read in the caller's own thread, and extended without moving what they hold.

`pyarrow.parquet.read_table` reads in Arrow's own threads. If one of them still holds Python bytes
when the interpreter ends, it aborts the process: about one command in ten ends with exit code 134
after its work is done. `read_table` also imports pandas if installed, which takes longer than
reading.

An extended file begins with all bytes of the former one. Some readers look up the size of a file
and open it later, or open it twice: DuckDB, and most readers of object stores. If the file has been
extended meanwhile, they still find the former table, whole. In a file that is written anew they
find an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

Condition = tuple[str, str, Any]
"""A column, one of `==, !=, <, <=, >, >=, in`, and what it is compared with."""

_MARK = b"PAR1"
"""The first and the last bytes of every file."""
_CHUNK = 2**20


def read_parquet(
    content: bytes, columns: Sequence[str] | None = None, newer: Sequence[str] = ()
) -> pa.Table:
    """The table in the bytes of a Parquet file, or some of its columns; those in `newer` are null
    if the file lacks them.

    Raises `pyarrow.ArrowInvalid` if the bytes are not a Parquet file, and `KeyError` if a column is
    missing.
    """
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        # Arrow silently omits missing columns; `select` raises `KeyError`.
        wanted = None if columns is None else [*columns, *newer]
        table = file.read(columns=wanted, use_threads=False)
        for name in newer:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), pa.string()))
        return table if wanted is None else table.select(wanted)


def matching_rows(
    file: IO[bytes], conditions: Sequence[Condition], columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows of an open file that fulfil all conditions. Of a row group, the columns of the
    conditions are read first, and the others only if some row fulfils them.
    """
    wanted = pq.filters_to_expression(list(conditions))
    with pq.ParquetFile(file, pre_buffer=False) as table:
        names = table.schema_arrow.names
        kept = [each for each in columns or names if each in names]
        keys = list(dict.fromkeys(name for name, *_ in conditions))
        found = [table.schema_arrow.empty_table().select(kept)]
        if not set(keys) <= set(names):
            return found[0]
        for number in range(table.num_row_groups):
            if _excluded(table.metadata.row_group(number), conditions):
                continue
            if len(table.read_row_group(number, keys, use_threads=False).filter(wanted)):
                read = list(dict.fromkeys((*kept, *keys)))
                rows = table.read_row_group(number, read, use_threads=False)
                found.append(rows.filter(wanted).select(kept))
        return pa.concat_tables(found)


def _excluded(group: pq.RowGroupMetaData, conditions: Sequence[Condition]) -> bool:
    """Whether the statistics of a row group, where it has some, say that no row is equal to what a
    condition asks for.
    """
    equal = {name: value for name, relation, value in conditions if relation == "=="}
    for i in range(group.num_columns):
        column = group.column(i)
        known = column.statistics
        if column.path_in_schema in equal and known is not None and known.has_min_max:
            value = equal[column.path_in_schema]
            if not known.min <= value <= known.max:
                return True
    return False


def row_groups(content: bytes) -> int:
    """Number of row groups of the file with these bytes."""
    return int(pq.read_metadata(pa.BufferReader(content)).num_row_groups)


def extends(old: IO[bytes], schema: pa.Schema) -> bool:
    """Whether a file can be extended by rows of this schema."""
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    present, wanted = (
        pq.read_metadata(each) for each in (_from_begin(old), pa.BufferReader(buffer.getvalue()))
    )
    return bool(present.schema.equals(wanted.schema)) and _notes(present) == _notes(wanted)


@contextlib.contextmanager
def extending(old: IO[bytes], out: IO[bytes], schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of more rows for the file `old`, which allows it (`extends`). Writes the whole new
    file to `out`.
    """
    metadata = pq.read_metadata(_from_begin(old))
    added: list[pq.FileMetaData] = []
    sink = pa.PythonFile(out, mode="w")
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        metadata_collector=added,
        # Every footer describes all row groups, so they should be small.
        write_statistics=False,
        store_schema=False,
    ) as writer:
        # Arrow begins files at position 0 alone. It has now written the mark with which every file
        # begins, so the rest of the former file brings the sink to where the new rows belong.
        old.seek(len(_MARK))
        while chunk := old.read(_CHUNK):
            sink.write(chunk)
        yield writer
    metadata.append_row_groups(added[0])
    footer = pa.BufferOutputStream()
    metadata.write_metadata_file(footer)
    # The footer after the last row group describes these rows alone; the last footer counts.
    sink.write(footer.getvalue()[len(_MARK) :])


def _from_begin(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file


def _notes(metadata: pq.FileMetaData) -> dict[bytes, bytes]:
    """What the footer says of the whole file."""
    return dict(metadata.metadata or {})
