"""Zones: how much of each class is in each polygon of a file, such as a parcel.

A pixel on the border of a zone counts with the share of it that is inside, computed exactly by
exactextract (Baston 2024, ISciences). Polygons are taken into the columns and rows of the image, so
any affine grid and CRS will do; the area of a pixel is its true one.

Shares are rounded to integers of 2**-30, and areas to 2**-30 of a nominal pixel, so that sums do
not depend on the order of tiles. Overlapping zones count a pixel each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskloom.segcore.geometry import Box
from maskloom.segcore.statistics.protocol import LabelledTile
from maskloom.segcore.storage.local_copies import local_copy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec

    Bounds = tuple[float, float, float, float]

NUMBER = "maskloom_zone"
"""Attribute of prepared files: the number of a feature in the order of the user's file."""
PREFIX = "zone_"
"""Of the columns that carry attributes."""
TYPES: Mapping[str, pa.DataType] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
_QUANTA = 2.0**30
_PIXELS_PER_EDGE = 32
"""Longest piece of an edge, in pixels, that stays straight where the CRSs differ."""
_TURNS = (0.0, 360.0, -360.0)
_NOTHING = (np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True, slots=True)
class Zones:
    """Area and pixels of each class in each zone: one row per image, zone that meets it, and class.

    The fields describe a prepared file (`tasks.zones`).
    """

    file: str
    """URI of a FlatGeobuf file with a spatial index."""
    sha256: str
    """Digest of the user's file."""
    crs: str
    attributes: tuple[tuple[str, str], ...] = ()
    """Name and type (in `TYPES`) of each attribute that is carried."""

    @property
    def table(self) -> str:
        """Name of its table."""
        return "zones"

    @property
    def schema(self) -> pa.Schema:
        """Columns after `run_id` and `image_id`."""
        return pa.schema(
            [
                pa.field("zone", pa.int64(), nullable=False),
                *(pa.field(PREFIX + name, TYPES[kind]) for name, kind in self.attributes),
                pa.field("class_id", pa.int32()),
                pa.field("class_name", pa.string()),
                pa.field("pixels", pa.float64(), nullable=False),
                pa.field("area", pa.float64(), nullable=False),
                pa.field("area_unit", pa.string(), nullable=False),
                pa.field("fraction", pa.float64()),
            ]
        )

    def observe(self, labelled: LabelledTile, /) -> dict[str, Any]:
        """The sums of the zones that meet one tile, by number of the zone."""
        spec, core = labelled.spec, labelled.tile.core
        space = spec.space
        if space.affine is None or space.crs is None or len(spec.shape) != len("yx"):
            return {}
        classes = len(labelled.class_table.names)
        index = np.minimum(labelled.values, classes).astype(np.int64)
        area = np.broadcast_to(np.asarray(space.cell_size(core, spec.shape)), core.shape)
        area = area * (_QUANTA / _unit(space))
        found: dict[str, Any] = {}
        for number, attributes, polygons in self._polygons(spec, core):
            covered = [_coverage(polygon, core) for polygon in polygons]
            cells, share = (np.concatenate(each) for each in zip(_NOTHING, *covered, strict=True))
            if not len(cells):
                continue
            place = index.ravel()[cells]
            found[str(number)] = {
                "attributes": attributes,
                "pixels": _sums(place, share * _QUANTA, classes + 1),
                "areas": _sums(place, share * area.ravel()[cells], classes + 1),
            }
        return found

    def merge(self, a: dict[str, Any], b: dict[str, Any], /) -> dict[str, Any]:
        """The sums of two tiles."""
        merged = dict(a)
        for number, theirs in b.items():
            ours = merged.get(number)
            merged[number] = (
                theirs
                if ours is None
                else {
                    "attributes": ours["attributes"],
                    **{
                        key: [m + n for m, n in zip(ours[key], theirs[key], strict=True)]
                        for key in ("pixels", "areas")
                    },
                }
            )
        return merged

    def finish(
        self, total: dict[str, Any] | None, /, spec: RasterSpec, class_table: ClassTable
    ) -> list[dict[str, Any]]:
        """One row per zone and class, and one for pixels without data where there are some, with
        neither class nor fraction. `fraction` is the share of the zone's pixels with a class.
        """
        rows = []
        for number, sums in sorted((total or {}).items(), key=lambda item: int(item[0])):
            carried = {
                PREFIX + name: value
                for (name, _), value in zip(self.attributes, sums["attributes"], strict=True)
            }
            known = sum(sums["areas"][:-1])
            names = [*enumerate(class_table.names), (None, None)]
            for (i, name), pixels, area in zip(names, sums["pixels"], sums["areas"], strict=True):
                if i is None and not pixels:
                    continue
                rows.append(
                    {
                        "zone": int(number),
                        **carried,
                        "class_id": i,
                        "class_name": name,
                        "pixels": pixels / _QUANTA,
                        "area": area / (_QUANTA / _unit(spec.space)),
                        "area_unit": spec.space.unit,
                        "fraction": area / known if i is not None and known else None,
                    }
                )
        return rows

    def _polygons(self, spec: RasterSpec, core: Box) -> Iterator[tuple[int, list[Any], list[Any]]]:
        """Number, attributes and polygons (in columns and rows) of each zone that may meet a box of
        an image.
        """
        import pyogrio
        import shapely

        path = local_copy(self.file, self.sha256)
        grid = _Grid.of(self.crs, spec)
        names = [name for name, _ in self.attributes]
        seen = set()
        for bounds in grid.windows(core):
            _, _, geometries, columns = pyogrio.raw.read(
                path, columns=[NUMBER, *names], bbox=bounds
            )
            for row, number in enumerate(columns[0].tolist()):
                if number in seen:
                    continue
                seen.add(number)
                polygons = [*grid.on_image(shapely.from_wkb(geometries[row]), core)]
                yield number, [_plain(column[row]) for column in columns[1:]], polygons


