"""Confusion matrices and what follows from them.

Pixels are counted by their class in the truth and in the mask. Void pixels of the truth count
nowhere. Pixels that have a class in the truth and none in the mask (nodata) are `unpredicted`: they
stand in a column of their own and enter no measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Pixels by class of the truth and of the mask. Confusions add up over tiles and images."""

    counts: NDArray[np.int64]
    """(n, n + 1): class of the truth by class of the mask; the last column has the unpredicted."""
    void: int = 0
    """Pixels without truth."""

    @classmethod
    def none(cls, classes: int) -> Confusion:
        """No pixel yet."""
        return cls(np.zeros((classes, classes + 1), np.int64))

    @classmethod
    def of(cls, truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Confusion:
        """The confusion of two arrays of class ids; negative is void in the truth, unpredicted in
        the mask.
        """
        known = truth >= 0
        column = np.where(predicted >= 0, predicted, classes)
        counts = np.bincount(
            (truth * (classes + 1) + column)[known], minlength=classes * (classes + 1)
        )
        return cls(
            counts.reshape(classes, classes + 1).astype(np.int64),
            int(known.size - np.count_nonzero(known)),
        )

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts, self.void + other.void)

    @property
    def square(self) -> NDArray[np.int64]:
        """(n, n): pixels that have a class in the truth and in the mask."""
        return self.counts[:, :-1]

    @property
    def pixels(self) -> int:
        """Pixels that the measures are of."""
        return int(self.square.sum())

    @property
    def unpredicted(self) -> int:
        """Pixels with a class in the truth and none in the mask."""
        return int(self.counts[:, -1].sum())

    @property
    def correct(self) -> NDArray[np.int64]:
        """Pixels of each class on which truth and mask agree."""
        return np.diagonal(self.square)

    @property
    def wrong(self) -> int:
        """Pixels on which truth and mask differ."""
        return self.pixels - int(self.correct.sum())

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels of each class in the truth, the unpredicted left out."""
        return np.asarray(self.square.sum(axis=1))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Pixels of each class in the mask."""
        return np.asarray(self.square.sum(axis=0))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union (Jaccard 1912) of each class; NaN for one that neither has."""
        return ratio(self.correct, self.truth + self.predicted - self.correct)

    @property
    def dice(self) -> NDArray[np.float64]:
        """Twice the intersection over the sum of both (Dice 1945, F1) of each class; NaN for one
        that neither has.
        """
        return ratio(2 * self.correct, self.truth + self.predicted)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of a class's pixels in the mask that are right (user's accuracy); NaN where the
        mask has none.
        """
        return ratio(self.correct, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of a class's pixels in the truth that the mask finds (producer's accuracy); NaN
        where the truth has none.
        """
        return ratio(self.correct, self.truth)

    @property
    def accuracy(self) -> float:
        """Share of pixels that are right; NaN without pixels."""
        return float(ratio(self.correct.sum(), self.square.sum()))

    @property
    def majority_baseline(self) -> float:
        """Accuracy of a mask that gives every pixel the truth's most frequent class."""
        return float(ratio(self.truth.max(initial=0), self.square.sum()))

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960); NaN where chance alone agrees."""
        total = float(self.square.sum())
        chance = (
            float((self.truth.astype(float) * self.predicted.astype(float)).sum()) / total**2
            if total
            else 1.0
        )
        return (self.accuracy - chance) / (1 - chance) if chance < 1 else float("nan")


def ratio(
    part: NDArray[np.int64] | np.int64, whole: NDArray[np.int64] | np.int64
) -> NDArray[np.float64]:
    """Part over whole; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def mean_of_known(values: NDArray[np.float64]) -> float:
    """The mean of the values that are no NaN; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
