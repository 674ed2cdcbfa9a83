"""Masks, classes, areas and objects of a run, from its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskloom.segcore.annotations.label_mapping import UNKNOWN
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.storage.records import parse_table, read_table, record_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Store

_IMAGE_COLUMNS = ["image_id", "uri", "status", "mask_uri", "fingerprint"]
_NEWER_IMAGE_COLUMNS = ["scores_uri"]
_AREA_COLUMNS = ["image_id", "class_id", "class_name", "pixel_count", "area", "area_unit"]


@dataclass(frozen=True, slots=True)
class RunMask:
    """A mask of a run."""

    image_id: str
    uri: str
    """URI of the image."""
    mask_uri: str
    """Path of the mask below the output."""
    file: str
    """Name of the file that holds its rows in each table."""
    fingerprint: str
    """Fingerprint of the recipe that made it."""
    scores_uri: str | None = None
    """Path of the scores of its classes below the output. None: not kept."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a run and their areas in all its images."""

    names: tuple[str, ...]
    areas: tuple[float, ...]
    area_unit: str
    """`px` if the areas of the images have different units."""
    pixels: int
    """Pixels with a class in all images."""
    colours: tuple[str | None, ...] = ()
    """Colours in masks, as `#rrggbb`; None in rows of earlier versions."""

    @property
    def table(self) -> ClassTable:
        """Names and colours."""
        return ClassTable.recorded(self.names, self.colours or (None,) * len(self.names))

    @property
    def foreground(self) -> tuple[int, ...]:
        """Ids of the classes that are not background."""
        return tuple(i for i, name in enumerate(self.names) if name.lower() not in BACKGROUND_NAMES)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectTable:
    """The objects of one image."""

    classes: NDArray[np.int64]
    """Class of each object by its id; 0 for id 0, the background."""
    scores: NDArray[np.float64] | None
    """Score of each object by its id. None: the table has no column `score`."""
    others: int
    """Class of objects that the table does not name: the only foreground class, or `UNKNOWN`."""


@dataclass(frozen=True, slots=True)
class Output:
    """The tables of an output."""

    store: Store
    masks: tuple[RunMask, ...]
    failed: int
    """Number of images that failed and have no mask."""
    classes: Classes

    @classmethod
    def read(cls, store: Store) -> Output:
        """Read the tables. Raises `RecipeError` if there is no mask, `StoreError` if the table of
        areas lacks an image with a mask.
        """
        masks, failed = [], 0
        for name in store.names("tables/images", ".parquet"):
            for row in _rows(store, name, _IMAGE_COLUMNS, _NEWER_IMAGE_COLUMNS):
                if row["status"] == "ok":
                    masks.append(
                        RunMask(
                            row["image_id"],
                            row["uri"],
                            row["mask_uri"],
                            name.rpartition("/")[2],
                            row["fingerprint"],
                            row["scores_uri"],
                        )
                    )
                else:
                    failed += 1
        if not masks:
            missing = (
                "no run of maskloom"
                if not failed
                else f"no mask: {f'all {failed} images' if failed > 1 else 'its only image'} failed"
            )
            raise RecipeError(
                f"{store.root} holds {missing}. Give the folder that a recipe names as its "
                "`output`."
            )
        return cls(store, tuple(masks), failed, _classes(store, {mask.image_id for mask in masks}))

    def class_tables(self, file: str) -> dict[str, NDArray[np.int64]]:
        """For each image of a file of the tables, the class (as in `classes`) of each class id of
        its mask.
        """
        tables: dict[str, dict[int, int]] = {}
        for row in _rows(
            self.store, f"tables/areas/{file}", ["image_id", "class_id", "class_name"]
        ):
            tables.setdefault(row["image_id"], {})[row["class_id"]] = self.classes.names.index(
                row["class_name"]
            )
        return {image_id: _filled(table, UNKNOWN) for image_id, table in tables.items()}

    def object_tables(self, file: str, image_ids: Sequence[str]) -> dict[str, ObjectTable]:
        """The objects of each of these images, from one file of the tables."""
        only = self.classes.foreground[0] if len(self.classes.foreground) == 1 else UNKNOWN
        try:
            content = self.store.read(f"tables/objects/{file}")
        except FileNotFoundError:
            return {
                image_id: ObjectTable(np.zeros(1, np.int64), None, only) for image_id in image_ids
            }
        name = f"tables/objects/{file}"
        with record_errors(self.store, name):
            known = pq.read_schema(pa.BufferReader(content)).names
        columns = ["image_id", "object_id", "class_name", *(["score"] if "score" in known else [])]
        table = parse_table(self.store, name, content, columns).sort_by("image_id")
        # Segmenters without scores leave the column empty.
        scored = "score" in columns and table["score"].null_count == 0
        owners = table["image_id"].to_numpy().astype(str)
        found = {}
        for image_id in image_ids:
            first, stop = (
                np.searchsorted(owners, image_id),
                np.searchsorted(owners, image_id, side="right"),
            )
            found[image_id] = self._objects(table.slice(first, stop - first), only, scored=scored)
        return found

    def _objects(self, rows: pa.Table, only: int, *, scored: bool) -> ObjectTable:
        ids = rows["object_id"].to_numpy()
        classes = np.full(int(ids.max(initial=0)) + 1, only)
        classes[0] = 0
        names = rows["class_name"].to_pylist()
        classes[ids] = [self.classes.names.index(name) for name in names]
        if not scored:
            return ObjectTable(classes, None, only)
        scores = np.zeros(len(classes))
        scores[ids] = rows["score"].to_numpy()
        return ObjectTable(classes, scores, only)


