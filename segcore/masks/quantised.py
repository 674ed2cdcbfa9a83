"""Scores of classes as whole numbers: 0 to 250 for probabilities of 0 to 1, 255 where there is no
data.

A value is the nearest one, so a probability is off by 1/500 at most. Entropy and margin are taken
from the probabilities themselves, and rounded to 2**-20 for each pixel, so that their sums depend
on neither tiling nor order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 250
"""The number for a probability of 1."""
NODATA = 255
_QUANTA = 2.0**20


@packable
@dataclass(frozen=True, slots=True)
class Certainty:
    """Sums over valid pixels."""

    pixels: int = 0
    """Their number."""
    entropy: int = 0
    """Of the entropy, from 0 (one class is certain) to 1 (all are equally probable), in 2**-20."""
    margin: int = 0
    """Of the greatest minus the second greatest probability, in 2**-20."""

    def __add__(self, other: Certainty) -> Certainty:
        return Certainty(
            self.pixels + other.pixels, self.entropy + other.entropy, self.margin + other.margin
        )

    @property
    def mean_entropy(self) -> float | None:
        """Of a valid pixel. None: there is none."""
        return self.entropy / self.pixels / _QUANTA if self.pixels else None

    @property
    def mean_margin(self) -> float | None:
        """Of a valid pixel. None: there is none."""
        return self.margin / self.pixels / _QUANTA if self.pixels else None


def quantised(
    scores: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], Certainty]:
    """The whole numbers (class, y, x), or (class, z, y, x), for scores with the class last, and the
    sums over the valid pixels.
    """
    from maskloom.segcore.kernels.scores import quantise

    classes = scores.shape[-1]
    values = np.empty((classes, valid.size), np.uint8)
    rows = np.ascontiguousarray(scores).reshape(-1, classes)
    entropy, margin = quantise(rows, valid.ravel(), MOST, NODATA, _QUANTA, values)
    found = Certainty(int(np.count_nonzero(valid)), int(entropy), int(margin))
    return values.reshape(classes, *valid.shape), found


def probabilities(values: NDArray[np.integer]) -> NDArray[np.float32]:
    """Those of whole numbers of any shape; NaN where there is no data."""
    found: NDArray[np.float32] = np.divide(values, MOST, dtype=np.float32)
    found[values == NODATA] = np.nan
    return found


def no_scores(classes: int, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], Certainty]:
    """As `quantised`, of pixels without data."""
    return np.full((classes, *shape), NODATA, np.uint8), Certainty()
