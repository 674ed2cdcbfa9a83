"""Plan: what is new or changed among the sources, cut into shards, and the plan's file.

What is done is what the tables say. An image is pending unless the `images` table has it with the same version and fingerprint; a failure
that the same bytes would repeat counts as done. Images that replace rows of an existing table file go into a shard that rewrites this file, so
that a reader never sees an image twice; new ones go into new files.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segcore import errors
from segcore.jobs import DescribeJob
from segcore.manifest import Failure, Item, Plan, Shard, Source, canonical, load_spec, run_id
from segcore.parquet import read_parquet
from segcore.storage import STAGING, Store
from segcore.work import describe
from tasks.fanout import Fanout

HEAD = "runs/head.json"
"""The last finished run, so that nobody must read all manifests."""

IMAGES = "tables/images"
SHARD_PIXELS = 2**29
SHARD_IMAGES = 500
DESCRIBE_BUNDLE = 32


@dataclass(frozen=True, slots=True)
class Committed:
    """What the `images` table says of one image."""

    uri: str
    image_id: str
    version: str
    fingerprint: str
    run_id: str
    ok: bool
    settled: bool
    """Done, or failed in a way that the same bytes would repeat."""
    file: str
    """Name of the table file that holds it."""
    error_type: str | None = None
    """Kind of its failure. None: it has not failed."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last finished run of an output."""

    run_id: str | None = None
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """What decides the pixels and rows of a run."""

    name: str
    fingerprint: str
    settings: Mapping[str, Any]
    apart_by_crs: bool = False
    """Whether images with and without a CRS go into shards of their own: geometries in degrees and in pixels do not share a file."""


def read_committed(store: Store) -> dict[str, Committed]:
    """The images in the tables, by URI."""
    committed = {}
    masks = set(store.names("masks", ""))
    columns = ["uri", "image_id", "source_version", "fingerprint", "run_id", "status", "error_type", "mask_uri"]
    for name in store.names(IMAGES, ".parquet"):
        for row in read_parquet(store.read(name), columns).to_pylist():
            ok = row["status"] == "ok"
            committed[row["uri"]] = Committed(
                row["uri"],
                row["image_id"],
                row["source_version"],
                row["fingerprint"],
                row["run_id"],
                ok,
                # A mask that somebody removed is made again.
                row["mask_uri"] in masks
                if ok
                else bool(getattr(getattr(errors, row["error_type"] or "", None), "permanent", False)),
                name.rpartition("/")[2],
                row["error_type"],
            )
    return committed


def read_head(store: Store) -> Head:
    """The last finished run; an empty head where there is none."""
    manifests = store.names("runs", "/manifest.json")
    try:
        head = Head(**json.loads(store.read(HEAD)))
    except FileNotFoundError:
        head = Head()
    if len(manifests) == head.sequence:
        return head
    # A run was killed between its manifest and the head, or two ran side by side: ask all of them.
    finished = (json.loads(store.read(name)) for name in manifests)
    return max(
        (Head(run["run_id"], run["sequence"]) for run in finished),
        key=lambda run: (run.sequence, run.run_id or ""),
        default=Head(),
    )


def planned_runs(store: Store) -> list[tuple[str, str | None]]:
    """The runs with staged parts that were planned: their ids, and the run that each follows."""
    waiting = {name.split("/")[1] for name in store.names(STAGING, "") if name.count("/") > 1}
    plans = ((run_id, f"runs/{run_id}/plan.json") for run_id in sorted(waiting))
    return [(run_id, json.loads(store.read(name))["parent"]) for run_id, name in plans if store.exists(name)]


def pending(sources: Iterable[Source], committed: Mapping[str, Committed], fingerprint: str) -> list[Source]:
    """The sources that are new or changed, or failed for a reason that may have gone."""

    def settled(source: Source) -> bool:
        row = committed.get(source.uri)
        return row is not None and row.settled and (row.version, row.fingerprint) == (source.version, fingerprint)

    return [source for source in sources if not settled(source)]