@dataclass(frozen=True, slots=True)
class _Grid:
    """The grid of an image, seen from the CRS of the zones."""

    forth: Any
    """From the zones' CRS to the image's."""
    affine: tuple[float, ...]
    degrees: bool
    """Whether the image's CRS counts in degrees."""
    zones_in_degrees: bool
    same: bool
    """Whether both CRSs are one."""
    edge: float
    """Longest edge of a polygon that stays straight, in the zones' CRS."""

    @classmethod
    def of(cls, crs: str, spec: RasterSpec) -> _Grid:
        """The grid of an image, for zones in this CRS."""
        assert spec.space.crs is not None
        assert spec.space.affine is not None
        return _grid(crs, spec.space.crs, spec.space.affine, spec.shape)

    def windows(self, core: Box) -> list[Bounds]:
        """Bounds in the zones' CRS that contain the box."""
        corners = [
            (x, y) for y in (core.start[0], core.stop[0]) for x in (core.start[1], core.stop[1])
        ]
        a, b, c, d, e, f = self.affine
        x = [a * column + b * row + c for column, row in corners]
        y = [d * column + e * row + f for column, row in corners]
        bounds = (min(x), min(y), max(x), max(y))
        left, bottom, right, top = self.forth.transform_bounds(
            *bounds, direction="INVERSE", densify_pts=21
        )
        if not all(map(math.isfinite, (left, bottom, right, top))):
            return [(-math.inf, -math.inf, math.inf, math.inf)]
        margin = 0.02 * (top - bottom) + 1e-9
        spans = [(left, right)] if left <= right else [(left, 180.0), (-180.0, right)]
        turns = _TURNS if self.zones_in_degrees else (0.0,)
        return [
            (first + turn - margin, bottom - margin, last + turn + margin, top + margin)
            for first, last in spans
            for turn in turns
        ]

    def on_image(self, polygon: Any, core: Box) -> Iterator[Any]:
        """The polygon in columns and rows if it meets the box; several times if it does so after
        turns around the globe, as polygons that are cut at the antimeridian do.
        """
        import shapely

        if not self.same:
            polygon = shapely.segmentize(polygon, self.edge)
            polygon = shapely.transform(polygon, self.forth.transform, interleaved=False)
        box = shapely.box(core.start[1], core.start[0], core.stop[1], core.stop[0])
        for turn in _TURNS if self.degrees else (0.0,):
            placed = shapely.transform(polygon, lambda xy, turn=turn: self._pixels(xy, turn))
            if not placed.is_valid:
                placed = shapely.make_valid(placed)
            if shapely.intersects(placed, box):
                yield placed

    def _pixels(self, xy: NDArray[np.float64], turn: float) -> NDArray[np.float64]:
        a, b, c, d, e, f = self.affine
        moved = np.array([xy[:, 0] + turn - c, xy[:, 1] - f])
        return np.linalg.solve([[a, b], [d, e]], moved).T


