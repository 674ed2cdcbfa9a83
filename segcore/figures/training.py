"""Pictures of a training: its curves, and examples of predictions beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.figures.drawing import (
    FAINT,
    canvas,
    draw_legend,
    fitting,
    font,
    lines_of,
    paste,
    photo_of,
    png,
)
from maskloom.segcore.raster.colours import Colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INK, _GRID, _BEST = (40, 40, 40), (222, 222, 222), (170, 170, 170)
_WIDTH, _HEIGHT = 840, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 230, 40, 44
_FONT, _SMALL_FONT = 15, 13
_VOID_COLOUR = (90, 90, 90)
_GAP, _LEGEND_TEXT, _LEGEND_LINE = 8, 19, 20


@dataclass(frozen=True, slots=True)
class Curve:
    """A line over epochs."""

    name: str
    values: Sequence[float | None]
    """One per epoch; None if not defined."""
    colour: Colour = _INK
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
    image, _ = canvas(_WIDTH, 2 * _HEIGHT)
    image.paste(_panel(losses, f"{title}: loss", best, None), (0, 0))
    image.paste(_panel(scores, "validation images", best, (0.0, 1.0)), (0, _HEIGHT))
    return png(image)


def examples(
    parts: Sequence[Example], classes: tuple[str, ...], colours: Sequence[Colour]
) -> bytes:
    """A PNG with a row for each example: image, truth, prediction, in the colours of masks; the
    legend below.
    """
    table = np.full((256, 3), _VOID_COLOUR, np.uint8)
    table[: len(classes)] = colours
    width = 3 * max(part.truth.shape[1] for part in parts) + 4 * _GAP
    letters = font(_SMALL_FONT)
    entries = [*zip(classes, colours, strict=True), ("not labelled", _VOID_COLOUR)]
    widths = [_LEGEND_TEXT + int(letters.getlength(name)) + 2 * _GAP for name, _ in entries]
    places, bottom = lines_of(widths, width, _GAP, _LEGEND_LINE)
    top = 26
    rows = sum(part.truth.shape[0] + _GAP for part in parts)
    image, pen = canvas(max(width, 200), top + rows + bottom + _GAP)
    column = (width - 4 * _GAP) // 3 + _GAP
    for i, name in enumerate(("image", "truth", "prediction")):
        pen.text((_GAP + i * column, 5), name, _INK, letters)
    for part in parts:
        for i, picture in enumerate((part.picture, table[part.truth], table[part.predicted])):
            paste(image, picture, (_GAP + i * column, top))
        top += part.truth.shape[0] + _GAP
    draw_legend(
        pen,
        [(x, top + y) for x, y in places],
        entries,
        font=letters,
        ink=_INK,
        text_at=_LEGEND_TEXT,
    )
    return png(image)


def shown(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pixels (y, x, band) as a picture (y, x, 3), stretched unless they are of 8 bits."""
    return np.ascontiguousarray(photo_of(pixels, as_is=bool(pixels.dtype == np.uint8)))


def _panel(
    lines: Sequence[Curve], title: str, best: int | None, limits: tuple[float, float] | None
) -> Any:
    """Curves over epochs with their axes and names."""
    image, draw = canvas(_WIDTH, _HEIGHT)
    small = font(_SMALL_FONT)
    epochs = max(len(line.values) for line in lines)
    known = [value for line in lines for value in line.values if value is not None]
    ticks = _ticks(*(limits or (min(0.0, *known) if known else 0.0, max(known, default=1.0))))
    low, high = ticks[0], ticks[-1]

    def at(epoch: float, value: float) -> tuple[float, float]:
        x = _LEFT + (epoch - 1) / max(epochs - 1, 1) * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    draw.text((_LEFT, 10), title, _INK, font(_FONT))
    for tick in ticks:
        draw.line([at(1, tick), (_WIDTH - _RIGHT, at(1, tick)[1])], _GRID)
        draw.text((_LEFT - 8, at(1, tick)[1]), f"{tick:g}", _INK, small, anchor="rm")
    for epoch in sorted(
        {1, *(round(value) for value in _ticks(1, max(epochs, 2)) if 1 <= value <= epochs)}
    ):
        draw.text((at(epoch, low)[0], _HEIGHT - _BOTTOM + 6), str(epoch), _INK, small, anchor="ma")
    draw.text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 18), "epoch", _INK, small, anchor="ma")
    if best is not None:
        draw.line([at(best, low), at(best, high)], _BEST, 1)
        draw.text((at(best, high)[0], _TOP - 14), f"best: {best}", FAINT, small, anchor="ma")
    for i, line in enumerate(lines):
        points = [
            at(epoch, min(value, high))
            for epoch, value in enumerate(line.values, 1)
            if value is not None
        ]
        draw.line(points, line.colour, line.width, joint="curve") if len(points) > 1 else None
        for x, y in points if len(points) < 3 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=line.colour)
        y = _TOP + 18 * i
        draw.line(
            [(_WIDTH - _RIGHT + 12, y + 8), (_WIDTH - _RIGHT + 32, y + 8)], line.colour, line.width
        )
        draw.text(
            (_WIDTH - _RIGHT + 38, y + 8),
            fitting(line.name, small, _RIGHT - 46),
            _INK,
            small,
            anchor="lm",
        )
    return image


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