def describe_sources(fanout: Fanout, sources: Sequence[Source], format_name: str | None) -> list[Item]:
    """The headers of all sources, read by the workers, in the order of the sources."""
    jobs = [DescribeJob(tuple(sources[i : i + DESCRIBE_BUNDLE]), format_name) for i in range(0, len(sources), DESCRIBE_BUNDLE)]
    items: dict[str, Item] = {}
    for job, answer in fanout.map(describe, jobs):
        if isinstance(answer, errors.WorkerDied):
            items.update((source.uri, Item(source, None, Failure.of(answer))) for source in job.sources)
        else:
            items.update((item.source.uri, item) for item in answer)
    return [items[source.uri] for source in sources]


def make_plan(work: Work, head: Head, identity: str, items: Sequence[Item], committed: Mapping[str, Committed]) -> Plan:
    """The plan of a new run over these items."""
    return Plan(
        run_id=identity,
        parent=head.run_id,
        sequence=head.sequence + 1,
        fingerprint=work.fingerprint,
        settings=work.settings,
        shards=tuple(_shards(identity, items, committed, work.apart_by_crs)),
    )


def identify(work: Work, head: Head, sources: Sequence[Source]) -> str:
    """The id of the run that takes these sources on from the head."""
    return run_id(work.name, work.fingerprint, sources, head.run_id)


def write_plan(store: Store, plan: Plan) -> None:
    """Write the plan's files; the JSON file comes last and makes it a plan."""
    rows = [
        {
            "image_id": item.source.image_id,
            "uri": item.source.uri,
            "version": item.source.version,
            "size": item.source.size,
            "shard": shard.file,
            "spec": None if item.spec is None else canonical(item.spec),
            "failure": None if item.failure is None else canonical(item.failure),
        }
        for shard in plan.shards
        for item in shard.items
    ]
    schema = pa.schema([(name, pa.int64() if name == "size" else pa.string()) for name in rows[0]])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    store.publish(f"runs/{plan.run_id}/plan.parquet", buffer.getvalue())
    header = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name != "shards"}
    store.publish_new(f"runs/{plan.run_id}/plan.json", json.dumps({**header, "images": len(rows)}, indent=1).encode())


def read_plan(store: Store, identity: str) -> Plan | None:
    """The plan of a run; None where there is none."""
    try:
        header = json.loads(store.read(f"runs/{identity}/plan.json"))
    except FileNotFoundError:
        return None
    shards: dict[str, list[Item]] = {}
    for row in read_parquet(store.read(f"runs/{identity}/plan.parquet")).to_pylist():
        item = Item(
            Source(row["uri"], row["image_id"], row["version"], row["size"]),
            None if row["spec"] is None else load_spec(json.loads(row["spec"])),
            None if row["failure"] is None else Failure(**json.loads(row["failure"])),
        )
        shards.setdefault(row["shard"], []).append(item)
    header.pop("images")
    return Plan(**header, shards=tuple(Shard(file, tuple(items)) for file, items in shards.items()))


def _shards(identity: str, items: Sequence[Item], committed: Mapping[str, Committed], apart_by_crs: bool) -> Iterator[Shard]:
    rewritten: dict[str, list[Item]] = {}
    new: list[Item] = []
    for item in items:
        row = committed.get(item.source.uri)
        (new if row is None else rewritten.setdefault(row.file, [])).append(item)
    for file, members in sorted(rewritten.items()):
        yield Shard(file, tuple(members))
    placed = [item for item in new if apart_by_crs and item.spec is not None and item.spec.space.crs is not None]
    others = [item for item in new if not apart_by_crs or item.spec is None or item.spec.space.crs is None]
    for number, group in enumerate((*_groups(placed), *_groups(others))):
        yield Shard(f"{identity}-{number:05d}.parquet", tuple(group))


def _groups(items: Sequence[Item]) -> Iterator[list[Item]]:
    group: list[Item] = []
    pixels = 0
    for item in items:
        size = item.spec.pixels if item.spec else 0
        if group and (pixels + size > SHARD_PIXELS or len(group) >= SHARD_IMAGES):
            yield group
            group, pixels = [], 0
        group.append(item)
        pixels += size
    if group:
        yield group
