"""Files beside a GeoTIFF of classes, which name the classes and give them their colours.

A TIFF has no place for names of classes that all versions of GDAL read, its palette of 8 bits
always has 256 entries, and masks of more classes have no palette. So a mask has two small files
beside it:

    a.tif.aux.xml   GDAL's metadata: names of categories, and a raster attribute table, from which
                    QGIS since version 3.30 and ArcGIS make the legend
    a.qml           a style of QGIS, which every version loads with the mask

Both list the classes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from maskloom.segcore.masks.cog.ome import xml_text
from maskloom.segcore.raster.colours import hexadecimal

if TYPE_CHECKING:
    from maskloom.segcore.raster.classes import ClassTable

_INTEGER, _TEXT = 0, 2
_FIELDS = (
    ("Value", _INTEGER, 5),
    ("Class", _TEXT, 2),
    ("Red", _INTEGER, 6),
    ("Green", _INTEGER, 7),
    ("Blue", _INTEGER, 8),
)
"""Name, type and usage of the columns of the attribute table, as GDAL numbers them."""


def gdal_metadata(classes: ClassTable) -> bytes:
    """The content of `<mask>.aux.xml`, as GDAL's persistent auxiliary metadata."""
    lines = [
        "<PAMDataset>",
        '<PAMRasterBand band="1">',
        "<CategoryNames>",
        *(f"<Category>{xml_text(name)}</Category>" for name in classes.names),
        "</CategoryNames>",
    ]
    if classes.dtype != "uint8":
        lines += [
            "<ColorInterp>Palette</ColorInterp>",
            "<ColorTable>",
            *(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in classes.colours),
            "</ColorTable>",
        ]
    lines += [*_attribute_table(classes), "</PAMRasterBand>", "</PAMDataset>", ""]
    return "\n".join(lines).encode()


def qgis_style(classes: ClassTable) -> bytes:
    """The content of a `.qml`: QGIS draws each class in its colour."""
    lines = [
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>",
        '<qgis version="3.22" styleCategories="Symbology">',
        "<pipe>",
        '<rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1">',
        "<colorPalette>",
        *(
            f'<paletteEntry value="{i}" label="{xml_text(name)}" color="{hexadecimal(colour)}" '
            'alpha="255"/>'
            for i, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
        ),
        "</colorPalette>",
        "</rasterrenderer>",
        "</pipe>",
        "</qgis>",
        "",
    ]
    return "\n".join(lines).encode()


def _attribute_table(classes: ClassTable) -> Iterator[str]:
    yield '<GDALRasterAttributeTable tableType="thematic">'
    for i, (name, kind, usage) in enumerate(_FIELDS):
        yield (
            f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage>'
            "</FieldDefn>"
        )
    for i, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        values = "".join(f"<F>{value}</F>" for value in (i, xml_text(name), *colour))
        yield f'<Row index="{i}">{values}</Row>'
    yield "</GDALRasterAttributeTable>"
