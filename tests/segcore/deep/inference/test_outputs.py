"""From the output of a network to labels."""

from __future__ import annotations

import numpy as np
import pytest

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.outputs import OutputReader
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
def test_labels_of_one_and_two_scores_are_those_of_numpy(output):
    card = Card("unet", "0" * 64, 1, ("no", "yes"), AS_THEY_ARE, ReceptiveField(4, 1), output)
    reader = OutputReader(card, "network.keras", 2)
    half = np.float32(0.0 if output == "logits" else 0.5)
    values = [half, np.nextafter(half, np.float32(1)), np.inf, -np.inf, np.nan, -1.5, 1.0]
    scores = np.array([[(a, b) for b in values] for a in values], np.float32)
    labels = np.full((9, 9), 7, np.uint16)
    reader.write_labels(scores[..., 1:], labels[1:-1, 1:-1])
    assert np.array_equal(labels[1:-1, 1:-1], scores[..., 1] > half)
    reader.write_labels(scores, labels[1:-1, 1:-1])
    known = ~np.isnan(scores).any(axis=-1)
    assert np.array_equal(labels[1:-1, 1:-1][known], scores.argmax(axis=-1)[known])
    assert (labels[[0, -1]] == 7).all()
