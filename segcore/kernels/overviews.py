"""Compiled loops over label images for overviews, in a separate module so that only their callers
import numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Integer = TypeVar("Integer", bound=np.integer)


def halve(labels: NDArray[Integer]) -> NDArray[Integer]:
    """The labels at half the resolution, shape (ceil(y / 2), ceil(x / 2)).

    Each pixel takes the most frequent label of its 2 x 2 pixels, and the first of these in row
    order in case of a tie. The largest value of the dtype (nodata) counts only if there is no
    other. At an odd border only the pixels inside the image count. A mode never invents a label, so
    the result is valid for classes and for object ids.
    """
    height, width = labels.shape
    if height % 2 or width % 2:
        # Repeating the border keeps the order and the ratio of the counts.
        labels = np.pad(labels, ((0, height % 2), (0, width % 2)), mode="edge")
    out = np.empty((labels.shape[0] // 2, labels.shape[1] // 2), labels.dtype)
    _halve(np.ascontiguousarray(labels), labels.dtype.type(np.iinfo(labels.dtype).max), out)
    return out


def halve_volume(labels: NDArray[Integer]) -> NDArray[Integer]:
    """The labels of a volume at half the resolution along all three axes: each voxel takes the most
    frequent label of its 2 x 2 x 2 voxels, by the rules of `halve`.
    """
    odd = [(0, n % 2) for n in labels.shape]
    if any(after for _, after in odd):
        labels = np.pad(labels, odd, mode="edge")
    depth, height, width = labels.shape
    out = np.empty((depth // 2, height // 2, width // 2), labels.dtype)
    _halve_volume(np.ascontiguousarray(labels), labels.dtype.type(np.iinfo(labels.dtype).max), out)
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba has no types
def _halve_volume(
    labels: NDArray[np.integer], nodata: np.integer, out: NDArray[np.integer]
) -> None:
    near = np.empty(8, labels.dtype)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                same = True
                for i in range(8):
                    near[i] = labels[2 * z + (i >> 2), 2 * y + (i >> 1 & 1), 2 * x + (i & 1)]
                    same &= near[i] == near[0]
                if same:
                    out[z, y, x] = near[0]
                    continue
                mode, most = nodata, 0
                for i in range(8):
                    count = 0
                    for j in range(i, 8):
                        count += near[j] == near[i]
                    if near[i] != nodata and count > most:
                        mode, most = near[i], count
                out[z, y, x] = mode


# Selections instead of branches let the compiler vectorise.
@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # numba has no types
def _halve(labels: NDArray[np.integer], nodata: np.integer, out: NDArray[np.integer]) -> None:
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            a, b = labels[2 * y, 2 * x], labels[2 * y, 2 * x + 1]
            c, d = labels[2 * y + 1, 2 * x], labels[2 * y + 1, 2 * x + 1]
            mode = c if c != nodata else d
            mode = b if b != nodata else mode
            mode = a if a != nodata else mode
            mode = c if (c != nodata) & (c == d) else mode
            mode = b if (b != nodata) & ((b == c) | (b == d)) else mode
            out[y, x] = a if (a != nodata) & ((a == b) | (a == c) | (a == d)) else mode
