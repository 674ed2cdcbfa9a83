"""Committing shards: the rows that a file keeps, and what a run records of itself."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from plans_support import plan_of

from maskloom.segcore.pipeline.records import Failure, ImageResult, PlannedImage, Shard
from maskloom.segcore.raster.source import Source
from maskloom.segcore.storage.parquet import read_parquet
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Ledger
from maskloom.tasks.image_rows import IMAGES_SCHEMA
from maskloom.tasks.last_run import LastRun
from maskloom.tasks.plan import Fingerprint
from maskloom.tasks.plan_file import write_plan
from maskloom.tasks.publish import Tables

SOURCES = [Source(f"s3://bucket/{name}.tif", name, "1", 10) for name in "abc"]
FAILED = Failure("FormatError", "no header", permanent=True)


def tables_of(store: Store) -> Tables:
    plan = plan_of(
        Fingerprint("name", "f1", {}),
        LastRun("before", 4),
        "name-1",
        [PlannedImage(source, None, FAILED) for source in SOURCES],
        {},
    )
    write_plan(store, plan)
    ledger = Ledger.open(store)
    return Tables(ledger, "staging/processes/test", plan, {}, before=dict(ledger.rows))


def receipts_of(shard: Shard) -> list[ImageResult]:
    return [ImageResult(item.source, item.spec, failure=item.failure) for item in shard.images]


def test_a_record_is_the_same_when_the_run_has_a_manifest_already(tmp_path: Path) -> None:
    """Two processes may do the same run side by side; what the second one records must be true when
    it has replaced the first manifest.
    """
    store = Store(str(tmp_path))
    tables = tables_of(store)
    for shard in tables.plan.shards:
        tables.publish(shard, receipts_of(shard))
    before = tables.record()
    store.publish("runs/name-1/manifest.json", b"{}")
    assert tables.record() == before
    assert (before.done, before.failed) == (0, 3)
    assert sorted(before.files) == ["runs/name-1/plan.json", "runs/name-1/plan.parquet"]


def test_a_warning_of_a_receipt_stands_in_its_row(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tables = tables_of(store)
    (shard,) = tables.plan.shards
    first, *others = receipts_of(shard)
    tables.publish(shard, [replace(first, warning="look twice"), *others])
    assert read_parquet(store.read(f"tables/images/{shard.file}"))["warning"].to_pylist() == [
        "look twice",
        None,
        None,
    ]


def test_rows_of_other_images_stay_when_a_file_of_fewer_columns_is_rewritten(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    tables = tables_of(store)
    (shard,) = tables.plan.shards
    old = pa.Table.from_pylist(
        [{"image_id": "z", "uri": "z.png", "run_id": "older", "status": "ok", "bands": 3}],
        IMAGES_SCHEMA,
    )
    buffer = io.BytesIO()
    pq.write_table(old.select(["bands", "image_id", "run_id", "status", "uri"]), buffer)
    store.publish(f"tables/images/{shard.file}", buffer.getvalue())
    for _ in range(2):
        tables.publish(shard, receipts_of(shard))
        table = read_parquet(store.read(f"tables/images/{shard.file}"))
        assert table.schema.equals(IMAGES_SCHEMA)
        rows = {row["image_id"]: row for row in table.to_pylist()}
        assert table["image_id"].to_pylist().count("a") == 1
        assert sorted(rows) == ["a", "b", "c", "z"]
        assert rows["z"] == old.to_pylist()[0]
