"""The picture of a comparison: the results of several segmenters on one image, side by side.

Every cell shows one result twice: the boundaries of its classes or objects over the photo, and
below it the mean colour of each. Boundaries are drawn between the labels of the drawn pixels, so
they are one pixel wide. Small images are enlarged by whole factors.
"""

from __future__ import annotations

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
    OUTLINE,
    SMALL,
    TEXT,
    Sheet,
    fitted_shape,
    fitting,
    line_height,
    outlines,
    photo_of,
    png,
    resized,
    sampled,
)
from maskloom.segcore.figures.scale_bars import PixelLength, draw_scale_bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.figures.drawing import Pixels

_LARGEST_SIDE, _LEAST = 480, 320
_CELLS_ACROSS = 4
_NARROWEST = 240
_MANY = 0.2
"""Share of boundary pixels that may hide the photo."""
_WORDS = 2 * line_height(TEXT) + 4
_NOTE = ("above: boundaries", "below: mean colour of each class or object")


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The cell of one segmenter in the picture."""

    title: str
    text: str
    over_photo: Pixels
    """(y, x, 3): the photo with boundaries."""
    colours: Pixels | None
    """(y, x, 3): the mean colour of each class or object. None: the cell of the photo."""
    pixel: PixelLength | None = None
    """Of the drawing, for the scale bar. None: none."""


def photo(pixels: NDArray[np.generic], valid: NDArray[np.bool_], *, rgb: bool) -> Pixels:
    """The image (y, x, band) as red, green and blue of 8 bits; pixels without data are grey."""
    as_is = None if rgb and pixels.dtype == np.uint8 else False
    shown = photo_of(pixels, valid, percentiles=(2, 98), as_is=as_is)
    return np.where(valid[..., None], shown, np.array(NO_DATA, np.uint8))


def photo_cell(title: str, text: str, picture: Pixels, pixel: PixelLength) -> Cell:
    """The first cell, of the photo (y, x, 3). `pixel`: that of the image."""
    shown = _drawn(picture)
    return Cell(title, text, shown, None, pixel.times(picture.shape[1] / shown.shape[1]))


def label_cell(
    title: str,
    text: str,
    labels: NDArray[np.integer],
    valid: NDArray[np.bool_],
    picture: Pixels,
) -> Cell:
    """The cell of a segmenter, from its labels (y, x) and the photo (y, x, 3)."""
    known = np.where(valid, labels.astype(np.int64), -1)
    colours = np.where(valid[..., None], _mean_colours(known, picture), picture)
    over_photo = _drawn(picture).copy()
    shape = over_photo.shape[:2]
    edge = outlines(sampled(known, shape))
    # Where they are many, they let the photo through.
    opacity = min(1.0, _MANY / max(float(edge.mean()), 1e-9))
    over_photo[edge] = np.rint((1 - opacity) * over_photo[edge] + opacity * np.array(OUTLINE))
    return Cell(title, text, over_photo, sampled(colours, shape))


def draw(cells: Sequence[Cell]) -> bytes:
    """The picture as PNG."""
    height, width = cells[0].over_photo.shape[:2]
    across = min(_CELLS_ACROSS, len(cells))
    column = max(width, _NARROWEST) + GAP
    row = _WORDS + 2 * height + 3 * GAP
    down = -(-len(cells) // across)
    sheet = Sheet.blank(across * column - GAP + 2 * MARGIN, down * row - 2 * GAP + 2 * MARGIN)
    for number, cell in enumerate(cells):
        x, y = MARGIN + number % across * column, MARGIN + number // across * row
        _write(sheet, cell, (x, y), column - GAP)
        sheet.paste(cell.over_photo, (x, y + _WORDS), framed=True)
        below = y + _WORDS + height + GAP // 2
        if cell.colours is not None:
            sheet.paste(cell.colours, (x, below), framed=True)
            continue
        if cell.pixel is not None:
            draw_scale_bar(sheet, (x, below + 10), column - GAP, cell.pixel)
        for i, line in enumerate(_NOTE):
            at = (x, below + 36 + i * line_height(SMALL))
            sheet.text(at, fitting(line, column - GAP, size=SMALL), ink=FAINT, size=SMALL)
    return png(sheet.pixels, effort=6)


def _write(sheet: Sheet, cell: Cell, at: tuple[int, int], width: int) -> None:
    """The two lines above a cell."""
    x, y = at
    title = fitting(cell.title, width, weight=BOLD, middle=cell.colours is None)
    sheet.text((x, y + 8), title, ink=INK, weight=BOLD)
    text = fitting(cell.text, width, size=SMALL)
    sheet.text((x, y + 8 + line_height(TEXT)), text, ink=FAINT, size=SMALL)


def _drawn(picture: Pixels) -> Pixels:
    return resized(picture, fitted_shape(picture.shape[:2], _LARGEST_SIDE, least=_LEAST))


def _mean_colours(labels: NDArray[np.int64], picture: Pixels) -> Pixels:
    """Each pixel in the mean colour of all pixels of its label."""
    number, index = np.unique(labels, return_inverse=True)
    flat = index.ravel()
    counts = np.bincount(flat, minlength=number.size)
    means = [
        np.bincount(flat, picture[..., band].ravel(), number.size) / counts for band in range(3)
    ]
    return np.rint(np.stack(means, axis=1)[flat]).astype(np.uint8).reshape(picture.shape)
