"""Pictures of a training: its curves, and examples of what the network says beside what is true."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.raster.classes import ClassTable, Colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAPER, _INK, _GRID = (255, 255, 255), (40, 40, 40), (222, 222, 222)
_WIDTH, _HEIGHT = 840, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 230, 40, 44
_FONT, _SMALL_FONT = 15, 13
_VOID_COLOUR = (90, 90, 90)
_GAP = 8


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve."""

    name: str
    values: Sequence[float | None]
    """One an epoch; None where it is not defined."""
    colour: Colour = _INK
    width: int = 2


@dataclass(frozen=True, slots=True)
class Example:
    """A part of an image with two opinions on it."""

    picture: NDArray[np.uint8]
    """(y, x, 3)."""
    truth: NDArray[np.uint8]
    """(y, x): class ids, or `VOID`."""
    said: NDArray[np.uint8]
    """(y, x): class ids."""


def curves(losses: Sequence[Curve], scores: Sequence[Curve], best: int | None, title: str) -> bytes:
    """A PNG with losses above, and scores from 0 to 1 below, over epochs; a vertical line marks the
    best.
    """
    from PIL import Image

    image = Image.new("RGB", (_WIDTH, 2 * _HEIGHT), _PAPER)
    image.paste(_panel(losses, f"{title}: loss", best, None), (0, 0))
    image.paste(_panel(scores, "validation images", best, (0.0, 1.0)), (0, _HEIGHT))
    return _png(image)


def examples(parts: Sequence[Example], classes: tuple[str, ...]) -> bytes:
    """A PNG with a row for each example: image, truth, prediction, in the colours that masks have;
    the legend below.
    """
    from PIL import Image, ImageDraw, ImageFont

    legend = ClassTable.of(classes)
    table = np.full((256, 3), _VOID_COLOUR, np.uint8)
    table[: len(classes)] = legend.colours
    width = 3 * max(part.truth.shape[1] for part in parts) + 4 * _GAP
    rows = [part.truth.shape[0] for part in parts]
    font = ImageFont.load_default(size=_SMALL_FONT)
    places, bottom = _legend_places(classes, width, font)
    top = 26
    image = Image.new("RGB", (max(width, 200), top + sum(rows) + _GAP * len(rows) + bottom), _PAPER)
    draw = ImageDraw.Draw(image)
    column = (width - 4 * _GAP) // 3 + _GAP
    for i, name in enumerate(("image", "truth", "prediction")):
        draw.text((_GAP + i * column, 5), name, _INK, font)
    for part in parts:
        for i, picture in enumerate((part.picture, table[part.truth], table[part.said])):
            image.paste(Image.fromarray(picture), (_GAP + i * column, top))
        top += part.truth.shape[0] + _GAP
    for (x, y), name, colour in zip(
        places, (*classes, "not labelled"), (*legend.colours, _VOID_COLOUR), strict=True
    ):
        draw.rectangle((x, top + y, x + 13, top + y + 13), fill=colour, outline=_INK)
        draw.text((x + 19, top + y + 7), name, _INK, font, anchor="lm")
    return _png(image)


def shown(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pixels (y, x, band) as a picture: the first three bands, or the first, between their 1st and
    99th percentile unless they are of 8 bits.
    """
    chosen: NDArray[Any] = (
        pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    )
    if chosen.dtype == np.uint8:
        return np.ascontiguousarray(chosen)
    values = chosen.astype(np.float64)
    low, high = np.percentile(values, [1, 99])
    stretched: NDArray[np.uint8] = (
        np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    ).astype(np.uint8)
    return stretched


def _panel(
    lines: Sequence[Curve], title: str, best: int | None, limits: tuple[float, float] | None
) -> Any:
    """Curves over epochs with their axes and names."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(size=_FONT), ImageFont.load_default(size=_SMALL_FONT)
    epochs = max(len(line.values) for line in lines)
    known = [value for line in lines for value in line.values if value is not None]
    ticks = _ticks(*(limits or (min(0.0, *known) if known else 0.0, max(known, default=1.0))))
    low, high = ticks[0], ticks[-1]

    def at(epoch: float, value: float) -> tuple[float, float]:
        x = _LEFT + (epoch - 1) / max(epochs - 1, 1) * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    draw.text((_LEFT, 10), title, _INK, font)
    for tick in ticks:
        draw.line([at(1, tick), (_WIDTH - _RIGHT, at(1, tick)[1])], _GRID)
        draw.text((_LEFT - 8, at(1, tick)[1]), f"{tick:g}", _INK, small, anchor="rm")
    for epoch in sorted(
        {1, *(round(value) for value in _ticks(1, max(epochs, 2)) if 1 <= value <= epochs)}
    ):
        draw.text((at(epoch, low)[0], _HEIGHT - _BOTTOM + 6), str(epoch), _INK, small, anchor="ma")
    draw.text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 18), "epoch", _INK, small, anchor="ma")
    if best is not None:
        draw.line([at(best, low), at(best, high)], (170, 170, 170), 1)
        draw.text(
            (at(best, high)[0], _TOP - 14), f"best: {best}", (110, 110, 110), small, anchor="ma"
        )
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
            (_WIDTH - _RIGHT + 38, y + 8), _shortened(line.name, small), _INK, small, anchor="lm"
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


def _shortened(name: str, font: Any) -> str:
    room = _RIGHT - 46
    if font.getlength(name) <= room:
        return name
    while name and font.getlength(name + "...") > room:
        name = name[:-1]
    return name + "..."


def _legend_places(
    classes: Sequence[str], width: int, font: Any
) -> tuple[list[tuple[int, int]], int]:
    places, x, y = [], _GAP, _GAP
    for name in (*classes, "not labelled"):
        advance = 19 + int(font.getlength(name)) + 2 * _GAP
        if x > _GAP and x + advance > width:
            x, y = _GAP, y + 20
        places.append((x, y))
        x += advance
    return places, y + 20 + _GAP


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
