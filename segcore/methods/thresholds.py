"""Methods that find thresholds in a histogram: Otsu's, Otsu's for several classes, Li's minimum cross entropy, the triangle.

scikit-image does the work where it takes a histogram. Its `threshold_li` and `threshold_triangle` take images only, so these two
are written for histograms here and give the same thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 256
"""multi-otsu's cost grows with a power of the number of levels: more than these are gathered into equal bins."""


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How often values occur."""

    counts: NDArray[np.int64]
    levels: NDArray[Any]
    """Ascending, equally spaced, the first and the last one occupied."""
    tolerance: float = 0.5
    """Change of the threshold that ends Li's iteration."""


def find_thresholds(histogram: Histogram, method: str, classes: int) -> tuple[float, ...]:
    """Thresholds by one of the methods otsu, multi-otsu (of so many classes), li, triangle.

    Raises `FitError` where multi-otsu finds fewer different values than classes. One value alone is its own threshold.
    """
    counts, levels = histogram.counts, histogram.levels
    if method == "multi-otsu":
        return _multi_otsu(counts, levels, classes)
    if levels.size == 1:
        return (float(levels[0]),)
    if method == "li":
        return (_li(counts, levels, histogram.tolerance),)
    if method == "triangle":
        return (_triangle(counts, levels),)
    from skimage.filters import threshold_otsu

    return (float(threshold_otsu(hist=(counts, levels))),)


def _multi_otsu(counts: NDArray[np.int64], levels: NDArray[Any], classes: int) -> tuple[float, ...]:
    from skimage.filters import threshold_multiotsu

    if levels.size > _BINS:
        counts, edges = np.histogram(levels, _BINS, weights=counts)
        levels = (edges[:-1] + edges[1:]) / 2
    occupied = int(np.count_nonzero(counts))
    if occupied < classes:
        raise FitError(
            f"multi-otsu cannot make {classes} classes of {occupied} different value(s). "
            "Lower `levels`, or leave these images out."
        )
    # scikit-image normalises the histogram of an image, but not one that it is given.
    return tuple(float(value) for value in threshold_multiotsu(hist=(counts / counts.sum(), levels), classes=classes))


def _li(counts: NDArray[np.int64], levels: NDArray[Any], tolerance: float) -> float:
    """Minimum cross entropy (Li and Tam 1998), iterated from the mean."""
    low = levels[0]
    shifted = (levels - low).astype(np.float64)
    following = float(np.average(shifted, weights=counts))
    current = -2 * tolerance
    while abs(following - current) > tolerance:
        current = following
        brighter = shifted > current
        bright = float(np.average(shifted[brighter], weights=counts[brighter]))
        dark = float(np.average(shifted[~brighter], weights=counts[~brighter]))
        if dark == 0:
            break
        following = (dark - bright) / (math.log(dark) - math.log(bright))
    return float(following + low)


def _triangle(counts: NDArray[np.int64], levels: NDArray[Any]) -> float:
    """The level farthest below the line from the peak to the far end of the longer tail (Zack, Rogers, Latt 1977)."""
    occupied = np.flatnonzero(counts)
    peak, first, last = int(np.argmax(counts)), int(occupied[0]), int(occupied[-1])
    # The line runs over the longer tail, from its far end up to the peak.
    step = -1 if peak - first < last - peak else 1
    end = last if step < 0 else first
    tail = counts[end:peak:step]
    width, height = float(abs(peak - end)), float(counts[peak])
    length = math.hypot(width, height)
    distance = (height / length) * np.arange(tail.size) - (width / length) * tail
    return float(levels[end + step * int(np.argmax(distance))])
