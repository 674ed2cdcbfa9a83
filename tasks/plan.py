"""Plans a run: the new and changed sources, divided into shards.

The tables decide what is done. An image is pending unless the table `images` has it with the same
version and fingerprint; a failure that the same bytes would repeat counts as done. Images that
replace rows of an existing table file go into a shard that rewrites this file, so a reader never
sees an image twice; new images go into new files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from maskloom.segcore import errors
from maskloom.segcore.pipeline.records import Plan, PlannedImage, Shard, run_id
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Committed, RowsByFile
from maskloom.tasks.last_run import LastRun

SHARD_PIXELS = 2**29
SHARD_IMAGES = 500


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
