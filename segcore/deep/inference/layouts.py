"""Layouts: where a file of weights has its channels, and patches as it wants them.

Networks of keras and LiteRT have channels last, those of ONNX mostly first. Engines always take and
give channels last in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Layout = Literal["first", "last"]
"""Where the channels of (patch, y, x, channel) really are."""


def layout_of(shape: Sequence[int | None], channels: int, otherwise: Layout) -> Layout:
    """Where channels are in a shape of four axes (None: any size): where alone their number stands.
    `otherwise` where that does not tell.
    """
    first, last = shape[1] == channels, shape[-1] == channels
    if first == last:
        return otherwise
    return "first" if first else "last"


def to_network(
    patch: NDArray[np.float32], layout: Layout, dtype: np.dtype[Any]
) -> NDArray[np.generic]:
    """A patch (1, y, x, channel) as a network takes it, contiguous. Networks of whole numbers get
    them rounded and clipped, not scaled.
    """
    if layout == "first":
        patch = patch.transpose(0, 3, 1, 2)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        patch = np.clip(np.rint(patch), limits.min, limits.max)
    return np.ascontiguousarray(patch, dtype)


def split_pixels(patch: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """A patch for a network of so many channels: as it is, or in two parts for a network of twice
    its bands.

    The sum of the parts is the patch; the first is exact in bfloat16, the second to eight more
    bits.
    """
    if channels != 2 * patch.shape[-1]:
        return patch
    high = (np.ascontiguousarray(patch).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.concatenate([high, patch - high], axis=-1)


def from_network(output: NDArray[np.generic], layout: Layout, where: str) -> NDArray[np.float32]:
    """What a network gives for a patch, as (1, y, x, class) float32; maps of class ids (1, y, x)
    get a last axis. May share memory.
    """
    if output.ndim == 3:
        output = output[..., None]
    elif output.ndim == 4 and layout == "first":
        output = output.transpose(0, 2, 3, 1)
    if output.ndim != 4:
        raise WeightsError(
            f"{where}: expected scores of (patch, y, x, class) from the network; got the shape "
            f"{output.shape}. It does not segment."
        )
    return output.astype(np.float32, copy=False)
