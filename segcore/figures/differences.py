"""The picture of an audit: pixels that differ between a tiled and an untiled result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import (
    ACCENT,
    GAP,
    MARGIN,
    NARROWEST,
    TOP,
    WRONG,
    Sheet,
    png,
)
from maskloom.segcore.figures.legends import Entry, Legend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.figures.drawing import Pixels

_LARGEST_SIDE = 1600
_SEAM, _DIFFERENT = ACCENT, WRONG


def draw(title: str, pixels: NDArray[np.generic], differing: NDArray[np.bool_], tile: int) -> bytes:
    """A PNG of the image (y, x, band) in grey with differing pixels (y, x) in red and the seams of
    tiles with sides of `tile` pixels in blue, reduced so that no difference is lost.
    """
    picture = _picture(pixels, differing, tile)
    height, width = picture.shape[:2]
    inner = max(width, NARROWEST)
    entries = (Entry("differs", (_DIFFERENT,)), Entry("seam between tiles", (_SEAM,)))
    legend = Legend.of(entries, inner)
    sheet = Sheet.blank(inner + 2 * MARGIN, TOP + height + GAP + legend.height + MARGIN)
    found = int(np.count_nonzero(differing))
    sheet.heading(title, f"{found:,} of {differing.size:,} pixels differ · tiles of {tile:,}")
    sheet.paste(picture, (MARGIN, TOP), framed=True)
    legend.draw(sheet, (MARGIN, TOP + height + GAP))
    return png(sheet.pixels, effort=6)


def _picture(pixels: NDArray[np.generic], differing: NDArray[np.bool_], tile: int) -> Pixels:
    grey = np.nan_to_num(pixels[..., :3].astype(np.float32).mean(axis=2))
    low, high = np.percentile(grey, [2, 98])
    shown = np.clip((grey - low) / max(float(high - low), 1e-9) * 160 + 40, 0, 200)
    step = max(1, -(-max(shown.shape) // _LARGEST_SIDE))
    rows, columns = (np.arange(0, n, step) for n in shown.shape)
    picture = np.repeat(shown[::step, ::step, None], 3, axis=2)
    picture[(rows % tile < step) & (rows > 0)] = _SEAM
    picture[:, (columns % tile < step) & (columns > 0)] = _SEAM
    padded = np.pad(differing, [(0, -n % step) for n in differing.shape])
    any_in_cell = padded.reshape(len(rows), step, len(columns), step).any(axis=(1, 3))
    picture[any_in_cell] = _DIFFERENT
    return picture.astype(np.uint8)
