"""Reading an output back: its committed tables, and its sources and masks by windows.

The reports, the viewer, exports and `maskloom.open` read through this module. Nothing is held in
memory but what is asked for.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.annotations.masks import open_mask
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.features.reader import source_of
from maskloom.segcore.formats import describe, open_image
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.source import version_now
from maskloom.segcore.storage.parquet import Condition, matching_rows
from maskloom.segcore.storage.records import read_json, read_table, record_errors
from maskloom.segcore.storage.store import Store
from maskloom.tasks.clean import read_unfinished, require_output, runs_without_manifest
from maskloom.tasks.plan_file import PlanFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.masks import LabelReader
    from maskloom.segcore.raster.spec import RasterSpec, Reader

_STRIP = 2**22
"""Pixels that are read together for a reduced window."""
_TRIES = 3
_PLANS_OPEN = 4
_FILES_KNOWN = 64


@dataclass(frozen=True, slots=True)
class Layer:
    """An open source or mask; use as a context manager."""

    spec: RasterSpec
    reader: Reader | LabelReader

    def read(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The pixels of a box, (y, x, band) of a source and (y, x) of a mask, with the axis z first
        in volumes, and which of them are known. Raises `ReadError`.
        """
        return self.reader.read(box)

    def read_window(self, box: Box, stride: int = 1) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As `read`, every `stride`-th pixel along the last two axes from the start of the box on,
        read in strips of rows.
        """
        if stride == 1:
            return self.read(box)
        (*before, top, left), (*after, bottom, right) = box.start, box.stop
        rows = max(1, _STRIP // max(1, (right - left) * _volume(before, after)) // stride) * stride
        parts = [
            self.read(Box((*before, y, left), (*after, min(y + rows, bottom), right)))
            for y in range(top, bottom, rows)
        ]
        axis = len(before)
        every = (
            *(slice(None) for _ in before),
            slice(None, None, stride),
            slice(None, None, stride),
        )
        pixels = np.concatenate([part[every] for part, _ in parts], axis)
        return pixels, np.concatenate([known[every] for _, known in parts], axis)

    def __enter__(self) -> Layer:
        self.reader.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.reader.__exit__(*error)


@dataclass(frozen=True, slots=True)
class Output:
    """An output of runs. Every call reads its tables as they are at that moment."""

    store: Store
    _files: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    """File of the table `images` with an image, of the last ones that were asked for."""
    _plans: dict[str, PlanFile | None] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def open(cls, uri: str) -> Output:
        """Raises `RecipeError` if there is no output, and `StoreError`."""
        store = Store(uri)
        require_output(store)
        return cls(store)

    def images(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The table `images`, or some of its columns: one row per image, done or failed.

        Raises `DamagedRecord`, `StoreError`.
        """
        return self._table("images", columns)

    def areas(
        self, columns: Sequence[str] | None = None, of: Collection[str] | None = None
    ) -> pa.Table:
        """The table `areas`, or some of its columns, for all committed images or those with ids
        in `of`. Raises as `images`.
        """
        return self._rows("areas", columns, of)

    def objects(
        self, columns: Sequence[str] | None = None, of: Collection[str] | None = None
    ) -> pa.Table:
        """The table `objects` as `areas`; without a column where the run makes none. Large: see
        `tables`.
        """
        return self._rows("objects", columns, of)

    def objects_of(
        self,
        image_id: str,
        columns: Sequence[str] | None = None,
        filter: Sequence[Condition] = (),  # noqa: A002  as in PyArrow
    ) -> pa.Table:
        """The objects of one image that fulfil all conditions, such as `("object_id", "==", 7)`;
        without a column where the run makes none. Of the table, the one file with this image is
        read, and of it the row groups that have such rows. Columns that it lacks are left out; a
        condition on one is not fulfilled. Raises as `images`.
        """
        for _ in range(_TRIES):
            file = self._file_of(image_id)
            if file is None or not self.store.exists(f"tables/objects/{file}"):
                break
            conditions = (("image_id", "==", image_id), *filter)
            name = f"tables/objects/{file}"
            try:
                with record_errors(self.store, name), self.store.open(name) as opened:
                    return matching_rows(opened, conditions, columns)
            except FileNotFoundError:
                # A run has replaced it a moment ago.
                continue
        return pa.table({})

    def _file_of(self, image_id: str) -> str | None:
        """Name of the files of tables with an image; all tables have the same names of files."""
        folder = "tables/images"
        # The next image is often in the file of the last one.
        known = self._files.get(image_id) or next(reversed(self._files.values()), None)
        names = self.store.names(folder, ".parquet")
        for name in sorted(names, key=lambda name: name != known):
            try:
                ids = read_table(self.store, name, ("image_id",))["image_id"]
            except FileNotFoundError:
                continue
            if pc.index(ids, image_id).as_py() >= 0:
                while len(self._files) >= _FILES_KNOWN:
                    self._files.pop(next(iter(self._files)), None)
                self._files[image_id] = name
                return name.rpartition("/")[2]
        return None

    def unprocessed(self) -> dict[str, str]:
        """The images that runs planned and have not committed, each with the run: runs that were
        interrupted, or are at work. Raises as `images`.
        """
        runs = runs_without_manifest(self.store)
        if not runs:
            return {}
        found = {
            image_id: run
            for run in runs
            for image_id, *_ in read_unfinished(self.store, run).images
        }
        done = self.images(("image_id",))
        for image_id in done["image_id"].to_pylist() if done.num_columns else ():
            found.pop(image_id, None)
        return found

    def tables(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The table `images`, `areas` or `objects` file by file, with at most a few thousand images
        each. Columns that a file lacks are left out. Raises as `images`.
        """
        folder = f"tables/{name}"
        for file in self.store.names(folder, ".parquet"):
            try:
                table = read_table(self.store, file)
            except FileNotFoundError:
                # A run has replaced it since it was listed.
                continue
            known = [each for each in columns or table.column_names if each in table.column_names]
            yield table.select(known)

    def by_file(self, **columns: Sequence[str] | None) -> Iterator[dict[str, pa.Table]]:
        """Columns of several tables for a few hundred images at a time, beside their rows of
        `images`: all tables have the rows of an image in files of one name. None: all columns. A
        table without the file is empty. Raises as `images`.
        """
        for name in self.store.names("tables/images", ".parquet"):
            found = {}
            for table, wanted in {"images": None, **columns}.items():
                try:
                    file = f"tables/{table}/{name.rpartition('/')[2]}"
                    found[table] = read_table(self.store, file, wanted)
                except FileNotFoundError:
                    found[table] = pa.table({})
            yield found

    def image(self, image_id: str) -> dict[str, Any]:
        """The row of an image in the table `images`. Raises `RecipeError` if there is none."""
        ids = []
        for table in self.tables("images"):
            found = table.filter(pc.equal(table["image_id"], image_id))
            if len(found):
                row: dict[str, Any] = found.to_pylist()[0]
                return row
            ids += table["image_id"].to_pylist()
        near = difflib.get_close_matches(image_id, ids, 3)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise RecipeError(
            f"{self.store.root} has no image {image_id!r} among its {len(ids)}.{meant}"
        )

    def source_spec(self, image: str | Mapping[str, Any]) -> RasterSpec:
        """The header of an image, as the run read it, with its own bands where the segmenter saw
        features of them. The image is an id or, where it is known already, its row in the table
        `images`. Raises `RecipeError`, and `FormatError` if it could not be read.
        """
        row = self.image(image) if isinstance(image, str) else image
        plan = self._plan(row["run_id"])
        planned = plan.find(row["image_id"]) if plan is not None else None
        if planned is None or planned.spec is None:
            return describe(row["uri"])
        return planned.spec if planned.spec.features is None else source_of(planned.spec)

    def source_has_changed(self, image_id: str) -> bool:
        """Whether an image has another version now than the run read; False where that is not known
        any more. Raises as `source_spec`, and `StoreError`.
        """
        row = self.image(image_id)
        plan = self._plan(row["run_id"])
        planned = plan.find(image_id) if plan is not None else None
        if planned is None or planned.spec is None:
            return False
        return version_now(planned.source) != planned.spec.version

    def source(self, image_id: str) -> Layer:
        """Open the image that was segmented. Raises as `source_spec`, and `ReadError`."""
        spec = self.source_spec(image_id)
        return Layer(spec, open_image(spec))

    def mask_spec(self, image: str | Mapping[str, Any]) -> RasterSpec:
        """The header of the mask of an image: an id or a row, as for `source_spec`. Raises
        `RecipeError` if the image failed, and has none.
        """
        row = self.image(image) if isinstance(image, str) else image
        if row["mask_uri"] is None:
            raise RecipeError(f"{row['image_id']} has no mask: {row['error']}")
        return describe(self.store.uri(row["mask_uri"]))

    def mask(self, image_id: str) -> Layer:
        """Open the mask of an image: classes, or ids of objects. Raises as `mask_spec`, and
        `ReadError`.
        """
        spec = self.mask_spec(image_id)
        return Layer(spec, open_mask(spec, "index"))

    def scores(self, image_id: str) -> Layer:
        """Open the scores of an image: whole numbers (`segcore.masks.quantised`), a band for each
        class. Raises `RecipeError` if the run did not keep them, and `ReadError`.
        """
        row = self.image(image_id)
        name = row.get("scores_uri")
        if name is None:
            raise RecipeError(
                f"{self.store.root} has no scores of {image_id!r}. Add `scores: true` to the "
                "recipe, then run it again."
            )
        spec = describe(self.store.uri(name))
        return Layer(spec, open_image(spec))

    def manifests(self) -> list[dict[str, Any]]:
        """What each finished run recorded: settings, versions, digests of files; oldest first.

        Raises `DamagedRecord`.
        """
        names = self.store.names("runs", "/manifest.json")
        found = (read_json(self.store, name, dict) for name in names)
        return sorted(found, key=lambda manifest: int(manifest["sequence"]))

    def _rows(
        self, name: str, columns: Sequence[str] | None, of: Collection[str] | None
    ) -> pa.Table:
        """Rows of committed images: a run in progress may have rows of others."""
        images = self._table("images", ("image_id", "status"))
        ids = images.filter(pc.equal(images["status"], "ok"))["image_id"]
        if of is not None:
            ids = ids.filter(pc.is_in(ids, value_set=pa.array(sorted(of), pa.string())))
        keys = None if columns is None else tuple(dict.fromkeys((*columns, "image_id")))
        table = self._table(name, keys)
        if not table.num_columns:
            return table
        kept = table.filter(pc.is_in(table["image_id"], value_set=ids.combine_chunks()))
        return (
            kept
            if columns is None
            else kept.select([each for each in columns if each in kept.column_names])
        )

    def _table(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        # A commit replaces files: the listing may name some that are gone a moment later.
        for _ in range(_TRIES):
            listed = self.store.names(f"tables/{name}", ".parquet")
            tables = list(self.tables(name, columns))
            if len(tables) == len(listed):
                break
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    def _plan(self, run_id: str) -> PlanFile | None:
        """The plan of a run. None: it has been removed."""
        with self._lock:
            if run_id not in self._plans:
                name = f"runs/{run_id}/plan.parquet"
                while len(self._plans) >= _PLANS_OPEN:
                    self._plans.pop(next(iter(self._plans)))
                found = self.store.exists(name)
                self._plans[run_id] = PlanFile(self.store, name) if found else None
            return self._plans[run_id]


def _volume(start: Sequence[int], stop: Sequence[int]) -> int:
    return int(np.prod([b - a for a, b in zip(start, stop, strict=True)], dtype=np.int64))
