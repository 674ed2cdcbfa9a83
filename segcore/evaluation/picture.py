"""The picture of an evaluation: which classes are taken for which, how good each is, and the images
that went worst.

Of an image that is larger than a tile of the evaluation, the tile with the most wrong pixels is
shown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.evaluation.scoring import view
from maskloom.segcore.raster.classes import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.evaluation.boundary import Boundary
    from maskloom.segcore.evaluation.confusion import Confusion
    from maskloom.segcore.evaluation.scoring import EvaluationOptions, Score, View

_PAPER, _INK, _FAINT, _WRONG, _VOID = (
    (255, 255, 255),
    (20, 20, 20),
    (110, 110, 110),
    (220, 30, 30),
    (150, 150, 150),
)
_SURE, _SECOND = (0, 114, 178), (230, 159, 0)
_OUTLINE = (255, 220, 0)
_GAP, _WIDTH, _LABEL, _SWATCH = 16, 1280, 150, 16
_MATRIX, _WIDEST_CELL, _NARROWEST_CELL = 640, 96, 32
_TITLE, _TEXT, _SMALL = 20, 14, 12
_MOST_CLASSES = 20
_DARK = 100
"""Brightest value of a picture of 8 bits on which little can be seen."""
_SIDE = 300
_CAPTION = "Of the truth's pixels (rows), the share that the mask calls (columns)"
_COLUMNS = ("image", "truth", "mask", "errors (red), not compared (grey)")
_UNDEFINED = "-"
"""The font has no longer dash."""


@dataclass(frozen=True, slots=True)
class Heading:
    """The words above the picture."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """One image, side by side."""

    title: str
    cells: tuple[NDArray[np.uint8] | None, ...]
    """Image (None: it cannot be read), truth, mask, errors."""


def draw(
    heading: Heading,
    legend: ClassTable,
    counts: tuple[Confusion, Boundary],
    strips: Sequence[Strip],
) -> bytes:
    """The picture as PNG."""
    from PIL import Image, ImageDraw

    confusion, boundary = counts
    classes = np.sort(
        np.argsort(-(confusion.truth + confusion.predicted), kind="stable")[:_MOST_CLASSES]
    )
    shown = ClassTable(
        tuple(legend.names[i] for i in classes), tuple(legend.colours[i] for i in classes)
    )
    middle = _cell(len(classes)) * len(classes) + 100
    heights = [_height(strip) for strip in strips]
    top = 90
    picture = Image.new("RGB", (_WIDTH, top + middle + sum(heights) + _GAP), _PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text(
        (_GAP, _GAP), _fitting(heading.title, _font(_TITLE), _WIDTH - 2 * _GAP), _INK, _font(_TITLE)
    )
    pen.text(
        (_GAP, _GAP + 30),
        _fitting(heading.text, _font(_TEXT), _WIDTH - 2 * _GAP),
        _FAINT,
        _font(_TEXT),
    )
    left_of_bars = _draw_confusion(
        pen, (_GAP, top), shown.names, confusion.square[np.ix_(classes, classes)]
    )
    if len(classes) < len(legend.names):
        told = f"The {len(classes)} largest of {len(legend.names)} classes."
        pen.text((_GAP, top + middle - 40), told, _FAINT, _font(_SMALL))
    _draw_bars(pen, (left_of_bars, top), shown, (confusion.iou[classes], boundary.f[classes]))
    y = top + middle
    for strip, height in zip(strips, heights, strict=True):
        _draw_strip(picture, pen, strip, y)
        y += height
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def make_strip(
    score: Score, terms: EvaluationOptions, title: str, photo: NDArray[np.uint8] | None
) -> Strip:
    """The strip of an image; `photo` is red, green and blue of the tile `score.worst`, if it could
    be read. Raises as `scoring.score`.
    """
    shown = view(score.subject, terms, score.worst)
    colours = np.array([*ClassTable.of(terms.key.classes).colours, _VOID], np.uint8)
    both = [
        colours[np.where(side >= 0, side, len(colours) - 1)]
        for side in (shown.truth, shown.predicted)
    ]
    for side, outline in zip(both, shown.outlines, strict=True):
        side[outline] = _OUTLINE
    cells = (photo, *both, _errors(shown, photo))
    return Strip(title, tuple(None if cell is None else _shrunk(cell) for cell in cells))


def photo_of(pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pixels (rows, columns, bands) as people see them: the first three bands or the first one,
    stretched where they are dark or not of 8 bits.
    """
    three = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    shown = np.nan_to_num(three.astype(np.float32))
    low, high = np.percentile(shown[valid], [1, 99]) if valid.any() else (0, 255)
    if pixels.dtype != np.uint8 or high < _DARK:
        shown = np.clip((shown - low) * (255 / max(float(high - low), 1e-9)), 0, 255)
    return shown.astype(np.uint8)


