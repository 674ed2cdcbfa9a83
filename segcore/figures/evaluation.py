"""The picture of an evaluation: the confusion of classes, the accuracy of each class, and the
images with the most errors.

Of an image that is larger than a tile of the evaluation, the tile with the most wrong pixels is
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import (
    ACCENT,
    BOLD,
    FAINT,
    GAP,
    INK,
    MARGIN,
    NO_DATA,
    OUTLINE,
    PAPER,
    RULE,
    SECOND,
    SMALL,
    SWATCH,
    TEXT,
    TOP,
    WRONG,
    Sheet,
    fitted_shape,
    fitting,
    line_height,
    png,
    resized,
    width_of,
)
from maskloom.segcore.raster.classes import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VOID = NO_DATA
_WIDTH, _LABEL = 1280, 150
_MATRIX, _WIDEST_CELL, _NARROWEST_CELL = 640, 96, 32
_MOST_CLASSES = 20
_SIDE = (_WIDTH - 2 * MARGIN - 3 * GAP) // 4
_HEAD = 60
"""Room above the rows of the table and the bars."""
_ABOVE = 52
"""Room above the pictures of a strip."""
_CAPTION = "Of the truth's pixels (rows), the share that the mask calls (columns)"
_BARS = ("Intersection over union", "boundary F")
_COLUMNS = ("image", "truth", "mask", "errors (red), not compared (grey)")
_UNDEFINED = "–"


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
    middle = _HEAD + _cell(classes) * classes + 2 * GAP
    note = classes < all_classes
    first = TOP + GAP + middle + (line_height(SMALL) if note else 0)
    heights = [_height(strip) for strip in strips]
    sheet = Sheet.blank(_WIDTH, first + sum(heights) + MARGIN)
    sheet.heading(heading.title, heading.text)
    left_of_bars = _draw_confusion(sheet, (MARGIN, TOP + GAP), shown.table.names, shown.confusion)
    if note:
        text = f"The {classes} largest of {all_classes} classes."
        sheet.text((MARGIN, TOP + GAP + middle), text, ink=FAINT, size=SMALL)
    _draw_bars(sheet, (left_of_bars, TOP + GAP), shown)
    y = first
    for strip, height in zip(strips, heights, strict=True):
        _draw_strip(sheet, strip, y)
        y += height
    return png(sheet.pixels, effort=6)


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
        np.full(truth.shape, 255, np.uint8)
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
    sheet: Sheet, at: tuple[int, int], names: Sequence[str], counts: NDArray[np.int64]
) -> int:
    """A table of shares, with a row for each class of the truth; the first free column to its
    right. Columns have numbers if their names do not fit.
    """
    x, y = at
    sheet.text((x, y), _CAPTION, weight=BOLD)
    left, top, side = x + _LABEL, y + _HEAD, _cell(len(names))
    sums = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sums, 1)
    fit = all(width_of(name, size=SMALL) <= side - 4 for name in names)
    heads = names if fit else [str(i) for i in range(1, len(names) + 1)]
    for i, name in enumerate(names):
        label = name if fit else f"{heads[i]}  {name}"
        row = (left - 8, top + i * side + side // 2)
        label = fitting(label, _LABEL - 12, size=SMALL)
        sheet.text(row, label, size=SMALL, anchor="right")
        head = (left + i * side + side // 2, top - 12)
        sheet.text(head, heads[i], size=SMALL, anchor="middle")
        for j in range(len(names)):
            share = float(shares[i, j])
            paint = ACCENT if i == j else WRONG
            # A small share must look different from zero.
            strength = 0 if not counts[i, j] else 0.06 + 0.94 * share
            red, green, blue = (round(255 + (c - 255) * strength) for c in paint)
            corner = (left + j * side, top + i * side)
            sheet.box(corner, (side - 1, side - 1), (red, green, blue), RULE)
            text = _share(share) if sums[i, 0] else _UNDEFINED
            middle = (corner[0] + side // 2, corner[1] + side // 2)
            ink = PAPER if strength > 0.55 else INK if counts[i, j] else FAINT
            sheet.text(middle, text, ink=ink, size=SMALL, anchor="middle")
    return max(left + side * len(names), x + width_of(_CAPTION, weight=BOLD)) + 3 * GAP


def _cell(classes: int) -> int:
    """Side of a cell of the table, in pixels."""
    return min(_WIDEST_CELL, max(_NARROWEST_CELL, _MATRIX // classes))


def _draw_bars(sheet: Sheet, at: tuple[int, int], measures: ClassMeasures) -> None:
    """For each class its colour, a bar of its IoU and a thinner one of its boundary F, in line with
    its row of the table.
    """
    x, y = at
    table = measures.table
    end = sheet.text((x, y), _BARS[0], ink=ACCENT, weight=BOLD)
    sheet.text((end + 2 * GAP, y), _BARS[1], ink=SECOND, weight=BOLD)
    left, side = x + _LABEL, _cell(len(table.names))
    full = _WIDTH - left - MARGIN - 40
    bottom = y + _HEAD + side * len(table.names)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        place = left + tick * full
        sheet.line([(place, y + _HEAD - 4), (place, bottom)], RULE)
        sheet.text((place, y + _HEAD - 12), f"{tick:g}", ink=FAINT, size=SMALL, anchor="middle")
    for i, name in enumerate(table.names):
        middle = y + _HEAD + i * side + side // 2
        sheet.box((x, middle - SWATCH // 2), (SWATCH, SWATCH), table.colours[i], FAINT)
        label = fitting(name, _LABEL - SWATCH - 2 * 8, size=SMALL)
        sheet.text((x + SWATCH + 8, middle), label, size=SMALL)
        for value, colour, top, height in (
            (measures.iou[i], ACCENT, middle - 13, 13),
            (measures.boundary_f[i], SECOND, middle + 3, 8),
        ):
            if value > 0:
                sheet.box((left, top), (max(1.0, full * float(value)), height), colour)
            text = _UNDEFINED if np.isnan(value) else _share(float(value))
            sheet.text((left + full + 8, top + height // 2), text, size=SMALL)


def _draw_strip(sheet: Sheet, strip: Strip, y: int) -> None:
    sheet.line([(MARGIN, y), (_WIDTH - MARGIN, y)], RULE)
    title = fitting(strip.title, _WIDTH - 2 * MARGIN, weight=BOLD, middle=True)
    sheet.text((MARGIN, y + 18), title, weight=BOLD)
    for i, (name, cell) in enumerate(zip(_COLUMNS, strip.cells, strict=True)):
        x = MARGIN + i * (_SIDE + GAP)
        note = name if cell is not None else "image: cannot be read"
        sheet.text((x, y + 18 + line_height(TEXT)), note, ink=FAINT, size=SMALL)
        if cell is not None:
            sheet.paste(cell, (x, y + _ABOVE), framed=True)


def _height(strip: Strip) -> int:
    return _ABOVE + 2 * GAP + max(len(cell) for cell in strip.cells if cell is not None)


def _resized(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return resized(picture, fitted_shape(picture.shape[:2], _SIDE, least=_SIDE))


def _share(value: float) -> str:
    return (
        f"{value:.2f}"
        if 0.005 <= value <= 0.995 or value in (0, 1)
        else ("<.01" if value < 0.5 else ">.99")
    )
