"""Plans a run: the new and changed sources, divided into shards, and the files of a plan.

The tables decide what is done. An image is pending unless the table `images` has it with the same
version and fingerprint; a failure that the same bytes would repeat counts as done. Images that
replace rows of an existing table file go into a shard that rewrites this file, so a reader never
sees an image twice; new images go into new files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, count
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskloom.segcore import errors
from maskloom.segcore.pipeline.jobs import DescribeJob
from maskloom.segcore.pipeline.records import (
    Failure,
    Plan,
    PlannedImage,
    Shard,
    StoredImages,
    run_id,
)
from maskloom.segcore.pipeline.worker import describe
from maskloom.segcore.raster.source import Member, Source
from maskloom.segcore.raster.spec import load_spec
from maskloom.segcore.raster.stored import ReadOptions, split_part
from maskloom.segcore.storage.canonical import canonical, digest
from maskloom.segcore.storage.records import read_json, read_table, record_errors
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.commits.ledger import Committed, RowsByFile
from maskloom.tasks.fanout.protocol import Fanout

log = logging.getLogger(__name__)

HEAD = "runs/head.json"
"""Record of the last finished run, which saves reading all manifests."""

SHARD_PIXELS = 2**29
SHARD_IMAGES = 500
DESCRIBE_BATCH = 256
"""Most files whose headers a job reads."""
_LEAST_BATCH = 32
_PIXELS_A_BYTE = 100_000
"""No codec packs more pixels into a byte."""
_SPARSE_NOTE = (
    "next to nothing of its array is stored, and all of it is worked through with the fill value; "
    "if its metadata claim too much, write it again or leave it out of `inputs`"
)
DEFAULT = ReadOptions()
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


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last finished run of an output."""

    run_id: str | None = None
    sequence: int = 0
    finished: int = 0
    """Number of finished runs. Larger than `sequence` if some ran at the same time."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides the pixels and rows of a run."""

    name: str
    fingerprint: str
    settings: Mapping[str, Any]
    apart_by_crs: bool = False
    """Whether images with and without a CRS go into different shards, since geometries in degrees
    and in pixels cannot share a file.
    """


def read_head(store: Store) -> LastRun:
    """The last finished run; an empty record if no run has finished."""
    manifests = store.names("runs", "/manifest.json")
    try:
        head = read_json(store, HEAD, _head)
    except FileNotFoundError:
        head = LastRun()
    if len(manifests) == head.finished:
        return head
    # A run was killed between writing its manifest and the head, or two ended at once: the
    # manifests decide.
    last = max(
        (read_json(store, name, _head) for name in manifests),
        key=lambda run: (run.sequence, run.run_id or ""),
        default=LastRun(),
    )
    return dataclasses.replace(last, finished=len(manifests))


def write_head(store: Store, before: LastRun, plan: Plan) -> None:
    """Record that the plan's run, whose manifest is written, has finished. `before`: the last run
    when it was planned.
    """
    count = len(store.names("runs", "/manifest.json"))
    # If other runs have finished meanwhile, the manifests decide which was last.
    head = (
        LastRun(plan.run_id, plan.sequence, count)
        if count == before.finished + 1
        else read_head(store)
    )
    store.publish(HEAD, json.dumps(dataclasses.asdict(head)).encode())


def planned_runs(store: Store) -> list[tuple[str, str | None]]:
    """Planned runs with staged files: the id of each, and of the run that it follows."""
    waiting = {name.split("/")[1] for name in store.names(STAGING, "") if name.count("/") > 1}
    plans = ((run_id, f"runs/{run_id}/plan.json") for run_id in sorted(waiting))
    return [
        (run_id, read_json(store, name, _parent)) for run_id, name in plans if store.exists(name)
    ]


def pending(
    sources: Iterable[Source], committed: Mapping[str, Committed], fingerprint: str
) -> list[Source]:
    """The sources that are new or changed, or that failed for a reason that may no longer hold."""
    parts = RowsByFile(committed)

    def is_done(source: Source) -> bool:
        rows = parts.get(source.uri, ())
        return bool(rows) and all(
            row.needs_no_retry
            and (row.version, row.fingerprint) == (source.version, fingerprint)
            and split_part(row.uri)[2] == len(rows)
            for row in rows
        )

    return [source for source in sources if not is_done(source)]


