"""The tag of an OME-TIFF: its metadata as OME-XML, with the size of a pixel.

After: the OME data model 2016-06, and the specification of OME-TIFF with sub-resolutions (version
6.0): one page with its pyramid in sub-directories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from maskloom.segcore.ground.space import MILLIMETRES
from maskloom.segcore.masks.cog.structure import Tag

if TYPE_CHECKING:
    from maskloom.segcore.raster.spec import RasterSpec

_DESCRIPTION = 270
OME_TAGS = frozenset({_DESCRIPTION})
_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def ome_tags(spec: RasterSpec, classes: Sequence[str], dtype: str) -> list[Tag]:
    """The tag that makes the mask of `spec` an OME-TIFF; `classes` are the names by class id, empty
    for masks of objects.
    """
    return [Tag.text(_DESCRIPTION, _xml(spec, classes, dtype, _micrometres(spec)))]


def xml_text(text: str) -> str:
    """Text as the value of an element or an attribute."""
    # XML cannot represent most control characters and halves of surrogate pairs.
    return escape(
        re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text),
        {'"': "&quot;"},
    )


def _xml(
    spec: RasterSpec, classes: Sequence[str], dtype: str, size: tuple[float, float] | None
) -> str:
    height, width = spec.shape
    physical = ""
    if size is not None:
        physical = "".join(
            f' PhysicalSize{axis}="{each!r}" PhysicalSize{axis}Unit="\u00b5m"'
            for axis, each in zip("YX", size, strict=True)
        )
    names = "".join(f'<M K="{i}">{xml_text(name)}</M>' for i, name in enumerate(classes))
    reference, annotations = "", ""
    if names:
        reference = '<AnnotationRef ID="Annotation:0"/>'
        annotations = (
            '<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="maskloom/classes">'
            f"<Value>{names}</Value></MapAnnotation></StructuredAnnotations>"
        )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="{_SCHEMA}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{_SCHEMA} {_SCHEMA}/ome.xsd" Creator="maskloom">'
        '<Image ID="Image:0" Name="mask">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{dtype}" BigEndian="false" '
        f'SizeX="{width}" SizeY="{height}" SizeC="1" SizeZ="1" SizeT="1"{physical}>'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1"/>'
        f"</Pixels>{reference}</Image>{annotations}</OME>"
    )
    # The tag is one of ASCII.
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _micrometres(spec: RasterSpec) -> tuple[float, float] | None:
    """The size of a pixel along (y, x) in um; None if it is not known."""
    metric = spec.space.metric
    if metric is None:
        return None
    y, x = (each * MILLIMETRES[metric.unit] / MILLIMETRES["um"] for each in metric.spacing)
    return y, x
