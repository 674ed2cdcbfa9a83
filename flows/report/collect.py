"""What a report on masks needs of an output: columns over its images, and sums.

The tables are read file by file. Kept are some hundred bytes an image; of objects, only their
histogram and the largest.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.storage.records import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.tasks.output import Output

_IMAGE_COLUMNS = (
    *("run_id", "image_id", "uri", "status", "error", "error_type", "warning", "mask_uri"),
    *("width", "height", "depth", "bands", "dtype", "crs"),
    *("total_pixels", "valid_pixels", "nodata_pixels", "unprocessed_pixels", "tiles", "seconds"),
)
_AREA_COLUMNS = (
    *("image_id", "class_id", "class_name", "pixel_count", "fraction", "area", "area_unit"),
    "colour",
)
_OBJECT_COLUMNS = (
    *("image_id", "object_id", "class_id", "class_name", "area", "area_unit", "score"),
    *("bbox_x0", "bbox_y0", "bbox_x1", "bbox_y1"),
)
_DATES = ("acquired", "datetime")
"""Columns of the table `images` with the time of acquisition, where a run writes one."""
MARGIN = "mean_margin"
"""Column of the table `images` with the mean margin of its scores, where a run keeps them."""
_DATE_IN_NAME = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)"
)
_MOST_FITTED = 20_000
_COUNTS = frozenset({"pixels", "values", "steps"})
"""Numbers in the column `segmenter` that describe the work, not the model."""
_LARGEST = 10
STEPS_PER_DECADE = 10
"""Bins of the histogram of sizes in each power of ten."""


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Columns over all images of an output, in the order of its tables."""

    ids: list[str]
    rows: pa.Table
    """The columns of the table `images` that the report shows."""
    shares: NDArray[np.float32]
    """(image, class): the class's fraction of the valid pixels; NaN where there are none."""
    dates: list[dt.date | None]
    dates_from: str
    """Where the dates were found, in words. Empty: there are none."""

    def column(self, name: str) -> Any:
        """A numeric column as an array; 0 where it is null."""
        return np.nan_to_num(self.rows[name].to_numpy(zero_copy_only=False).astype(np.float64))

    @property
    def failed(self) -> NDArray[np.bool_]:
        """(image,)."""
        found: NDArray[np.bool_] = pc.equal(self.rows["status"], "failed").to_numpy()
        return found


@dataclass(frozen=True, slots=True)
class LargeObject:
    """One of the largest objects."""

    image_id: str
    object_id: int
    class_name: str
    class_id: int
    area: float
    unit: str
    score: float | None
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels."""


@dataclass(slots=True)
class ObjectSums:
    """Sums over the table of objects."""

    counts: Counter[str] = field(default_factory=Counter)
    """Objects of each class."""
    bins: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Objects by unit, class and bin of the logarithm of the size."""
    of_image: Counter[str] = field(default_factory=Counter)
    scores: dict[str, float] = field(default_factory=dict)
    """Mean score of the objects of an image, where there are scores."""
    largest: list[LargeObject] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """Everything that the page is made of."""

    images: Images
    classes: ClassTable
    """Classes of all images together, in the order of their ids."""
    areas: Mapping[tuple[str, str], float]
    """Total area by class and unit."""
    pixels: Mapping[str, int]
    """Total pixels of each class."""
    objects: ObjectSums
    fits: Mapping[str, Sequence[float]]
    """Numbers that were fitted or chosen for each image, by name, where each image has its own."""
    manifests: Sequence[Mapping[str, Any]]
    """What each finished run recorded, oldest first."""
    planned: Mapping[str, Any]
    """What an unfinished run planned. Empty: there is none."""


