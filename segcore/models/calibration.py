"""Whether probabilities can be believed: of the pixels that a model calls a class with a confidence
of 0.8, about 80 % should be of that class (Guo et al. 2017, arXiv:1706.04599).

A reliability table counts, for each range of confidence, how many pixels are right. Temperature
scaling corrects a model that is too sure or too unsure: logits are divided by one number, which
changes no label. It is the number with the smallest cross-entropy (negative log-likelihood).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
"""Ranges of confidence, equally wide; each includes its upper end, the first also 0."""
COOLEST, HOTTEST = 0.1, 10.0
"""Temperatures that are tried. Where a model makes no error at all, cooler would always be better.
"""
_QUANTA = 2.0**20
_EDGES = np.arange(1, BINS) / BINS


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Sums by range of confidence: whole numbers, which depend on neither tiling nor order."""

    sums: NDArray[np.int64]
    """(3, bin): pixels, their confidence in 2**-20, and those that are right."""

    @classmethod
    def none(cls) -> Reliability:
        """Of no pixel."""
        return cls(np.zeros((3, BINS), np.int64))

    @classmethod
    def of(cls, confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> Reliability:
        """Of pixels (n,): the probability of the class that each was given, and whether it is of
        that class.
        """
        number = np.searchsorted(_EDGES, confidence)
        quanta = np.rint(np.asarray(confidence, np.float64) * _QUANTA)
        # Sums of whole numbers below 2**53 are exact in float64.
        weights = (None, quanta, right)
        sums = [np.bincount(number, weight, BINS).astype(np.int64) for weight in weights]
        return cls(np.stack(sums))

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.sums + other.sums)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.sums[0].sum())

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(range,): mean confidence; NaN without pixels."""
        return self._mean(self.sums[1] / _QUANTA)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(range,): share of pixels that are right; NaN without pixels."""
        return self._mean(self.sums[2])

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over all pixels of the distance between
        confidence and accuracy of their range. NaN without pixels.
        """
        if not self.pixels:
            return math.nan
        distance = np.abs(self.sums[1] / _QUANTA - self.sums[2])
        return float(distance.sum() / self.pixels)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each range: its pixels, their mean confidence and accuracy."""
        return [
            {
                "above": i / BINS,
                "up_to": (i + 1) / BINS,
                "pixels": int(self.sums[0, i]),
                "confidence": float(self.confidence[i]) if self.sums[0, i] else None,
                "accuracy": float(self.accuracy[i]) if self.sums[0, i] else None,
            }
            for i in range(BINS)
        ]

    def _mean(self, sums: NDArray[Any]) -> NDArray[np.float64]:
        found = np.full(BINS, np.nan)
        np.divide(sums, self.sums[0], out=found, where=self.sums[0] > 0)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A temperature, and what it changes on the pixels that it was fitted to."""

    temperature: float
    before: Reliability
    after: Reliability
    loss_before: float
    """Mean cross-entropy."""
    loss: float

    @classmethod
    def of(cls, logits: NDArray[np.float32], labels: NDArray[np.integer]) -> Calibration:
        """Fit the temperature to logits (n, class) and labels (n,) of at least one pixel."""
        temperature = fit_temperature(logits, labels)
        before, after = (_reliability(logits / each, labels) for each in (1.0, temperature))
        return cls(
            temperature,
            before,
            after,
            cross_entropy(logits, labels),
            cross_entropy(logits / temperature, labels),
        )

    @property
    def summary(self) -> dict[str, float | int]:
        """As JSON values, for the card."""
        return {
            "temperature": self.temperature,
            "pixels": self.before.pixels,
            "error_before": round(self.before.error, 6),
            "error": round(self.after.error, 6),
            "cross_entropy_before": round(self.loss_before, 6),
            "cross_entropy": round(self.loss, 6),
        }


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.integer]) -> float:
    """The temperature with the smallest cross-entropy, of logits (n, class) and labels (n,), to
    four digits.
    """
    from scipy.optimize import minimize_scalar

    # As a function of 1 / T it is convex, so there is one minimum.
    found = minimize_scalar(
        lambda log: cross_entropy(logits / math.exp(log), labels),
        bounds=(math.log(COOLEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(f"{math.exp(found.x):.4g}")


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The mean cross-entropy of logits (n, class) and labels (n,)."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    own = np.take_along_axis(values, np.asarray(labels, np.int64)[:, None], axis=-1)[:, 0]
    return float((np.log(np.exp(values).sum(axis=-1)) - own).mean())


def tempered(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities (..., class) as if their logits had been divided by the temperature; the array
    itself for a temperature of 1.
    """
    if temperature == 1.0:
        return scores
    from maskloom.segcore.kernels.scores import temper

    # A copy, since the array may be an engine's.
    found = np.array(scores, np.float32, order="C")
    temper(found.reshape(-1, found.shape[-1]), 1.0 / temperature)
    return found


def _reliability(logits: NDArray[np.float32], labels: NDArray[np.integer]) -> Reliability:
    values = np.asarray(logits, np.float64)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    # The greatest power is 1.
    return Reliability.of(1 / powers.sum(axis=-1), logits.argmax(axis=-1) == labels)
