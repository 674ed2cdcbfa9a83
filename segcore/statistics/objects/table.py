"""The `objects` table: every object of images and volumes measured, in two passes over the tiles.

The first pass reads the pixels, but knows only fragments: `observe_bands` sums their band values.
In the second, fragments are joined and numbered: `measure` takes the final ids of a tile and of a
ring of 2 pixels around it and measures the parts in the tile. `Measures` of tiles are merged, and
`finish` turns those of whole objects into rows. All sums are integers (`bands.py` explains sums of
floating-point pixels), so the table does not depend on the tiling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located, to_lonlat, vertex_spacing
from maskloom.segcore.statistics.exact_areas import add_areas, check_areas, quanta_in_unit
from maskloom.segcore.statistics.objects.bands import BandSums
from maskloom.segcore.statistics.objects.geoparquet import nulls, schema
from maskloom.segcore.statistics.objects.hulls import Hulls
from maskloom.segcore.statistics.objects.int96 import as_floats, normalised
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.outlines import Outlines, trace_outlines
from maskloom.segcore.statistics.objects.planar import PlanarShape
from maskloom.segcore.statistics.objects.solid import SolidShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Tile
    from maskloom.segcore.raster.spec import RasterSpec

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_LONGEST_SIDE = 2**16
"""Longest side in pixels of a tile whose second moments always fit into 64 bits."""
_BATCH = 2**21
"""Number of vertices and objects that are finished together."""
_IMAGE_AXES = 2


@dataclass(frozen=True, slots=True, eq=False)
class TileObjects:
    """The objects of one tile, joined and numbered."""

    labels: NDArray[np.uint32]
    """The core with a ring of 2 pixels, so 4 longer along each axis: local numbers 1 to m, 0 for
    background and outside the image.
    """
    object_id: NDArray[np.int64]
    """(m + 1,) final id of each local number; 0 for background."""
    class_id: NDArray[np.int32]
    """(m + 1,) class of each."""
    whole: NDArray[np.bool_]
    """(m + 1,) True if no other tile has a pixel of the object."""
    bands: BandSums
    """m + 1 rows: band values of the pixels in this tile's core."""
    tile: Tile
    spec: RasterSpec
    score: NDArray[np.float32] | None = None
    """(m + 1,) confidence of the segmenter, NaN if it gives none. None: not available."""


def measure(objects: TileObjects, geometry: bool = True) -> Measures:
    """The measures of each object in the tile's core, with its outlines if `geometry`.

    Raises `ValueError` if the labels do not match the tile or the tile is longer than 2**16 pixels,
    `FormatError` if the CRS is invalid.
    """
    objects = _numbered_once(_checked(objects))
    core, axes = objects.tile.core, len(objects.tile.core.shape)
    labels, rows = np.ascontiguousarray(objects.labels), len(objects.object_id)
    sums, boxes = _sums_and_boxes(labels, rows)
    present = np.flatnonzero(sums[:, 0])
    present = present[np.argsort(objects.object_id[present])]
    start = boxes[:, :axes]
    if axes == _IMAGE_AXES:
        outlines = _outlines(objects, labels) if geometry else Outlines.none(rows)
        shape: PlanarShape | SolidShape = PlanarShape.observe(labels, sums, start, outlines)
    else:
        shape = SolidShape.observe(labels, rows)
    first = sums[:, 1 : 1 + axes] - start * sums[:, :1]
    return Measures(
        objects.object_id[present],
        objects.class_id[present],
        objects.whole[present],
        sums[present, 0],
        boxes[present] + np.array(core.start + core.start),
        first[present],
        _areas(objects, labels)[present],
        _scores(objects)[present],
        objects.bands.take(present),
        Hulls.observe(labels, rows, core.start).take(present),
        shape.take(present),
    )


def _sums_and_boxes(labels: NDArray[np.uint32], rows: int) -> tuple[Integers, Integers]:
    """Pixels and moments, and the box, of each label in the core, relative to the corner of the
    core.
    """
    from maskloom.segcore.kernels.measures import add_shapes, add_solids

    axes = labels.ndim
    boxes = np.zeros((rows, 2 * axes), np.int64)
    boxes[:, :axes] = _LONGEST_SIDE
    if axes == _IMAGE_AXES:
        sums = np.zeros((rows, 6), np.int64)
        add_shapes(labels, sums, boxes)
    else:
        sums = np.zeros((rows, 4), np.int64)
        add_solids(labels, sums, boxes)
    return sums, boxes


def finish(measures: Measures, spec: RasterSpec, names: tuple[str, ...], bands: int) -> pa.Table:
    """Rows of whole objects of one image, by ascending id, in the columns of `schema`.

    `names` are the classes' by id. Band k of the file goes to `mean_k` and `std_k`; bands that were
    not read are null. Raises `ValueError` where the image has a band beyond `bands` or the measures
    have other bands than the image.
    """
    if measures.bands.channels not in (0, spec.channels) or max(spec.bands, default=0) > bands:
        raise ValueError(
            f"expected sums of the bands {spec.bands} of {spec.location}, none above {bands}; got "
            f"{measures.bands.channels} band(s)"
        )
    weights = np.cumsum(measures.shape.weights() + measures.hulls.counts)
    cuts = np.searchsorted(
        weights, np.arange(_BATCH, int(weights[-1]) if len(weights) else 0, _BATCH)
    )
    edges = np.unique(np.concatenate([[0], cuts, [len(measures)]]))
    parts = [measures.take(np.arange(a, b)) for a, b in pairwise(edges)]
    nothing = schema(bands, len(spec.shape)).empty_table()
    return pa.concat_tables([nothing, *(_rows(part, spec, names, bands) for part in parts)])


