"""The reliability diagram: how often a model is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.figures.drawing import (
    BOLD,
    FAINT,
    INK,
    MARGIN,
    RULE,
    SMALL,
    Sheet,
    fitting,
    line_height,
    png,
)
from maskloom.segcore.models.calibration import BINS
from maskloom.segcore.raster.colours import Colour

if TYPE_CHECKING:
    from maskloom.segcore.models.calibration import Reliability

_FIELD, _SHARES = 380, 76
"""Sides of the field, and height of the chart of shares below, in pixels."""
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = MARGIN + 52, MARGIN + 230, 64, 20, 56
_BAR: Colour = (188, 198, 210)


@dataclass(frozen=True, slots=True)
class Line:
    """A model in the diagram."""

    name: str
    reliability: Reliability
    colour: Colour = INK
    width: int = 3


def draw_reliability(lines: Sequence[Line], title: str) -> bytes:
    """A PNG with accuracy over confidence for each line, and below, how many pixels of the last
    line have which confidence. On the diagonal, confidence can be believed; below it a model is too
    sure.
    """
    width, bottom = _LEFT + _FIELD + _RIGHT, _TOP + _FIELD
    base = bottom + _GAP + _SHARES
    sheet = Sheet.blank(width, base + _BOTTOM)

    def at(confidence: float, accuracy: float) -> tuple[float, float]:
        return _LEFT + confidence * _FIELD, bottom - accuracy * _FIELD

    heading = fitting(title, width - 2 * MARGIN, weight=BOLD)
    sheet.text((MARGIN, MARGIN), heading, weight=BOLD)
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = at(tick, tick)
        sheet.line([at(0, tick), at(1, tick)], RULE)
        sheet.text((_LEFT - 8, y), f"{tick:g}", ink=FAINT, size=SMALL, anchor="right")
        sheet.text((x, base + 14), f"{tick:g}", ink=FAINT, size=SMALL, anchor="middle")
    sheet.line([at(0, 0), at(1, 1)], FAINT)
    sheet.text((MARGIN, _TOP - 20), "accuracy", ink=FAINT, size=SMALL)
    for text, place in (("too unsure", at(0.06, 0.94)), ("too sure", at(0.8, 0.06))):
        sheet.text(place, text, ink=FAINT, size=SMALL)
    middle = (_LEFT + _FIELD / 2, base + 36)
    sheet.text(middle, "confidence", ink=FAINT, size=SMALL, anchor="middle")
    side = _LEFT + _FIELD + 20
    for i, line in enumerate(lines):
        found = line.reliability
        points = [
            at(found.confidence[k], found.accuracy[k]) for k in range(BINS) if found.sums[0, k]
        ]
        if len(points) > 1:
            sheet.line(points, line.colour, line.width)
        for point in points:
            sheet.dot(point, 4, line.colour)
        y = _TOP + 8 + 2 * line_height(SMALL) * i
        sheet.line([(side, y), (side + 22, y)], line.colour, line.width)
        sheet.text((side + 30, y), line.name, size=SMALL)
        error = f"calibration error {found.error:.3f}"
        sheet.text((side + 30, y + line_height(SMALL)), error, ink=FAINT, size=SMALL)
    last = lines[-1].reliability
    shares = last.sums[0] / max(last.pixels, 1)
    for k in range(BINS):
        height = round(shares[k] * _SHARES)
        left, right = round(at(k / BINS, 0)[0]) + 2, round(at((k + 1) / BINS, 0)[0]) - 2
        sheet.pixels[base - height : base, left:right] = _BAR
    sheet.line([(_LEFT, base), (_LEFT + _FIELD, base)], RULE)
    sheet.text((side, base - _SHARES / 2), "share of pixels", ink=FAINT, size=SMALL)
    return png(sheet.pixels, effort=6)
