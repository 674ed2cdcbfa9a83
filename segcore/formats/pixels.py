"""Conversions of decoded pixels that several formats share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def drop_not_finite(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Replace NaN and infinity by 0, in place, and mark such pixels as no data.

    `pixels` has the shape (y, x, band) or (z, y, x, band), `valid` that without bands.
    """
    if pixels.dtype.kind != "f":
        return
    finite = np.isfinite(pixels)
    if not finite.all():
        pixels[~finite] = 0
        valid &= finite.all(axis=-1)