def _rows(measures: Measures, spec: RasterSpec, names: tuple[str, ...], bands: int) -> pa.Table:
    rows = len(measures)
    columns: dict[str, Any] = {}
    columns["object_id"], columns["class_id"] = measures.object_id, measures.class_id
    columns["class_name"] = pa.array(names, pa.string()).take(pa.array(measures.class_id))
    columns["score"] = _known(measures.score)
    columns["pixel_count"], columns["area"] = measures.pixels, _in_units(measures, spec)
    columns["area_unit"] = pa.repeat(spec.space.unit, rows)
    centroids = measures.centroids
    columns["equivalent_diameter"] = _diameter_of_ball(columns["area"], len(spec.shape))
    columns["feret_diameter_max"] = _known(measures.hulls.diameters(spec.space, centroids))
    for axis, centroid in zip(spec.space.axes, centroids.T, strict=True):
        columns[f"centroid_{axis}"] = centroid
    columns["longitude"], columns["latitude"] = _longitude_latitude(spec, *centroids.T[:-3:-1])
    for axis, start, stop in zip(spec.space.axes, measures.start.T, measures.stop.T, strict=True):
        columns[f"bbox_{axis}0"], columns[f"bbox_{axis}1"] = start, stop
    columns["touches_edge"] = (measures.start == 0).any(axis=1) | (
        measures.stop == np.array(spec.shape)
    ).any(axis=1)
    columns |= measures.shape.columns(measures.pixels, measures.first, spec.space)
    means, deviations = measures.bands.mean(), measures.bands.deviation()
    for i in range(measures.bands.channels):
        columns[f"mean_{spec.bands[i]}"], columns[f"std_{spec.bands[i]}"] = (
            _known(means[:, i]),
            _known(deviations[:, i]),
        )
    wanted = schema(bands, len(spec.shape))
    return pa.table(
        [columns.get(field.name, nulls(field.type, rows)) for field in wanted], schema=wanted
    )


def _checked(objects: TileObjects) -> TileObjects:
    expected = tuple(length + 4 for length in objects.tile.core.shape)
    if objects.labels.shape != expected or max(objects.tile.core.shape) > _LONGEST_SIDE:
        raise ValueError(
            f"expected labels of shape {expected}, a core of at most {_LONGEST_SIDE} pixels a side "
            f"and a ring of 2; got {objects.labels.shape}"
        )
    if objects.labels.max(initial=0) >= len(objects.object_id):
        raise ValueError(
            f"expected labels below {len(objects.object_id)}, got {objects.labels.max()}"
        )
    return objects


def _numbered_once(objects: TileObjects) -> TileObjects:
    """The same objects with one local number per id; several fragments of a tile may be one
    object.
    """
    ids, first, number = np.unique(objects.object_id, return_index=True, return_inverse=True)
    if len(ids) == len(objects.object_id):
        return objects
    return replace(
        objects,
        labels=number.astype(np.uint32)[objects.labels],
        object_id=ids,
        class_id=objects.class_id[first],
        # An object of several fragments in a tile is whole if each fragment is: none has a pixel
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
    inside = (slice(2, -2),) * labels.ndim
    core, place = np.ascontiguousarray(labels[inside]), np.arange(rows, dtype=np.uint32)
    greatest = add_areas(core, place, objects.spec, objects.tile.core, sums)
    check_areas(greatest, objects.spec.location)
    return normalised(sums[:0:-1].T)


def _in_units(measures: Measures, spec: RasterSpec) -> Floats:
    """Areas in the unit of the space."""
    cell = spec.space.cell_size(Box.whole((1,) * len(spec.shape)), spec.shape)
    if isinstance(cell, float):
        return np.asarray(measures.pixels * cell, np.float64)
    return as_floats(measures.area) / quanta_in_unit(spec.space)


def _diameter_of_ball(sizes: Floats, axes: int) -> Floats:
    """The diameter of the circle, or the ball, of these sizes."""
    diameters: Floats = (
        np.sqrt(4 / np.pi * sizes) if axes == _IMAGE_AXES else np.cbrt(6 / np.pi * sizes)
    )
    return diameters


def _longitude_latitude(spec: RasterSpec, column: Floats, row: Floats) -> tuple[pa.Array, pa.Array]:
    """Longitude and latitude of centroids; null without a CRS and where it defines none."""
    if not is_located(spec.space):
        return pa.nulls(len(column), pa.float64()), pa.nulls(len(column), pa.float64())
    longitude, latitude = to_lonlat(spec.space, column + 0.5, row + 0.5)
    return _known(longitude - 360 * np.ceil((longitude - 180) / 360)), _known(latitude)


def _known(numbers: NDArray[np.floating[Any]]) -> pa.Array:
    """Numbers, NaN as null."""
    return pa.array(numbers, mask=np.isnan(numbers))
