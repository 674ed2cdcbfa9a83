"""Whether the files of an output are as they were written, and agree with one another."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.errors import DamagedRecord
from maskloom.segcore.storage.records import read_json, read_table, remedy
from maskloom.segcore.storage.store import Store
from maskloom.tasks.clean import (
    Unfinished,
    orphans,
    read_unfinished,
    require_output,
    results_of,
    results_scanned,
    runs_without_manifest,
)
from maskloom.tasks.commits.log import AREAS, COMMITS, IMAGES, Commit, incomplete_folder
from maskloom.tasks.image_rows import SCORES_COLUMNS
from maskloom.tasks.last_run import HEAD, read_head

T = TypeVar("T")
_OBJECTS = "tables/objects"
_CHECKED = {
    IMAGES: ("image_id", "status", "mask_uri", "mask_sha256", "total_pixels"),
    AREAS: ("image_id", "class_id", "pixel_count", "nodata_pixels", "unprocessed_pixels"),
    _OBJECTS: ("image_id", "class_id", "object_id", "pixel_count"),
}
"""The columns of each table that `verify` reads."""


def verify(output: str) -> Iterator[str]:
    """Faults of an output, one line each; nothing if all is well. Raises `RecipeError` if there is
    no output.

    Reads every record and table; reports a remedy for each that is damaged, and continues with the
    rest. Compares every mask, and all scores, with the digest in the table `images`, and every
    other file with its digest in the manifest of the last run that wrote it. Checks that the pixels
    of every image add up, that no object is in the table twice, that objects have no more pixels
    than their class, and that the masks of runs are in the tables.
    """
    store = Store(output)
    require_output(store)
    # Masks are listed before the tables are read; otherwise masks that a run commits meanwhile
    # would be in no table.
    written = dict(results_scanned(store))
    reading = _Reading(store)
    reading.records()
    unfinished = reading.unfinished()
    tables = {folder: reading.tables(folder) for folder in _CHECKED}
    images, twice = _images(tables[IMAGES])
    wrong_files = list(_wrong_files(reading, unfinished, images.keys()))
    yield from dict.fromkeys(reading.damage.values())
    yield from wrong_files
    yield from twice
    for row in images.values():
        yield from _wrong_results(store, row)
    if any(name.startswith("tables/") for name in reading.damage):
        # Sums over the readable tables alone would be wrong.
        return
    if incomplete_folder(store) is None:
        # Otherwise a commit is between its tables; its process, or the next run, carries it out.
        yield from _wrong_sums(tables[AREAS], images)
        yield from _wrong_objects(tables, images)
    at_work = {image_id for run in unfinished for image_id, *_ in run.images}
    for name, image_id in orphans(
        store, written, {image_id: results_of(row) for image_id, row in images.items()}
    ).items():
        if image_id not in at_work:
            yield (
                f"{name}: no image in the tables has it; a stopped run left it. `maskloom clean "
                f"{output}` removes it."
            )


@dataclass(slots=True)
class _Reading:
    """Reads the records and tables of an output, and notes those that are damaged."""

    store: Store
    damage: dict[str, str] = field(default_factory=dict)
    """Message on each damaged record or table, with a remedy, by its name."""

    def json(self, name: str, load: Callable[[Any], T]) -> T | None:
        """A record. None: it is damaged."""
        return self._noted(name, partial(read_json, self.store, name, load))

    def tables(self, folder: str) -> dict[str, pa.Table]:
        """The undamaged files of a table, by name."""
        newer = SCORES_COLUMNS if folder == IMAGES else ()
        found = (
            (
                name,
                self._noted(name, partial(read_table, self.store, name, _CHECKED[folder], newer)),
            )
            for name in self.store.names(folder, ".parquet")
        )
        return {name: table for name, table in found if table is not None}

    def unfinished(self) -> list[Unfinished]:
        """The runs that the next run can resume, without those with a damaged plan; all unfinished
        runs if the record of the last run is damaged.
        """
        head = self._noted(HEAD, partial(read_head, self.store))
        names = runs_without_manifest(self.store)
        found = (self.plan(name) for name in names)
        return [
            run for run in found if run is not None and (head is None or run.parent == head.run_id)
        ]

    def plan(self, run: str) -> Unfinished | None:
        """A run from its plan. None: the plan is damaged or missing."""
        with contextlib.suppress(FileNotFoundError):
            return self._noted(f"runs/{run}/plan.json", partial(read_unfinished, self.store, run))
        return None

    def records(self) -> None:
        """Read all records of runs."""
        for name in self.store.names("runs", ".json"):
            self.json(name, dict)
        for name in self.store.names("runs", "/plan.parquet"):
            self._noted(
                name, partial(read_table, self.store, name, ("image_id", "uri", "version", "shard"))
            )

    def _noted(self, name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except DamagedRecord as error:
            self.damage[name] = str(error)
            return None


def _images(tables: Mapping[str, pa.Table]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The rows by image id, and a message for each id that occurs twice."""
    images: dict[str, dict[str, Any]] = {}
    twice = []
    for name, table in tables.items():
        for row in table.to_pylist():
            if row["image_id"] in images:
                twice.append(
                    f"{name}: the image {row['image_id']} is in the table twice. Run the recipe "
                    "again: it keeps one row of each image."
                )
            images[row["image_id"]] = row
    return images, twice


