"""The `objects` table: what is measured of every object, in two passes over the tiles.

The first pass has the pixels, but knows only fragments: `observe_bands` adds up their band values.
In the second, fragments are joined and numbered: `measure` takes the final ids of a tile and of a
ring of 2 pixels around it and measures shape, border and outline of the parts that lie in the tile.
`Measures` of tiles are merged, and `finish` turns those of whole objects into rows. Whatever is
added is a whole number (`bands.py` says how floating-point pixels are added), so the table does not
depend on the tiling.

Shape measures are those of `skimage.measure.regionprops`, of the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located, vertex_spacing, world
from maskloom.segcore.statistics.exact_areas import add_areas, check_areas, quanta_in_unit
from maskloom.segcore.statistics.objects.bands import BandSums, observe_bands
from maskloom.segcore.statistics.objects.geoparquet import geo_metadata, schema
from maskloom.segcore.statistics.objects.int96 import as_floats, as_integers, as_wide, carried
from maskloom.segcore.statistics.objects.moments import Measures
from maskloom.segcore.statistics.objects.polygons import Outlines, polygons, trace_outlines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Tile
    from maskloom.segcore.raster.spec import RasterSpec

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

__all__ = [
    "BandSums",
    "Measures",
    "TileObjects",
    "finish",
    "geo_metadata",
    "measure",
    "observe_bands",
    "schema",
]

_LONGEST_SIDE = 2**16
"""Pixels along a side of a tile whose second moments 64 bits hold for certain."""
_BATCH = 2**21
"""Vertices and objects that are finished together."""
_SAFE = 2.0**62


@dataclass(frozen=True, slots=True, eq=False)
class TileObjects:
    """What is known of the objects of one tile in the end."""

    labels: NDArray[np.uint32]
    """(rows + 4, columns + 4) the core with a ring of 2 pixels: local numbers 1 to m, 0 for
    background and beyond the image.
    """
    object_id: NDArray[np.int64]
    """(m + 1,) final id of each local number; 0 for background."""
    class_id: NDArray[np.int32]
    """(m + 1,) class of each."""
    whole: NDArray[np.bool_]
    """(m + 1,) True where no other tile has any pixel of the object."""
    bands: BandSums
    """m + 1 rows: band values of the pixels in this tile's core."""
    tile: Tile
    spec: RasterSpec
    score: NDArray[np.float32] | None = None
    """(m + 1,) how sure the segmenter is of each, NaN where it does not say. None: it never
    does.
    """


def measure(objects: TileObjects, geometry: bool = True) -> Measures:
    """What the tile's core holds of each object, with its outlines if `geometry`.

    Raises `ValueError` where the labels do not fit the tile or the tile is longer than 2**16
    pixels, `FormatError` where the CRS makes no sense.
    """
    from maskloom.segcore.kernels.measures import add_shapes, count_borders, mark_borders

    objects = _numbered_once(_checked(objects))
    labels, core, rows = (
        np.ascontiguousarray(objects.labels),
        objects.tile.core,
        len(objects.object_id),
    )
    sums, boxes, border = (
        np.zeros((rows, 6), np.int64),
        np.zeros((rows, 4), np.int64),
        np.zeros((rows, 3), np.int64),
    )
    boxes[:, :2] = _LONGEST_SIDE
    add_shapes(labels, sums, boxes)
    marks = np.zeros((core.shape[0] + 2, core.shape[1] + 2), np.bool_)
    mark_borders(labels, marks)
    count_borders(labels, marks, _border_kinds(), border)
    present = np.flatnonzero(sums[:, 0])
    present = present[np.argsort(objects.object_id[present])]
    first, second = _from_own_corner(sums[present], boxes[present])
    outlines = _outlines(objects, labels).take(present) if geometry else Outlines.none(len(present))
    return Measures(
        objects.object_id[present],
        objects.class_id[present],
        objects.whole[present],
        sums[present, 0],
        boxes[present] + np.array(core.start + core.start),
        first,
        second,
        _areas(objects, labels)[present],
        border[present],
        _scores(objects)[present],
        objects.bands.take(present),
        outlines,
    )


def finish(measures: Measures, spec: RasterSpec, names: tuple[str, ...], bands: int) -> pa.Table:
    """Rows of whole objects of one image, by ascending id, in the columns of `schema(bands)`.

    `names` are the classes' by id. Band k of the file goes to `mean_k` and `std_k`; bands that were
    not read are null. Raises `ValueError` where the image has a band beyond `bands` or the measures
    have other bands than the image.
    """
    if measures.bands.channels not in (0, spec.channels) or max(spec.bands, default=0) > bands:
        raise ValueError(
            f"expected sums of the bands {spec.bands} of {spec.location}, none above {bands}; got "
            f"{measures.bands.channels} band(s)"
        )
    weights = np.cumsum(measures.outlines.sizes() + 8)
    cuts = np.searchsorted(
        weights, np.arange(_BATCH, int(weights[-1]) if len(weights) else 0, _BATCH)
    )
    edges = np.unique(np.concatenate([[0], cuts, [len(measures)]]))
    parts = [measures.take(np.arange(a, b)) for a, b in pairwise(edges)]
    return pa.concat_tables(
        [schema(bands).empty_table(), *(_rows(part, spec, names, bands) for part in parts)]
    )


