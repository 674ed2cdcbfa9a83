"""The picture of a sample: a pixel and its surroundings, for people who label it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.comparison import photo
from maskloom.segcore.figures.drawing import OUTLINE, png

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
    from PIL import Image, ImageDraw

    small = photo(pixels, valid, rgb=rgb)
    picture = Image.fromarray(small.repeat(_SCALE, 0).repeat(_SCALE, 1))
    pen = ImageDraw.Draw(picture)
    row, column = (each * _SCALE for each in place)
    pen.rectangle((column - 1, row - 1, column + _SCALE, row + _SCALE), outline=OUTLINE)
    y, x = row + _SCALE // 2, column + _SCALE // 2
    for sign in (-1, 1):
        near, far = sign * _GAP * _SCALE, sign * _ARM * _SCALE
        pen.line((x + near, y, x + far, y), fill=OUTLINE)
        pen.line((x, y + near, x, y + far), fill=OUTLINE)
    return png(picture)
