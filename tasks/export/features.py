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
import pyarrow.parquet as pq

from maskloom.segcore.annotations.masks import holds_object_ids, open_mask
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.ground.lonlat import NO_SPACING, is_located, vertex_spacing
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.colours import Colour
from maskloom.segcore.statistics.objects.outlines import Outlines, find_rings, trace_outlines
from maskloom.segcore.statistics.objects.polygons import geometries
from maskloom.segcore.storage.records import record_errors
from maskloom.tasks.export.request import Exported, counted
from maskloom.tasks.output import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.statistics.objects.outlines import Rings
    from maskloom.tasks.output import Output

Coordinates = Literal["degrees", "map", "pixels"]
"""Longitude and latitude or, without a CRS, pixels of the mask; the CRS of the image or, without
one, pixels of the mask; pixels of full resolution.
"""
_TILE = 2048
_ROWS = 8192
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
        objects = any(image.holds_objects for image in self.images)
        self.measures = _measures(output) if objects else []
        """Columns of the measures of objects."""

    @property
    def names(self) -> list[str]:
        """Names of all classes, each once, in their order."""
        found = {
            (number, name)
            for image in self.images
            for number, (name, _) in self._classes[image.image_id].items()
        }
        return list(dict.fromkeys(name for _, name in sorted(found)))

    def of(self, image: Image, coordinates: Coordinates) -> Iterator[Feature]:
        """The features of an image, in the order of their class or id."""
        labels, rings = self._traced(image, coordinates)
        if not len(labels):
            return
        shapes = _placed(rings, image, coordinates)
        classes = self._classes[image.image_id]
        if not image.holds_objects:
            for label, shape in zip(labels.tolist(), shapes, strict=True):
                yield Feature(shape, label - 1, *classes[label - 1])
            return
        plain = ClassTable.of((_OBJECT,)).colours[0]
        for row, shape in zip(self._measured(image, labels), shapes, strict=True):
            class_id = row.get("class_id", max(classes, default=1))
            name, colour = classes.get(class_id) or (row.get("class_name", _OBJECT), plain)
            yield Feature(shape, class_id, name, colour, row)

    def _measured(self, image: Image, ids: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The row of each object with these ids, some thousands in memory."""
        columns = [each.name for each in self.measures]
        table = self._output.objects_of(image.image_id, columns)
        for start in range(0, len(ids), _ROWS):
            some = ids[start : start + _ROWS]
            rows: list[dict[str, Any]] = [{}] * len(some)
            if "object_id" in table.column_names:
                known = table["object_id"].combine_chunks()
                found = pc.index_in(pa.array(some, known.type), value_set=known)
                rows = table.take(found).to_pylist()
            for number, row in zip(some.tolist(), rows, strict=True):
                yield row if row.get("object_id") == number else {"object_id": number}

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
        mask = self._output.mask_spec(row)
        if len(mask.shape) != len("yx"):
            return None
        reduction = self._output.source_spec(row).reduction[-2:] or (1.0, 1.0)
        return Image(row, mask, (reduction[1], reduction[0]), holds_object_ids(mask))

    def _traced(self, image: Image, coordinates: Coordinates) -> tuple[NDArray[np.int64], Rings]:
        """Rings, whose owners are features, and the label of each: the id of an object, or that of
        a class and 1.
        """
        bent = coordinates == "degrees" and image.crs is not None
        spacing = vertex_spacing(image.mask.space, image.mask.shape) if bent else NO_SPACING
        end = 2**32 if image.holds_objects else max(self._classes[image.image_id]) + 1
        with Layer(image.mask, open_mask(image.mask, "index")) as mask:
            labels, outlines = _trace(mask, end, 0 if image.holds_objects else 1, spacing)
        rings = find_rings(outlines)
        if image.holds_objects:
            return labels, rings
        # Each part of a class is a feature.
        return labels[rings.owner[rings.exterior]], replace(
            rings, owner=np.cumsum(rings.exterior) - 1
        )


def _measures(output: Output) -> list[pa.Field]:
    schemas = []
    for name in output.store.names("tables/objects", ".parquet"):
        with record_errors(output.store, name), output.store.open(name) as file:
            schemas.append(pq.read_schema(file).remove_metadata())
    found = pa.unify_schemas(schemas, promote_options="permissive") if schemas else ()
    return [each for each in found if each.name not in _LEFT_OUT]


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
