"""The picture of a comparison: the results of several segmenters on one image, side by side.

Every cell shows one result twice: the boundaries of its classes or objects over the photo, and
below it the mean colour of each. Boundaries are drawn between the labels of the drawn pixels, so
they are one pixel wide.
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
    canvas,
    fitting,
    font,
    outlines,
    paste,
    photo_of,
    png,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

_LARGEST_SIDE = 480
_CELLS_ACROSS = 4
_NARROWEST = 240
_GAP, _TITLE, _TITLE_SIZE, _TEXT_SIZE = 12, 46, 18, 13
_NO_DATA = 54
_NOTE = "above: boundaries\nbelow: mean colour of each class or object"


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The cell of one segmenter in the picture."""

    title: str
    text: str
    over_photo: NDArray[np.uint8]
    """(y, x, 3): the photo with boundaries."""
    colours: NDArray[np.uint8] | None
    """(y, x, 3): the mean colour of each class or object. None: the cell of the photo."""


def photo(pixels: NDArray[np.generic], valid: NDArray[np.bool_], *, rgb: bool) -> NDArray[np.uint8]:
    """The image (y, x, band) as red, green and blue of 8 bits; pixels without data are grey."""
    as_is = rgb and pixels.dtype == np.uint8
    shown = photo_of(pixels, valid, percentiles=(2, 98), as_is=as_is)
    return np.where(valid[..., None], shown, _NO_DATA).astype(np.uint8)


def photo_cell(title: str, text: str, picture: NDArray[np.uint8]) -> Cell:
    """The first cell, of the photo (y, x, 3)."""
    return Cell(title, text, _shrunk(picture), None)


def label_cell(
    title: str,
    text: str,
    labels: NDArray[np.integer],
    valid: NDArray[np.bool_],
    picture: NDArray[np.uint8],
) -> Cell:
    """The cell of a segmenter, from its labels (y, x) and the photo (y, x, 3)."""
    known = np.where(valid, labels.astype(np.int64), -1)
    colours = np.where(valid[..., None], _mean_colours(known, picture), picture)
    over_photo = _shrunk(picture).copy()
    over_photo[outlines(_sampled(known))] = OUTLINE
    return Cell(title, text, over_photo, _sampled(colours))


def draw(cells: Sequence[Cell]) -> bytes:
    """The picture as PNG."""
    height, width = cells[0].over_photo.shape[:2]
    column, row = max(width, _NARROWEST) + _GAP, _TITLE + 2 * height + 2 * _GAP
    across = min(_CELLS_ACROSS, len(cells))
    picture, pen = canvas(across * column + _GAP, -(-len(cells) // across) * row + _GAP)
    title, text = font(_TITLE_SIZE), font(_TEXT_SIZE)
    for number, cell in enumerate(cells):
        x, y = _GAP + number % across * column, _GAP + number // across * row
        pen.text((x, y), fitting(cell.title, title, column - _GAP), INK, title)
        pen.text((x, y + _TITLE_SIZE + 6), fitting(cell.text, text, column - _GAP), FAINT, text)
        paste(picture, cell.over_photo, (x, y + _TITLE))
        below = (x, y + _TITLE + height + _GAP // 2)
        if cell.colours is None:
            pen.text(below, _NOTE, FAINT, text)
        else:
            paste(picture, cell.colours, below)
    return png(picture)


def _drawn_shape(shape: Shape) -> Shape:
    """The shape of the drawing of a picture of this shape."""
    scale = min(1.0, _LARGEST_SIDE / max(shape))
    return tuple(max(1, round(n * scale)) for n in shape)


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The drawn photo: each pixel is the mean of those that it covers."""
    import cv2

    shrunk: NDArray[np.uint8] = cv2.resize(
        picture, _drawn_shape(picture.shape[:2])[::-1], interpolation=cv2.INTER_AREA
    )
    return shrunk


def _sampled(array: NDArray[Any]) -> NDArray[Any]:
    """The drawn labels or colours: each pixel is the middle one of those that it covers."""
    shape = array.shape[:2]
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n)
        for n, size in zip(_drawn_shape(shape), shape, strict=True)
    )
    return array[np.ix_(rows, columns)]


def _mean_colours(labels: NDArray[np.int64], picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel in the mean colour of all pixels of its label."""
    number, index = np.unique(labels, return_inverse=True)
    flat = index.ravel()
    counts = np.bincount(flat, minlength=number.size)
    means = [
        np.bincount(flat, picture[..., band].ravel(), number.size) / counts for band in range(3)
    ]
    return np.rint(np.stack(means, axis=1)[flat]).astype(np.uint8).reshape(picture.shape)
