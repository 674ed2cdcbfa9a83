"""What the tags of a TIFF say: the size of a pixel, and when the image was acquired."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from maskloom.segcore.formats.orientation import transposed
from maskloom.segcore.formats.tiff.contents import Contents
from maskloom.segcore.formats.tiff.descriptions import ome_pixels
from maskloom.segcore.formats.tiff.layout import Layout
from maskloom.segcore.formats.tiff.sizes import (
    Sizes,
    imagej_sizes,
    metric_of,
    ome_sizes,
    tagged_sizes,
)
from maskloom.segcore.ground.space import Metric
from maskloom.segcore.raster.dates import from_tag

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_tags(
    raw: Any, contents: Contents, layout: Layout, tags_count: bool
) -> tuple[Metric | None, tuple[str, ...], str | None]:
    """The size of a pixel with notes on it, and when the image was acquired, by the tags of the
    file that is open as `raw`. `tags_count`: the resolution tags are to be believed.
    """
    tags = raw.tags()
    return *_metric(tags, contents, layout, tags_count), _acquired(raw, tags)


def _acquired(raw: Any, tags: Mapping[str, str]) -> str | None:
    """When the image was acquired: by the metadata of GDAL's drivers, by EXIF, or by the tag
    DateTime, which is the time of writing where other programs have written the file again.
    """
    domains = raw.tag_namespaces()
    imagery = raw.tags(ns="IMAGERY") if "IMAGERY" in domains else {}
    exif = {**tags, **(raw.tags(ns="EXIF") if "EXIF" in domains else {})}
    return (
        from_tag(imagery.get("ACQUISITIONDATETIME"))
        or from_tag(exif.get("EXIF_DateTimeOriginal"), exif.get("EXIF_OffsetTimeOriginal"))
        or from_tag(tags.get("TIFFTAG_DATETIME"))
    )


def _metric(
    tags: Mapping[str, str], contents: Contents, layout: Layout, tags_count: bool
) -> tuple[Metric | None, tuple[str, ...]]:
    """The size of a pixel that the file states, and a note if it is not usable."""
    if layout.space.placed or layout.space.crs is not None:
        return None, ()
    description = contents.first.description
    across, down = (float(tags.get(f"TIFFTAG_{axis}RESOLUTION") or 0) for axis in "XY")
    resolution = (across, down)
    described = ome_pixels(description, contents.page.shape)
    sizes: Sizes = {}
    if described:
        sizes = ome_sizes(described[0])
    elif description.startswith("ImageJ="):
        sizes = imagej_sizes(description, resolution)
    if tags_count:
        unit = tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1]
        sizes = tagged_sizes(resolution, int(unit) if unit.isdecimal() else 0)
    metric, notes = metric_of(sizes, layout.space.axes, "tags" if tags_count else "file")
    if metric is not None and transposed(layout.orientation):
        metric = replace(metric, spacing=metric.spacing[::-1])
    return metric, notes
