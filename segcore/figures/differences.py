"""The picture of an audit: pixels that differ between a tiled and an untiled result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import png

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST_SIDE = 1600
_SEAM, _DIFFERENT = (60, 90, 220), (230, 30, 30)


def draw(pixels: NDArray[np.generic], differing: NDArray[np.bool_], tile: int) -> bytes:
    """A PNG of the image (y, x, band) in grey with differing pixels (y, x) in red and the seams of
    tiles with sides of `tile` pixels in blue, reduced so that no difference is lost.
    """
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
    return png(picture.astype(np.uint8), effort=6)
