"""Polygons of one image, drawn on its grid and read as a mask is: box by box.

Polygons are drawn by GDAL (`rasterio.features`) in cells of 256 pixels that are anchored at the
image's first pixel, each always in the same way; a box is put together from cells. So the labels of
a pixel do not depend on the boxes that are read, and memory does not grow with the image. A pixel
belongs to a polygon that has its centre, or, on demand, to each that touches it.

Edges that are straight in the CRS of the polygons bend on the grid of the image: they get vertices
until they are within a thousandth of a pixel.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from maskloom.segcore.annotations.label_mapping import VOID
from maskloom.segcore.annotations.polygons.drawn import DrawnCells
from maskloom.segcore.annotations.polygons.store import Bounds, Feature, StoreReader
from maskloom.segcore.errors import FormatError
from maskloom.segcore.geometry import Box, Shape
from maskloom.segcore.ground.space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyproj import Transformer

    from maskloom.segcore.annotations.polygons.rules import PolygonRules

    Floats = NDArray[np.float64]

CELL = 256
"""Side of a cell in pixels."""
_CACHED_BYTES = 2**25
_DRAWN = DrawnCells(2**26)
"""For readers of the same image, one after the other."""
_MARGIN = 2
"""Pixels around a cell within which edges are kept when a large polygon is cut to the cell."""
_MANY_VERTICES = 1000
"""Vertices beyond which a polygon is cut to each cell: GDAL goes through all of them for each
row.
"""
_BEND = 0.001
"""Largest distance of a bent edge from its straight parts, in pixels."""
_HALVINGS = 16
"""Most often that an edge is halved."""
_OUTLINE = 17
"""Points along each side of a box by which its place in another CRS is found."""


@dataclass(frozen=True, slots=True)
class PolygonMask:
    """The polygons of one image as a mask. It is sent to workers of the same machine."""

    location: str
    """The file of the polygons, for messages."""
    files: tuple[str, ...]
    """URIs of the files of vectors."""
    store: str
    """Path of the features (`polygons.store`)."""
    groups: tuple[tuple[int, str | None], ...]
    """Groups of the store that may belong to the image, with the CRS of each; None: pixels."""
    shape: Shape
    """(y, x) of the image."""
    space: Space
    """Of the image."""
    reduction: tuple[float, ...]
    """Size of a pixel of the image in pixels of full resolution, in which pixels are counted."""
    rules: PolygonRules

    @property
    def dtype(self) -> str:
        """NumPy name of the type of its values."""
        return "int64" if self.rules.numbered else "uint8"

    def open(self) -> PolygonReader:
        """Open it for reading."""
        return PolygonReader(self)


class PolygonReader:
    """Open polygons of an image; see `MaskReader`."""

    def __init__(self, mask: PolygonMask) -> None:
        self.mask, self.location = mask, mask.location
        self._store = StoreReader(mask.store)
        self._cells: OrderedDict[Shape, NDArray[np.int64]] = OrderedDict()
        self._placings = [Placing(mask.space, mask.reduction, crs) for _, crs in mask.groups]

    def read(self, box: Box) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """The value of each pixel of a box, and whether it is known, both in the box's shape."""
        values = np.empty(box.shape, np.int64)
        wanted = list(self._cells_of(box))
        absent = [index for index in wanted if index not in self._cells]
        drawn = self._drawn(absent)
        for index in wanted:
            cell = self._cell(index)
            labels = drawn[index] if index in drawn else self._cells[index]
            part = cell & box
            values[part.relative_to(box).slices] = labels[part.relative_to(cell).slices]
        self._keep(wanted, drawn)
        known: NDArray[np.bool_] = values != VOID
        return np.where(known, values, 0).astype(self.mask.dtype), known

    def numbers_near(self, box: Box) -> NDArray[np.int64]:
        """The numbers of the features whose bounds meet those of a box."""
        near = (
            self._store.numbers_near(group, placing.bounds(box))
            for (group, _), placing in zip(self.mask.groups, self._placings, strict=True)
        )
        return np.array([number for numbers in near for number in numbers], np.int64)

    def any_at_all(self) -> bool:
        """Whether the groups of the image have a feature."""
        return any(self._store.numbers_near(group, None) for group, _ in self.mask.groups)

    def close(self) -> None:
        """Close the store and forget what was drawn."""
        self._store.close()
        self._cells.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cells_of(self, box: Box) -> Sequence[Shape]:
        ranges = (
            range(start // CELL, -(-stop // CELL))
            for start, stop in zip(box.start, box.stop, strict=True)
        )
        return list(product(*ranges))

    def _cell(self, index: Shape) -> Box:
        start = tuple(CELL * i for i in index)
        return Box(start, tuple(CELL + n for n in start)) & Box.whole(self.mask.shape)

    def _keep(self, wanted: Sequence[Shape], drawn: dict[Shape, NDArray[np.int64]]) -> None:
        for index in wanted:
            if index in drawn:
                self._cells[index] = drawn[index]
            self._cells.move_to_end(index)
        while len(self._cells) * CELL * CELL * 8 > _CACHED_BYTES:
            self._cells.popitem(last=False)

    def _drawn(self, indices: Sequence[Shape]) -> dict[Shape, NDArray[np.int64]]:
        """The values of these cells, drawn now or by an earlier reader."""
        # A store is written once, and its path is its own.
        mask, space, rules = self.mask, self.mask.space, self.mask.rules
        place = mask.shape, mask.reduction, space.affine, space.crs
        drawing = rules.overlap, rules.all_touched, rules.outside_id, rules.numbered
        image = mask.store, mask.groups, place, drawing
        known = {index: _DRAWN.get((image, index)) for index in indices}
        found = {index: cell for index, cell in known.items() if cell is not None}
        fresh = self._draw([index for index in indices if index not in found])
        for index, cell in fresh.items():
            _DRAWN.put((image, index), cell)
        return found | fresh

    def _draw(self, indices: Sequence[Shape]) -> dict[Shape, NDArray[np.int64]]:
        """The values of these cells, -1 for void."""
        import shapely

        if not indices:
            return {}
        boxes = [self._cell(index) for index in indices]
        around = Box(
            tuple(min(each.start[axis] for each in boxes) for axis in range(2)),
            tuple(max(each.stop[axis] for each in boxes) for axis in range(2)),
        )
        shapes, values = self._features(around)
        bounds = shapely.bounds(shapes)
        return {
            index: draw_cell(box, shapes, bounds, values, self.mask.rules)
            for index, box in zip(indices, boxes, strict=True)
        }

    def _features(self, box: Box) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The polygons around a box in pixels, in the order in which they are drawn, and their
        values.
        """
        rules, found = self.mask.rules, list[tuple[Feature, Any]]()
        for (group, _), placing in zip(self.mask.groups, self._placings, strict=True):
            features = list(self._store.near(group, placing.bounds(box)))
            shapes = placing.to_pixels([feature.shape for feature in features])
            found += zip(features, shapes, strict=True)

        def order(item: tuple[Feature, Any]) -> tuple[bool, int, int]:
            feature = item[0]
            by_class = feature.class_id if rules.overlap == "class" else 0
            # What the user does not want to count is not counted, whatever lies there.
            return feature.class_id == VOID, by_class, feature.number

        found.sort(key=order)
        ordered = np.empty(len(found), object)
        ordered[:] = [shape for _, shape in found]
        values = [
            VOID if each.class_id == VOID else rules.value(each.class_id, each.number)
            for each, _ in found
        ]
        return ordered, np.array(values, np.int64)


def draw_cell(
    box: Box,
    shapes: NDArray[Any],
    bounds: Floats,
    values: NDArray[np.int64],
    rules: PolygonRules,
) -> NDArray[np.int64]:
    """The values of a cell's pixels: those of the last of the polygons (`shapes` in pixels, with
    their `bounds`) that have them, or what is outside.
    """
    import shapely
    from affine import Affine
    from rasterio.features import rasterize

    top, left, bottom, right = *box.start, *box.stop
    outside = VOID if rules.outside_id == VOID else rules.value(rules.outside_id, 0)
    xs, ys, xe, ye = bounds.T
    # Bounds of what has no place, such as a polygon beyond its projection, are NaN.
    near = (xe >= left) & (xs <= right) & (ye >= top) & (ys <= bottom)
    if not near.any():
        return np.full(box.shape, outside)
    chosen = shapes[near]
    large = shapely.get_num_coordinates(chosen) > _MANY_VERTICES
    if large.any():
        frame = left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN
        chosen[large] = shapely.clip_by_rect(chosen[large], *frame)
    parts, owners = shapely.get_parts(chosen, return_index=True)
    areal = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    areal &= ~shapely.is_empty(parts)
    ranks = owners[areal] + 1
    if not len(ranks):
        return np.full(box.shape, outside)
    # GDAL knows polygons by their rank, since values may need 40 bits.
    drawn = rasterize(
        zip(parts[areal], ranks.tolist(), strict=True),
        out_shape=box.shape,
        transform=Affine.translation(left, top),
        all_touched=rules.all_touched,
        dtype="int32",
    )
    return np.asarray(np.concatenate([[outside], values[near]])[drawn])


class Placing:
    """The way from the coordinates of polygons to the pixels of an image, and back."""

    def __init__(self, space: Space, reduction: tuple[float, ...], crs: str | None) -> None:
        self._transformer = None if crs is None else transformer(crs, space.crs)
        if crs is None:
            down, across = reduction[-2:] or (1.0, 1.0)
            affine = across, 0.0, 0.0, 0.0, down, 0.0
        else:
            assert space.affine is not None
            affine = space.affine
        self._matrix = np.array(affine, np.float64).reshape(2, 3)

    def bounds(self, box: Box) -> Bounds | None:
        """Bounds that contain a box of pixels, in the CRS of the polygons. None: not known."""
        grown = box.grow((_MARGIN, _MARGIN))
        top, left, bottom, right = *grown.start, *grown.stop
        along = np.linspace(0, 1, _OUTLINE)
        columns, rows = (
            low + (high - low) * part
            for low, high, part in (
                (left, right, np.concatenate([along, along, 0 * along, 0 * along + 1])),
                (top, bottom, np.concatenate([0 * along, 0 * along + 1, along, along])),
            )
        )
        x, y = self._matrix[:, :2] @ np.stack([columns, rows]) + self._matrix[:, 2:]
        if self._transformer is not None:
            x, y = self._transformer.transform(x, y, direction="INVERSE")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None
        # The sides of the box bend between the points.
        spare_x, spare_y = 0.02 * np.ptp(x), 0.02 * np.ptp(y)
        return (
            float(x.min() - spare_x),
            float(y.min() - spare_y),
            float(x.max() + spare_x),
            float(y.max() + spare_y),
        )

    def to_pixels(self, encoded: Sequence[bytes]) -> NDArray[Any]:
        """Polygons (well-known binary) in pixels of the image: x to the right and y downwards, from
        the corner of the first pixel.
        """
        import shapely

        shapes = np.empty(len(encoded), object)
        shapes[:] = shapely.from_wkb(encoded)
        if self._transformer is not None:
            shapes = self._bent(shapes)
        placed = np.asarray(shapely.transform(shapes, self._pixels))
        lost = np.flatnonzero(~np.isfinite(shapely.bounds(placed)).all(axis=1))
        if len(lost):
            raise FormatError(
                f"A polygon around {shapely.point_on_surface(shapes[lost[0]])} "
                "reaches where the CRS of the image has no place. Cut the polygons to the area of "
                "the images, or give the images a CRS that holds them."
            )
        return placed

    def _pixels(self, points: Floats) -> Floats:
        """Pixels (n, 2) of points (n, 2). NaN where there is no place."""
        x, y = points.T
        if self._transformer is not None:
            x, y = self._transformer.transform(x, y)
        places = np.stack([x, y]) - self._matrix[:, 2:]
        with np.errstate(invalid="ignore"):
            found = np.linalg.solve(self._matrix[:, :2], places).T
        return np.where(np.isfinite(found), found, np.nan)

    def _bent(self, shapes: NDArray[Any]) -> NDArray[Any]:
        """The same polygons with vertices where their edges bend on the image."""
        import shapely

        if not len(shapes):
            return shapes
        kind, points, offsets = shapely.to_ragged_array(shapes)
        # Edges are halved one by one, so a polygon does not depend on those read with it.
        points, kept = halved(points, self._pixels, _ring_ends(offsets[0], len(points)))
        # Where each old vertex is now.
        places = np.append(kept, len(points))
        moved = (places[offsets[0]], *offsets[1:])
        return np.asarray(shapely.from_ragged_array(kind, points, moved))


def _ring_ends(offsets: NDArray[np.int64], points: int) -> NDArray[np.bool_]:
    """(points,) whether a vertex is the last of its ring."""
    ends = np.zeros(points, np.bool_)
    ends[offsets[1:] - 1] = True
    return ends


def halved(
    points: Floats, to_pixels: Any, ends: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.int64]]:
    """Vertices (n, 2) with more between them, so that edges which `to_pixels` bends are straight
    within `_BEND` pixels; and the index of each old vertex among them. `ends`: whether no edge
    begins at a vertex.
    """
    places = np.arange(len(points))
    fresh = ~ends
    for _ in range(_HALVINGS):
        begins = np.flatnonzero(fresh[:-1])
        if not len(begins):
            break
        begin, end = points[begins], points[begins + 1]
        first, last = to_pixels(begin), to_pixels(end)
        off = np.zeros(len(begins))
        # An edge that bends both ways may pass its chord in the middle.
        for part in (0.25, 0.5, 0.75):
            shift = to_pixels(begin + part * (end - begin)) - (first + part * (last - first))
            off = np.maximum(off, np.nan_to_num(np.hypot(*shift.T), nan=0.0))
        split = off > _BEND
        cut = begins[split] + 1
        points = np.insert(points, cut, (begin[split] + end[split]) / 2, axis=0)
        places += np.searchsorted(cut, places, side="right")
        halves = np.zeros(len(points), np.bool_)
        new = cut + np.arange(len(cut))
        halves[new] = halves[new - 1] = True
        fresh = halves
    return points, places


@lru_cache(maxsize=64)
def transformer(source: str, target: str | None) -> Transformer | None:
    """The way from a CRS to that of an image. None: they are the same."""
    from pyproj import CRS, Transformer

    ours, theirs = CRS.from_user_input(target), CRS.from_user_input(source)
    if ours == theirs:
        return None
    return Transformer.from_crs(theirs, ours, always_xy=True)
