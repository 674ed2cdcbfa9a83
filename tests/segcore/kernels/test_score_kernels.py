"""Labels from scores equal NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from maskloom.segcore.kernels.scores import add_weighted, argmax_labels, softmax

shapes = stn.array_shapes(min_dims=3, max_dims=3, max_side=9)


@given(
    stn.arrays(
        np.float32,
        shapes,
        elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 0.5, 1.0, np.inf]),
    )
)
def test_the_first_of_the_greatest(scores: np.ndarray) -> None:
    labels = np.empty(scores.shape[:2], np.uint8)
    argmax_labels(scores, labels)
    assert np.array_equal(labels, np.argmax(scores, -1))


@pytest.mark.parametrize("classes", [2, 300])
def test_views_and_many_classes(classes: int) -> None:
    scores = np.random.default_rng(1).random((40, 30, classes), np.float32)
    labels = np.zeros((20, 20), np.uint16)
    argmax_labels(scores[3:23, 4:24], labels)
    assert np.array_equal(labels, np.argmax(scores[3:23, 4:24], -1))


def test_weighted_sums() -> None:
    generator = np.random.default_rng(2)
    scores, rows, columns = (generator.random(shape, np.float32) for shape in ((9, 7, 3), 9, 7))
    total = generator.random((9, 7, 3), np.float32)
    expected = total + (rows[:, None] * columns)[..., None] * scores
    add_weighted(scores, rows, columns, total)
    assert np.array_equal(total, expected)


def test_probabilities_of_logits() -> None:
    logits = np.random.default_rng(3).normal(0, 30, (5, 6, 9)).astype(np.float32)
    part, found = logits[..., 2:6], np.zeros((7, 6, 4), np.float32)
    softmax(part, 0.5, found[1:6])
    powers = np.exp((part - part.max(axis=-1, keepdims=True)) / 2)
    assert np.allclose(found[1:6], powers / powers.sum(axis=-1, keepdims=True), atol=1e-6)
    assert not found[[0, 6]].any()
