"""The size of a pixel that the descriptions of a TIFF state.

OME-XML (PhysicalSizeX, in µm unless it has another unit) and ImageJ (pixels per `unit`, and
`spacing` between slices) state sizes of the object. The resolution tags alone are sizes for
printing in most files, so they count only if the user says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from maskloom.segcore.ground.space import Metric, is_plausible, millimetres_in

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Sizes = Mapping[str, float]
"""Millimetres between neighbours along each axis (z, y, x) that is stated."""

_NO_TAGS = (
    "its resolution tags state no size in inches or cm, and sizes are in px; give the size of a "
    "pixel as `pixel_size`"
)
_INCH, _CENTIMETRE = 2, 3
"""Values of the tag ResolutionUnit."""
_MICRO = re.compile(r"\\u00b5|\N{GREEK SMALL LETTER MU}|\ufffd|Â?µ", re.IGNORECASE)
"""The letter µ: as ImageJ escapes it, its other code, what is left of it in Latin-1, and itself,
alone or as UTF-8 read as Latin-1.
"""
_LINE = re.compile(r"^(unit|yunit|zunit|spacing)=(.*?)\s*$", re.MULTILINE)


def ome_sizes(pixels: Element) -> Sizes:
    """The sizes in the element Pixels of OME-XML; empty where absent or in pixels."""
    return {
        axis.lower(): _number(pixels.get(f"PhysicalSize{axis}"))
        * _unit(pixels.get(f"PhysicalSize{axis}Unit") or "µm")
        for axis in "ZYX"
    }


def imagej_sizes(description: str, resolution: tuple[float, float]) -> Sizes:
    """The sizes according to the description by ImageJ and the resolution (x, y) of the tags, in
    pixels per unit.
    """
    said: dict[str, str] = dict(_LINE.findall(description))
    unit = said.get("unit", "")
    across, down = (1 / each if each > 0 else 0.0 for each in resolution)
    return {
        "z": abs(_number(said.get("spacing"))) * _unit(said.get("zunit", unit)),
        "y": down * _unit(said.get("yunit", unit)),
        "x": across * _unit(unit),
    }


def tagged_sizes(resolution: tuple[float, float], unit: int) -> Sizes:
    """The sizes according to the resolution tags (x, y), with the value of ResolutionUnit."""
    per = {_INCH: 25.4, _CENTIMETRE: 10.0}.get(unit, 0.0)
    across, down = (per / each if each > 0 else 0.0 for each in resolution)
    return {"y": down, "x": across}


def metric_of(
    sizes: Sizes, axes: tuple[str, ...], stated_by: Literal["file", "tags"] = "file"
) -> tuple[Metric | None, tuple[str, ...]]:
    """The size of a pixel with these axes, and a note if only some are stated, if none is credible,
    or if the user asked for tags that state none.
    """
    spacing = tuple(sizes.get(axis, 0.0) for axis in axes)
    if all(map(is_plausible, spacing)):
        return Metric(spacing, "mm", stated_by), ()
    if not any(spacing):
        return None, (_NO_TAGS,) if stated_by == "tags" else ()
    stated = ", ".join(
        f"{axis} {size:g} mm" if size else f"no {axis}"
        for axis, size in zip(axes, spacing, strict=True)
    )
    note = (
        f"sizes are in px, since the file states {stated}; expected each from 1 nm to 1 m. Set "
        "`pixel_size`"
    )
    return None, (note,)


def _number(text: str | None) -> float:
    """A number; 0 if it is none."""
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _unit(text: str) -> float:
    """Millimetres in a unit of length; 0 for other words, such as pixel."""
    return millimetres_in(_MICRO.sub("µ", text.strip()))