def collect(output: Output, open_runs: Sequence[str] = ()) -> Collected:
    """Read an output, of which `open_runs` have not finished. Raises `DamagedRecord` and
    `StoreError`.
    """
    manifests = output.manifests()
    rows = _concatenated(output.tables("images", [*_IMAGE_COLUMNS, *_DATES, MARGIN]))
    ids: list[str] = rows["image_id"].to_pylist()
    done = {
        image_id: number
        for number, (image_id, status) in enumerate(
            zip(ids, rows["status"].to_pylist(), strict=True)
        )
        if status == "ok"
    }
    classes, areas, pixels, shares = _areas(output, done, len(ids))
    dates, dates_from = _dates(rows)
    fits = _fits(output, done) if manifests and _fits_images(manifests[-1]) else {}
    return Collected(
        Images(ids, rows, shares, dates, dates_from),
        classes,
        areas,
        pixels,
        _objects(output, done),
        fits,
        manifests,
        _planned(output, open_runs),
    )


def _planned(output: Output, runs: Sequence[str]) -> Mapping[str, Any]:
    for run in runs[-1:]:
        found: Mapping[str, Any] = read_json(output.store, f"runs/{run}/plan.json", dict)
        return found
    return {}


def _concatenated(tables: Any) -> pa.Table:
    found = list(tables)
    if not found:
        return pa.table({name: pa.array([], pa.string()) for name in _IMAGE_COLUMNS})
    return pa.concat_tables(found, promote_options="permissive")


def _areas(
    output: Output, done: Mapping[str, int], images: int
) -> tuple[ClassTable, dict[tuple[str, str], float], dict[str, int], NDArray[np.float32]]:
    order: dict[str, int] = {}
    colours: dict[str, str | None] = {}
    areas: dict[tuple[str, str], float] = {}
    pixels = Counter[str]()
    found: list[tuple[NDArray[np.int64], str, NDArray[np.float32]]] = []
    for table in output.tables("areas", _AREA_COLUMNS):
        ours = table.filter(
            pc.is_in(table["image_id"], value_set=pa.array(list(done), pa.string()))
        )
        names = ours["class_name"].to_pylist()
        for name, number in zip(names, ours["class_id"].to_pylist(), strict=True):
            order.setdefault(name, number)
        if "colour" in ours.column_names:
            for name, colour in zip(names, ours["colour"].to_pylist(), strict=True):
                # Of the first image, where each has its own.
                colours[name] = colours.get(name) or colour
        for key, total in _sums(ours, ["class_name", "area_unit"], "area"):
            areas[key[0], key[1]] = areas.get((key[0], key[1]), 0.0) + total
        for key, total in _sums(ours, ["class_name"], "pixel_count"):
            pixels[key[0]] += int(total)
        for name in ours["class_name"].unique().to_pylist():
            of_class = ours.filter(pc.equal(ours["class_name"], name))
            where = np.array([done[each] for each in of_class["image_id"].to_pylist()], np.int64)
            fractions = of_class["fraction"].to_numpy(zero_copy_only=False).astype(np.float32)
            found.append((where, name, fractions))
    ordered = sorted(order, key=lambda name: (order[name], name))
    place = {name: number for number, name in enumerate(ordered)}
    shares = np.full((images, len(ordered)), np.nan, np.float32)
    for where, name, fractions in found:
        shares[where, place[name]] = fractions
    # A class that an image's model lacks has no pixel there.
    some = ~np.isnan(shares).all(axis=1, keepdims=True)
    shares = np.where(some & np.isnan(shares), 0, shares).astype(np.float32)
    table = ClassTable.recorded(ordered, map(colours.get, ordered))
    return table, areas, dict(pixels), shares


def _sums(table: pa.Table, keys: list[str], value: str) -> list[tuple[tuple[str, ...], float]]:
    sums = table.group_by(keys, use_threads=False).aggregate([(value, "sum")]).to_pylist()
    return [(tuple(row[key] for key in keys), row[f"{value}_sum"] or 0) for row in sums]