def _errors(shown: View, photo: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The image in grey, red where truth and mask differ or an object has no match."""
    grey = (
        np.full(shown.truth.shape, 200, np.uint8)
        if photo is None
        else (photo.mean(axis=2) * 0.6 + 80).astype(np.uint8)
    )
    errors = np.repeat(grey[..., None], 3, axis=2)
    compared = (shown.truth >= 0) & (shown.predicted >= 0)
    wrong = compared & ((shown.truth != shown.predicted) | shown.unmatched)
    errors[wrong] = errors[wrong] // 5 + np.array([c * 4 // 5 for c in _WRONG], np.uint8)
    errors[~compared] = _VOID
    return errors


def _draw_confusion(
    pen: Any, at: tuple[int, int], names: Sequence[str], counts: NDArray[np.int64]
) -> int:
    """A table of shares, rows of the truth; the first free column to its right. Columns have
    numbers where their names do not fit.
    """
    x, y = at
    pen.text((x, y), _CAPTION, _INK, _font(_TEXT))
    left, top, side = x + _LABEL, y + 50, _cell(len(names))
    sums = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sums, 1)
    fit = all(_font(_SMALL).getlength(name) <= side - 4 for name in names)
    heads = names if fit else [str(i) for i in range(1, len(names) + 1)]
    for i, name in enumerate(names):
        label = _fitting(name if fit else f"{heads[i]}  {name}", _font(_SMALL), _LABEL - 12)
        pen.text((left - 8, top + i * side + side // 2), label, _INK, _font(_SMALL), anchor="rm")
        pen.text((left + i * side + side // 2, top - 6), heads[i], _INK, _font(_SMALL), anchor="ms")
        for j in range(len(names)):
            share = float(shares[i, j])
            paint = _SURE if i == j else _WRONG
            # Small shares are still told from none.
            strength = 0 if not counts[i, j] else 0.06 + 0.94 * share
            box = (
                left + j * side,
                top + i * side,
                left + (j + 1) * side - 2,
                top + (i + 1) * side - 2,
            )
            pen.rectangle(
                box,
                fill=tuple(round(255 + (c - 255) * strength) for c in paint),
                outline=(225, 225, 225),
            )
            text = _share(share) if sums[i, 0] else _UNDEFINED
            middle = ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
            pen.text(middle, text, _PAPER if strength > 0.55 else _INK, _font(_SMALL), anchor="mm")
    width = int(_font(_TEXT).getlength(_CAPTION))
    return max(left + side * len(names), x + width) + 3 * _GAP


def _cell(classes: int) -> int:
    """Side of a cell of the table in pixels."""
    return min(_WIDEST_CELL, max(_NARROWEST_CELL, _MATRIX // classes))


def _draw_bars(
    pen: Any,
    at: tuple[int, int],
    legend: ClassTable,
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """For each class its colour, a bar of its IoU and a thinner one of its boundary F, in line with
    its row of the table.
    """
    x, y = at
    pen.text((x, y), "Intersection over union", _SURE, _font(_TEXT))
    pen.text(
        (x + _font(_TEXT).getlength("Intersection over union") + 2 * _GAP, y),
        "boundary F",
        _SECOND,
        _font(_TEXT),
    )
    left, full, side = x + _LABEL, _WIDTH - x - _LABEL - 4 * _GAP, _cell(len(legend.names))
    for i, name in enumerate(legend.names):
        middle = y + 50 + i * side + side // 2
        pen.rectangle(
            (x, middle - _SWATCH // 2, x + _SWATCH, middle + _SWATCH // 2), fill=legend.colours[i]
        )
        label = _fitting(name, _font(_SMALL), _LABEL - _SWATCH - 2 * 8)
        pen.text((x + _SWATCH + 8, middle), label, _INK, _font(_SMALL), anchor="lm")
        for value, colour, top, height in (
            (values[0][i], _SURE, middle - 14, 14),
            (values[1][i], _SECOND, middle + 3, 9),
        ):
            pen.rectangle((left, top, left + full, top + height), fill=(240, 240, 240))
            if value > 0:
                pen.rectangle(
                    (left, top, left + round(full * float(value)), top + height), fill=colour
                )
            text = _UNDEFINED if np.isnan(value) else _share(float(value))
            pen.text((left + full + 6, top + height // 2), text, _INK, _font(_SMALL), anchor="lm")


def _draw_strip(picture: Any, pen: Any, strip: Strip, y: int) -> None:
    from PIL import Image

    pen.text(
        (_GAP, y + 4), _fitting(strip.title, _font(_TEXT), _WIDTH - 2 * _GAP), _INK, _font(_TEXT)
    )
    for i, (name, cell) in enumerate(zip(_COLUMNS, strip.cells, strict=True)):
        x = _GAP + i * (_SIDE + _GAP)
        note = name if cell is not None else "image: cannot be read"
        pen.text((x, y + 26), note, _FAINT, _font(_SMALL))
        if cell is not None:
            picture.paste(Image.fromarray(cell), (x, y + 44))


def _height(strip: Strip) -> int:
    return 44 + _GAP + max(len(cell) for cell in strip.cells if cell is not None)


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    scale = _SIDE / max(picture.shape[:2])
    size = tuple(max(1, round(n * scale)) for n in reversed(picture.shape[:2]))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    shrunk: NDArray[np.uint8] = cv2.resize(picture, size, interpolation=how)
    return shrunk


def _share(value: float) -> str:
    return (
        f"{value:.2f}"
        if 0.005 <= value <= 0.995 or value in (0, 1)
        else ("<.01" if value < 0.5 else ">.99")
    )


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
