"""Records read back: whole, or an error that names the file and what to do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import DamagedRecord, RunError
from maskloom.segcore.models.files import dump_model, model_of
from maskloom.segcore.models.selection import with_selections
from maskloom.segcore.segmenters.threshold import ThresholdModel
from maskloom.segcore.storage.records import parse_json, parse_table, read_json, read_table
from maskloom.segcore.storage.store import Store

STORE = Store("/data/out")
MODEL = ThresholdModel((3.0,), ("dark", "bright"))
RECORD = dump_model(MODEL).encode()
TABLE = pa.table({"image_id": [f"i{i}" for i in range(500)], "pixels": list(range(500))})


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=100)
    return buffer.getvalue()


CONTENT = parquet(TABLE)


def test_what_is_whole_is_read_back() -> None:
    assert parse_json(STORE, "runs/r/model.json", RECORD, model_of) == MODEL
    assert parse_table(STORE, "tables/images/x.parquet", CONTENT, ["pixels"]).equals(
        TABLE.select(["pixels"])
    )


@given(st.integers(0, len(RECORD) - 2))
def test_a_cut_record_names_itself(stop: int) -> None:
    with pytest.raises(
        DamagedRecord, match=r"^/data/out/runs/r/model\.json is damaged.*Restore it"
    ):
        parse_json(STORE, "runs/r/model.json", RECORD[:stop], model_of)


@given(st.integers(0, len(CONTENT) - 1), st.binary(max_size=40))
def test_a_cut_table_names_itself(stop: int, tail: bytes) -> None:
    with pytest.raises(
        DamagedRecord,
        match=r"^/data/out/tables/areas/x.parquet is damaged.*"
        r"Remove x\.parquet from all folders of /data/out/tables",
    ):
        parse_table(STORE, "tables/areas/x.parquet", CONTENT[:stop] + tail)


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "text",
        [],
        [1],
        {},
        {"model": "threshold"},
        {"model": "nosuch", "fields": {}},
        {"model": "threshold", "fields": {"a": 1}},
    ],
)
def test_json_of_another_kind_is_no_model(value: object) -> None:
    with pytest.raises(DamagedRecord, match=r"model\.json"):
        parse_json(STORE, "runs/r/model.json", json.dumps(value).encode(), model_of)


def test_nesting_without_end_is_damage_too() -> None:
    with pytest.raises(DamagedRecord, match=r"choices\.json is damaged.*or remove it"):
        parse_json(
            STORE,
            "runs/r/choices.json",
            b"[" * 100_000,
            lambda found: with_selections(MODEL, found),
        )


def test_absence_is_told_apart_from_damage(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        read_json(store, "runs/head.json", dict)
    with pytest.raises(FileNotFoundError):
        read_table(store, "tables/images/x.parquet")
    store.publish("runs/head.json", b"")
    with pytest.raises(RunError, match=str(tmp_path / "runs" / "head.json")):
        read_json(store, "runs/head.json", dict)


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(DamagedRecord, match='Field "uri" does not exist'):
        parse_table(STORE, "tables/images/x.parquet", CONTENT, ["image_id", "uri"])
