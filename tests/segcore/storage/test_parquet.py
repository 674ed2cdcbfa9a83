"""Reading Parquet: the columns asked for, in this thread."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskloom.segcore.storage.parquet import extending, extends, read_parquet

ROOT = Path(__file__).resolve().parents[3]


def file_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"kept": "yes"}), buffer, row_group_size=2)
    return buffer.getvalue()


def test_reads_what_was_written() -> None:
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
    assert read_parquet(file_of(table)).equals(table)
    assert read_parquet(file_of(table)).schema.metadata == {b"kept": b"yes"}
    assert read_parquet(file_of(table), ["b", "a"]).equals(table.select(["b", "a"]))


def test_says_what_is_missing() -> None:
    content = file_of(pa.table({"a": [1]}))
    with pytest.raises(KeyError, match="c"):
        read_parquet(content, ["a", "c"])
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(content[:-5])


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them"
)
def test_leaves_no_thread_behind(tmp_path: Path) -> None:
    """A thread of Arrow's that outlives the interpreter aborts the process (apache/arrow#34314)."""
    path = tmp_path / "table.parquet"
    path.write_bytes(file_of(pa.table({"a": list(range(1000))})))
    program = """
        import os, sys
        from pathlib import Path
        from maskloom.segcore.storage.parquet import read_parquet
        content, before = Path(sys.argv[1]).read_bytes(), len(os.listdir("/proc/self/task"))
        assert read_parquet(content, ["a"]).num_rows == 1000
        assert len(os.listdir("/proc/self/task")) == before
        assert "pyarrow.dataset" not in sys.modules
    """
    code = "\n".join(line.strip() for line in program.splitlines())
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=120)


def test_an_extended_file_holds_all_rows_and_begins_with_the_former_file(tmp_path):
    """Read by other programs, too. Cut to its former size, it is the former table."""
    rows = pa.table({"image_id": ["a", "b", "a"], "area": [1.5, None, 2.0]})
    rows = rows.replace_schema_metadata({"note": "kept"})
    path = tmp_path / "t.parquet"
    pq.write_table(rows.slice(0, 1), path)
    for part in (rows.slice(1, 1), rows.slice(2, 0), rows.slice(2)):
        old = path.read_bytes()
        former = read_parquet(old)
        assert extends(io.BytesIO(old), rows.schema)
        with path.open("wb") as out, extending(io.BytesIO(old), out, rows.schema) as writer:
            writer.write_table(part)
        assert read_parquet(path.read_bytes()[: len(old)]).equals(former)
    assert read_parquet(path.read_bytes()).equals(rows, check_metadata=True)
    assert duckdb.sql(f"SELECT sum(area), count(*) FROM '{path}'").fetchall() == [(3.5, 3)]
    for other in (rows.schema.remove_metadata(), pa.schema([("image_id", pa.string())])):
        assert not extends(io.BytesIO(path.read_bytes()), other)
