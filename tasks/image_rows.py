"""The table `images`: its columns, and the row of one image."""

from __future__ import annotations

import math
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from maskloom.segcore.ground.space import AXES

if TYPE_CHECKING:
    from maskloom.segcore.pipeline.records import ImageResult, Plan
    from maskloom.segcore.raster.spec import RasterSpec

SCORES_COLUMNS = ("scores_uri", "scores_sha256")
"""Columns that tables of earlier versions lack."""
IMAGES_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("error_type", pa.string()),
        ("warning", pa.string()),
        ("mask_uri", pa.string()),
        ("mask_sha256", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("depth", pa.int64()),
        ("bands", pa.int32()),
        ("dtype", pa.string()),
        ("crs", pa.string()),
        ("pixel_size_z", pa.float64()),
        ("pixel_size_y", pa.float64()),
        ("pixel_size_x", pa.float64()),
        ("pixel_size_from", pa.string()),
        ("total_pixels", pa.int64()),
        ("valid_pixels", pa.int64()),
        ("nodata_pixels", pa.int64()),
        ("unprocessed_pixels", pa.int64()),
        ("tiles", pa.int64()),
        ("seconds", pa.float64()),
        ("source_version", pa.string()),
        ("segmenter", pa.string()),
        ("fingerprint", pa.string()),
        ("acquired", pa.timestamp("us", tz="UTC")),
        ("mean_entropy", pa.float64()),
        ("mean_margin", pa.float64()),
        ("scores_uri", pa.string()),
        ("scores_sha256", pa.string()),
    ],
    metadata={"maskloom_schema": "1"},
)


def image_row(plan: Plan, result: ImageResult) -> dict[str, Any]:
    """The row of an image that a run of this plan has processed."""
    spec, failure = result.spec, result.failure
    total = spec.pixels if spec else None
    return {
        "run_id": plan.run_id,
        "image_id": result.source.image_id,
        "uri": result.source.uri,
        "status": "failed" if failure else "ok",
        "error": failure.error if failure else None,
        "error_type": failure.error_type if failure else None,
        "warning": result.warning,
        "mask_uri": result.mask,
        "mask_sha256": result.mask_sha256,
        "width": spec.shape[-1] if spec else None,
        "height": spec.shape[-2] if spec else None,
        "depth": math.prod(spec.shape[:-2]) if spec else None,
        "bands": spec.file_bands if spec else None,
        "dtype": spec.dtype if spec else None,
        "crs": crs_name(spec.space.crs) if spec else None,
        **_pixel_size(spec),
        "total_pixels": total,
        "valid_pixels": 0 if failure else (total or 0) - result.nodata_pixels,
        "nodata_pixels": result.nodata_pixels,
        "unprocessed_pixels": total if failure else 0,
        "tiles": result.tiles,
        "seconds": result.seconds,
        "source_version": result.source.version,
        "segmenter": result.segmenter,
        "fingerprint": plan.fingerprint,
        "acquired": datetime.fromisoformat(spec.acquired) if spec and spec.acquired else None,
        "mean_entropy": result.mean_entropy,
        "mean_margin": result.mean_margin,
        "scores_uri": result.scores,
        "scores_sha256": result.scores_sha256,
    }


def _pixel_size(spec: RasterSpec | None) -> dict[str, float | str | None]:
    """The columns on the size of a pixel in mm, and on what states it."""
    metric = None if spec is None else spec.space.metric
    sizes: dict[str, float | str | None] = dict.fromkeys(f"pixel_size_{axis}" for axis in AXES)
    if spec is None or metric is None:
        return {**sizes, "pixel_size_from": None}
    found = zip(spec.space.axes, metric.millimetres, strict=True)
    sizes |= {f"pixel_size_{axis}": size for axis, size in found}
    return {**sizes, "pixel_size_from": metric.stated_by}


@lru_cache(maxsize=256)
def crs_name(wkt: str | None) -> str | None:
    """The short name of a coordinate reference system (`EPSG:32633`), or its WKT if it has none."""
    if wkt is None:
        return None
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        authority = CRS.from_wkt(wkt).to_authority()
    except CRSError:
        return wkt
    return ":".join(authority) if authority else wkt