def _wrong_files(
    reading: _Reading, unfinished: Sequence[Unfinished], committed: Collection[str]
) -> Iterator[str]:
    """Messages on files that differ from what the last run that wrote them recorded. `committed`:
    ids of the images in the tables.
    """
    store, newest = reading.store, dict[str, tuple[str, str]]()
    names = store.names("runs", "/manifest.json")
    manifests = [
        found for found in (reading.json(name, _manifest) for name in names) if found is not None
    ]
    for _, run, files in sorted(manifests, key=lambda manifest: manifest[0]):
        newest.update((name, (digest, run)) for name, digest in files.items())
    committed_files = _committed_files(store, reading)
    newest.update(committed_files)
    # An unfinished run may have rewritten files; its manifest will contain their digests. Those of
    # a run with a damaged manifest are unknown.
    damaged = [reading.plan(name.split("/")[1]) for name in names if name in reading.damage]
    rewritten = {file for run in (*unfinished, *damaged) if run is not None for file in run.files}
    for name, (digest, run) in sorted(newest.items()):
        by_commit = name in committed_files
        if name in reading.damage or (
            not by_commit and name.startswith("tables/") and name.rpartition("/")[2] in rewritten
        ):
            continue
        try:
            found = hashlib.sha256(store.read(name)).hexdigest()
        except FileNotFoundError:
            if _is_needed(store, name, committed) and not (
                by_commit and _is_being_changed(store, reading, name, digest)
            ):
                yield f"{name}: written by run {run}, and now missing. {remedy(store, name)}"
        else:
            if found != digest and not (
                by_commit and _is_being_changed(store, reading, name, digest)
            ):
                yield (
                    f"{name}: is not what run {run} wrote ({_differing(found, digest)}). "
                    f"{remedy(store, name)}"
                )


def _committed_files(store: Store, reading: _Reading) -> dict[str, tuple[str, str]]:
    """The digest of each table file and the run that wrote it, from the records of commits."""
    files: dict[str, tuple[str, str]] = {}
    for record in store.names(COMMITS, ".json"):
        commit = reading.json(record, Commit.from_record)
        if commit is not None:
            files.update((name, (digest, commit.run_id)) for name, _, digest in commit.tables)
    return files


def _is_being_changed(store: Store, reading: _Reading, name: str, digest: str) -> bool:
    """Whether a run has committed the file since the records were read, or is doing so."""
    folder = incomplete_folder(store)
    return _committed_files(store, reading)[name][0] != digest or (
        folder is not None and store.exists(f"{folder}/{name}")
    )


def _manifest(found: Mapping[str, Any]) -> tuple[int, str, dict[str, str]]:
    return int(found["sequence"]), str(found["run_id"]), dict(found["files"])


