"""Thresholds of a histogram: Otsu, multi-level Otsu, Li's minimum cross entropy, triangle.

All methods work on the indices of the levels (0, 1, 2 …) and convert the resulting index to its
level. Squares of very small or very large values, and large integers, would exceed the range or the
precision of floats.

scikit-image does the work where it accepts a histogram. Its `threshold_li` and `threshold_triangle`
accept images only, so these two are reimplemented for histograms and give the same thresholds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 256
"""Largest number of levels for multi-otsu, whose cost grows with a power of it. More levels are
grouped into equal bins.
"""
_LI_TOLERANCE = 0.5
"""Change of the threshold at which Li's iteration ends, in steps between levels: scikit-image's for
integers, however far apart their values lie.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of values."""

    counts: NDArray[np.int64]
    levels: NDArray[Any]
    """Ascending, equally spaced, the first and the last one occupied."""

    @classmethod
    def of_values(cls, counts: NDArray[np.int64], low: int) -> Histogram:
        """The histogram of integers, from their counts (integer,), the first of which is `low`."""
        return cls(counts, np.arange(low, low + counts.size))

    def level(self, place: float) -> float:
        """The level at an index, or interpolated between two.

        An integer where a float would round it: integers that exceed the value also exceed its
        floor.
        """
        if self.levels.dtype.kind == "f":
            first, last = float(self.levels[0]), float(self.levels[-1])
            whole = round(place)
            return (
                float(self.levels[whole])
                if whole == place
                else first + place * ((last - first) / (self.levels.size - 1))
            )
        low = int(self.levels[0])
        return low + place if abs(low) + self.levels.size < 2**53 else low + math.floor(place)


def find_thresholds(histogram: Histogram, method: str, classes: int) -> tuple[float, ...]:
    """Thresholds by otsu, multi-otsu (into `classes`), li or triangle, ascending.

    Raises `FitError` if multi-otsu finds fewer distinct values than classes. A single value is its
    own threshold. Sources: Otsu 1979 and scikit-image; see `_li` and `_triangle`.
    """
    counts = histogram.counts
    if method == "multi-otsu":
        places = _multi_otsu(counts, classes)
    elif counts.size == 1:
        places = (0.0,)
    elif method == "li":
        places = (_li(counts),)
    elif method == "triangle":
        places = (_triangle(counts),)
    else:
        from skimage.filters import threshold_otsu

        places = (float(threshold_otsu(hist=(counts, np.arange(counts.size)))),)
    return tuple(histogram.level(place) for place in places)


def _multi_otsu(counts: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    from skimage.filters import threshold_multiotsu

    places = np.arange(counts.size, dtype=np.float64)
    if counts.size > _BINS:
        counts, edges = np.histogram(places, _BINS, weights=counts)
        places = (edges[:-1] + edges[1:]) / 2
    occupied = int(np.count_nonzero(counts))
    if occupied < classes:
        raise FitError(
            f"multi-otsu cannot make {classes} classes of {occupied} different value(s). "
            "Lower `levels`, or leave these images out."
        )
    # scikit-image normalises the histogram of an image, but not a histogram passed to it.
    return tuple(
        float(place)
        for place in threshold_multiotsu(hist=(counts / counts.sum(), places), classes=classes)
    )


def _li(counts: NDArray[np.int64]) -> float:
    """Minimum cross entropy (Li and Tam 1998), iterated from the mean until it changes by at most
    `_LI_TOLERANCE`.
    """
    places = np.arange(counts.size, dtype=np.float64)
    following = float(np.average(places, weights=counts))
    current = -2 * _LI_TOLERANCE
    while abs(following - current) > _LI_TOLERANCE:
        current = following
        brighter = places > current
        bright = float(np.average(places[brighter], weights=counts[brighter]))
        dark = float(np.average(places[~brighter], weights=counts[~brighter]))
        if dark == 0:
            break
        following = (dark - bright) / (math.log(dark) - math.log(bright))
    return following


def _triangle(counts: NDArray[np.int64]) -> float:
    """The index farthest below the line from the peak to the far end of the longer tail (Zack,
    Rogers and Latt 1977).
    """
    occupied = np.flatnonzero(counts)
    peak, first, last = int(np.argmax(counts)), int(occupied[0]), int(occupied[-1])
    # The line spans the longer tail, from its far end up to the peak.
    step = -1 if peak - first < last - peak else 1
    end = last if step < 0 else first
    tail = counts[end:peak:step]
    width, height = float(abs(peak - end)), float(counts[peak])
    length = math.hypot(width, height)
    distance = (height / length) * np.arange(tail.size) - (width / length) * tail
    return float(end + step * int(np.argmax(distance)))
