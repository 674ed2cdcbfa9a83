"""The typical size and score of the objects of an image, from any number of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskloom.segcore.models.typical import TypicalObjects

_DIGITS = 4
"""Of scores: so many decimals count."""
_Counts = dict[str, dict[int, int]]


class TypicalCounts:
    """Counts of the sizes and scores of objects by class. An image of n pixels has fewer than
    sqrt(2 n) different sizes, and scores are rounded, so that memory stays small.
    """

    def __init__(self) -> None:
        self._sizes: _Counts = {}
        self._scores: _Counts = {}

    def add(
        self, name: str, pixels: NDArray[np.integer], scores: NDArray[np.floating] | None = None
    ) -> None:
        """Count objects of a class by their pixels, and by their scores, of which NaN counts
        not.
        """
        _count(self._sizes, name, pixels)
        if scores is not None:
            known = np.asarray(scores[~np.isnan(scores)], np.float64)
            _count(self._scores, name, np.rint(known * 10**_DIGITS).astype(np.int64))

    def add_rows(self, rows: pa.Table) -> None:
        """Count the objects of some rows of their table."""
        names = np.asarray(rows["class_name"])
        pixels = np.asarray(rows["pixel_count"])
        scores = np.asarray(rows["score"].cast(pa.float64()))
        for name in np.unique(names).tolist():
            self.add(name, pixels[names == name], scores[names == name])

    @property
    def medians(self) -> TypicalObjects:
        """The medians by class; without classes that have no object, or no object with a score."""
        scores = {name: each / 10**_DIGITS for name, each in _medians(self._scores).items()}
        return TypicalObjects(_medians(self._sizes), scores)


def _count(counts: _Counts, name: str, values: NDArray[np.integer]) -> None:
    of = counts.setdefault(name, {})
    found, times = np.unique(values, return_counts=True)
    for value, count in zip(found.tolist(), times.tolist(), strict=True):
        of[value] = of.get(value, 0) + count


def _medians(counts: _Counts) -> Mapping[str, float]:
    return {name: _median(of) for name, of in counts.items() if of}


def _median(counts: Mapping[int, int]) -> float:
    values = np.array(sorted(counts), np.int64)
    ends = np.cumsum([counts[value] for value in values.tolist()])
    low, high = (values[np.searchsorted(ends, (ends[-1] + odd) // 2)] for odd in (1, 2))
    return (int(low) + int(high)) / 2
