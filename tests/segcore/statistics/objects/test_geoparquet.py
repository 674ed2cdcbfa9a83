"""The objects table as a file: what GeoPandas, GDAL and DuckDB make of it."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
from objects_support import ObjectImage, random_ids
from shapely import box

from maskloom.segcore.ground.space import Space
from maskloom.segcore.statistics.objects.geoparquet import geo_metadata, schema
from maskloom.segcore.testing.statistics import wkt

UTM = Space((10.0, 0.0, 399960.0, 0.0, -10.0, 5600040.0), wkt("EPSG:32633"))


def written(folder: Path, space: Space) -> tuple[Path, ObjectImage]:
    generator = np.random.default_rng(0)
    ids = random_ids((60, 70), 20, 5, generator)
    image = ObjectImage(ids, generator.integers(0, 256, (60, 70, 3)).astype(np.uint8), space)
    table = image.table((32, 32))
    path = folder / "objects.parquet"
    pq.write_table(table.replace_schema_metadata(geo_metadata(space.crs is not None)), path)
    return path, image


def test_geopandas_reads_longitude_and_latitude(tmp_path: Path) -> None:
    path, image = written(tmp_path, UTM)
    frame = geopandas.read_parquet(path)

    assert frame.crs.to_string() == "OGC:CRS84"
    assert frame.geometry.is_valid.all()
    assert len(frame) == len(np.unique(image.ids[image.ids > 0]))
    metric = frame.to_crs("EPSG:32633").geometry
    assert np.allclose(metric.area, frame.pixel_count * 100, rtol=1e-6)
    centroids = geopandas.GeoSeries.from_xy(frame.longitude, frame.latitude, crs=frame.crs).to_crs(
        "EPSG:32633"
    )
    assert metric.centroid.distance(centroids).max() < 1e-2


def test_geopandas_reads_pixels_without_a_crs(tmp_path: Path) -> None:
    path, _ = written(tmp_path, Space())
    frame = geopandas.read_parquet(path)

    assert frame.crs is None
    assert (frame.geometry.area == frame.pixel_count).all()
    bounds = frame.geometry.bounds[["minx", "miny", "maxx", "maxy"]].to_numpy()
    assert (bounds == frame[["bbox_x0", "bbox_y0", "bbox_x1", "bbox_y1"]].to_numpy()).all()


def test_the_covering_column_finds_what_meets_a_window(tmp_path: Path) -> None:
    path, _ = written(tmp_path, Space())
    everything, window = geopandas.read_parquet(path), (10, 10, 12, 13)
    some = geopandas.read_parquet(path, bbox=window)

    meets = everything.geometry.envelope.intersects(box(*window))
    assert set(some.object_id) == set(everything.object_id[meets])


def test_metadata_says_what_the_standard_asks_for() -> None:
    for with_crs in (True, False):
        record = json.loads(geo_metadata(with_crs)[b"geo"])
        column = record["columns"][record["primary_column"]]
        assert record["version"] == "1.1.0"
        assert column["encoding"] == "WKB"
        assert set(column["geometry_types"]) == {"Polygon", "MultiPolygon"}
        assert column["orientation"] == "counterclockwise"
        # Absent means OGC:CRS84; null means unknown.
        assert ("crs" in column) == (not with_crs)
        assert column.get("crs") is None
        for name, path in column["covering"]["bbox"].items():
            field = schema(0).field(path[0])
            assert field.type.field(path[1]).name == name


def test_columns_of_many_bands_stand_in_order() -> None:
    names = schema(11).names
    assert names[names.index("mean_1") :][:22] == [
        f"{kind}_{band}" for kind in ("mean", "std") for band in range(1, 12)
    ]
    assert schema(0).names[:6] == [
        "object_id",
        "class_id",
        "class_name",
        "score",
        "pixel_count",
        "area",
    ]


def test_duckdb_reads_the_table(tmp_path: Path) -> None:
    path, image = written(tmp_path, UTM)
    rows = duckdb.sql(
        "SELECT object_id, pixel_count, bbox.xmin < longitude AND longitude < bbox.xmax FROM "
        f"'{path}' ORDER BY 1"
    ).fetchall()

    assert [row[:2] for row in rows] == [
        (n, int((image.ids == n).sum())) for n in np.unique(image.ids[image.ids > 0])
    ]
    assert all(row[2] for row in rows)


def test_duckdb_spatial_reads_the_polygons(tmp_path: Path) -> None:
    path, _ = written(tmp_path, Space())
    connection = duckdb.connect()
    try:
        connection.execute("LOAD spatial")
    except duckdb.Error:
        pytest.skip("DuckDB's spatial extension is not installed")
    rows = connection.sql(f"SELECT ST_Area(geometry), pixel_count FROM '{path}'").fetchall()
    assert all(area == pixels for area, pixels in rows)
