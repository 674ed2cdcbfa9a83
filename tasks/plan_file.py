"""The files of a plan: its header in JSON, and its images in a table that is read in parts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskloom.segcore.pipeline.records import Failure, Plan, PlannedImage, Shard, StoredImages
from maskloom.segcore.raster.source import Member, Source
from maskloom.segcore.raster.spec import load_spec
from maskloom.segcore.storage.canonical import canonical
from maskloom.segcore.storage.records import read_json, record_errors
from maskloom.segcore.storage.store import Store

_HEADER = tuple(field.name for field in dataclasses.fields(Plan) if field.name != "shards")
"""The fields of a plan in its JSON file."""
ROW_GROUP = 5_000
"""Rows of a row group of a plan's table, and at most a shard more."""
_RECENT = 3
"""Row groups in memory."""
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("size", pa.int64()),
        ("is_folder", pa.bool_()),
        ("part", pa.string()),
        ("members", pa.string()),
        ("shard", pa.string()),
        ("spec", pa.string()),
        ("failure", pa.string()),
    ]
)


def write_plan(store: Store, plan: Plan, shards: Iterable[Shard] | None = None) -> None:
    """Write the plan's files. `shards`: those of the plan, where they are made while they are
    written. The JSON file is written last, so it marks a complete plan.
    """
    rows = 0
    with (
        store.writing(f"runs/{plan.run_id}/plan.parquet") as out,
        pq.ParquetWriter(out, _SCHEMA, compression="zstd") as writer,
    ):
        for table in _row_groups(plan.shards if shards is None else shards):
            writer.write_table(table)
            rows += len(table)
    header = {name: getattr(plan, name) for name in _HEADER}
    store.publish_new(
        f"runs/{plan.run_id}/plan.json",
        json.dumps({**header, "images": rows}, indent=1).encode(),
    )


def _row_groups(shards: Iterable[Shard]) -> Iterator[pa.Table]:
    """The rows of the plan's table, some thousand at a time."""
    rows: list[dict[str, Any]] = []
    for shard in shards:
        rows += [_row(shard, image) for image in shard.images]
        if len(rows) >= ROW_GROUP:
            yield pa.Table.from_pylist(rows, schema=_SCHEMA)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row(shard: Shard, image: PlannedImage) -> dict[str, Any]:
    return {
        "image_id": image.source.image_id,
        "uri": image.source.uri,
        "version": image.source.version,
        "size": image.source.size,
        "is_folder": image.source.is_folder,
        "part": image.source.part,
        "members": _members_json(image.source),
        "shard": shard.file,
        "spec": None if image.spec is None else canonical(image.spec),
        "failure": None if image.failure is None else canonical(image.failure),
    }


def read_plan(store: Store, identity: str) -> Plan | None:
    """The plan of a run, whose shards read their images when asked. None: the run has no plan."""
    try:
        header = read_json(
            store,
            f"runs/{identity}/plan.json",
            lambda found: {name: found[name] for name in _HEADER},
        )
    except FileNotFoundError:
        return None
    return Plan(**header, shards=PlanFile(store, f"runs/{identity}/plan.parquet").shards())


class PlanFile:
    """The table of a plan, of which a few row groups are in memory."""

    def __init__(self, store: Store, name: str) -> None:
        """Raises `DamagedRecord`."""
        self._store, self._name = store, name
        self._lock = threading.Lock()
        self._ids: pa.Array | None = None
        """The column `image_id`, once it was asked for."""
        self._recent: dict[int, list[dict[str, Any]]] = {}
        """The last row groups read."""
        with self._opened() as file:
            self._metadata = file.metadata
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._ends = list(accumulate(sizes))
            column = file.read(columns=["shard"], use_threads=False)["shard"]
            self._shards = column.combine_chunks().dictionary_encode()

    def shards(self) -> tuple[Shard, ...]:
        """The shards, in their order."""
        code = self._shards.indices.to_numpy()
        order = np.argsort(code, kind="stable")
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        rows = np.split(order, starts[1:])
        return tuple(
            Shard(file, StoredImages(len(those), partial(self.images, those)))
            for file, those in zip(
                self._shards.dictionary.to_pylist(), rows, strict=bool(len(code))
            )
        )

    def images(self, rows: Iterable[int]) -> tuple[PlannedImage, ...]:
        """The images of some rows, given by their numbers in ascending order."""
        found = []
        with self._lock, record_errors(self._store, self._name):
            for row in map(int, rows):
                group = bisect_right(self._ends, row)
                first = self._ends[group - 1] if group else 0
                found.append(_image(self._group(group)[row - first]))
        return tuple(found)

    def find(self, image_id: str) -> PlannedImage | None:
        """The image with this id; None if the plan has no such image."""
        with record_errors(self._store, self._name):
            if self._ids is None:
                with self._opened() as file:
                    column = file.read(columns=["image_id"], use_threads=False)["image_id"]
                self._ids = column.combine_chunks()
            row = pc.index(self._ids, image_id).as_py()
        return self.images([row])[0] if row >= 0 else None

    def _group(self, number: int) -> list[dict[str, Any]]:
        if number not in self._recent:
            with self._opened() as file:
                rows = file.read_row_group(number, use_threads=False).to_pylist()
            while len(self._recent) >= _RECENT:
                self._recent.pop(next(iter(self._recent)))
            self._recent[number] = rows
        return self._recent[number]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with (
            record_errors(self._store, self._name),
            self._store.open(self._name) as file,
            pq.ParquetFile(file, metadata=getattr(self, "_metadata", None)) as table,
        ):
            yield table


def with_addresses(plan: Plan, sources: Iterable[Source]) -> Plan:
    """A plan as read, with the addresses of its sources added, since files of plans lack them."""
    known = {source.location: source for source in sources if _has_addresses(source)}
    if not known:
        return plan

    def addressed(image: PlannedImage) -> PlannedImage:
        found = known.get(image.source.location)
        if found is None:
            return image
        # The id of a run hashes the versions of its sources, so these are the same files.
        source = dataclasses.replace(image.source, address=found.address, members=found.members)
        return dataclasses.replace(image, source=source)

    return with_changed(plan, addressed)


def with_changed(plan: Plan, change: Callable[[PlannedImage], PlannedImage]) -> Plan:
    """The plan with each image changed when it is read."""

    def changed(shard: Shard) -> Shard:
        images = shard.images
        read = StoredImages(len(images), lambda: tuple(map(change, images)))
        return dataclasses.replace(shard, images=read)

    return dataclasses.replace(plan, shards=tuple(map(changed, plan.shards)))


def _members_json(source: Source) -> str | None:
    """The files of a series, without their addresses. None: the source is not a series."""
    members = [(each.uri, each.version, each.size) for each in source.members]
    return json.dumps(members) if members else None


def _image(row: Mapping[str, Any]) -> PlannedImage:
    return PlannedImage(
        _source(row),
        None if row["spec"] is None else load_spec(json.loads(row["spec"])),
        None if row["failure"] is None else Failure(**json.loads(row["failure"])),
    )


def _source(row: Mapping[str, Any]) -> Source:
    # Plans of earlier versions, without series, folders and parts, lack the last three columns.
    members = json.loads(row.get("members") or "[]")
    return Source(
        row["uri"],
        row["image_id"],
        row["version"],
        row["size"],
        members=tuple(Member(*each) for each in members),
        is_folder=bool(row.get("is_folder")),
        part=row.get("part") or "",
    )


def _has_addresses(source: Source) -> bool:
    return source.address is not None or any(
        member.address is not None for member in source.members
    )
