"""Publishes the results of a shard: rows of the tables, committed together with the masks.

Images with rows stay in their file, which is rewritten and keeps its other rows. Images without
rows go into a file that has room for them, or else into the shard's own file. A file has the same
name in the folder of each table. So every table has one version of each image, the newest, at any
moment. `tasks/commits/log.py` describes how several runs do so at the same time.

Files are filled because a daily run of a few images would otherwise leave hundreds of small files a
year. Small files are never merged afterwards: no store replaces several files in one step, so a
reader would count images twice or not at all. A file that only gets more rows keeps its bytes and
grows at its end (`segcore.storage.parquet`), so that readers never notice.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.errors import RunError
from maskloom.segcore.masks import names_beside
from maskloom.segcore.pipeline.records import Failure, ImageResult, Plan, PlannedImage, Shard
from maskloom.segcore.raster.source import Source, version_now
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.protocol import Statistic
from maskloom.segcore.storage.parquet import row_groups
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Committed, Ledger
from maskloom.tasks.commits.log import IMAGES, Draft
from maskloom.tasks.image_rows import IMAGES_SCHEMA, image_row
from maskloom.tasks.object_files import KEYS, ObjectFile
from maskloom.tasks.plan import SHARD_IMAGES
from maskloom.tasks.table_files import table_schema, write_rows

PICTURES = "tables/pictures"
PICTURES_SCHEMA = pa.schema(
    [*KEYS, ("thumbnail", pa.binary()), ("source", pa.binary()), ("mask", pa.binary())],
    metadata={"maskloom_schema": "1"},
)
"""The small pictures of each image, as WebP: see `segcore.figures.thumbnails`."""
_FAILURES_NAMED = 1000
FILE_IMAGES = SHARD_IMAGES
"""Number of images up to which a file takes more."""
FILE_BYTES = 2**23
"""Bytes of a file, in all tables together, up to which it takes more images."""
FILE_PARTS = 32
"""Number of commits from which a file takes images. Each adds a footer that describes them all."""


@dataclass(frozen=True, slots=True)
class Record:
    """The committed results of a run."""

    done: int
    failed: int
    pixels: int
    failures: tuple[tuple[str, Failure], ...]
    """URI and reason of the first failures."""
    files: Mapping[str, str]
    """SHA-256 of each file of the run's records, by its name below the output."""
    areas: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Total area of each class, by its name and the unit."""


@dataclass(frozen=True)
class Tables:
    """The tables of an output, as one run writes them."""

    ledger: Ledger
    folder: str
    """Folder of this process below the output, in which commits are staged."""
    plan: Plan
    statistics: Mapping[str, Statistic]
    objects: Objects | None = None
    """Options of the table of objects. None: no such table."""
    keeps_other_recipes: bool = False
    """Whether images of other recipes may stay in the output."""
    before: Mapping[str, Committed] = field(default_factory=dict)
    """The rows from which the plan was made, by URI."""
    replaced: Mapping[str, Set[str]] = field(default_factory=dict)
    """See `replaced_by_series`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Lets this process commit one shard at a time; correctness does not depend on it."""

    @cached_property
    def _planned(self) -> frozenset[str]:
        """URIs of all images of the plan, which has all images of each of its files."""
        return frozenset(image.source.uri for image in self.plan.images)

    @cached_property
    def _widest(self) -> list[RasterSpec]:
        """The headers that decide the columns of the table of objects: of an image with the most
        bands, and of one with the most axes.
        """
        found: list[RasterSpec] = []
        for spec in (image.spec for image in self.plan.images if image.spec is not None):
            bands, axes = found or (spec, spec)
            bands = max(bands, spec, key=lambda each: each.file_bands)
            found = [bands, max(axes, spec, key=lambda each: len(each.shape))]
        return found

    @property
    def store(self) -> Store:
        """The output."""
        return self.ledger.store

    def publish(self, shard: Shard, results: Sequence[ImageResult]) -> None:
        """Commit the results of a shard. Publishing the same results again changes nothing.

        Raises `RunError` if a run of another recipe has written to the output meanwhile.
        """
        with self._lock:
            while True:
                self._refresh()
                ours = [result for result in results if self._is_wanted(result)]
                if not ours:
                    return
                with self.ledger.log.draft(self.plan.run_id, self.folder) as draft:
                    self._fill(draft, shard, ours)
                    if self.ledger.log.claim(draft):
                        self._note_sizes(draft)

    def refresh(self) -> None:
        """Read what other runs have committed. Raises as `publish`."""
        with self._lock:
            self._refresh()

    def left(self, shard: Shard) -> Shard:
        """The shard without the images that this run or a concurrent one has committed."""
        images = tuple(image for image in shard.images if not self._is_finished(image))
        # A shard of a stored plan holds no images in memory, so it is kept if all are left.
        return shard if len(images) == len(shard.images) else replace(shard, images=images)

    def failed(self, shard: Shard) -> int:
        """Number of a shard's committed images that failed."""
        rows = (self.ledger.rows.get(image.source.uri) for image in shard.images)
        return sum(1 for row in rows if row is not None and not row.ok)

    def record(self) -> Record:
        """The committed results of the plan's images, and the digests of the run's records."""
        files = {}
        for name in self.store.names(f"runs/{self.plan.run_id}/", ""):
            # The manifest already exists if two processes have done the same run.
            if not name.endswith("/manifest.json"):
                files[name] = hashlib.sha256(self.store.read(name)).hexdigest()
        planned: dict[str, set[str]] = {}
        for image in self.plan.images:
            found = self.ledger.rows.get(image.source.uri)
            if found is not None:
                planned.setdefault(found.file, set()).add(found.uri)
        done, pixels, failures, areas = 0, 0, [], Counter[tuple[str, str]]()
        for file, uris in sorted(planned.items()):
            columns = ["uri", "image_id", "status", "error", "error_type", "total_pixels"]
            ids = []
            for row in read_table(self.store, f"{IMAGES}/{file}", columns).to_pylist():
                if row["uri"] not in uris:
                    continue
                if row["status"] == "ok":
                    done, pixels = done + 1, pixels + row["total_pixels"]
                    ids.append(row["image_id"])
                else:
                    failures.append(
                        (row["uri"], Failure(row["error_type"], row["error"], permanent=True))
                    )
            areas.update(self._areas(file, ids))
        named = tuple(failures[:_FAILURES_NAMED])
        return Record(done, len(failures), pixels, named, files, areas)

    def _areas(self, file: str, image_ids: Sequence[str]) -> dict[tuple[str, str], float]:
        """The total area of each class of some images in a file, by its name and the unit."""
        keys = ["class_name", "area_unit"]
        try:
            found = read_table(self.store, f"tables/areas/{file}", ["image_id", *keys, "area"])
        except FileNotFoundError:
            # The next run makes it again; this one ends with a line less.
            return {}
        ours = pc.is_in(found["image_id"], value_set=pa.array(image_ids, pa.string()))
        sums = found.filter(ours).group_by(keys, use_threads=False).aggregate([("area", "sum")])
        return {(row["class_name"], row["area_unit"]): row["area_sum"] for row in sums.to_pylist()}

    def _refresh(self) -> None:
        for row in self.ledger.refresh():
            if row.fingerprint != self.plan.fingerprint and not self.keeps_other_recipes:
                raise RunError(
                    f"Run {row.run_id} of another recipe has committed {row.image_id} to "
                    f"{self.store.root} while this one worked. Give each recipe its own output, "
                    "or add --keep-other-recipes, then run the same command again."
                )

    def _is_new(self, row: Committed) -> bool:
        """Whether the row was committed after the plan was made."""
        before = self.before.get(row.uri)
        return before is None or (before.run_id, before.version, before.ok) != (
            row.run_id,
            row.version,
            row.ok,
        )

    def _is_finished(self, image: PlannedImage) -> bool:
        row = self.ledger.rows.get(image.source.uri)
        if row is None:
            return False
        # A row from before the run may have to be made again, if its mask is lost or workers have
        # more memory now.
        row = row if self._is_new(row) else self.before[row.uri]
        same = (row.version, row.fingerprint) == (image.source.version, self.plan.fingerprint)
        return row.run_id == self.plan.run_id or (same and row.needs_no_retry)

    def _is_wanted(self, result: ImageResult) -> bool:
        """Whether the result should be committed, given the current rows of the tables."""
        source, ok = result.source, result.failure is None
        row = self.ledger.rows.get(source.uri)
        if row is None:
            other = self.ledger.uris.get(source.image_id, source.uri)
            elsewhere = split_part(other)[0] != source.location
            if elsewhere and other in self.ledger.rows:
                raise RunError(
                    f"Another run has given the image id {source.image_id} to {other} while this "
                    f"one worked; it was planned for {source.uri}. Run the same command again: it "
                    "will find another id."
                )
            # Another run may have found another number of images in the file.
            return not any(map(self._is_new, self._former(source))) or self._is_present(source)
        if not self._is_new(row):
            return True
        if row.run_id == self.plan.run_id or (row.version, row.fingerprint) == (
            source.version,
            self.plan.fingerprint,
        ):
            # The other run's failure may have been temporary.
            return ok and not row.ok
        if row.fingerprint != self.plan.fingerprint:
            return True
        return self._is_present(source)

    def _is_present(self, source: Source) -> bool:
        # The file has changed between the listings of two runs; its present version is right.
        return _version_now(source) == source.version

    def _former(self, source: Source) -> list[Committed]:
        """Rows of images that this one's file no longer holds: a file of 12 images may now hold
        10. Also rows that its series replaces.
        """
        places = (source.location, *sorted(self.replaced.get(source.location, ())))
        rows = [row for place in places for row in self.ledger.images_of(place)]
        # The image itself is planned, and mostly the only one.
        others = [row for row in rows if row.uri != source.uri]
        return [row for row in others if row.uri not in self._planned]

    def _fill(self, draft: Draft, shard: Shard, results: Sequence[ImageResult]) -> None:
        groups: dict[str, list[ImageResult]] = {}
        new = [result for result in results if result.source.uri not in self.ledger.rows]
        if new:
            groups[self._file_for(new, shard)] = new
        for result in results:
            row = self.ledger.rows.get(result.source.uri)
            if row is not None:
                groups.setdefault(row.file, []).append(result)
        former = {row.uri: row for each in results for row in self._former(each.source)}
        gone: dict[str, set[str]] = {}
        for row in former.values():
            gone.setdefault(row.file, set()).add(row.image_id)
        for file in {**groups, **gone}:
            members = groups.get(file, [])
            ids = {result.source.image_id for result in members} | gone.get(file, set())
            for name, statistic in self.statistics.items():
                schema = table_schema(statistic)
                rows = [
                    self._keyed(result, row)
                    for result in members
                    for row in result.rows.get(name, [])
                ]
                write_rows(
                    self.store,
                    draft,
                    f"tables/{statistic.table}/{file}",
                    pa.Table.from_pylist(rows, schema=schema),
                    ids,
                )
            self._write_objects(draft, file, members, gone.get(file, set()))
            self._write_pictures(draft, file, members, ids)
            image_rows = pa.Table.from_pylist(
                [image_row(self.plan, result) for result in members], schema=IMAGES_SCHEMA
            )
            write_rows(self.store, draft, f"{IMAGES}/{file}", image_rows, ids)
        self._name_files(draft, results, list(former.values()))

    def _name_files(
        self, draft: Draft, results: Sequence[ImageResult], former: Sequence[Committed]
    ) -> None:
        """Name the files that the draft moves into place, and those that it removes."""
        draft.files = {name: staged for result in results for name, staged in result.staged.items()}
        draft.folders = frozenset(
            name
            for result in results
            for name in (result.mask, result.scores)
            if name is not None and name not in result.staged
        )
        outdated = (*former, *self._outdated(results))
        draft.removed = frozenset(
            name
            for row in outdated
            if row.mask_uri is not None
            for name in (f"previews/{row.image_id}.png", row.mask_uri)
        )
        # A mask of objects has no names of classes beside it, that of classes before it had.
        before = [self.ledger.rows.get(result.source.uri) for result in results]
        draft.removed |= frozenset(
            name
            for row in (*outdated, *before)
            if row is not None and row.mask_uri is not None
            for name in names_beside(row.mask_uri)
        )
        # The scores of a recipe that does not keep them.
        kept = {result.scores for result in results}
        draft.removed |= frozenset(
            row.scores_uri
            for row in (*outdated, *before)
            if row is not None and row.scores_uri is not None and row.scores_uri not in kept
        )

    def _file_for(self, results: Sequence[ImageResult], shard: Shard) -> str:
        """The file for images without rows: one with room that holds images of this recipe alone
        and, if there are objects, the same kind of geometries; or else the shard's own.
        """
        located = any(
            result.spec is not None and result.spec.space.crs is not None for result in results
        )
        for file in self.ledger.files_with_room(len(results), FILE_IMAGES, FILE_BYTES):
            rows = self.ledger.rows_of(file)
            if (
                {row.fingerprint for row in rows} == {self.plan.fingerprint}
                and (self.objects is None or any(row.located for row in rows) == located)
                and len({row.run_id for row in rows}) < FILE_PARTS
                and self._commits_of(file) < FILE_PARTS
            ):
                return file
        return shard.file

    def _commits_of(self, file: str) -> int:
        """Number of commits that have added rows to the file since it was last written anew."""
        try:
            return row_groups(self.store.read(f"{IMAGES}/{file}"))
        except FileNotFoundError:
            # Somebody has removed it since the ledger was read; the next run heals the output.
            return FILE_PARTS

    def _note_sizes(self, draft: Draft) -> None:
        sizes = Counter[str]()
        for name, artefact in draft.tables.items():
            sizes[name.rpartition("/")[2]] += artefact.size
        self.ledger.sizes.update(sizes)

    def _outdated(self, results: Sequence[ImageResult]) -> list[Committed]:
        """Rows whose masks the results do not replace: the image fails now, or its new mask has
        another format.
        """
        rows = ((self.ledger.rows.get(result.source.uri), result) for result in results)
        return [row for row, result in rows if row is not None and row.mask_uri != result.mask]

    def _write_objects(
        self, draft: Draft, file: str, results: Sequence[ImageResult], former: Set[str]
    ) -> None:
        name = f"tables/{Objects.table}/{file}"
        if self.objects is None and not self.store.exists(name):
            return
        # Without objects in this recipe, those of an earlier one are removed: an image has the same
        # version in all tables.
        staged = {
            result.source.image_id: result.tables[Objects.table]
            for result in results
            if result.tables
        }
        ObjectFile(self.store, name, self.plan.run_id, self.plan.fingerprint).write(
            draft, staged, results, self._widest, former
        )

    def _write_pictures(
        self, draft: Draft, file: str, results: Sequence[ImageResult], replaced: Set[str]
    ) -> None:
        name = f"{PICTURES}/{file}"
        rows = [
            self._keyed(result, asdict(result.pictures)) for result in results if result.pictures
        ]
        # Without pictures in this recipe, those of an earlier one are removed.
        if rows or self.store.exists(name):
            table = pa.Table.from_pylist(rows, schema=PICTURES_SCHEMA)
            write_rows(self.store, draft, name, table, replaced)

    def _keyed(self, result: ImageResult, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "run_id": self.plan.run_id,
            "image_id": result.source.image_id,
            "fingerprint": self.plan.fingerprint,
            **row,
        }


def _version_now(source: Source) -> str | None:
    try:
        return version_now(source)
    except FileNotFoundError:
        return None
