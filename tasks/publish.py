"""Publish: the receipts of a shard as rows of the tables.

A shard has one file of the same name in the folder of each table. The `images` table comes last: a shard is done when it is there. A file that exists
keeps the rows of its other images, so each image has one version, the newest, in every table at any moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.manifest import Failure, Plan, Receipt, Shard
from segcore.parquet import read_parquet
from segcore.statistic import Statistic
from segcore.statistics.objects import Objects
from segcore.storage import Store
from tasks.objects import KEYS, ROW_GROUP, ObjectFile

IMAGES_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("error_type", pa.string()),
        ("warning", pa.string()),
        ("mask_uri", pa.string()),
        ("mask_sha256", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("depth", pa.int64()),
        ("bands", pa.int32()),
        ("dtype", pa.string()),
        ("crs", pa.string()),
        ("total_pixels", pa.int64()),
        ("valid_pixels", pa.int64()),
        ("nodata_pixels", pa.int64()),
        ("unprocessed_pixels", pa.int64()),
        ("tiles", pa.int64()),
        ("seconds", pa.float64()),
        ("source_version", pa.string()),
        ("segmenter", pa.string()),
        ("fingerprint", pa.string()),
    ],
    metadata={"maskloom_schema": "1"},
)
_FAILURES_NAMED = 20


@dataclass(frozen=True, slots=True)
class Record:
    """What a run has committed."""

    done: int
    failed: int
    pixels: int
    failures: tuple[tuple[str, Failure], ...]
    """URI and reason of the first failures."""
    files: Mapping[str, str]
    """SHA-256 of each file of the run's records and tables, by its name below the output."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Where rows go, and which run they are of."""

    store: Store
    plan: Plan
    statistics: Mapping[str, Statistic]
    objects: Objects | None = None
    """The table of objects. None: none is asked for."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the tables; `images` comes last."""
        return (*(statistic.table for statistic in self.statistics.values()), Objects.table, "images")

    def publish(self, shard: Shard, receipts: Sequence[Receipt]) -> None:
        """Commit a shard. Publishing the same receipts again changes nothing."""
        ids = [receipt.source.image_id for receipt in receipts]
        for name, statistic in self.statistics.items():
            schema = table_schema(statistic)
            rows = [self._keyed(receipt, row) for receipt in receipts for row in receipt.rows.get(name, [])]
            self._write(f"tables/{statistic.table}/{shard.file}", pa.Table.from_pylist(rows, schema=schema), ids)
        self._publish_objects(shard, receipts)
        images = pa.Table.from_pylist([self._image(receipt) for receipt in receipts], schema=IMAGES_SCHEMA)
        self._write(f"tables/images/{shard.file}", images, ids)

    def done(self) -> dict[str, int]:
        """The committed shards of this run: their files, and how many of their images failed."""
        committed = {}
        for shard in self.plan.shards:
            try:
                content = self.store.read(f"tables/images/{shard.file}")
            except FileNotFoundError:
                continue
            table = read_parquet(content, ["image_id", "run_id", "status"])
            ours = table.filter(pc.equal(table["run_id"], self.plan.run_id))
            if {item.source.image_id for item in shard.items} <= set(ours["image_id"].to_pylist()):
                committed[shard.file] = ours["status"].to_pylist().count("failed")
        return committed

    def record(self) -> Record:
        """What the run has committed: counts, failures, and the digests of its files."""
        files, done, failures, pixels = {}, 0, [], 0
        for name in self.store.names(f"runs/{self.plan.run_id}/", ""):
            # The manifest is there already where two processes did the same run side by side.
            if not name.endswith("/manifest.json"):
                files[name] = hashlib.sha256(self.store.read(name)).hexdigest()
        for shard in self.plan.shards:
            for folder in self.folders:
                name = f"tables/{folder}/{shard.file}"
                if folder == Objects.table and self.objects is None and not self.store.exists(name):
                    continue
                content = self.store.read(name)
                files[name] = hashlib.sha256(content).hexdigest()
                if folder == "images":
                    table = read_parquet(content)
                    for row in table.filter(pc.equal(table["run_id"], self.plan.run_id)).to_pylist():
                        if row["status"] == "ok":
                            done, pixels = done + 1, pixels + row["total_pixels"]
                        else:
                            failures.append((row["uri"], Failure(row["error_type"], row["error"], permanent=True)))
        return Record(done, len(failures), pixels, tuple(failures[:_FAILURES_NAMED]), files)

    def _write(self, name: str, rows: pa.Table, replaced: Sequence[str]) -> None:
        try:
            old = read_parquet(self.store.read(name))
        except FileNotFoundError:
            table = rows
        else:
            kept = old.filter(pc.invert(pc.is_in(old["image_id"], value_set=pa.array(replaced, pa.string()))))
            # A version of maskloom may have added columns since, or widened their types.
            table = pa.concat_tables([kept, rows], promote_options="permissive").select(rows.schema.names).cast(rows.schema)
        with self.store.writing(name) as out:
            pq.write_table(table.replace_schema_metadata(rows.schema.metadata), out, compression="zstd", row_group_size=ROW_GROUP)

    def _publish_objects(self, shard: Shard, receipts: Sequence[Receipt]) -> None:
        name = f"tables/{Objects.table}/{shard.file}"
        if self.objects is None and not self.store.exists(name):
            return
        # Where no objects are asked for now, those of an earlier recipe go: an image has one version in all tables.
        staged = {receipt.source.image_id: receipt.tables[Objects.table] for receipt in receipts if receipt.tables}
        specs = [item.spec for other in self.plan.shards for item in other.items if item.spec is not None]
        most_bands = max((spec.file_bands for spec in specs), default=0)
        ObjectFile(self.store, name, self.plan.run_id).write(staged, receipts, most_bands)

    def _keyed(self, receipt: Receipt, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"run_id": self.plan.run_id, "image_id": receipt.source.image_id, **row}

    def _image(self, receipt: Receipt) -> dict[str, Any]:
        spec, failure = receipt.spec, receipt.failure
        total = spec.pixels if spec else None
        nodata = receipt.rows["area"][0]["nodata_pixels"] if failure is None else 0
        return {
            "run_id": self.plan.run_id,
            "image_id": receipt.source.image_id,
            "uri": receipt.source.uri,
            "status": "failed" if failure else "ok",
            "error": failure.error if failure else None,
            "error_type": failure.error_type if failure else None,
            "warning": receipt.warning,
            "mask_uri": receipt.mask,
            "mask_sha256": receipt.mask_sha256,
            "width": spec.shape[1] if spec else None,
            "height": spec.shape[0] if spec else None,
            "depth": 1 if spec else None,
            "bands": spec.file_bands if spec else None,
            "dtype": spec.dtype if spec else None,
            "crs": crs_name(spec.space.crs) if spec else None,
            "total_pixels": total,
            "valid_pixels": 0 if failure else (total or 0) - nodata,
            "nodata_pixels": nodata,
            "unprocessed_pixels": total if failure else 0,
            "tiles": receipt.tiles,
            "seconds": receipt.seconds,
            "source_version": receipt.source.version,
            "segmenter": receipt.segmenter,
            "fingerprint": self.plan.fingerprint,
        }


def table_schema(statistic: Statistic) -> pa.Schema:
    """The full schema of a statistic's table."""
    return pa.schema([*KEYS, *statistic.schema], metadata={"maskloom_schema": "1"})


@lru_cache(maxsize=256)
def crs_name(wkt: str | None) -> str | None:
    """A short name of a coordinate reference system (`EPSG:32633`) where it has one, else its WKT."""
    if wkt is None:
        return None
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        authority = CRS.from_wkt(wkt).to_authority()
    except CRSError:
        return wkt
    return ":".join(authority) if authority else wkt