@lru_cache(64)
def _grid(crs: str, image_crs: str, affine: tuple[float, ...], shape: Sequence[int]) -> _Grid:
    from pyproj import CRS, Transformer

    theirs, ours = CRS.from_user_input(crs), CRS.from_user_input(image_crs)
    forth = Transformer.from_crs(theirs, ours, always_xy=True)
    a, b, c, d, e, f = affine
    row, column = (0.5 * side for side in shape)
    x = a * (column + np.array([0, 1])) + b * row + c
    y = d * (column + np.array([0, 1])) + e * row + f
    there = forth.transform(x, y, direction="INVERSE")
    pixel = float(np.hypot(*(np.diff(each)[0] for each in there)))
    edge = _PIXELS_PER_EDGE * pixel if math.isfinite(pixel) and pixel else math.inf
    return _Grid(
        forth, affine, ours.is_geographic, theirs.is_geographic, theirs.equals(ours, True), edge
    )


def _coverage(polygon: Any, core: Box) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pixels of a box that a polygon (in columns and rows) covers, by their place in the box,
    and the covered share of each.
    """
    import shapely
    from exactextract import exact_extract
    from exactextract.raster import NumPyRasterSource

    x, y, far_x, far_y = polygon.bounds
    around = Box((math.floor(y), math.floor(x)), (math.ceil(far_y), math.ceil(far_x))) & core
    if not around.size:
        return _NOTHING
    (top, left), (bottom, right) = around.start, around.stop
    # Rows count downwards, and the y of exactextract upwards.
    raster = NumPyRasterSource(np.zeros(around.shape, np.uint8), left, -bottom, right, -top)
    flipped = shapely.transform(polygon, lambda xy: xy * (1, -1))
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(flipped)}
    (found,) = exact_extract(raster, [feature], ["cell_id", "coverage"])
    cells = np.asarray(found["properties"]["cell_id"], np.int64)
    rows, columns = np.divmod(cells, right - left)
    place = (rows + top - core.start[0]) * core.shape[1] + columns + left - core.start[1]
    return place, np.asarray(found["properties"]["coverage"], np.float64)


def _sums(place: NDArray[np.int64], values: NDArray[np.float64], count: int) -> list[int]:
    """Sums of the rounded values by place, exact."""
    whole = np.rint(values).astype(np.int64)
    # Halves of 26 bits are added exactly as floats.
    high = np.bincount(place, whole >> 26, count)
    low = np.bincount(place, whole & (2**26 - 1), count)
    return [(int(h) << 26) + int(n) for h, n in zip(high, low, strict=True)]


def _unit(space: Space) -> float:
    """The area of a nominal pixel, rounded to a power of two."""
    from maskloom.segcore.ground.cells import nominal_area

    assert space.affine is not None
    assert space.crs is not None
    return math.ldexp(1.0, math.frexp(nominal_area(space.affine, space.crs))[1])


def _plain(value: Any) -> Any:
    """A value of an attribute as JSON has it."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value
