"""The `objects` table as a file: its columns, and the metadata that makes it GeoParquet 1.1
(geoparquet.org).
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

_VOLUME_AXES = 3
BOUNDS = pa.struct(
    [pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")]
)
"""Type of the column `bbox`, by which readers skip objects elsewhere."""


_SOLID = (
    pa.field("centroid_z", pa.float64()),
    pa.field("bbox_z0", pa.int64()),
    pa.field("bbox_z1", pa.int64()),
    pa.field("surface", pa.float64()),
)
"""Columns that objects in images do not have."""
_PLANAR = ("perimeter", "major_axis_length", "minor_axis_length", "orientation", "eccentricity")
"""Columns that objects in volumes do not have, beside geometry, longitude and latitude."""


def schema(bands: int, axes: int = 2) -> pa.Schema:
    """Columns after `run_id` and `image_id`, with mean and deviation of the bands 1 to `bands` of
    the files.

    With 3 axes, those of a table with objects in volumes, or in volumes and images: measures that
    one of them does not have may be null.
    """
    images = _of_images(bands)
    if axes < _VOLUME_AXES:
        return images
    shared = [field.with_nullable(field.nullable or field.name in _PLANAR) for field in images]
    return pa.schema([*shared, *_SOLID])


def _of_images(bands: int) -> pa.Schema:
    numbers = [f"{name}_{band}" for name in ("mean", "std") for band in range(1, bands + 1)]
    return pa.schema(
        [
            pa.field("object_id", pa.int64(), nullable=False),
            pa.field("class_id", pa.int32(), nullable=False),
            pa.field("class_name", pa.string(), nullable=False),
            pa.field("score", pa.float32()),
            pa.field("pixel_count", pa.int64(), nullable=False),
            pa.field("area", pa.float64(), nullable=False),
            pa.field("area_unit", pa.string(), nullable=False),
            pa.field("equivalent_diameter", pa.float64()),
            pa.field("feret_diameter_max", pa.float64()),
            pa.field("perimeter", pa.float64(), nullable=False),
            pa.field("centroid_x", pa.float64(), nullable=False),
            pa.field("centroid_y", pa.float64(), nullable=False),
            pa.field("longitude", pa.float64()),
            pa.field("latitude", pa.float64()),
            pa.field("bbox_x0", pa.int64(), nullable=False),
            pa.field("bbox_y0", pa.int64(), nullable=False),
            pa.field("bbox_x1", pa.int64(), nullable=False),
            pa.field("bbox_y1", pa.int64(), nullable=False),
            pa.field("touches_edge", pa.bool_(), nullable=False),
            pa.field("major_axis_length", pa.float64(), nullable=False),
            pa.field("minor_axis_length", pa.float64(), nullable=False),
            pa.field("orientation", pa.float64(), nullable=False),
            pa.field("eccentricity", pa.float64(), nullable=False),
            *(pa.field(name, pa.float64()) for name in numbers),
            pa.field("geometry", pa.binary()),
            pa.field("bbox", BOUNDS),
        ]
    )


def nulls(kind: pa.DataType, rows: int) -> pa.Array:
    """A column without a value, also of a struct whose fields are declared to have some."""
    if not pa.types.is_struct(kind):
        return pa.nulls(rows, kind)
    fields = list(kind)
    zeros = [pa.array([0] * rows, field.type) for field in fields]
    return pa.StructArray.from_arrays(
        zeros, fields=fields, mask=pa.array([True] * rows, pa.bool_())
    )


def geo_metadata(with_crs: bool) -> dict[bytes, bytes]:
    """Metadata of a Parquet file whose rows are longitude and latitude (OGC:CRS84, the default) or,
    without a CRS, pixels.
    """
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
    }
    if not with_crs:
        column["crs"] = None
    return {
        b"geo": json.dumps(
            {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        ).encode()
    }