def _is_needed(store: Store, name: str, committed: Collection[str]) -> bool:
    """Whether a missing file is needed: a model, or a table file if some of its images are in no
    other file.
    """
    folder, _, file = name.rpartition("/")
    if not folder.startswith("tables"):
        return file == "model.json"
    ids: set[str] = set()
    for plan in store.names("runs", "/plan.parquet"):
        with contextlib.suppress(DamagedRecord):
            rows = read_table(store, plan, ("image_id", "shard"))
            ids.update(rows.filter(pc.equal(rows["shard"], file))["image_id"].to_pylist())
    return not ids or not ids <= set(committed)


def _wrong_results(store: Store, row: Mapping[str, Any]) -> Iterator[str]:
    if row["status"] != "ok":
        return
    yield from _wrong_result(store, row, "mask", "the mask")
    if row["scores_uri"] is not None:
        yield from _wrong_result(store, row, "scores", "the scores")


def _wrong_result(store: Store, row: Mapping[str, Any], column: str, result: str) -> Iterator[str]:
    name, expected = row[f"{column}_uri"], row[f"{column}_sha256"]
    again = f"run the recipe again: it makes {result} again."
    try:
        digest = store.sha256(name)
    except FileNotFoundError:
        verb = "is" if column == "mask" else "are"
        yield f"{name}: {result} of {row['image_id']} {verb} missing. {again.capitalize()}"
        return
    if digest != expected:
        yield (
            f"{name}: is not what was written ({_differing(digest, expected)}). Remove it, then "
            f"{again}"
        )


def _differing(found: str, expected: str) -> str:
    return f"sha256 {found[:12]}…, expected {expected[:12]}…"


def _wrong_sums(
    areas: Mapping[str, pa.Table], images: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    counted: dict[str, int] = {}
    rest: dict[str, int] = {}
    for table in areas.values():
        for row in table.to_pylist():
            counted[row["image_id"]] = counted.get(row["image_id"], 0) + row["pixel_count"]
            rest[row["image_id"]] = row["nodata_pixels"] + row["unprocessed_pixels"]
    for image_id, row in images.items():
        if row["status"] == "ok" and image_id not in counted:
            yield f"tables/areas: the image {image_id} has no rows"
        elif image_id in counted and counted[image_id] + rest[image_id] != row["total_pixels"]:
            yield (
                f"tables/areas: the pixels of {image_id} add up to "
                f"{counted[image_id] + rest[image_id]}, "
                f"the image has {row['total_pixels']}"
            )
    yield from (
        f"tables/areas: {image_id} has rows but is not in tables/images"
        for image_id in sorted(counted.keys() - images.keys())
    )


def _wrong_objects(
    tables: Mapping[str, Mapping[str, pa.Table]], images: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    of_class = {
        (row["image_id"], row["class_id"]): row["pixel_count"]
        for table in tables[AREAS].values()
        for row in table.select(["image_id", "class_id", "pixel_count"]).to_pylist()
    }
    for name, table in tables[_OBJECTS].items():
        ids = table.group_by(["image_id", "object_id"], use_threads=False).aggregate(
            [([], "count_all")]
        )
        for row in ids.filter(pc.greater(ids["count_all"], 1)).slice(0, 5).to_pylist():
            yield (
                f"{name}: object {row['object_id']} of {row['image_id']} is in the table "
                f"{row['count_all']} times"
            )
        for row in (
            table.group_by(["image_id", "class_id"], use_threads=False)
            .aggregate([("pixel_count", "sum")])
            .to_pylist()
        ):
            image_id, class_id, pixels = row["image_id"], row["class_id"], row["pixel_count_sum"]
            if image_id not in images:
                yield f"{name}: {image_id} has objects but is not in tables/images"
            elif pixels > of_class.get((image_id, class_id), 0):
                yield (
                    f"{name}: the objects of class {class_id} of {image_id} have {pixels} pixels, "
                    "the class has "
                    f"{of_class.get((image_id, class_id), 0)}"
                )