def _rows(measures: Measures, spec: RasterSpec, names: tuple[str, ...], bands: int) -> pa.Table:
    rows = len(measures)
    columns: dict[str, Any] = {}
    columns["object_id"], columns["class_id"] = measures.object_id, measures.class_id
    columns["class_name"] = pa.array(names, pa.string()).take(pa.array(measures.class_id))
    columns["score"] = _known(measures.score)
    columns["pixel_count"], columns["area"] = measures.pixels, _in_units(measures, spec)
    columns["area_unit"] = pa.repeat(spec.space.unit, rows)
    # Not as a matrix product, which rounds a row as its neighbours let it.
    straight, diagonal, bent = measures.border.T
    columns["perimeter"] = straight + diagonal * np.sqrt(2) + bent * ((1 + np.sqrt(2)) / 2)
    row, column = (
        (measures.box[:, :2] * measures.pixels[:, None] + measures.first) / measures.pixels[:, None]
    ).T
    columns["centroid_x"], columns["centroid_y"] = column, row
    columns["longitude"], columns["latitude"] = _longitude_latitude(spec, column, row)
    top, left, bottom, right = measures.box.T
    columns["bbox_x0"], columns["bbox_y0"], columns["bbox_x1"], columns["bbox_y1"] = (
        left,
        top,
        right,
        bottom,
    )
    columns["touches_edge"] = (
        (top == 0) | (left == 0) | (bottom == spec.shape[0]) | (right == spec.shape[1])
    )
    columns |= _axes(measures)
    means, deviations = measures.bands.mean(), measures.bands.deviation()
    for i in range(measures.bands.channels):
        columns[f"mean_{spec.bands[i]}"], columns[f"std_{spec.bands[i]}"] = (
            _known(means[:, i]),
            _known(deviations[:, i]),
        )
    columns["geometry"], columns["bbox"] = polygons(measures.outlines, spec.space)
    wanted = schema(bands)
    return pa.table(
        [columns.get(field.name, pa.nulls(rows, field.type)) for field in wanted], schema=wanted
    )


def _checked(objects: TileObjects) -> TileObjects:
    height, width = objects.tile.core.shape
    if objects.labels.shape != (height + 4, width + 4) or max(height, width) > _LONGEST_SIDE:
        raise ValueError(
            f"expected labels of shape {(height + 4, width + 4)}, a core of at most "
            f"{_LONGEST_SIDE} pixels a side and a ring of 2; "
            f"got {objects.labels.shape}"
        )
    if objects.labels.max(initial=0) >= len(objects.object_id):
        raise ValueError(
            f"expected labels below {len(objects.object_id)}, got {objects.labels.max()}"
        )
    return objects


def _numbered_once(objects: TileObjects) -> TileObjects:
    """The same objects with one local number for each id, in case several fragments of a tile are
    one object.
    """
    ids, first, number = np.unique(objects.object_id, return_index=True, return_inverse=True)
    if len(ids) == len(objects.object_id):
        return objects
    return replace(
        objects,
        labels=number.astype(np.uint32)[objects.labels],
        object_id=ids,
        class_id=objects.class_id[first],
        # Fragments of one object that share a tile are whole if each of them is: none has a pixel
        # elsewhere.
        whole=np.bincount(number, ~objects.whole) == 0,
        bands=objects.bands.sum_by(number, len(ids)),
        score=_highest(_scores(objects), number, len(ids)),
    )


def _scores(objects: TileObjects) -> NDArray[np.float32]:
    return (
        np.full(len(objects.object_id), np.nan, np.float32)
        if objects.score is None
        else objects.score
    )


def _highest(
    scores: NDArray[np.float32], number: NDArray[np.intp], count: int
) -> NDArray[np.float32]:
    """The highest score of each number."""
    highest = np.full(count, np.nan, np.float32)
    np.fmax.at(highest, number, scores)
    return highest


def _from_own_corner(sums: Integers, boxes: Integers) -> tuple[Integers, Integers]:
    """`first` and `second` of `Measures` from the sums and boxes of `add_shapes`."""
    pixels, rows, columns, row_squares, column_squares, products = sums.T
    top, left = boxes[:, :2].T
    first = np.stack([rows - top * pixels, columns - left * pixels], axis=1)
    second = (
        row_squares - 2 * top * rows + top * top * pixels,
        column_squares - 2 * left * columns + left * left * pixels,
        products - top * columns - left * rows + top * left * pixels,
    )
    return first, as_wide(np.stack(second, axis=1))


