"""Losses against NumPy and keras."""

from __future__ import annotations

import numpy as np
import pytest

from maskloom.segcore.training.loss_terms import (
    CrossEntropy,
    DiceLoss,
    FocalLoss,
    LossTerms,
    SumOfLosses,
)
from maskloom.segcore.training.losses import class_weights, loss_of

VOID = 255


@pytest.fixture
def drawn():
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, (2, 6, 5)).astype(np.uint8)
    truth[0, :2] = VOID
    return truth, random.normal(size=(2, 6, 5, 3)).astype(np.float32)


def value(terms, weights, truth, logits):
    return float(loss_of(terms, np.array(weights, np.float32))(truth, logits))


def softmax(logits):
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def test_cross_entropy_is_the_weighted_mean_of_labelled_pixels(drawn):
    truth, logits = drawn
    known = truth != VOID
    missed = -np.log(softmax(logits)[known][np.arange(known.sum()), truth[known]])
    assert value(CrossEntropy().terms, [1, 1, 1], truth, logits) == pytest.approx(
        missed.mean(), rel=1e-5
    )
    weights = np.array([3.0, 0.5, 1.0])
    expected = (weights[truth[known]] * missed).sum() / weights[truth[known]].sum()
    assert value(CrossEntropy().terms, weights, truth, logits) == pytest.approx(expected, rel=1e-5)
    # Focal loss, with the exponents 0 and 2.
    assert value(FocalLoss(gamma=0).terms, [1, 1, 1], truth, logits) == pytest.approx(
        missed.mean(), rel=1e-5
    )
    focal = ((1 - np.exp(-missed)) ** 2 * missed).mean()
    assert value(FocalLoss(gamma=2).terms, [1, 1, 1], truth, logits) == pytest.approx(
        focal, rel=1e-5
    )


def test_dice_counts_classes_over_the_whole_batch(drawn):
    truth, logits = drawn
    known = truth != VOID
    actual, predicted = np.eye(3)[truth[known]], softmax(logits)[known]
    dice = (2 * (actual * predicted).sum(axis=0) + 1) / ((actual + predicted).sum(axis=0) + 1)
    assert value(DiceLoss().terms, [1, 1, 1], truth, logits) == pytest.approx(
        (1 - dice).mean(), rel=1e-5
    )
    both = SumOfLosses(cross_entropy=2, dice=3).terms
    parts = 2 * value(CrossEntropy().terms, [1, 1, 1], truth, logits) + 3 * value(
        DiceLoss().terms, [1, 1, 1], truth, logits
    )
    assert value(both, [1, 1, 1], truth, logits) == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(
    "terms", [CrossEntropy().terms, DiceLoss().terms, FocalLoss().terms, SumOfLosses(1, 1, 1).terms]
)
def test_void_pixels_have_no_influence(drawn, terms):
    import tensorflow as tf

    truth, logits = drawn
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = loss_of(terms, np.ones(3, np.float32))(truth, variable)
    slope = tape.gradient(loss, variable).numpy()
    assert np.isfinite(slope).all()
    assert not slope[truth == VOID].any()
    assert slope[truth != VOID].any()
    nothing = value(terms, [1, 1, 1], np.full_like(truth, VOID), logits)
    assert nothing == pytest.approx(0, abs=1e-6)


def test_balanced_weights_let_all_classes_weigh_alike():
    counts = np.array([900, 90, 0, 10])
    weights = class_weights(LossTerms(weights="balanced"), counts)
    assert weights[2] == 0
    np.testing.assert_allclose((weights * counts)[[0, 1, 3]], counts.sum() / 3, rtol=1e-6)
    assert class_weights(LossTerms(), counts).tolist() == [1, 1, 1, 1]
    assert class_weights(LossTerms(weights=(1.0, 2.0, 3.0, 4.0)), counts).tolist() == [1, 2, 3, 4]
