"""The tags of TIFF masks: palette, class names, georeference and resolution."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from maskloom.segcore.ground.space import MILLIMETRES
from maskloom.segcore.masks.cog.blocks import Spool, level_shape
from maskloom.segcore.masks.cog.ome import OME_TAGS, xml_text
from maskloom.segcore.masks.cog.structure import LONG, SHORT, Tag, read_first_directory

if TYPE_CHECKING:
    from maskloom.segcore.ground.space import Space
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec

DEFLATE = 8
_CENTIMETRE = 3
"""ResolutionUnit."""
_RESOLUTION_TAGS = frozenset({282, 283, 296})
_GEO_TAGS = frozenset({33550, 33922, 34264, 34735, 34736, 34737, 50844})
_OF_FULL_RESOLUTION = _GEO_TAGS | _RESOLUTION_TAGS | OME_TAGS | {42112}


def mask_tags(spec: RasterSpec, classes: ClassTable, dtype: str) -> list[Tag]:
    """The tags of the full resolution that do not depend on sizes and offsets."""
    tags = [
        Tag.of(258, SHORT, np.dtype(dtype).itemsize * 8),
        Tag.of(259, SHORT, DEFLATE),
        Tag.of(262, SHORT, 3 if dtype == "uint8" else 1),
        Tag.of(277, SHORT, 1),
        Tag.of(284, SHORT, 1),
        Tag.of(339, SHORT, 1),
        *geo_tags(spec.space),
        *resolution_tags(spec.space),
    ]
    if dtype == "uint8":
        palette = np.zeros((3, 256), np.uint16)
        palette[:, : len(classes.colours)] = (
            np.array(classes.colours, np.uint16).reshape(-1, 3).T * 257
        )
        tags.append(Tag.of(320, SHORT, palette.ravel()))
    if dtype != "uint32":
        tags += [Tag.text(42112, _class_metadata(classes)), Tag.text(42113, str(classes.nodata))]
    return tags


def geo_tags(space: Space) -> list[Tag]:
    """The georeferencing tags, as GDAL writes them for any coordinate system that it supports."""
    import rasterio
    from rasterio.control import GroundControlPoint

    if not space.placed and space.crs is None:
        return []
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": 1,
        "height": 1,
        "count": 1,
        "dtype": "uint8",
        "crs": space.crs,
    }
    if space.affine is not None:
        profile["transform"] = rasterio.Affine(*space.affine)
    elif space.gcps:
        profile["gcps"] = [
            GroundControlPoint(row=row, col=column, x=x, y=y, z=z)
            for column, row, x, y, z in space.gcps
        ]
        profile["crs"] = space.gcp_crs
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as file:
            if space.rpcs:
                file.update_tags(ns="RPC", **dict(space.rpcs))
        memory.seek(0)
        return [tag for tag in read_first_directory(memory.read()) if tag.code in _GEO_TAGS]


def resolution_tags(space: Space) -> list[Tag]:
    """Pixels per centimetre, which QuPath and ImageJ read; none if they are not known, or too many
    or too few for a tag.
    """
    if space.metric is None:
        return []
    down, across = (
        10 / (distance * MILLIMETRES[space.metric.unit]) for distance in space.metric.spacing
    )
    if not all(2**-15 < each < 2**31 for each in (down, across)):
        return []
    return [Tag.ratio(282, across), Tag.ratio(283, down), Tag.of(296, SHORT, _CENTIMETRE)]


def _class_metadata(classes: ClassTable) -> str:
    """GDAL's metadata XML: all names as JSON for programs, and each name separately for people."""
    names = json.dumps({str(i): name for i, name in enumerate(classes.names)}, ensure_ascii=False)
    # GDAL undoes the escapes of this tag's values twice.
    items = [f'<Item name="CLASSES">{escape(xml_text(names))}</Item>']
    items += [
        f'<Item name="CLASS_{i}" sample="0">{escape(xml_text(name))}</Item>'
        for i, name in enumerate(classes.names)
    ]
    return f"<GDALMetadata>{''.join(items)}</GDALMetadata>"


def directories_of(spool: Spool, tags: list[Tag]) -> list[list[Tag]]:
    """The directories of all levels; `tags` are those of full resolution."""
    directories = []
    for level in range(len(spool.sizes)):
        height, width = level_shape(spool.spec.shape, level)
        directories.append(
            [
                Tag.of(254, LONG, int(level > 0)),
                Tag.of(256, LONG, width),
                Tag.of(257, LONG, height),
                Tag.of(322, SHORT, spool.block),
                Tag.of(323, SHORT, spool.block),
                *(tag for tag in tags if level == 0 or tag.code not in _OF_FULL_RESOLUTION),
            ]
        )
    return directories
