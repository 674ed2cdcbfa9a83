"""Counts and measures agree with scikit-learn, and do not show the tiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics

from maskloom.segcore.annotations.metrics import Confusion, mean_of_known

CLASSES = 4
LABELS = arrays(np.int64, (12, 9), elements=st.integers(-1, CLASSES - 1))


@given(LABELS, LABELS)
def test_agrees_with_scikit_learn(truth: np.ndarray, predicted: np.ndarray) -> None:
    found = Confusion.of(truth, predicted, CLASSES)
    both = (truth >= 0) & (predicted >= 0)
    assert found.counts.sum() + found.void == truth.size
    assert found.unpredicted == ((truth >= 0) & (predicted < 0)).sum()
    assert found.pixels == both.sum()
    if not both.any():
        assert np.isnan(found.accuracy)
        return
    t, p, labels = truth[both], predicted[both], range(CLASSES)
    np.testing.assert_array_equal(found.square, metrics.confusion_matrix(t, p, labels=labels))
    for ours, theirs in (
        (found.iou, metrics.jaccard_score),
        (found.dice, metrics.f1_score),
        (found.precision, metrics.precision_score),
        (found.recall, metrics.recall_score),
    ):
        np.testing.assert_allclose(
            np.nan_to_num(ours), theirs(t, p, labels=labels, average=None, zero_division=0)
        )
    assert found.accuracy == pytest.approx(metrics.accuracy_score(t, p))
    assert found.majority_baseline == pytest.approx(np.bincount(t).max() / t.size)
    if len(np.unique(np.concatenate([t, p]))) > 1:
        assert found.kappa == pytest.approx(metrics.cohen_kappa_score(t, p))


@given(LABELS, LABELS, st.integers(0, 12), st.integers(0, 9))
def test_parts_add_up(truth: np.ndarray, predicted: np.ndarray, row: int, column: int) -> None:
    whole = Confusion.of(truth, predicted, CLASSES)
    cuts = [
        (y, x)
        for y in (slice(0, row), slice(row, None))
        for x in (slice(0, column), slice(column, None))
    ]
    parts = Confusion.none(CLASSES)
    for cut in cuts:
        parts += Confusion.of(truth[cut], predicted[cut], CLASSES)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert parts.void == whole.void
    assert parts.counts.dtype == np.int64


def test_a_class_that_neither_has_is_not_defined() -> None:
    found = Confusion.of(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    np.testing.assert_allclose(found.iou, [0.5, 0.5, np.nan])
    assert mean_of_known(found.iou) == 0.5
    assert np.isnan(mean_of_known(np.array([np.nan])))
    # One class everywhere: chance alone agrees, so kappa says nothing.
    assert np.isnan(Confusion.of(np.zeros(5, int), np.zeros(5, int), 2).kappa)
