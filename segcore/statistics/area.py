"""Areas: how much of an image each class covers, in pixels and on the ground.

The pixels of a tile are counted by class, and their areas are added as integers
(`segcore.statistics.exact_areas`).

The state is a dict that JSON can hold: `counts` (pixels of each class), `nodata` (pixels without
data) and `areas` (quanta of each class; empty where all pixels are equal), all of them integers of
any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskloom.segcore.errors import MaskloomError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.colours import hexadecimal
from maskloom.segcore.statistics.exact_areas import add_areas, check_areas, quanta_in_unit
from maskloom.segcore.statistics.protocol import STATISTICS, LabelledTile

if TYPE_CHECKING:
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec

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
        pa.field("colour", pa.string()),
    ]
)


@STATISTICS.register("area")
@dataclass(frozen=True, slots=True)
class Area:
    """Pixels and area of every class, one row per image and class."""

    @property
    def table(self) -> str:
        """Name of its table."""
        return "areas"

    @property
    def schema(self) -> pa.Schema:
        """Columns after `run_id` and `image_id`; `fraction` is null if an image has no valid
        pixel.
        """
        return _SCHEMA

    def observe(self, labelled: LabelledTile, /) -> dict[str, Any]:
        """Counts and areas in one tile.

        Raises `MaskloomError` if a label is neither a class nor the nodata label, `FormatError` if
        the CRS of the image is invalid.
        """
        values = _compact_labels(labelled)
        place = _places(values.dtype, labelled.class_table)
        classes = len(labelled.class_table.names)
        sums = np.zeros((3, classes + 2), np.int64)
        greatest = add_areas(values, place, labelled.spec, labelled.tile.core, sums)
        if sums[0, -1]:
            raise _stranger(labelled)
        check_areas(greatest, labelled.spec.location)
        count, low, high = sums[:, :classes].tolist()
        return {
            "counts": count,
            "nodata": int(sums[0, classes]),
            "areas": []
            if greatest is None
            else [h * 2**32 + n for h, n in zip(high, low, strict=True)],
        }

    def merge(self, a: dict[str, Any], b: dict[str, Any], /) -> dict[str, Any]:
        """The sums of two tiles."""
        return {
            "counts": [m + n for m, n in zip(a["counts"], b["counts"], strict=True)],
            "nodata": a["nodata"] + b["nodata"],
            "areas": [m + n for m, n in zip(a["areas"], b["areas"], strict=True)],
        }

    def finish(
        self, total: dict[str, Any] | None, /, spec: RasterSpec, class_table: ClassTable
    ) -> list[dict[str, Any]]:
        """One row per class, including those without pixels."""
        names = class_table.names
        total = total or {"counts": [0] * len(names), "nodata": 0, "areas": []}
        counts, nodata, valid = total["counts"], total["nodata"], sum(total["counts"])
        unprocessed = spec.pixels - valid - nodata
        if unprocessed < 0:
            raise MaskloomError(
                f"Expected at most the {spec.pixels} pixels of {spec.location}, counted "
                f"{valid + nodata}: some tiles were "
                "counted twice. This is an error in maskloom; please report it."
            )
        return [
            {
                "class_id": i,
                "class_name": name,
                "pixel_count": counts[i],
                "fraction": counts[i] / valid if valid else None,
                "area": area,
                "area_unit": spec.space.unit,
                "nodata_pixels": nodata,
                "unprocessed_pixels": unprocessed,
                "colour": hexadecimal(class_table.colours[i]),
            }
            for i, (name, area) in enumerate(zip(names, _in_units(total, spec), strict=True))
        ]


def _compact_labels(labelled: LabelledTile) -> NDArray[np.integer]:
    """The labels as contiguous uint8 or uint16."""
    values = labelled.values
    if values.dtype.name not in ("uint8", "uint16"):
        if values.size and (values.min() < 0 or values.max() > np.iinfo(np.uint16).max):
            raise _stranger(labelled)
        values = values.astype(np.uint16)
    return np.ascontiguousarray(values)


def _places(dtype: np.dtype[Any], class_table: ClassTable) -> NDArray[np.uint32]:
    """The position of each label's sums: the classes in order, then nodata, then all other
    labels.
    """
    classes = len(class_table.names)
    place = np.full(np.iinfo(dtype).max + 1, classes + 1, np.uint32)
    place[:classes] = np.arange(min(classes, len(place)))
    if class_table.nodata < len(place):
        place[class_table.nodata] = classes
    return place


def _stranger(labelled: LabelledTile) -> MaskloomError:
    class_table, labels = labelled.class_table, np.unique(labelled.values)
    classes, nodata = len(class_table.names), class_table.nodata
    strangers = labels[((labels < 0) | (labels >= classes)) & (labels != nodata)]
    return MaskloomError(
        f"Expected class ids below {classes} or {nodata} for no data, got {strangers[:5].tolist()} "
        f"among the labels of tile {labelled.tile.index} of {labelled.spec.location}. This is an "
        "error in the segmenter; please report it."
    )


def _first_cell(spec: RasterSpec) -> float:
    """The size of every pixel of a raster with equal pixels."""
    size = spec.space.cell_size(Box.whole((1,) * len(spec.shape)), spec.shape)
    assert isinstance(size, float)
    return size


def _in_units(total: dict[str, Any], spec: RasterSpec) -> list[float]:
    """Areas of the classes in the unit of the space."""
    if total["areas"]:
        return [quanta / quanta_in_unit(spec.space) for quanta in total["areas"]]
    cell = _first_cell(spec) if any(total["counts"]) else 0.0
    return [float(count * cell) for count in total["counts"]]
