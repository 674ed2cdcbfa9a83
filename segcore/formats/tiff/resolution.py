"""The resolution tags of TIFF, for users who know that theirs state the size of a pixel.

Most programs write a size for printing there (72 dpi), so they are used where asked for only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from maskloom.segcore.formats.orientation import transposed
from maskloom.segcore.ground.space import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maskloom.segcore.formats.tiff.dataset import TiffDataset
    from maskloom.segcore.formats.tiff.layout import Layout

_CENTIMETRES = {"2": 2.54, "3": 1.0}
"""Centimetres in each unit of the tag ResolutionUnit: inches and centimetres."""


def sized_by_tags(dataset: TiffDataset, layout: Layout) -> Layout:
    """The layout with the pixel size of the resolution tags, or with a note if these state none.
    A raster with a CRS keeps its own.
    """
    if layout.space.crs is not None:
        return layout
    metric = _metric(dataset.run(dataset.raw.tags), layout.orientation)
    if metric is not None:
        return replace(layout, space=replace(layout.space, metric=metric))
    note = (
        "its resolution tags state no size in inches or cm, and sizes are in px; give the size of "
        "a pixel as `pixel_size`"
    )
    return replace(layout, notes=(*layout.notes, note))


def _metric(tags: Mapping[str, str], orientation: int) -> Metric | None:
    """The size of an upright pixel; None if the tags state none that is plausible."""
    # GDAL writes the unit with its meaning: 3 (pixels/cm).
    unit = _CENTIMETRES.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1])
    try:
        steps = tuple(
            (unit or 0.0) / float(tags.get(f"TIFFTAG_{axis}RESOLUTION", "nan"))
            for axis in ("XY" if transposed(orientation) else "YX")
        )
        found = Metric(steps, "cm", "tags")
    except (ValueError, ZeroDivisionError):
        return None
    return found if found.is_plausible else None
