"""The picture of an evaluation: the confusion of classes, the accuracy of each class, and the
images with the most errors.

Of an image that is larger than a tile of the evaluation, the tile with the most wrong pixels is
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.figures.drawing import (
    FAINT,
    INK,
    OUTLINE,
    PAPER,
    WRONG,
    canvas,
    fitting,
    font,
    paste,
    png,
)
from maskloom.segcore.raster.classes import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VOID = (150, 150, 150)
_RIGHT, _SECOND = (0, 114, 178), (230, 159, 0)
_GAP, _WIDTH, _LABEL, _SWATCH = 16, 1280, 150, 16
_MATRIX, _WIDEST_CELL, _NARROWEST_CELL = 640, 96, 32
_TITLE, _TEXT, _SMALL = 20, 14, 12
_MOST_CLASSES = 20
_SIDE = 300
_CAPTION = "Of the truth's pixels (rows), the share that the mask calls (columns)"
_COLUMNS = ("image", "truth", "mask", "errors (red), not compared (grey)")
_UNDEFINED = "-"
"""The font has no longer dash."""


@dataclass(frozen=True, slots=True)
class Heading:
    """The text above the picture."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class ClassMeasures:
    """The measures of each class that are drawn."""

    table: ClassTable
    confusion: NDArray[np.int64]
    """(class of the truth, class of the mask): pixels."""
    iou: NDArray[np.float64]
    boundary_f: NDArray[np.float64]
    """(class,); NaN if not defined."""

    def largest(self, most: int) -> ClassMeasures:
        """The classes with the most pixels, in their order."""
        pixels = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        kept = np.sort(np.argsort(-pixels, kind="stable")[:most])
        names, colours = self.table.names, self.table.colours
        return ClassMeasures(
            ClassTable(tuple(names[i] for i in kept), tuple(colours[i] for i in kept)),
            self.confusion[np.ix_(kept, kept)],
            self.iou[kept],
            self.boundary_f[kept],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Strip:
    """One image, its truth, its mask and its errors, side by side."""

    title: str
    cells: tuple[NDArray[np.uint8] | None, ...]
    """Image (None if it cannot be read), truth, mask and errors, each (y, x, 3)."""


def draw(heading: Heading, measures: ClassMeasures, strips: Sequence[Strip]) -> bytes:
    """The picture as PNG."""
    shown = measures.largest(_MOST_CLASSES)
    classes, all_classes = len(shown.table.names), len(measures.table.names)
    middle = _cell(classes) * classes + 100
    heights = [_height(strip) for strip in strips]
    top = 90
    picture, pen = canvas(_WIDTH, top + middle + sum(heights) + _GAP)
    for text, y, ink, size in (
        (heading.title, _GAP, INK, _TITLE),
        (heading.text, _GAP + 30, FAINT, _TEXT),
    ):
        pen.text((_GAP, y), fitting(text, font(size), _WIDTH - 2 * _GAP), ink, font(size))
    left_of_bars = _draw_confusion(pen, (_GAP, top), shown.table.names, shown.confusion)
    if classes < all_classes:
        note = f"The {classes} largest of {all_classes} classes."
        pen.text((_GAP, top + middle - 40), note, FAINT, font(_SMALL))
    _draw_bars(pen, (left_of_bars, top), shown)
    y = top + middle
    for strip, height in zip(strips, heights, strict=True):
        _draw_strip(picture, pen, strip, y)
        y += height
    return png(picture)


def make_strip(
    title: str,
    table: ClassTable,
    photo: NDArray[np.uint8] | None,
    sides: tuple[NDArray[np.int64], NDArray[np.int64]],
    outlines: NDArray[np.bool_],
    unmatched: NDArray[np.bool_],
) -> Strip:
    """The strip of an image.

    Parameters
    ----------
    title : str
    table : ClassTable
    photo : (y, x, 3) array or None
    sides : two (y, x) arrays
        Class ids of truth and mask; negative without a class.
    outlines : (2, y, x) array
        Outlines of the objects of truth and mask.
    unmatched : (y, x) array
        Pixels of objects without a match, on either side.
    """
    colours = np.array([*table.colours, _VOID], np.uint8)
    both = [colours[np.where(side >= 0, side, len(colours) - 1)] for side in sides]
    for side, outline in zip(both, outlines, strict=True):
        side[outline] = OUTLINE
    cells = (photo, *both, _errors(sides, unmatched, photo))
    return Strip(title, tuple(None if cell is None else _resized(cell) for cell in cells))


def _errors(
    sides: tuple[NDArray[np.int64], NDArray[np.int64]],
    unmatched: NDArray[np.bool_],
    photo: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    """The image in grey, red where truth and mask differ or an object has no match."""
    truth, predicted = sides
    grey = (
        np.full(truth.shape, 200, np.uint8)
        if photo is None
        else (photo.mean(axis=2) * 0.6 + 80).astype(np.uint8)
    )
    errors = np.repeat(grey[..., None], 3, axis=2)
    compared = (truth >= 0) & (predicted >= 0)
    wrong = compared & ((truth != predicted) | unmatched)
    errors[wrong] = errors[wrong] // 5 + np.array([c * 4 // 5 for c in WRONG], np.uint8)
    errors[~compared] = _VOID
    return errors


def _draw_confusion(
    pen: Any, at: tuple[int, int], names: Sequence[str], counts: NDArray[np.int64]
) -> int:
    """A table of shares, with a row for each class of the truth; the first free column to its
    right. Columns have numbers if their names do not fit.
    """
    x, y = at
    pen.text((x, y), _CAPTION, INK, font(_TEXT))
    left, top, side = x + _LABEL, y + 50, _cell(len(names))
    sums = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sums, 1)
    fit = all(font(_SMALL).getlength(name) <= side - 4 for name in names)
    heads = names if fit else [str(i) for i in range(1, len(names) + 1)]
    for i, name in enumerate(names):
        label = fitting(name if fit else f"{heads[i]}  {name}", font(_SMALL), _LABEL - 12)
        pen.text((left - 8, top + i * side + side // 2), label, INK, font(_SMALL), anchor="rm")
        pen.text((left + i * side + side // 2, top - 6), heads[i], INK, font(_SMALL), anchor="ms")
        for j in range(len(names)):
            share = float(shares[i, j])
            paint = _RIGHT if i == j else WRONG
            # A small share must look different from zero.
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
            pen.text(middle, text, PAPER if strength > 0.55 else INK, font(_SMALL), anchor="mm")
    width = int(font(_TEXT).getlength(_CAPTION))
    return max(left + side * len(names), x + width) + 3 * _GAP


def _cell(classes: int) -> int:
    """Side of a cell of the table, in pixels."""
    return min(_WIDEST_CELL, max(_NARROWEST_CELL, _MATRIX // classes))


def _draw_bars(pen: Any, at: tuple[int, int], measures: ClassMeasures) -> None:
    """For each class its colour, a bar of its IoU and a thinner one of its boundary F, in line with
    its row of the table.
    """
    x, y = at
    table = measures.table
    pen.text((x, y), "Intersection over union", _RIGHT, font(_TEXT))
    pen.text(
        (x + font(_TEXT).getlength("Intersection over union") + 2 * _GAP, y),
        "boundary F",
        _SECOND,
        font(_TEXT),
    )
    left, full, side = x + _LABEL, _WIDTH - x - _LABEL - 4 * _GAP, _cell(len(table.names))
    for i, name in enumerate(table.names):
        middle = y + 50 + i * side + side // 2
        pen.rectangle(
            (x, middle - _SWATCH // 2, x + _SWATCH, middle + _SWATCH // 2), fill=table.colours[i]
        )
        label = fitting(name, font(_SMALL), _LABEL - _SWATCH - 2 * 8)
        pen.text((x + _SWATCH + 8, middle), label, INK, font(_SMALL), anchor="lm")
        for value, colour, top, height in (
            (measures.iou[i], _RIGHT, middle - 14, 14),
            (measures.boundary_f[i], _SECOND, middle + 3, 9),
        ):
            pen.rectangle((left, top, left + full, top + height), fill=(240, 240, 240))
            if value > 0:
                pen.rectangle(
                    (left, top, left + round(full * float(value)), top + height), fill=colour
                )
            text = _UNDEFINED if np.isnan(value) else _share(float(value))
            pen.text((left + full + 6, top + height // 2), text, INK, font(_SMALL), anchor="lm")


def _draw_strip(picture: Any, pen: Any, strip: Strip, y: int) -> None:
    pen.text((_GAP, y + 4), fitting(strip.title, font(_TEXT), _WIDTH - 2 * _GAP), INK, font(_TEXT))
    for i, (name, cell) in enumerate(zip(_COLUMNS, strip.cells, strict=True)):
        x = _GAP + i * (_SIDE + _GAP)
        note = name if cell is not None else "image: cannot be read"
        pen.text((x, y + 26), note, FAINT, font(_SMALL))
        if cell is not None:
            paste(picture, cell, (x, y + 44))


def _height(strip: Strip) -> int:
    return 44 + _GAP + max(len(cell) for cell in strip.cells if cell is not None)


def _resized(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
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
