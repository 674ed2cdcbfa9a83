"""Histograms of one value per pixel, as two exact folds.

`ValueCounts` is the first round: extremes, and the count of every value for integers within a range
of 2**20. Thresholds of 8- and 16-bit images need no more. `Bins` is the second round, for floats
and for integers of a wider range: equal bins over the range found in the first round, by the rule
of `numpy.histogram`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNTED_RANGE = 2**20
"""Integers within a smaller range than this are counted value by value."""


@dataclass(frozen=True, slots=True, eq=False)
class ValueCounts:
    """Summary of a set of values after one pass. Infinite values count as absent."""

    pixels: int = 0
    low: float = np.inf
    high: float = -np.inf
    dtype: str = "bool"
    """The NumPy type that holds all values."""
    counts: NDArray[np.int64] | None = None
    """Counts of low, low + 1, … high. None: floats, a wide range, or no values."""

    @classmethod
    def of(cls, values: NDArray[np.generic], valid: NDArray[np.bool_]) -> ValueCounts:
        """The values of an array where `valid` (same shape) is True."""
        if values.dtype == np.bool_:
            values = values.view(np.uint8)
        if values.dtype == np.uint64:
            # No signed type holds them. Beyond 2**53 several integers share a float, which is far
            # finer than any histogram.
            values = values.astype(np.float64)
        usable = valid & np.isfinite(values) if values.dtype.kind == "f" else valid
        pixels = int(np.count_nonzero(usable))
        if pixels == 0:
            return cls()
        if values.dtype.kind != "f" and values.dtype.itemsize <= 2:
            limits = np.iinfo(values.dtype.name)
            counted = _count(values, usable, limits.min, limits.max)
            first, last = np.flatnonzero(counted)[[0, -1]]
            low, high = int(first) + limits.min, int(last) + limits.min
            return cls(pixels, low, high, values.dtype.name, counted[first : last + 1].copy())
        chosen = values[usable]
        low, high = chosen.min().item(), chosen.max().item()
        narrow = values.dtype.kind != "f" and high - low < COUNTED_RANGE
        counts = _count(chosen, np.ones(pixels, np.bool_), low, high) if narrow else None
        return cls(pixels, low, high, values.dtype.name, counts)

    def merge(self, other: ValueCounts) -> ValueCounts:
        """The union of both."""
        if not self.pixels or not other.pixels:
            return self if self.pixels else other
        low, high = min(self.low, other.low), max(self.high, other.high)
        merged = ValueCounts(
            self.pixels + other.pixels, low, high, np.promote_types(self.dtype, other.dtype).name
        )
        if self.counts is None or other.counts is None or high - low >= COUNTED_RANGE:
            return merged
        counts = np.zeros(int(high - low) + 1, np.int64)
        for part in (self, other):
            if part.counts is not None:
                start = int(part.low - low)
                counts[start : start + part.counts.size] += part.counts
        return replace(merged, counts=counts)


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal bins from `low` to `high`, as in `numpy.histogram(values, number, (low, high))` for
    values of `dtype`.
    """

    low: float
    high: float
    number: int
    dtype: str

    @property
    def working_type(self) -> np.dtype[np.floating]:
        """The float type in which values and edges are compared: as in NumPy, float32 for itself
        and narrower floats, unless it cannot represent so many edges.
        """
        kind = np.dtype(self.dtype)
        if kind.kind != "f" or kind.itemsize > 4:
            return np.dtype(np.float64)
        limits, spread = np.finfo(np.float32), self.high - self.low
        gap = max(float(limits.eps) * max(abs(self.low), abs(self.high)), float(limits.tiny))
        return (
            np.dtype(np.float32)
            if self.number * gap <= spread <= float(limits.max)
            else np.dtype(np.float64)
        )

    @property
    def edges(self) -> NDArray[np.floating]:
        """The bin edges, shape (number + 1,)."""
        kind = self.working_type
        return np.linspace(kind.type(self.low), kind.type(self.high), self.number + 1, dtype=kind)

    @property
    def centres(self) -> NDArray[np.floating]:
        """The bin centres, shape (number,)."""
        edges = self.edges
        # Halved first: the sum of two very large floats overflows.
        centres: NDArray[np.floating] = edges[:-1] / 2 + edges[1:] / 2
        return centres

    def count(self, values: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Counts of the valid values by bin, shape (number,). The last bin includes its
        upper edge.
        """
        from maskloom.segcore.kernels import pixels as kernels

        counts = np.zeros(self.number, np.int64)
        kernels.count_bins(
            values.astype(self.working_type, copy=False).ravel(), valid.ravel(), self.edges, counts
        )
        return counts


def _count(
    values: NDArray[np.generic], valid: NDArray[np.bool_], low: int, high: int
) -> NDArray[np.int64]:
    from maskloom.segcore.kernels import pixels as kernels

    tables = np.zeros((4, high - low + 1), np.int64)
    kernels.count_values(values.ravel(), valid.ravel(), low, tables)
    total: NDArray[np.int64] = tables.sum(axis=0)
    return total
