"""Parquet files, read in the caller's own thread.

`pyarrow.parquet.read_table` reads in Arrow's own threads. If one of them still holds Python bytes
when the interpreter ends, it aborts the process: about one command in ten ends with exit code 134
after its work is done. `read_table` also imports pandas if installed, which takes longer than
reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or some of its columns.

    Raises `pyarrow.ArrowInvalid` if the bytes are not a Parquet file, and `KeyError` if a column is
    missing.
    """
    with pq.ParquetFile(pa.BufferReader(content), pre_buffer=False) as file:
        # Arrow silently omits missing columns; `select` raises `KeyError`.
        table = file.read(columns=columns, use_threads=False)
        return table if columns is None else table.select(columns)
