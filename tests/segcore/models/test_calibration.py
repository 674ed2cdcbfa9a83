"""Calibration against scikit-learn, against data of a known temperature, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from maskloom.segcore.models.calibration import (
    HOTTEST,
    Calibration,
    Reliability,
    cross_entropy,
    fit_temperature,
    tempered,
)


def drawn(temperature: float, pixels: int = 20_000, classes: int = 4) -> tuple:
    """Logits, and labels that are drawn from their softmax at this temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (pixels, classes)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.7])
def test_the_temperature_of_the_data_is_found(temperature):
    logits, labels = drawn(temperature)
    found = Calibration.of(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.loss <= found.loss_before
    assert found.after.error < 0.02
    for other in (0.97, 1.03):
        assert found.loss < cross_entropy(logits / (found.temperature * other), labels)
    expected = log_loss(labels, softmax(logits.astype(float), axis=-1))
    assert found.loss_before == pytest.approx(expected, rel=1e-6)


def test_a_model_that_knows_nothing_becomes_as_unsure_as_allowed():
    logits, _ = drawn(1.0)
    labels = np.random.default_rng(1).integers(0, 4, len(logits))
    assert fit_temperature(logits, labels) == pytest.approx(HOTTEST, rel=1e-3)


def test_reliability_is_that_of_scikit_learn():
    logits, labels = drawn(2.0)
    scores = softmax(logits.astype(float), axis=-1)
    confidence, right = scores.max(axis=-1), scores.argmax(axis=-1) == labels
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    found = Reliability.of(confidence, right)
    held = found.sums[0] > 0
    assert found.pixels == len(labels)
    assert found.accuracy[held] == pytest.approx(accuracy)
    assert found.confidence[held] == pytest.approx(mean, abs=1e-6)
    parts = (slice(0, 7), slice(7, 9_000), slice(9_000, None))
    total = sum((Reliability.of(confidence[p], right[p]) for p in parts), Reliability.none())
    assert np.array_equal(total.sums, found.sums)


def test_the_error_by_hand():
    """Four pixels of 0.95, three right; one of 0.55, wrong: (4 * 0.2 + 0.55) / 5."""
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55])
    found = Reliability.of(confidence, np.array([True, True, True, False, False]))
    assert found.error == pytest.approx((4 * 0.2 + 0.55) / 5, abs=1e-5)
    rows = [row for row in found.rows() if row["pixels"]]
    assert [(row["above"], row["pixels"], row["accuracy"]) for row in rows] == [
        (0.5, 1, 0.0),
        (0.9, 4, 0.75),
    ]
    assert math.isnan(Reliability.none().error)


@given(st.floats(0.2, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_tempered_probabilities_are_those_of_divided_logits(temperature, classes, seed):
    logits = np.random.default_rng(seed).normal(0, 2, (5, 7, classes))
    scores = softmax(logits, axis=-1).astype(np.float32)
    before = scores.copy()
    found = tempered(scores, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, softmax(logits / temperature, axis=-1), atol=1e-5)
    assert np.array_equal(scores, before)
    assert tempered(scores, 1.0) is scores