def _classes(store: Store, image_ids: set[str]) -> Classes:
    """The classes of these images. A run in progress may have areas of other images, whose masks
    are not committed yet.
    """
    wanted, seen, parts = pa.array(sorted(image_ids)), set(), []
    for name in store.names("tables/areas", ".parquet"):
        table = _areas(store, name)
        table = table.filter(pc.is_in(table["image_id"], value_set=wanted))
        seen |= set(table["image_id"].unique().to_pylist())
        parts.append(
            table.group_by(["class_id", "class_name", "area_unit"], use_threads=False).aggregate(
                [("pixel_count", "sum"), ("area", "sum"), ("colour", "first")]
            )
        )
    if absent := sorted(image_ids - seen):
        raise StoreError(
            f"{store.uri('tables/areas')} has no rows of {absent[0]}, which tables/images has. "
            f"`maskloom verify {store.root}` lists everything that is missing."
        )
    rows = sorted(
        (row for part in parts for row in part.to_pylist()),
        key=lambda row: (row["class_id"], row["class_name"]),
    )
    names = tuple(dict.fromkeys(row["class_name"] for row in rows))
    units = {row["area_unit"] for row in rows}
    column = "area_sum" if len(units) == 1 else "pixel_count_sum"
    areas = tuple(
        float(sum(row[column] for row in rows if row["class_name"] == name)) for name in names
    )
    pixels = sum(row["pixel_count_sum"] for row in rows)
    # Of the first image, where each has its own.
    colours = {row["class_name"]: row["colour_first"] for row in reversed(rows)}
    return Classes(
        names,
        areas,
        units.pop() if len(units) == 1 else "px",
        pixels,
        tuple(map(colours.get, names)),
    )


def _areas(store: Store, name: str) -> pa.Table:
    """A file of the table of areas. Earlier versions wrote no colours."""
    table = read_table(store, name)
    if "colour" not in table.column_names:
        table = table.append_column("colour", pa.nulls(len(table), pa.string()))
    with record_errors(store, name):
        return table.select([*_AREA_COLUMNS, "colour"])


def _filled(table: Mapping[int, int], empty: int) -> NDArray[np.int64]:
    return np.array([table.get(i, empty) for i in range(max(table) + 1)], np.int64)


def _rows(
    store: Store, name: str, columns: list[str], newer: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    yield from read_table(store, name, columns, newer).to_pylist()
