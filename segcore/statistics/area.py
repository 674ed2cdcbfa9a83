"""Areas: how much of an image each class covers, in pixels and on the ground.

A tile's pixels are counted by class. Where pixels differ in size, areas are whole numbers of quanta: 2**-48 of a nominal
pixel or less, a power of two that depends on the raster alone. So sums are whole numbers, and any tiling gives the same
total to the last bit. Where the area varies along a row, it follows parabolas with whole coefficients over up to 512 pixels,
whose sum needs only the number of a class's pixels, of their places and of their places squared; they are off by less than
3e-10 of the area. Where all pixels are equal, the area is their number times the area of one.

The state is a dict that JSON can hold: `counts` (pixels of each class), `nodata` (pixels without data) and `areas` (quanta of
each class; empty where all pixels are equal), all of them whole numbers of any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segcore.errors import FormatError, MaskloomError
from segcore.geometry import Box
from segcore.statistic import STATISTICS, Labelled

if TYPE_CHECKING:
    from segcore.legend import Legend
    from segcore.raster import RasterSpec, Space

_SCHEMA = pa.schema(
    [
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("pixel_count", pa.int64(), nullable=False),
        pa.field("fraction", pa.float64()),
        pa.field("area", pa.float64(), nullable=False),
        pa.field("area_unit", pa.string(), nullable=False),
        pa.field("nodata_pixels", pa.int64(), nullable=False),
        pa.field("unprocessed_pixels", pa.int64(), nullable=False),
    ]
)

_GREATEST = 2.0**62
"""Quanta that a pixel may have."""


@STATISTICS.register("area")
@dataclass(frozen=True, slots=True)
class Area:
    """Pixels and area of every class of the legend, one row an image and class."""

    @property
    def table(self) -> str:
        """Name of its table."""
        return "areas"

    @property
    def schema(self) -> pa.Schema:
        """Columns after `run_id` and `image_id`; `fraction` is null where an image has no valid pixel."""
        return _SCHEMA

    def observe(self, item: Labelled, /) -> dict[str, Any]:
        """Counts and areas in one tile.

        Raises `MaskloomError` where a label is neither a class of the legend nor its nodata label, `FormatError` where the
        image's CRS makes no sense.
        """
        values, space = _compact_labels(item), item.block.spec.space
        place = _places(values.dtype, item.legend)
        classes = len(item.legend.names)
        sums = np.zeros((3, classes + 2), np.int64)
        greatest = _add_up(values, place, space, item.block.tile.core, sums)
        if sums[0, -1]:
            raise _stranger(item)
        if greatest is not None and greatest > _GREATEST:
            raise FormatError(
                f"The CRS and the transform of {item.block.spec.location} make some pixels 2**13 times larger than the map does. "
                "Correct them, or remove the CRS to count in pixels."
            )
        count, low, high = sums[:, :classes].tolist()
        return {
            "counts": count,
            "nodata": int(sums[0, classes]),
            "areas": [] if greatest is None else [h * 2**32 + n for h, n in zip(high, low, strict=True)],
        }

    def merge(self, a: dict[str, Any], b: dict[str, Any], /) -> dict[str, Any]:
        """The sums of both."""
        return {
            "counts": [m + n for m, n in zip(a["counts"], b["counts"], strict=True)],
            "nodata": a["nodata"] + b["nodata"],
            "areas": [m + n for m, n in zip(a["areas"], b["areas"], strict=True)],
        }

    def finish(self, total: dict[str, Any] | None, /, spec: RasterSpec, legend: Legend) -> list[dict[str, Any]]:
        """A row for each class of the legend, also for those without a pixel."""
        names = legend.names
        total = total or {"counts": [0] * len(names), "nodata": 0, "areas": []}
        counts, nodata, valid = total["counts"], total["nodata"], sum(total["counts"])
        unprocessed = spec.pixels - valid - nodata
        if unprocessed < 0:
            raise MaskloomError(
                f"Expected at most the {spec.pixels} pixels of {spec.location}, counted {valid + nodata}: some tiles were "
                "counted twice. This is an error in maskloom; please report it."
            )
        return [
            {
                "class_id": i,
                "class_name": name,
                "pixel_count": counts[i],
                "fraction": counts[i] / valid if valid else None,
                "area": area,
                "area_unit": spec.space.area_unit,
                "nodata_pixels": nodata,
                "unprocessed_pixels": unprocessed,
            }
            for i, (name, area) in enumerate(zip(names, _in_units(total, spec.space), strict=True))
        ]


def _add_up(
    values: NDArray[np.integer], place: NDArray[np.uint32], space: Space, box: Box, sums: NDArray[np.int64]
) -> float | None:
    """Count labels and add up their areas; the greatest area of a pixel in quanta, None where all pixels are equal."""
    from segcore._area_kernels import sum_cells, sum_rows
    from segcore.ground import ground_cells

    if space.affine is not None and space.crs is not None:
        several = ground_cells(space.affine, space.crs, box)
        if several is not None:
            scale = _quanta_in_unit(space)
            return max(float(sum_cells(values, place, box.start, cells, scale, sums)) for cells in several)
    areas = space.cell_area(box)
    if isinstance(areas, float):
        sum_rows(values.reshape(1, -1), place, np.zeros(1, np.int64), sums)
        return None
    quanta = areas[:, 0] * _quanta_in_unit(space)
    sum_rows(values, place, (np.minimum(quanta, _GREATEST) + 0.5).astype(np.int64), sums)
    return float(quanta.max())


def _compact_labels(item: Labelled) -> NDArray[np.integer]:
    """The labels in rows without gaps, as uint8 or uint16."""
    values = item.values
    if values.dtype.name not in ("uint8", "uint16"):
        if values.size and (values.min() < 0 or values.max() > np.iinfo(np.uint16).max):
            raise _stranger(item)
        values = values.astype(np.uint16)
    return np.ascontiguousarray(values)


def _places(dtype: np.dtype[Any], legend: Legend) -> NDArray[np.uint32]:
    """Where each label is summed: classes in their order, then nodata, then all that does not belong."""
    classes = len(legend.names)
    place = np.full(np.iinfo(dtype).max + 1, classes + 1, np.uint32)
    place[:classes] = np.arange(min(classes, len(place)))
    if legend.nodata < len(place):
        place[legend.nodata] = classes
    return place


def _stranger(item: Labelled) -> MaskloomError:
    classes, nodata, labels = len(item.legend.names), item.legend.nodata, np.unique(item.values)
    strangers = labels[((labels < 0) | (labels >= classes)) & (labels != nodata)]
    return MaskloomError(
        f"Expected class ids below {classes} or {nodata} for no data, got {strangers[:5].tolist()} among the labels of tile "
        f"{item.block.tile.index} of {item.block.spec.location}. This is an error in the segmenter; please report it."
    )


def _quanta_in_unit(space: Space) -> float:
    """Quanta in a unit of area: the power of two that makes a nominal pixel 2**48 to 2**49 quanta."""
    from segcore.ground import nominal_area

    if space.affine is None or space.crs is None:
        return 2.0**48
    return math.ldexp(1.0, 49 - math.frexp(nominal_area(space.affine, space.crs))[1])


def _in_units(total: dict[str, Any], space: Space) -> list[float]:
    """Areas of the classes in the unit of the space."""
    if total["areas"]:
        return [quanta / _quanta_in_unit(space) for quanta in total["areas"]]
    cell = space.cell_area(Box((0, 0), (1, 1))) if any(total["counts"]) else 0.0
    return [float(count * cell) for count in total["counts"]]
