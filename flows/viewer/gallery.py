"""The images of an output as the page asks for them: a list, facts of one, and what is opened.

Images are named by their ids in the tables, and by nothing else. The last few that were looked at
stay open.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lengths import steps_at, unit_of_length
from maskloom.segcore.ground.lonlat import is_located
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import hexadecimal
from maskloom.segcore.viewing.pictures import Limits, limits_of
from maskloom.segcore.viewing.pyramids import Pyramid
from maskloom.segcore.viewing.volumes import Plane, Volume, planes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.colours import Colour
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.tasks.output import Output

_OPEN = 3
"""Images that stay open."""
_SAMPLE = 512
"""Longest side of the level from which the contrast is chosen."""
_ROWS_OF_SCALE = 17
_LIST_COLUMNS = ("image_id", "status", "error", "error_type", "width", "height", "depth")
_HIDDEN_COLUMNS = ("geometry", "bbox", "run_id", "image_id", "fingerprint")


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of an image: colours, and rows for the legend."""

    colours: tuple[Colour, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(slots=True)
class Opened:
    """An image that is being looked at. Its source may be missing, for files move."""

    image_id: str
    row: Mapping[str, Any]
    spec: RasterSpec
    """Of the source; of the mask if the source cannot be read."""
    source: Pyramid | Volume | None
    mask: Pyramid | Volume
    limits: Limits
    span: tuple[float, float]
    """Least and greatest number in the shown bands, as far as a sample shows."""
    classes: Classes
    has_objects: bool
    """Whether the mask holds ids of objects."""
    note: str = ""
    """Why the source is not shown."""

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes of a volume; none of an image."""
        return planes_of(self.spec) if len(self.spec.shape) > 2 else ()

    def close(self) -> None:
        """Close its files."""
        for each in (self.source, self.mask):
            if isinstance(each, Pyramid):
                each.close()


@dataclass(slots=True)
class Gallery:
    """The images of an output."""

    output: Output
    _list: pa.Table | None = None
    _opened: dict[tuple[str, tuple[int, ...]], Opened] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _opening: dict[tuple[str, tuple[int, ...]], threading.Lock] = field(default_factory=dict)
    progress: dict[str, float] = field(default_factory=dict)
    """The done share of the levels that are being built, by image."""

    # ---- list

    def refresh(self) -> None:
        """Read the list of images again: runs may have added some."""
        self._list = self.output.images(_LIST_COLUMNS).sort_by("image_id")

    @property
    def images(self) -> pa.Table:
        """One row per image, by id."""
        if self._list is None:
            self.refresh()
        assert self._list is not None
        return self._list

    def page(self, start: int, count: int, search: str = "") -> dict[str, Any]:
        """Some rows of the list, the number of all that contain a text, and of those that
        failed.
        """
        found, place = self.images, pa.array(range(len(self.images)), pa.int64())
        if search:
            wanted = pc.match_substring(found["image_id"], search, ignore_case=True)
            found, place = found.filter(wanted), place.filter(wanted)
        rows = found.slice(start, count).to_pylist()
        shares = self._shares([row["image_id"] for row in rows])
        places = place.slice(start, count).to_pylist()
        return {
            "total": len(found),
            "failed": int(pc.sum(pc.equal(self.images["status"], "failed")).as_py() or 0),
            "images": [
                {**row, "place": at, "shares": shares.get(row["image_id"], [])}
                for row, at in zip(rows, places, strict=True)
            ],
        }

    def place(self, image_id: str) -> int:
        """The place of an image in the list. Raises `KeyError`."""
        found: int = pc.index(self.images["image_id"], image_id).as_py()
        if found < 0:
            raise KeyError(image_id)
        return found

    def _shares(self, image_ids: Sequence[str]) -> dict[str, list[Any]]:
        """Colour and share of each class with pixels, by image."""
        table = self.output.areas(None, of=set(image_ids))
        if not table.num_columns:
            return {}
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            rows.setdefault(row["image_id"], []).append(row)
        return {
            image_id: [
                (each["colour"], each["fraction"])
                for each in _classes(of_image).rows
                if each["fraction"]
            ]
            for image_id, of_image in rows.items()
        }

    # ---- one image

    def opened(self, image_id: str, bands: tuple[int, ...] = ()) -> Opened:
        """An image, opened with some of its bands; none: the first three. Raises `KeyError` if it
        is not in the table, and `MaskloomError`.
        """
        key = (image_id, bands)
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:
            with self._lock:
                if key in self._opened:
                    self._opened[key] = self._opened.pop(key)
                    return self._opened[key]
            self.place(image_id)
            found = self._open(image_id, bands)
            with self._lock:
                self._opened[key] = found
                surplus = list(self._opened)[:-_OPEN]
                old = [self._opened.pop(each) for each in surplus]
        for each in old:
            each.close()
        return found

    def _open(self, image_id: str, bands: tuple[int, ...]) -> Opened:
        row = self.output.image(image_id)
        mask_spec = self.output.mask_spec(image_id)
        rows = self.output.areas(None, of={image_id}).to_pylist()
        spec, note, source = mask_spec, "", None
        try:
            spec = self.output.source_spec(image_id)
            if spec.shape != mask_spec.shape:
                raise MaskloomError(
                    f"{row['uri']} has the shape {spec.shape}, its mask {mask_spec.shape}."
                )
            chosen = bands or spec.bands[: 3 if len(spec.bands) >= 3 else 1]
            source = self._read(image_id, spec.select(chosen), "source")
            sample, valid = _sample(source)
        except (MaskloomError, OSError) as error:
            note = f"The source cannot be shown: {error}"
        if source is None or note:
            source, sample, valid = None, np.zeros((1, 1, 1), np.uint8), np.ones((1, 1), np.bool_)
        mask = self._read(image_id, mask_spec, "mask")
        self.progress.pop(image_id, None)
        known = sample[valid].astype(np.float64)
        span = (float(known.min()), float(known.max())) if known.size else (0.0, 255.0)
        together = spec.interpretation == "rgb" and sample.shape[-1] == 3
        return Opened(
            image_id,
            row,
            spec,
            source,
            mask,
            limits_of(sample, valid, together=together),
            span,
            _classes(rows),
            holds_object_ids(mask_spec),
            note,
        )

    def _read(self, image_id: str, spec: RasterSpec, kind: Any) -> Pyramid | Volume:
        def report(done: float) -> None:
            self.progress[image_id] = done

        if len(spec.shape) > 2:
            return Volume.read(spec, kind, report)
        return Pyramid.open(spec, kind, report)

    def facts(self, image_id: str, bands: tuple[int, ...] = ()) -> dict[str, Any]:
        """What the page shows of an image. A failed one has its reason only. Raises `KeyError`, and
        `MaskloomError`.
        """
        place = self.place(image_id)
        around = {
            "image_id": image_id,
            "place": place,
            "count": len(self.images),
            "before": _id_at(self.images, place - 1),
            "after": _id_at(self.images, place + 1),
        }
        row = self.output.image(image_id)
        if row["status"] == "failed":
            return {**around, "failed": row["error"], "error_type": row["error_type"]}
        image = self.opened(image_id, bands)
        spec, source = image.spec, image.source
        pyramid = image.mask if isinstance(image.mask, Pyramid) else None
        return {
            **around,
            "uri": row["uri"],
            "warning": row.get("warning"),
            "note": image.note,
            "shape": spec.shape,
            "dtype": spec.dtype if source is not None else "",
            "bands": spec.file_bands,
            "shown": list(source.spec.bands) if source is not None else [],
            "crs": row["crs"],
            "located": is_located(spec.space),
            "levels": pyramid.count if pyramid is not None else 0,
            "planes": [_plane_facts(each, spec) for each in image.planes],
            "limits": image.limits,
            "span": image.span,
            "scale": _scale(spec),
            "version": row["mask_sha256"][:16],
            "objects": image.has_objects,
            "classes": image.classes.rows,
            "nodata": row["nodata_pixels"] / max(1, row["total_pixels"]),
            "segmenter": _kind_of(row["segmenter"]),
        }

    def object_at(
        self, image: Opened, position: Sequence[int], label: int
    ) -> tuple[dict[str, Any], bytes | None] | None:
        """The row of the object at a pixel (array order) with this label, and its geometry. None:
        there is none in the table.
        """
        table = self._objects_around(image, position, label)
        if table is None or not len(table):
            return None
        rows = table.sort_by("pixel_count").to_pylist()
        row = rows[0] if image.has_objects else _containing(rows, image.spec, position)
        if row is None:
            return None
        kept = {
            key: value
            for key, value in row.items()
            if key not in _HIDDEN_COLUMNS and value is not None
        }
        return kept, row.get("geometry")

    def _objects_around(
        self, image: Opened, position: Sequence[int], label: int
    ) -> pa.Table | None:
        parts = []
        for table in self.output.tables("objects"):
            wanted = pc.equal(table["image_id"], image.image_id)
            if image.has_objects:
                wanted = pc.and_(wanted, pc.equal(table["object_id"], label))
            else:
                wanted = pc.and_(wanted, pc.equal(table["class_id"], label))
                for axis, at in zip("zyx"[-len(position) :], position, strict=True):
                    if f"bbox_{axis}0" not in table.column_names:
                        continue
                    inside = pc.and_(
                        pc.less_equal(table[f"bbox_{axis}0"], at),
                        pc.greater(table[f"bbox_{axis}1"], at),
                    )
                    wanted = pc.and_(wanted, pc.fill_null(inside, False))
            parts.append(table.filter(wanted))
        return pa.concat_tables(parts, promote_options="permissive") if parts else None

    def close(self) -> None:
        """Close all images."""
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for each in opened:
            each.close()


def _id_at(images: pa.Table, place: int) -> str | None:
    return images["image_id"][place].as_py() if 0 <= place < len(images) else None


def _kind_of(segmenter: str | None) -> str:
    try:
        found = json.loads(segmenter or "{}")
    except ValueError:
        return ""
    return str(found.get("kind", "")) if isinstance(found, dict) else ""


def _sample(source: Pyramid | Volume) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The pixels from which the contrast is chosen: of a coarse level, or of some slices."""
    if isinstance(source, Volume):
        every = tuple(max(1, n // 64) for n in source.spec.shape)
        place = tuple(slice(None, None, step) for step in every)
        sample = np.asarray(source.voxels[place])
        return sample.reshape(1, -1, sample.shape[-1]), np.asarray(source.valid[place]).reshape(
            1, -1
        )
    level = max(0, math.ceil(math.log2(max(1.0, max(source.spec.shape) / _SAMPLE))))
    return source.read(level, Box.whole(source.shape(level)))


def _classes(rows: Sequence[Mapping[str, Any]]) -> Classes:
    """The classes from the rows of the table `areas`."""
    ordered = sorted(rows, key=lambda row: row["class_id"])
    names = tuple(row["class_name"] for row in ordered)
    colours = ClassTable.recorded(names, [row.get("colour") for row in ordered]).colours
    count = max((row["class_id"] for row in ordered), default=-1) + 1
    table: list[Colour] = [(128, 128, 128)] * count
    for row, colour in zip(ordered, colours, strict=True):
        table[row["class_id"]] = colour
    return Classes(
        tuple(table),
        tuple(
            {
                "id": row["class_id"],
                "name": row["class_name"],
                "colour": hexadecimal(colour),
                "pixels": row["pixel_count"],
                "fraction": row["fraction"],
                "area": row["area"],
                "unit": row["area_unit"],
                "background": row["class_name"].lower() in BACKGROUND_NAMES,
            }
            for row, colour in zip(ordered, colours, strict=True)
        ),
    )


def _plane_facts(plane: Plane, spec: RasterSpec) -> dict[str, Any]:
    metric = spec.space.metric
    sizes = metric.millimetres if metric is not None else (1.0,) * len(spec.shape)
    return {
        "name": plane.name,
        "across": plane.across,
        **{
            side: {
                "axis": axis.axis,
                "flipped": axis.flipped,
                "first": axis.first,
                "last": axis.last,
                "length": spec.shape[axis.axis],
                "size": sizes[axis.axis],
            }
            for side, axis in (("rows", plane.rows), ("columns", plane.columns))
        },
    }


def _scale(spec: RasterSpec) -> dict[str, Any]:
    """The unit of length, and how long a step along a row is at some rows, evenly spaced; None
    where that is not known.
    """
    space, unit = spec.space, unit_of_length(spec.space)
    height, width = spec.shape[-2:]
    rows = np.linspace(0, height - 1, _ROWS_OF_SCALE)
    if not is_located(space):
        step = 1.0 if space.metric is None else space.metric.millimetres[-1]
        return {"unit": unit, "steps": [step]}
    places = np.stack([rows, np.full(len(rows), (width - 1) / 2)], axis=1)
    lengths = np.linalg.norm(steps_at(space, places)[:, 1], axis=1)
    return {"unit": unit, "steps": [float(n) if np.isfinite(n) else None for n in lengths]}


def _containing(
    rows: Sequence[dict[str, Any]], spec: RasterSpec, position: Sequence[int]
) -> dict[str, Any] | None:
    """The smallest object whose outline contains a pixel; without outlines, the only one around
    it.
    """
    import shapely

    from maskloom.segcore.ground.lonlat import to_lonlat

    if not any(row.get("geometry") for row in rows):
        return rows[0] if len(rows) == 1 else None
    middle = [np.array([float(each) + 0.5]) for each in position[-1:-3:-1]]
    x, y = to_lonlat(spec.space, *middle)
    for row in rows:
        if row.get("geometry") and shapely.contains_xy(
            shapely.from_wkb(row["geometry"]), x[0], y[0]
        ):
            return row
    return None
