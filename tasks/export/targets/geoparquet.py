"""GeoParquet 1.1, in the CRS of the images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.tasks.export.request import TARGETS, Exported, Request
from maskloom.tasks.export.tables import write_tables


@TARGETS.register("geoparquet")
def geoparquet(request: Request) -> Exported:
    """Write one file, or one per image. Raises as `write_tables`."""

    def write(name: str, crs: str | None, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
        schema = schema.with_metadata({"geo": json.dumps(_metadata(crs))})
        with (
            request.store.writing(name) as file,
            pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="zstd") as writer,
        ):
            for table in tables:
                writer.write_table(table.cast(schema))

    return write_tables(request, "geoparquet", ".parquet", write)


def _metadata(crs: str | None) -> dict[str, Any]:
    from pyproj import CRS

    system = None if crs is None else CRS.from_wkt(crs).to_json_dict()
    column = {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"], "crs": system}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
