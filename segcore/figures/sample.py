"""The picture of a sample: a pixel and its surroundings, for people who label it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.comparison import photo
from maskloom.segcore.figures.drawing import OUTLINE, Sheet, png

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALE = 4
_GAP, _ARM = 3, 10
"""Of the cross around the pixel, in pixels of the image."""


def draw_sample(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_], place: tuple[int, int], *, rgb: bool
) -> bytes:
    """The PNG of the pixels (y, x, band) around the one at `place`, enlarged, with a frame around
    the pixel and a cross that points to it.
    """
    small = photo(pixels, valid, rgb=rgb)
    sheet = Sheet(small.repeat(_SCALE, 0).repeat(_SCALE, 1))
    row, column = (each * _SCALE for each in place)
    sheet.box((column - 1, row - 1), (_SCALE + 2, _SCALE + 2), outline=OUTLINE)
    y, x = row + _SCALE // 2, column + _SCALE // 2
    length = (_ARM - _GAP) * _SCALE
    for start in (_GAP * _SCALE, -_ARM * _SCALE):
        sheet.box((x + start, y), (length, 1), OUTLINE)
        sheet.box((x, y + start), (1, length), OUTLINE)
    return png(sheet.pixels, effort=6)
