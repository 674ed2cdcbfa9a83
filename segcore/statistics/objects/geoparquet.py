"""The `objects` table as a file: its columns, and the metadata that makes it GeoParquet 1.1
(geoparquet.org).
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

BOUNDS = pa.struct(
    [pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")]
)
"""Type of the column `bbox`, by which readers skip what lies elsewhere."""


def schema(bands: int) -> pa.Schema:
    """Columns after `run_id` and `image_id`, with mean and deviation of the bands 1 to `bands` of
    the files.
    """
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
