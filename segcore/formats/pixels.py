"""What readers of several formats do to decoded pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def drop_not_finite(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """Put 0 in place of NaN and infinity in pixels (y, x, band), in place, and mark the pixels that
    have any as no data; so nobody computes with NaN.
    """
    if pixels.dtype.kind != "f":
        return
    finite = np.isfinite(pixels)
    if not finite.all():
        pixels[~finite] = 0
        valid &= finite.all(axis=-1)
