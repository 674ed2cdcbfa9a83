"""Parquet files, read in the caller's own thread.

`pyarrow.parquet.read_table` reads with threads of Arrow's. One of them may still hold bytes of
Python's when the interpreter ends, and then aborts the process: a command that has done its work
dies with exit code 134, once in some ten times. It also imports pandas where that is installed,
which takes longer than reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or some of its columns.

    Raises `pyarrow.ArrowInvalid` where the bytes are no such file, and `KeyError` where a column is
    not in it.
    """
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        # Arrow leaves out columns that are not there; `select` says so.
        table = file.read(columns=columns, use_threads=False)
        return table if columns is None else table.select(columns)
