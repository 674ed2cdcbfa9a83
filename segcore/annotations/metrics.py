"""Pixel metrics from confusion matrices, for training and evaluation.

Pixels are counted by their class in the truth and in the prediction. Void pixels of the truth count
nowhere. Pixels with a class in the truth but none in the prediction (nodata) are `unpredicted`:
they have a separate column and enter no measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Pixels by true and by predicted class. Confusions add up over tiles and images."""

    counts: NDArray[np.int64]
    """(class of the truth, class of the prediction); a last column counts the unpredicted pixels.
    """
    void: int = 0
    """Pixels without truth."""

    @classmethod
    def none(cls, classes: int) -> Confusion:
        """The confusion of no pixels."""
        return cls(np.zeros((classes, classes + 1), np.int64))

    @classmethod
    def of(
        cls, truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
    ) -> Confusion:
        """The confusion of two arrays of class ids of one shape; a negative id is void in the truth
        and unpredicted in the prediction. `truth` is signed.
        """
        known = truth >= 0
        row = truth[known].astype(np.int64)
        column = np.where(predicted >= 0, predicted, classes)[known]
        counts = np.bincount(row * (classes + 1) + column, minlength=classes * (classes + 1))
        return cls(
            counts.reshape(classes, classes + 1).astype(np.int64),
            int(known.size - np.count_nonzero(known)),
        )

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts, self.void + other.void)

    @property
    def square(self) -> NDArray[np.int64]:
        """(class, class): pixels with a class in the truth and in the prediction."""
        return self.counts[:, :-1]

    @property
    def pixels(self) -> int:
        """Number of pixels that enter the measures."""
        return int(self.square.sum())

    @property
    def unpredicted(self) -> int:
        """Pixels with a class in the truth but none in the prediction."""
        return int(self.counts[:, -1].sum())

    @property
    def correct(self) -> NDArray[np.int64]:
        """(class,): pixels on which truth and prediction agree."""
        return np.diagonal(self.square)

    @property
    def wrong(self) -> int:
        """Pixels on which truth and prediction differ."""
        return self.pixels - int(self.correct.sum())

    @property
    def truth(self) -> NDArray[np.int64]:
        """(class,): pixels in the truth, without the unpredicted ones."""
        return np.asarray(self.square.sum(axis=1))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(class,): pixels in the prediction."""
        return np.asarray(self.square.sum(axis=0))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union (Jaccard 1912) of each class; NaN for a class without pixels on
        both sides.
        """
        return ratio(self.correct, self.truth + self.predicted - self.correct)

    @property
    def dice(self) -> NDArray[np.float64]:
        """Twice the intersection over the sum of both (Dice 1945, F1) of each class; NaN for a
        class without pixels on both sides.
        """
        return ratio(2 * self.correct, self.truth + self.predicted)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the predicted pixels of a class that are right (user's accuracy); NaN if none
        are predicted.
        """
        return ratio(self.correct, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the true pixels of a class that are predicted (producer's accuracy); NaN if the
        truth has none.
        """
        return ratio(self.correct, self.truth)

    @property
    def accuracy(self) -> float:
        """Share of pixels that are right; NaN without pixels."""
        return float(ratio(self.correct.sum(), self.square.sum()))

    @property
    def majority_baseline(self) -> float:
        """Accuracy of a prediction of the truth's most frequent class for every pixel."""
        return float(ratio(self.truth.max(initial=0), self.square.sum()))

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960); NaN if chance alone gives full agreement."""
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
    """Part over whole, element by element; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
