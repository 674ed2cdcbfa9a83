"""Objects of two label images matched by brute force, as an oracle."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def iou_matrix(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of each object of `one` (rows) with each of `other`."""
    a, b = (np.unique(labels[labels > 0]) for labels in (one, other))
    shared = np.array([[((one == i) & (other == j)).sum() for j in b] for i in a]).reshape(
        len(a), len(b)
    )
    union = np.array([[((one == i) | (other == j)).sum() for j in b] for i in a]).reshape(
        len(a), len(b)
    )
    return shared / np.maximum(union, 1)


def matches(
    predicted: np.ndarray, truth: np.ndarray, threshold: float
) -> tuple[int, int, int, float]:
    """Matched, false, missed, and the sum of the matches' overlaps, by assignment."""
    iou = iou_matrix(predicted, truth)
    good = np.where(iou > threshold, 1 + iou, 0)
    rows, columns = linear_sum_assignment(-good)
    chosen = good[rows, columns] > 0
    matched = int(chosen.sum())
    return (
        matched,
        iou.shape[0] - matched,
        iou.shape[1] - matched,
        float(iou[rows, columns][chosen].sum()),
    )


def matched_share(predicted: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> float:
    """Matched objects, as a share of matched, false and missed ones."""
    matched, false, missed, _ = matches(predicted, truth, threshold)
    return matched / (matched + false + missed)
