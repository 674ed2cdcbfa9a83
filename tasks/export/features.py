"""Masks as features: connected parts of classes, or objects with their rows of the table.

Outlines follow the edges of pixels exactly, whatever the tiles by which a mask is read. Images are
taken one after the other, so memory grows with the outlines of one image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.ground.lonlat import NO_SPACING, is_located, vertex_spacing
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.colours import Colour
from maskloom.segcore.statistics.objects.outlines import Outlines, find_rings, trace_outlines
from maskloom.segcore.statistics.objects.polygons import geometries
from maskloom.tasks.export.request import Exported, counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.statistics.objects.outlines import Rings
    from maskloom.tasks.output import Layer, Output

Coordinates = Literal["degrees", "map", "pixels"]
"""Longitude and latitude or, without a CRS, pixels of the mask; the CRS of the image or, without
one, pixels of the mask; pixels of full resolution.
"""
_TILE = 2048
_RING = 2
_NAMED = 5
"""Images that a note names."""
_OBJECT = "object"
_GEOMETRY = frozenset({"geometry", "bbox"})
_LEFT_OUT = frozenset({"run_id", "image_id", "fingerprint", *_GEOMETRY})
"""Columns of the table of objects that are no measure."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose mask has outlines."""

    row: Mapping[str, Any]
    """Its row in the table `images`."""
    mask: RasterSpec
    scale: tuple[float, float]
    """Width and height of a pixel of the mask in pixels of full resolution."""
    holds_objects: bool

    @property
    def image_id(self) -> str:
        """Its name."""
        return str(self.row["image_id"])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of full resolution."""
        height, width = self.mask.shape
        return round(width * self.scale[0]), round(height * self.scale[1])

    @property
    def crs(self) -> str | None:
        """As WKT, where pixels have a place in it."""
        return self.mask.space.crs if is_located(self.mask.space) else None


@dataclass(frozen=True, slots=True)
class Feature:
    """A connected part of a class, or an object."""

    geometry: Any
    """A shapely Polygon or MultiPolygon. None: it has no coordinates, see docs/objects.md."""
    class_id: int
    class_name: str
    colour: Colour
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Of an object: its row of the table, without keys and geometry."""


class Features:
    """The features of an output."""

    def __init__(self, output: Output) -> None:
        """Raises `RecipeError` if there are none, and `StoreError`."""
        self._output = output
        self.images: list[Image] = []
        self.passed_over: list[str] = []
        """Images without outlines: failed ones and volumes."""
        for row in output.images().to_pylist():
            image = self._image(row) if row["status"] == "ok" else None
            if image is None:
                self.passed_over.append(row["image_id"])
            else:
                self.images.append(image)
        if not self.images:
            raise RecipeError(f"{output.store.root} has no mask of an image, only volumes or none.")
        self._classes = _classes(output)
        self._rows = _ObjectRows(output)

    @property
    def names(self) -> list[str]:
        """Names of all classes, each once, in their order."""
        found = {
            (number, name)
            for image in self.images
            for number, (name, _) in self._classes[image.image_id].items()
        }
        return list(dict.fromkeys(name for _, name in sorted(found)))

    @property
    def measures(self) -> list[pa.Field]:
        """Columns of the measures of objects."""
        objects = any(image.holds_objects for image in self.images)
        return self._rows.measures if objects else []

    def of(self, image: Image, coordinates: Coordinates) -> Iterator[Feature]:
        """The features of an image, in the order of their class or id."""
        labels, rings = self._traced(image, coordinates)
        if not len(labels):
            return
        shapes = _placed(rings, image, coordinates)
        classes = self._classes[image.image_id]
        rows = self._rows.of(image.image_id) if image.holds_objects else {}
        for label, shape in zip(labels.tolist(), shapes, strict=True):
            if not image.holds_objects:
                yield Feature(shape, label - 1, *classes[label - 1])
                continue
            measures = rows.get(label, {"object_id": label})
            class_id = measures.get("class_id", max(classes, default=1))
            name, colour = classes.get(class_id) or (
                measures.get("class_name", _OBJECT),
                ClassTable.of((_OBJECT,)).colours[0],
            )
            yield Feature(shape, class_id, name, colour, measures)

    def exported(self, location: str, count: int) -> Exported:
        """What is said of them when they are written."""
        summary = f"{counted(count, 'polygon')} of {counted(len(self.images), 'image')}"
        if not self.passed_over:
            return Exported(location, summary)
        some = ", ".join(self.passed_over[:_NAMED])
        more = len(self.passed_over) - _NAMED
        left_out = f"{counted(len(self.passed_over), 'image')} without outlines left out: {some}"
        return Exported(
            location, summary, (f"{left_out} and {more} more." if more > 0 else f"{left_out}.",)
        )

    def _image(self, row: Mapping[str, Any]) -> Image | None:
        mask = self._output.mask_spec(row["image_id"])
        if len(mask.shape) != len("yx"):
            return None
        reduction = self._output.source_spec(row["image_id"]).reduction[-2:] or (1.0, 1.0)
        return Image(row, mask, (reduction[1], reduction[0]), holds_object_ids(mask))

    def _traced(self, image: Image, coordinates: Coordinates) -> tuple[NDArray[np.int64], Rings]:
        """Rings, whose owners are features, and the label of each: the id of an object, or that of
        a class and 1.
        """
        bent = coordinates == "degrees" and image.crs is not None
        spacing = vertex_spacing(image.mask.space, image.mask.shape) if bent else NO_SPACING
        end = 2**32 if image.holds_objects else max(self._classes[image.image_id]) + 1
        with self._output.mask(image.image_id) as mask:
            labels, outlines = _trace(mask, end, 0 if image.holds_objects else 1, spacing)
        rings = find_rings(outlines)
        if image.holds_objects:
            return labels, rings
        # Each part of a class is a feature.
        return labels[rings.owner[rings.exterior]], replace(
            rings, owner=np.cumsum(rings.exterior) - 1
        )


