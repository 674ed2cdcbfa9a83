"""Pictures of a training: its curves, and examples of predictions beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import (
    BOLD,
    FAINT,
    GAP,
    INK,
    MARGIN,
    NO_DATA,
    RULE,
    SMALL,
    Sheet,
    fitted_shape,
    fitting,
    line_height,
    photo_of,
    png,
    resized,
    sampled,
)
from maskloom.segcore.figures.legends import Entry, Legend
from maskloom.segcore.raster.colours import Colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WIDTH, _HEIGHT = 960, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = MARGIN + 44, 236, 48, 52
"""Around the field of a chart."""
_SIDE, _LEAST = 360, 256
"""Longer side of an example at most, and the side up to which small ones are enlarged."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line over epochs."""

    name: str
    values: Sequence[float | None]
    """One per epoch; None if not defined."""
    colour: Colour = INK
    width: int = 2


@dataclass(frozen=True, slots=True)
class Example:
    """A part of an image with its truth and a prediction."""

    picture: NDArray[np.uint8]
    """(y, x, 3)."""
    truth: NDArray[np.uint8]
    """(y, x): class ids; other values are void."""
    predicted: NDArray[np.uint8]
    """(y, x): class ids."""


def curves(losses: Sequence[Curve], scores: Sequence[Curve], best: int | None, title: str) -> bytes:
    """A PNG with losses above, and scores from 0 to 1 below, over epochs; a vertical line marks the
    best epoch.
    """
    sheet = Sheet.blank(_WIDTH, 2 * _HEIGHT)
    _draw_chart(sheet, 0, losses, f"{title}: loss", best, None)
    _draw_chart(sheet, _HEIGHT, scores, "Scores on validation images", best, (0.0, 1.0))
    return png(sheet.pixels, effort=6)


def examples(
    parts: Sequence[Example], classes: tuple[str, ...], colours: Sequence[Colour]
) -> bytes:
    """A PNG with a row for each example: image, truth, prediction, in the colours of masks; the
    legend below.
    """
    table = np.full((256, 3), NO_DATA, np.uint8)
    table[: len(classes)] = colours
    shapes = [fitted_shape(part.truth.shape, _SIDE, least=_LEAST) for part in parts]
    column = max(shape[1] for shape in shapes) + GAP
    inner = max(3 * column - GAP, 420)
    named = [Entry(name, (colour,)) for name, colour in zip(classes, colours, strict=True)]
    legend = Legend.of([*named, Entry("not labelled", (NO_DATA,))], inner)
    top = MARGIN + line_height(SMALL)
    below = top + sum(shape[0] + GAP for shape in shapes)
    sheet = Sheet.blank(inner + 2 * MARGIN, below + legend.height + MARGIN)
    for i, name in enumerate(("image", "truth", "prediction")):
        sheet.text((MARGIN + i * column, MARGIN + 4), name, ink=FAINT, size=SMALL)
    for part, shape in zip(parts, shapes, strict=True):
        labels = (table[sampled(each, shape)] for each in (part.truth, part.predicted))
        for i, picture in enumerate((resized(part.picture, shape), *labels)):
            sheet.paste(picture, (MARGIN + i * column, top), framed=True)
        top += shape[0] + GAP
    legend.draw(sheet, (MARGIN, below))
    return png(sheet.pixels, effort=6)


def shown(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pixels (y, x, band) as a picture (y, x, 3), stretched unless they are of 8 bits and can be
    seen as they are.
    """
    return np.ascontiguousarray(photo_of(pixels))


def _draw_chart(
    sheet: Sheet,
    top: int,
    lines: Sequence[Curve],
    title: str,
    best: int | None,
    limits: tuple[float, float] | None,
) -> None:
    """Curves over epochs with their axes and names, below the height `top`."""
    epochs = max(len(line.values) for line in lines)
    known = [value for line in lines for value in line.values if value is not None]
    ticks = _ticks(*(limits or (min(0.0, *known) if known else 0.0, max(known, default=1.0))))
    low, high = ticks[0], ticks[-1]
    right, bottom = _WIDTH - _RIGHT, top + _HEIGHT - _BOTTOM

    def at(epoch: float, value: float) -> tuple[float, float]:
        x = _LEFT + (epoch - 1) / max(epochs - 1, 1) * (right - _LEFT)
        return x, bottom - (value - low) / (high - low) * (bottom - top - _TOP)

    sheet.text((MARGIN, top + MARGIN), fitting(title, right, weight=BOLD), weight=BOLD)
    for tick in ticks:
        y = at(1, tick)[1]
        sheet.line([(_LEFT, y), (right, y)], RULE)
        sheet.text((_LEFT - 8, y), f"{tick:g}", ink=FAINT, size=SMALL, anchor="right")
    for epoch in sorted(
        {1, *(round(value) for value in _ticks(1, max(epochs, 2)) if 1 <= value <= epochs)}
    ):
        place = (at(epoch, low)[0], bottom + 14)
        sheet.text(place, str(epoch), ink=FAINT, size=SMALL, anchor="middle")
    middle = ((_LEFT + right) / 2, bottom + 34)
    sheet.text(middle, "epoch", ink=FAINT, size=SMALL, anchor="middle")
    if best is not None:
        x = at(best, high)[0]
        sheet.line([at(best, low), (x, top + _TOP)], FAINT)
        sheet.text((x, top + _TOP - 10), f"best: {best}", ink=FAINT, size=SMALL, anchor="middle")
    for i, line in enumerate(lines):
        points = [
            at(epoch, min(value, high))
            for epoch, value in enumerate(line.values, 1)
            if value is not None
        ]
        if len(points) > 1:
            sheet.line(points, line.colour, line.width)
        for point in points if len(points) < 3 else ():
            sheet.dot(point, 3, line.colour)
        y = top + _TOP + 8 + line_height(SMALL) * i
        sheet.line([(right + 16, y), (right + 38, y)], line.colour, line.width)
        name = fitting(line.name, _RIGHT - 46 - MARGIN, size=SMALL)
        sheet.text((right + 46, y), name, size=SMALL)


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from at most `low` to at least `high`.

    >>> _ticks(0, 0.87)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = max(high - low, 1e-9)
    size = 10.0 ** math.floor(math.log10(span))
    step = next(size * part for part in (0.2, 0.5, 1, 2) if span / (size * part) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
