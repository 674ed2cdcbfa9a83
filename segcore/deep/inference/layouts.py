"""Layouts: the channel axis of a network, and conversion of patches.

Networks of keras and LiteRT have channels last, those of ONNX mostly first. Engines always take and
return float32 with channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Layout = Literal["first", "last"]
"""Position of the channel axis: (patch, channel, y, x) or (patch, y, x, channel); networks of
volumes have z before y.
"""
_UPPER_HALF = np.uint32(0xFFFF0000)
"""Of the bits of a float32; itself a float, and one of bfloat16."""


def layout_of(shape: Sequence[int | None], channels: int, otherwise: Layout) -> Layout:
    """Find the channel axis in the shape of a network's input or output (None: any size).

    It is the only one of the two candidates with size `channels`; if that is ambiguous,
    `otherwise`.
    """
    first, last = shape[1] == channels, shape[-1] == channels
    if first == last:
        return otherwise
    return "first" if first else "last"


def to_network(
    patch: NDArray[np.float32], layout: Layout, dtype: np.dtype[Any]
) -> NDArray[np.generic]:
    """Convert a patch (1, y, x, channel) to a network's layout and dtype, contiguous.

    For integer networks, values are rounded and clipped, not scaled.
    """
    if layout == "first":
        patch = np.moveaxis(patch, -1, 1)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        patch = np.clip(np.rint(patch), limits.min, limits.max)
    return np.ascontiguousarray(patch, dtype)


def to_first(dimensions: int) -> list[int]:
    """The order of the axes that moves channels before space.

    >>> to_first(2), from_first(2)
    ([0, 3, 1, 2], [0, 2, 3, 1])
    """
    return [0, dimensions + 1, *range(1, dimensions + 1)]


def from_first(dimensions: int) -> list[int]:
    """The order of the axes that moves channels behind space."""
    return [0, *range(2, dimensions + 2), 1]


def split_pixels(patch: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Split a patch into two parts if a network has twice its bands; else return it unchanged.

    The parts add up to the patch; the first is exact in bfloat16, the second to eight more bits.
    """
    if channels != 2 * patch.shape[-1]:
        return patch
    bands = patch.shape[-1]
    patch = np.ascontiguousarray(patch, np.float32)
    parts = np.empty((*patch.shape[:-1], channels), np.float32)
    bits, part_bits = patch.view(np.uint32), parts.view(np.uint32)
    # Band by band, so that NumPy's inner loop is along pixels. A compiled loop would be as fast,
    # and its library would take half a second to load.
    with np.errstate(invalid="ignore"):  # infinite pixels
        for band in range(bands):
            np.bitwise_and(bits[..., band], _UPPER_HALF, out=part_bits[..., band])
            np.subtract(patch[..., band], parts[..., band], out=parts[..., bands + band])
    return parts


def from_network(
    output: NDArray[np.generic], layout: Layout, where: str, dimensions: int = 2
) -> NDArray[np.float32]:
    """Convert a network's output to (1, y, x, class) float32, or (1, z, y, x, class) with three
    `dimensions`; may share memory.

    Maps of class ids (1, y, x) get a last axis. Raises `WeightsError` for any other number of axes.
    """
    axes = dimensions + 2
    if output.ndim == axes - 1:
        output = output[..., None]
    elif output.ndim == axes and layout == "first":
        output = np.moveaxis(output, 1, -1)
    if output.ndim != axes:
        raise WeightsError(
            f"{where}: expected scores of (patch, {'y, x' if dimensions == 2 else 'z, y, x'}, "
            f"class) from the network; got the shape {output.shape}. It does not segment."
        )
    return output.astype(np.float32, copy=False)
