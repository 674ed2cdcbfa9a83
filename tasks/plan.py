"""Plans a run: the new and changed sources, divided into shards, and the files of a plan.

The tables decide what is done. An image is pending unless the table `images` has it with the same
version and fingerprint; a failure that the same bytes would repeat counts as done. Images that
replace rows of an existing table file go into a shard that rewrites this file, so a reader never
sees an image twice; new images go into new files.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.segcore import errors
from maskloom.segcore.pipeline.jobs import DescribeJob
from maskloom.segcore.pipeline.records import Failure, Plan, PlannedImage, Shard, run_id
from maskloom.segcore.pipeline.worker import describe
from maskloom.segcore.raster.source import Member, Source
from maskloom.segcore.raster.spec import load_spec
from maskloom.segcore.raster.stored import ReadOptions, split_part
from maskloom.segcore.storage.canonical import canonical, digest
from maskloom.segcore.storage.records import read_json, read_table, record_errors
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.commits.ledger import Committed, rows_by_file
from maskloom.tasks.fanout.protocol import Fanout

log = logging.getLogger(__name__)

HEAD = "runs/head.json"
"""Record of the last finished run, which saves reading all manifests."""

SHARD_PIXELS = 2**29
SHARD_IMAGES = 500
DESCRIBE_BATCH = 32
_PIXELS_A_BYTE = 100_000
"""No codec packs more pixels into a byte."""
_SPARSE_NOTE = (
    "next to nothing of its array is stored, and all of it is worked through with the fill value; "
    "if its metadata claim too much, write it again or leave it out of `inputs`"
)
DEFAULT = ReadOptions()
_HEADER = tuple(field.name for field in dataclasses.fields(Plan) if field.name != "shards")
"""The fields of a plan in its JSON file."""


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
    parts = rows_by_file(committed)

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
    inputs = {source.uri for source in sources}
    gone = {place: rows for place, rows in rows_by_file(committed).items() if place not in inputs}
    found: dict[str, set[str]] = defaultdict(set)
    files = [(place, place) for place in gone]
    runs = {row.run_id for rows in gone.values() for row in rows} if holders else ()
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


def describe_sources(
    fanout: Fanout,
    sources: Sequence[Source],
    format_name: str | None,
    options: ReadOptions = DEFAULT,
    known_ids: Mapping[str, str] = MappingProxyType({}),
    read: Callable[[int], None] = lambda _: None,
) -> list[PlannedImage]:
    """The images of all sources with their headers, which the workers read, in the order of the
    sources. `known_ids`: ids of all images and inputs of the output, by URI. `read` is called with
    the number of sources that are read.
    """
    starts = range(0, len(sources), DESCRIBE_BATCH)
    jobs = [
        DescribeJob(tuple(sources[i : i + DESCRIBE_BATCH]), format_name, options) for i in starts
    ]
    images: dict[str, list[PlannedImage]] = {source.uri: [] for source in sources}
    done = 0
    for job, answer in fanout.map(describe, jobs):
        done += len(job.sources)
        read(done)
        if isinstance(answer, errors.WorkerDied):
            failure = Failure.of(answer)
            found = tuple(PlannedImage(source, None, failure) for source in job.sources)
        else:
            found = answer
        for image in found:
            images[image.source.location].append(image)
    described = _with_own_ids(
        [image for source in sources for image in images[source.uri]], known_ids
    )
    _log_notes(described)
    return described


def _with_own_ids(
    images: Iterable[PlannedImage], known_ids: Mapping[str, str]
) -> list[PlannedImage]:
    """The images, each with an id that no other file has: a part keeps the one of earlier runs, or
    gets a longer one if the name of another file is equal to it.
    """
    owners = {image_id.casefold(): split_part(uri)[0] for uri, image_id in known_ids.items()}
    result = []
    for image in images:
        source = image.source
        if source.part:
            image_id = known_ids.get(source.uri, source.image_id)
            if owners.setdefault(image_id.casefold(), source.location) != source.location:
                image_id = f"{image_id}_{digest(source.uri)[:10]}"
            source = dataclasses.replace(source, image_id=image_id)
        result.append(dataclasses.replace(image, source=source))
    return result


def _is_nearly_empty(image: PlannedImage) -> bool:
    """Whether a folder holds next to nothing of its array: its metadata alone claim the rest."""
    source, spec = image.source, image.spec
    return source.is_folder and spec is not None and spec.pixels > _PIXELS_A_BYTE * source.size


def _log_notes(images: Sequence[PlannedImage]) -> None:
    """Log the notes of readers on files: one line per note, with the number of files."""
    about: dict[str, list[str]] = {}
    for image in images:
        notes = image.spec.notes if image.spec is not None else ()
        for note in (*notes, *([_SPARSE_NOTE] if _is_nearly_empty(image) else [])):
            about.setdefault(note, []).append(image.source.uri)
    for note, uris in about.items():
        log.warning(
            "%s%s: %s.", uris[0], f" and {len(uris) - 1} more" if len(uris) > 1 else "", note
        )


def make_plan(
    work: Fingerprint,
    head: LastRun,
    identity: str,
    images: Sequence[PlannedImage],
    committed: Mapping[str, Committed],
) -> Plan:
    """The plan of a new run over these images."""
    return Plan(
        run_id=identity,
        parent=head.run_id,
        sequence=head.sequence + 1,
        fingerprint=work.fingerprint,
        settings=work.settings,
        shards=tuple(_shards(identity, images, committed, work.apart_by_crs)),
    )


def identify(work: Fingerprint, head: LastRun, sources: Sequence[Source]) -> str:
    """The id of the run over these sources that follows the head."""
    return run_id(work.name, work.fingerprint, sources, head.run_id)


def write_plan(store: Store, plan: Plan) -> None:
    """Write the plan's files. The JSON file is written last, so it marks a complete plan."""
    rows = [
        {
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
        for shard in plan.shards
        for image in shard.images
    ]
    types = {"size": pa.int64(), "is_folder": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    store.publish(f"runs/{plan.run_id}/plan.parquet", buffer.getvalue())
    header = {name: getattr(plan, name) for name in _HEADER}
    store.publish_new(
        f"runs/{plan.run_id}/plan.json",
        json.dumps({**header, "images": len(rows)}, indent=1).encode(),
    )


def read_plan(store: Store, identity: str) -> Plan | None:
    """The plan of a run. None: the run has no plan."""
    try:
        header = read_json(
            store,
            f"runs/{identity}/plan.json",
            lambda found: {name: found[name] for name in _HEADER},
        )
    except FileNotFoundError:
        return None
    name = f"runs/{identity}/plan.parquet"
    shards: dict[str, list[PlannedImage]] = {}
    with record_errors(store, name):
        for row in read_table(store, name).to_pylist():
            image = PlannedImage(
                _source(row),
                None if row["spec"] is None else load_spec(json.loads(row["spec"])),
                None if row["failure"] is None else Failure(**json.loads(row["failure"])),
            )
            shards.setdefault(row["shard"], []).append(image)
    return Plan(
        **header, shards=tuple(Shard(file, tuple(images)) for file, images in shards.items())
    )


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

    shards = (
        dataclasses.replace(shard, images=tuple(map(addressed, shard.images)))
        for shard in plan.shards
    )
    return dataclasses.replace(plan, shards=tuple(shards))


def _members_json(source: Source) -> str | None:
    """The files of a series, without their addresses. None: the source is not a series."""
    members = [(each.uri, each.version, each.size) for each in source.members]
    return json.dumps(members) if members else None


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


def _shards(
    identity: str,
    images: Sequence[PlannedImage],
    committed: Mapping[str, Committed],
    apart_by_crs: bool,
) -> Iterator[Shard]:
    rewritten: dict[str, list[PlannedImage]] = {}
    new: list[PlannedImage] = []
    for image in images:
        row = committed.get(image.source.uri)
        (new if row is None else rewritten.setdefault(row.file, [])).append(image)
    for file, members in sorted(rewritten.items()):
        yield Shard(file, tuple(members))
    with_crs: list[PlannedImage] = []
    rest: list[PlannedImage] = []
    for image in new:
        has_crs = image.spec is not None and image.spec.space.crs is not None
        (with_crs if apart_by_crs and has_crs else rest).append(image)
    for number, group in enumerate((*_groups(with_crs), *_groups(rest))):
        yield Shard(f"{identity}-{number:05d}.parquet", tuple(group))


def _groups(images: Sequence[PlannedImage]) -> Iterator[list[PlannedImage]]:
    group: list[PlannedImage] = []
    pixels = 0
    for image in images:
        size = image.spec.pixels if image.spec else 0
        if group and (pixels + size > SHARD_PIXELS or len(group) >= SHARD_IMAGES):
            yield group
            group, pixels = [], 0
        group.append(image)
        pixels += size
    if group:
        yield group