def replaced_by_series(
    store: Store,
    series: Iterable[Source],
    sources: Iterable[Source],
    committed: Mapping[str, Committed],
) -> dict[str, frozenset[str]]:
    """The images in the tables that some series replace, by the URI of the series: their files,
    and former series with some of their files. A series has another name when one of its files
    comes to another folder, or when the key of pseudonyms changes; a file is an image of its own
    while the library that groups files is missing.

    `sources` are all inputs: an image that is one of them is not replaced.
    """
    holders: dict[str, set[str]] = defaultdict(set)
    for each in series:
        for member in each.members:
            holders[member.uri].add(each.uri)
    if not holders:
        return {}
    inputs = {source.uri for source in sources}
    gone = {place: rows for place, rows in RowsByFile(committed).items() if place not in inputs}
    found: dict[str, set[str]] = defaultdict(set)
    files = [(place, place) for place in gone]
    runs = {row.run_id for rows in gone.values() for row in rows}
    for run in sorted(runs):
        files += [(place, file) for place, file in _files_of_series(store, run) if place in gone]
    for place, file in files:
        for holder in holders.get(file, ()):
            found[holder].add(place)
    return {uri: frozenset(places) for uri, places in found.items()}


def _files_of_series(store: Store, identity: str) -> Iterator[tuple[str, str]]:
    """Each series of a run's plan with each of its files."""
    try:
        table = read_table(store, f"runs/{identity}/plan.parquet", ("uri", "members"))
    except (FileNotFoundError, errors.DamagedRecord):
        # `verify` reports it. Plans from before there were series lack the column.
        return
    for row in table.to_pylist():
        for file, *_ in json.loads(row["members"] or "[]"):
            yield split_part(row["uri"])[0], file


def in_order_of_files(
    sources: Sequence[Source], committed: Mapping[str, Committed]
) -> list[Source]:
    """The sources with rows, by the table file that holds them, and then the others: in this order,
    shards are made one after the other.
    """
    if not committed:
        return list(sources)
    # An image that is part of a file has the URI of the file and its own name.
    files = {split_part(row.uri)[0]: row.file for row in committed.values()}
    return sorted(sources, key=lambda source: (source.uri not in files, files.get(source.uri, "")))


