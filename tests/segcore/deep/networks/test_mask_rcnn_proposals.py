"""Proposals and detections against plain loops."""

from __future__ import annotations

import keras
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.networks.mask_rcnn.detections import overlaps
from maskloom.segcore.deep.networks.mask_rcnn.proposals import detect_boxes, propose

to_numpy = keras.ops.convert_to_numpy
HEIGHT, WIDTH = 40, 60


def plain_choice(
    ranked: list[tuple[float, np.ndarray, int]], greatest: float, count: int
) -> list[tuple[float, np.ndarray, int]]:
    """From the highest score down, what overlaps none of its class that stays."""
    kept: list[tuple[float, np.ndarray, int]] = []
    for score, box, name in sorted(ranked, key=lambda each: -each[0]):
        rivals = np.array([other for _, other, same in kept if same == name]).reshape(-1, 4)
        if np.all(box[2:] > box[:2]) and not np.any(overlaps(box[None], rivals) > greatest):
            kept.append((score, box, name))
    return kept[:count]


def check(found: tuple[np.ndarray, ...], expected: list[tuple[float, np.ndarray, int]]) -> None:
    """Boxes, scores and classes of one image are those, and zeros after them."""
    boxes, scores, classes = found
    n = len(expected)
    assert np.allclose(
        boxes[:n], np.array([box for _, box, _ in expected]).reshape(-1, 4), atol=1e-3
    )
    assert np.allclose(scores[:n], [score for score, _, _ in expected], atol=1e-5)
    assert classes[:n].tolist() == [name for _, _, name in expected]
    assert not boxes[n:].any()
    assert not scores[n:].any()
    assert not classes[n:].any()


@given(seed=st.integers(0, 10_000))
def test_proposals_are_the_greedy_choice_of_shifted_anchors(seed: int) -> None:
    generator = np.random.default_rng(seed)
    middle = generator.uniform(-10, [HEIGHT + 10, WIDTH + 10], (40, 2))
    sides = generator.uniform(4, 24, (40, 2))
    # Many that nearly coincide.
    middle[20:], sides[20:] = middle[:20] + generator.uniform(-1, 1, (20, 2)), sides[:20]
    anchors = np.concatenate([middle - sides / 2, middle + sides / 2], axis=1).astype(np.float32)
    logits, shifts = (
        generator.normal(size=(2, 40)).astype(np.float32) * 3,
        generator.normal(size=(2, 40, 4)).astype(np.float32) / 4,
    )
    found = propose(logits, shifts, anchors, (HEIGHT, WIDTH, 30, 12))
    for image in range(2):
        moved = middle + shifts[image, :, :2] / 10 * sides
        half = sides * np.exp(shifts[image, :, 2:] / 5) / 2
        boxes = np.clip(
            np.concatenate([moved - half, moved + half], axis=1), 0, [HEIGHT, WIDTH] * 2
        )
        best = np.argsort(-logits[image])[:30]
        ranked = [(float(1 / (1 + np.exp(-logits[image, i]))), boxes[i], 0) for i in best]
        parts = tuple(to_numpy(part)[image] for part in (found.boxes, found.scores, found.classes))
        check(parts, plain_choice(ranked, 0.7, 12))


@given(seed=st.integers(0, 10_000), greatest=st.sampled_from([0.2, 0.5]))
def test_detections_are_the_greedy_choice_class_by_class(seed: int, greatest: float) -> None:
    generator = np.random.default_rng(seed)
    start = generator.uniform(0, 30, (2, 12, 3, 2))
    boxes = np.concatenate([start, start + generator.uniform(5, 20, start.shape)], axis=-1).astype(
        np.float32
    )
    scores = generator.random((2, 12, 3)).astype(np.float32)
    found = detect_boxes(scores, boxes, (0.3, greatest, 25, 7))
    for image in range(2):
        every = [
            (float(scores[image, i, name]), boxes[image, i, name].astype(float), name + 1)
            for i in range(12)
            for name in range(3)
        ]
        ranked = [each for each in sorted(every, key=lambda each: -each[0])[:25] if each[0] >= 0.3]
        parts = tuple(to_numpy(part)[image] for part in (found.boxes, found.scores, found.classes))
        check(parts, plain_choice(ranked, greatest, 7))
