"""The typical size of the objects of an image, from any number of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class TypicalSizes:
    """Counts of the sizes of objects by class. An image of n pixels has fewer than sqrt(2 n)
    different sizes, so that memory stays small.
    """

    def __init__(self) -> None:
        self._counts: dict[str, dict[int, int]] = {}

    def add(self, name: str, pixels: NDArray[np.integer]) -> None:
        """Count objects of a class by their pixels."""
        of = self._counts.setdefault(name, {})
        sizes, counts = np.unique(pixels, return_counts=True)
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            of[size] = of.get(size, 0) + count

    def add_rows(self, rows: pa.Table) -> None:
        """Count the objects of some rows of their table."""
        names = np.asarray(rows["class_name"])
        pixels = np.asarray(rows["pixel_count"])
        for name in np.unique(names).tolist():
            self.add(name, pixels[names == name])

    @property
    def medians(self) -> Mapping[str, float]:
        """The median size in pixels, by class; without classes that have no object."""
        return {name: _median(counts) for name, counts in self._counts.items() if counts}


def _median(counts: Mapping[int, int]) -> float:
    sizes = np.array(sorted(counts), np.int64)
    ends = np.cumsum([counts[size] for size in sizes.tolist()])
    low, high = (sizes[np.searchsorted(ends, (ends[-1] + odd) // 2)] for odd in (1, 2))
    return (int(low) + int(high)) / 2