def _outlines(objects: TileObjects, labels: NDArray[np.uint32]) -> Outlines:
    spec = objects.spec
    return trace_outlines(
        labels,
        len(objects.object_id),
        objects.tile.core.start,
        vertex_spacing(spec.space, spec.shape),
    )


def _areas(objects: TileObjects, labels: NDArray[np.uint32]) -> Integers:
    """Wide quanta of all labels."""
    rows = len(objects.object_id)
    sums = np.zeros((3, rows), np.int64)
    core, place = np.ascontiguousarray(labels[2:-2, 2:-2]), np.arange(rows, dtype=np.uint32)
    greatest = add_areas(core, place, objects.spec, objects.tile.core, sums)
    check_areas(greatest, objects.spec.location)
    return carried(sums[:0:-1].T)


def _in_units(measures: Measures, spec: RasterSpec) -> Floats:
    """Areas in the unit of the space."""
    cell = spec.space.cell_size(Box.whole((1,) * len(spec.shape)), spec.shape)
    if isinstance(cell, float):
        return np.asarray(measures.pixels * cell, np.float64)
    return as_floats(measures.area) / quanta_in_unit(spec.space)


@lru_cache(maxsize=1)
def _border_kinds() -> NDArray[np.uint8]:
    """Which pixels of a perimeter count 1 (kind 1), sqrt(2) (2) and (1 + sqrt(2)) / 2 (3), by their
    surroundings.

    After Benkrid and Crookes, Design and FPGA implementation of a perimeter estimator (2000), as
    scikit-image has it.
    """
    kinds = np.zeros(49, np.uint8)
    kinds[[4, 6, 14, 16, 24, 26]] = 1
    kinds[[20, 32]] = 2
    kinds[[12, 22]] = 3
    return kinds


def _axes(measures: Measures) -> dict[str, Floats]:
    """Axes, orientation and eccentricity of the ellipse with an object's second moments."""
    squared = measures.pixels.astype(np.float64) ** 2
    row, column, both = (number / squared for number in _central(measures))
    # A root of sums of squares, and the lesser value from the product of both: without
    # cancellation, and 0 for straight lines.
    root = np.sqrt((column - row) ** 2 + 4 * both**2)
    greater = (column + row + root) / 2
    lesser = np.zeros(len(measures))
    np.divide(np.maximum(row * column - both**2, 0), greater, out=lesser, where=greater > 0)
    flatness = np.zeros(len(measures))
    np.divide(lesser, greater, out=flatness, where=greater > 0)
    diagonal = np.where(both > 0, np.pi / 4, -np.pi / 4)
    return {
        "major_axis_length": 4 * np.sqrt(greater),
        "minor_axis_length": 4 * np.sqrt(lesser),
        "orientation": np.where(row == column, diagonal, 0.5 * np.arctan2(2 * both, row - column)),
        "eccentricity": np.where(greater > 0, np.sqrt(np.maximum(1 - flatness, 0)), 0.0),
    }


def _central(measures: Measures) -> tuple[Floats, Floats, Floats]:
    """Second central moments of rows, of columns and of both, times the squared number of pixels:
    whole numbers, rounded once.
    """
    first, second, pixels = measures.first, measures.second, measures.pixels
    pairs = ((0, 0), (1, 1), (0, 1))
    small = pixels * as_floats(second).max(axis=1) < _SAFE
    central = np.empty((3, len(measures)))
    for k, (i, j) in enumerate(pairs):
        central[k, small] = (
            pixels[small] * (second[small, k, 0] * 2**32 + second[small, k, 1])
            - first[small, i] * first[small, j]
        )
        large = zip(
            pixels[~small].tolist(),
            as_integers(second[~small, k]),
            first[~small].tolist(),
            strict=True,
        )
        central[k, ~small] = [float(n * square - total[i] * total[j]) for n, square, total in large]
    return central[0], central[1], central[2]


def _longitude_latitude(spec: RasterSpec, column: Floats, row: Floats) -> tuple[pa.Array, pa.Array]:
    """Where centroids lie; null without a CRS and where it knows no longitude and latitude."""
    if not is_located(spec.space):
        return pa.nulls(len(column), pa.float64()), pa.nulls(len(column), pa.float64())
    longitude, latitude = world(spec.space, column + 0.5, row + 0.5)
    return _known(longitude - 360 * np.ceil((longitude - 180) / 360)), _known(latitude)


def _known(numbers: NDArray[np.floating[Any]]) -> pa.Array:
    """Numbers, NaN as null."""
    return pa.array(numbers, mask=np.isnan(numbers))