def _dates(rows: pa.Table) -> tuple[list[dt.date | None], str]:
    """The date of each image, from a column of the table or else from its name."""
    for column in _DATES:
        if column in rows.column_names and rows[column].null_count < len(rows):
            return [_date(value) for value in rows[column].to_pylist()], "the images' headers"
    found = [_date_in(name) for name in rows["image_id"].to_pylist()]
    known = [date for date in found if date is not None]
    # A number that looks like a date in a few names is none.
    if len(set(known)) < 3 or len(known) < 0.8 * len(found):
        return [None] * len(found), ""
    return found, "the images' names"


def _date(value: Any) -> dt.date | None:
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(str(value)[:10])
    except ValueError:
        return None


def _date_in(name: str) -> dt.date | None:
    """The date in a name.

    >>> _date_in("S2A_20260513T101031_T33"), _date_in("scan_20269999")
    (datetime.date(2026, 5, 13), None)
    """
    match = _DATE_IN_NAME.search(name)
    try:
        return dt.date(int(match[1]), int(match[3]), int(match[4])) if match else None
    except ValueError:
        return None


def _objects(output: Output, done: Mapping[str, int]) -> ObjectSums:
    sums = ObjectSums()
    known = pa.array(list(done), pa.string())
    for whole in output.tables("objects", _OBJECT_COLUMNS):
        table = whole.filter(pc.is_in(whole["image_id"], value_set=known))
        if not len(table):
            continue
        size = table["area"].to_numpy(zero_copy_only=False).astype(np.float64)
        positive = np.maximum(size, np.finfo(np.float64).tiny)
        table = table.append_column(
            "bin", pa.array(np.floor(np.log10(positive) * STEPS_PER_DECADE).astype(np.int64))
        )
        for (unit, name, each), number in _counts(table, ["area_unit", "class_name", "bin"]):
            sums.bins[unit, name, each] += number
            sums.counts[name] += number
        sums.of_image.update({key[0]: number for key, number in _counts(table, ["image_id"])})
        if "score" in table.column_names and table["score"].null_count < len(table):
            means = table.group_by("image_id", use_threads=False).aggregate([("score", "mean")])
            sums.scores.update(
                (row["image_id"], row["score_mean"])
                for row in means.to_pylist()
                if row["score_mean"] is not None
            )
        sums.largest += [
            LargeObject(
                row["image_id"],
                row["object_id"],
                row["class_name"],
                row["class_id"],
                row["area"],
                row["area_unit"],
                row.get("score"),
                (row["bbox_x0"], row["bbox_y0"], row["bbox_x1"], row["bbox_y1"]),
            )
            for row in table.take(np.argsort(-size, kind="stable")[:_LARGEST]).to_pylist()
        ]
        sums.largest = sorted(sums.largest, key=lambda each: -each.area)[:_LARGEST]
    return sums


def _counts(table: pa.Table, keys: list[str]) -> list[tuple[tuple[Any, ...], int]]:
    found = table.group_by(keys, use_threads=False).aggregate([([], "count_all")]).to_pylist()
    return [(tuple(row[key] for key in keys), row["count_all"]) for row in found]


def _fits_images(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest.get("settings", {}).get("fit") == "image")


def _fits(output: Output, done: Mapping[str, int]) -> dict[str, list[float]]:
    """Single numbers in the column `segmenter`, which differ between images."""
    fits: dict[str, list[float]] = {}
    read = 0
    for table in output.tables("images", ["image_id", "segmenter"]):
        for row in table.to_pylist():
            if row["image_id"] not in done or read >= _MOST_FITTED:
                continue
            read += 1
            try:
                found = json.loads(row["segmenter"])
            except (TypeError, ValueError):
                continue
            for key, value in found.items() if isinstance(found, dict) else ():
                only = value[0] if isinstance(value, list) and len(value) == 1 else value
                number = isinstance(only, int | float) and not isinstance(only, bool)
                if number and key not in _COUNTS:
                    fits.setdefault(key, []).append(float(only))
    return {key: values for key, values in fits.items() if len(set(values)) > 1}
