"""What the page says about an image that is open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.ground.lengths import steps_at, unit_of_length
from maskloom.segcore.ground.lonlat import is_located
from maskloom.segcore.viewing.pyramids import Pyramid

if TYPE_CHECKING:
    from maskloom.flows.viewer.opened import Opened
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.viewing.volumes import Plane

_ROWS_OF_SCALE = 17


def facts_of(image: Opened) -> dict[str, Any]:
    """Sizes, bands, contrast, scale, planes and classes of an image."""
    spec, source, row = image.spec, image.source, image.row
    layer = image.mask if source is None else source
    return {
        "uri": row["uri"],
        "notes": [*image.notes, *filter(None, [row.get("warning")])],
        "layers": [
            name for name, each in (("source", source), ("mask", image.mask)) if each is not None
        ],
        "shape": spec.shape,
        "dtype": spec.dtype if source is not None else "",
        "bands": spec.file_bands,
        "shown": list(source.spec.bands) if source is not None else [],
        "crs": row["crs"],
        "grid": _grid(spec),
        "levels": layer.count if isinstance(layer, Pyramid) else 0,
        "planes": [_plane(each, spec) for each in image.planes],
        "limits": image.limits,
        "span": image.span,
        "scale": _scale(spec),
        "version": (row["mask_sha256"] or "")[:16],
        "objects": image.has_objects,
        "classes": image.classes.rows,
        "nodata": row["nodata_pixels"] / max(1, row["total_pixels"]),
        "segmenter": _kind_of(row["segmenter"]),
    }


def _kind_of(segmenter: str | None) -> str:
    try:
        found = json.loads(segmenter or "{}")
    except ValueError:
        return ""
    return str(found.get("kind", "")) if isinstance(found, dict) else ""


def _plane(plane: Plane, spec: RasterSpec) -> dict[str, Any]:
    metric = spec.space.metric
    sizes = metric.millimetres if metric is not None else (1.0,) * len(spec.shape)
    return {
        "name": plane.name,
        "across": plane.across,
        **{
            side: {
                "axis": axis.axis,
                "flipped": axis.flipped,
                "first": axis.first,
                "last": axis.last,
                "length": spec.shape[axis.axis],
                "size": sizes[axis.axis],
            }
            for side, axis in (("rows", plane.rows), ("columns", plane.columns))
        },
    }


def _grid(spec: RasterSpec) -> dict[str, Any] | None:
    """Where pixels lie in their CRS, for its grid: the six numbers of the affine, the name of the
    CRS, and the unit of its coordinates. None: the image has no CRS.
    """
    space = spec.space
    if not is_located(space):
        return None
    from pyproj import CRS

    crs = CRS.from_user_input(space.crs)
    unit = crs.axis_info[0].unit_name if crs.axis_info else ""
    return {"affine": space.affine, "name": crs.name, "unit": "m" if unit == "metre" else unit}


def _scale(spec: RasterSpec) -> dict[str, Any]:
    """The unit of length, and how long a step along a row is at some rows, evenly spaced; None
    where that is not known.
    """
    space, unit = spec.space, unit_of_length(spec.space)
    height, width = spec.shape[-2:]
    rows = np.linspace(0, height - 1, _ROWS_OF_SCALE)
    if not is_located(space):
        step = 1.0 if space.metric is None else space.metric.millimetres[-1]
        return {"unit": unit, "steps": [step]}
    places = np.stack([rows, np.full(len(rows), (width - 1) / 2)], axis=1)
    lengths = np.linalg.norm(steps_at(space, places)[:, 1], axis=1)
    return {"unit": unit, "steps": [float(n) if np.isfinite(n) else None for n in lengths]}