class _ObjectRows:
    """Rows of the table `objects` by image, with one of its files in memory."""

    def __init__(self, output: Output) -> None:
        self._store = output.store
        self._files: dict[str, list[str]] = defaultdict(list)
        self._read: tuple[str, Any] = ("", None)
        schemas = []
        for name in output.store.names("tables/objects", ".parquet"):
            for image in pc.unique(self._table(name)["image_id"]).to_pylist():
                self._files[image].append(name)
            schemas.append(self._table(name).schema.remove_metadata())
        found = pa.unify_schemas(schemas, promote_options="permissive") if schemas else ()
        self.measures = [each for each in found if each.name not in _LEFT_OUT]

    def of(self, image_id: str) -> dict[int, dict[str, Any]]:
        """The row of each object by its id."""
        found: dict[int, dict[str, Any]] = {}
        for name in self._files.get(image_id, ()):
            table = self._table(name)
            kept = [each for each in table.column_names if each not in _LEFT_OUT]
            rows = table.filter(pc.equal(table["image_id"], image_id)).select(kept)
            found.update({row["object_id"]: row for row in rows.to_pylist()})
        return found

    def _table(self, name: str) -> pa.Table:
        from maskloom.segcore.storage.records import read_table

        if self._read[0] != name:
            table = read_table(self._store, name)
            kept = [each for each in table.column_names if each not in _GEOMETRY]
            self._read = (name, table.select(kept))
        return self._read[1]


def _classes(output: Output) -> dict[str, dict[int, tuple[str, Colour]]]:
    """Name and colour of each class of each image."""
    found: dict[str, dict[int, tuple[str, Colour]]] = defaultdict(dict)
    columns = ["image_id", "class_id", "class_name", "colour"]
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in output.areas(columns).to_pylist():
        rows[row["image_id"]].append(row)
    for image, own in rows.items():
        own.sort(key=lambda row: row["class_id"])
        table = ClassTable.recorded(
            [row["class_name"] for row in own], [row.get("colour") for row in own]
        )
        for row, name, colour in zip(own, table.names, table.colours, strict=True):
            found[image][row["class_id"]] = (name, colour)
    return found


def _trace(mask: Layer, end: int, first: int, spacing: int) -> tuple[NDArray[np.int64], Outlines]:
    """The outlines of the values below `end` plus `first`, and that sum of each; 0 has none."""
    shape = mask.spec.shape
    labels, found = [np.zeros(0, np.int64)], [Outlines.none(0)]
    for tile in Grid(shape, (_TILE, _TILE)):
        around = tile.core.grow((_RING, _RING))
        inside = around & Box.whole(shape)
        values, known = mask.read(inside)
        values = values.astype(np.int64)
        values = np.where(known & (values < end), values + first, 0)
        # Ids that occur in this tile get numbers of their own: an image may have millions.
        own, numbers = np.unique(values, return_inverse=True)
        own, shift = (own, 0) if own[0] == 0 else (np.insert(own, 0, 0), 1)
        window = np.zeros(around.shape, np.uint32)
        window[inside.relative_to(around).slices] = numbers.reshape(values.shape) + shift
        outlines = trace_outlines(window, len(own), tile.core.start, spacing)
        drawn = np.flatnonzero(outlines.chains)
        labels.append(own[drawn])
        found.append(outlines.take(drawn))
    owners = np.concatenate(labels)
    if not len(owners):
        return owners, Outlines.none(0)
    order = np.argsort(owners, kind="stable")
    distinct, starts = np.unique(owners[order], return_index=True)
    return distinct, Outlines.concatenate(found).take(order).grouped(starts)


def _placed(rings: Rings, image: Image, coordinates: Coordinates) -> NDArray[Any]:
    import shapely

    if coordinates == "degrees":
        return geometries(rings, image.mask.space)
    shapes = geometries(rings, Space())
    if coordinates == "pixels":
        return np.asarray(shapely.transform(shapes, lambda points: points * image.scale))
    if image.crs is None or image.mask.space.affine is None:
        return shapes
    a, b, c, d, e, f = image.mask.space.affine
    matrix, shift = np.array([[a, d], [b, e]]), np.array([c, f])
    placed = shapely.transform(shapes, lambda points: points @ matrix + shift)
    return np.asarray(shapely.orient_polygons(placed))