def describe_sources(
    fanout: Fanout,
    sources: Sequence[Source],
    format_name: str | None,
    options: ReadOptions = DEFAULT,
    known_ids: Callable[[], Mapping[str, str]] = dict,
    read: Callable[[int], None] = lambda _: None,
) -> Iterator[PlannedImage]:
    """The images of all sources with their headers, which the workers read, in the order of the
    sources. `known_ids` gives the ids of all images and inputs of the output, by URI. `read` is
    called with the number of sources that are read.

    Only images that arrived before those of earlier sources are in memory.
    """
    batch = min(DESCRIBE_BATCH, max(_LEAST_BATCH, len(sources) // (16 * fanout.workers)))
    jobs = (
        DescribeJob(tuple(sources[i : i + batch]), format_name, options)
        for i in range(0, len(sources), batch)
    )
    ids, notes = _OwnIds(known_ids), _Notes()
    waiting: dict[str, tuple[int, Sequence[PlannedImage]]] = {}
    next_source = done = 0
    for job, answer in fanout.map(describe, jobs):
        done += len(job.sources)
        read(done)
        if isinstance(answer, errors.WorkerDied):
            failure = Failure.of(answer)
            found = tuple(PlannedImage(source, None, failure) for source in job.sources)
        else:
            found = answer
        waiting[job.sources[0].uri] = len(job.sources), _shared(found, job.sources)
        while next_source < len(sources) and sources[next_source].uri in waiting:
            described, images = waiting.pop(sources[next_source].uri)
            next_source += described
            for image in images:
                notes.take(image)
                yield ids.own(image)
    notes.log()


def _shared(images: Iterable[PlannedImage], sources: Iterable[Source]) -> list[PlannedImage]:
    """The images with the sources that this process has, instead of copies of them."""
    known = {source.uri: source for source in sources}
    return [
        dataclasses.replace(image, source=known.get(image.source.uri, image.source))
        for image in images
    ]


@dataclass(slots=True)
class _OwnIds:
    """Gives each image an id that no other file has: a part keeps the one of earlier runs, or gets
    a longer one if the name of another file is equal to it.
    """

    known_ids: Callable[[], Mapping[str, str]]
    known: Mapping[str, str] | None = None
    owners: dict[str, str] = field(default_factory=dict)
    """The file of each id."""

    def own(self, image: PlannedImage) -> PlannedImage:
        """The image with such an id."""
        source = image.source
        if not source.part:
            return image
        if self.known is None:
            self.known = self.known_ids()
            self.owners = {
                image_id.casefold(): split_part(uri)[0] for uri, image_id in self.known.items()
            }
        image_id = self.known.get(source.uri, source.image_id)
        if self.owners.setdefault(image_id.casefold(), source.location) != source.location:
            image_id = f"{image_id}_{digest(source.uri)[:10]}"
        return dataclasses.replace(image, source=dataclasses.replace(source, image_id=image_id))


def _is_nearly_empty(image: PlannedImage) -> bool:
    """Whether a folder holds next to nothing of its array: its metadata alone claim the rest."""
    source, spec = image.source, image.spec
    return source.is_folder and spec is not None and spec.pixels > _PIXELS_A_BYTE * source.size


@dataclass(slots=True)
class _Notes:
    """The notes of readers on files."""

    about: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The first file and the number of files, by the note."""

    def take(self, image: PlannedImage) -> None:
        """Keep the notes on an image."""
        notes = image.spec.notes if image.spec is not None else ()
        for note in (*notes, *([_SPARSE_NOTE] if _is_nearly_empty(image) else [])):
            first, files = self.about.get(note, (image.source.uri, 0))
            self.about[note] = first, files + 1

    def log(self) -> None:
        """Log one line per note."""
        for note, (first, files) in self.about.items():
            log.warning("%s%s: %s.", first, f" and {files - 1} more" if files > 1 else "", note)


def make_plan(
    work: Fingerprint,
    head: LastRun,
    identity: str,
    images: Iterable[PlannedImage],
    committed: Mapping[str, Committed],
) -> Plan:
    """The plan of a new run over these images."""

    def file_of(image: PlannedImage) -> tuple[bool, str]:
        row = committed.get(image.source.uri)
        return row is None, "" if row is None else row.file

    ordered = sorted(images, key=file_of)
    empty = empty_plan(work, head, identity)
    return dataclasses.replace(
        empty, shards=tuple(make_shards(identity, ordered, committed, work.apart_by_crs))
    )


def empty_plan(work: Fingerprint, head: LastRun, identity: str) -> Plan:
    """The plan of a new run, without its shards."""
    return Plan(
        run_id=identity,
        parent=head.run_id,
        sequence=head.sequence + 1,
        fingerprint=work.fingerprint,
        settings=work.settings,
        shards=(),
    )


def identify(work: Fingerprint, head: LastRun, sources: Sequence[Source]) -> str:
    """The id of the run over these sources that follows the head."""
    return run_id(work.name, work.fingerprint, sources, head.run_id)


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


def _head(record: Mapping[str, Any]) -> LastRun:
    return LastRun(record["run_id"], int(record["sequence"]), int(record.get("finished", 0)))


def _parent(plan: Mapping[str, Any]) -> str | None:
    return cast("str | None", plan["parent"])


def make_shards(
    identity: str,
    images: Iterable[PlannedImage],
    committed: Mapping[str, Committed],
    apart_by_crs: bool,
) -> Iterator[Shard]:
    """The shards of images that come in the order of `in_order_of_files`, as they fill."""
    replacing: list[PlannedImage] = []
    file = ""
    new = {False: _Group(), True: _Group()}
    numbers = count()
    for image in images:
        row = committed.get(image.source.uri)
        if row is None:
            has_crs = image.spec is not None and image.spec.space.crs is not None
            full = new[apart_by_crs and has_crs].add(image)
            if full:
                yield Shard(_shard_name(identity, next(numbers)), full)
            continue
        if row.file != file and replacing:
            yield Shard(file, tuple(replacing))
            replacing = []
        file = row.file
        replacing.append(image)
    if replacing:
        yield Shard(file, tuple(replacing))
    for group in new.values():
        if group.images:
            yield Shard(_shard_name(identity, next(numbers)), tuple(group.images))


def _shard_name(identity: str, number: int) -> str:
    return f"{identity}-{number:05d}.parquet"


@dataclass(slots=True)
class _Group:
    """Images that will be a shard."""

    images: list[PlannedImage] = field(default_factory=list)
    pixels: int = 0

    def add(self, image: PlannedImage) -> tuple[PlannedImage, ...]:
        """Add an image. Returns those before it if they are a shard; otherwise nothing."""
        size = image.spec.pixels if image.spec else 0
        full: tuple[PlannedImage, ...] = ()
        if self.images and (self.pixels + size > SHARD_PIXELS or len(self.images) >= SHARD_IMAGES):
            full, self.images, self.pixels = tuple(self.images), [], 0
        self.images.append(image)
        self.pixels += size
        return full
