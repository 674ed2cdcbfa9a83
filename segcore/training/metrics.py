"""Metrics of a training: how well labels agree with the truth, by class, from a confusion
matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def confusion(
    truth: NDArray[np.uint8], said: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Pixels by (true class, said class). Pixels whose truth is no class id are left out."""
    known = truth < classes
    keys = truth[known].astype(np.int64) * classes + said[known]
    return np.bincount(keys, minlength=classes * classes).reshape(classes, classes)


def overlap(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class; NaN of a class that is neither there nor said."""
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    values: NDArray[np.float64] = np.divide(
        np.diag(matrix), union, out=np.full(len(matrix), np.nan), where=union > 0
    )
    return values


def mean_overlap(matrix: NDArray[np.int64]) -> float:
    """Mean IoU of the classes that are there or said; 0 where there is no labelled pixel."""
    values = overlap(matrix)
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def summary(matrix: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """All metrics as JSON values; None where one is not defined."""
    hits, said, true = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    total = int(matrix.sum())
    by_class = {}
    for i, name in enumerate(classes):
        by_class[name] = {
            "iou": _ratio(hits[i], said[i] + true[i] - hits[i]),
            "dice": _ratio(2 * hits[i], said[i] + true[i]),
            "precision": _ratio(hits[i], said[i]),
            "recall": _ratio(hits[i], true[i]),
            "pixels": int(true[i]),
        }
    return {
        "mean_iou": round(mean_overlap(matrix), 6),
        "accuracy": _ratio(int(hits.sum()), total),
        "pixels": total,
        "classes": by_class,
    }


def matched(said: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.int64]:
    """Objects (found, invented, missed) between two arrays of ids, 0 for none.

    Found is one whose intersection over union with another is above 0.5, which no third can have
    then.
    """
    both = (said > 0) & (truth > 0)
    pairs, shared = np.unique(np.stack([said[both], truth[both]]), axis=1, return_counts=True)
    sizes = [
        dict(
            zip(
                *(part.tolist() for part in np.unique(ids[ids > 0], return_counts=True)),
                strict=True,
            )
        )
        for ids in (said, truth)
    ]
    found = sum(
        2 * count > sizes[0][one] + sizes[1][other] - count
        for one, other, count in zip(*pairs.tolist(), shared.tolist(), strict=True)
    )
    return np.array([found, len(sizes[0]) - found, len(sizes[1]) - found], np.int64)


def _ratio(part: int, whole: int) -> float | None:
    return round(float(part) / float(whole), 6) if whole else None
