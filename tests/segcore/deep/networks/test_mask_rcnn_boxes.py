"""Boxes, anchors and non-maximum suppression against plain NumPy."""

from __future__ import annotations

import keras
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.networks.mask_rcnn.anchors import level_anchors
from maskloom.segcore.deep.networks.mask_rcnn.boxes import clip, decode, encode, overlap, take
from maskloom.segcore.deep.networks.mask_rcnn.suppression import suppress

to_numpy = keras.ops.convert_to_numpy


def random_boxes(generator: np.random.Generator, *shape: int, extent: float = 40.0) -> np.ndarray:
    start = generator.uniform(0, extent, (*shape, 2))
    return np.concatenate(
        [start, start + generator.uniform(1, extent / 2, (*shape, 2))], axis=-1
    ).astype(np.float32)


def plain_overlap(a: np.ndarray, b: np.ndarray) -> float:
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    shared = height * width
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def plain_suppression(
    boxes: np.ndarray, valid: np.ndarray, groups: np.ndarray, greatest: float
) -> np.ndarray:
    kept: list[int] = []
    for i in range(len(boxes)):
        if valid[i] and all(
            groups[i] != groups[j] or plain_overlap(boxes[i], boxes[j]) <= greatest for j in kept
        ):
            kept.append(i)
    return np.isin(np.arange(len(boxes)), kept)


def test_overlap_of_known_boxes() -> None:
    one = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], np.float32)
    other = np.array([[0, 1, 2, 3], [5, 5, 6, 6], [0, 0, 2, 2], [0, 0, 0, 0]], np.float32)
    assert np.allclose(to_numpy(overlap(one, other)), [[1 / 3, 0, 1, 0], [0, 0, 0, 0]])


@given(seed=st.integers(0, 10_000))
def test_overlap_agrees_with_the_plain_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = random_boxes(generator, 2, 5), random_boxes(generator, 2, 7)
    expected = [[[plain_overlap(a, b) for b in other[n]] for a in one[n]] for n in range(2)]
    assert np.allclose(to_numpy(overlap(one, other)), expected, atol=1e-5)


@given(seed=st.integers(0, 10_000))
def test_decoding_undoes_encoding(seed: int) -> None:
    generator = np.random.default_rng(seed)
    boxes, references = random_boxes(generator, 3, 6), random_boxes(generator, 3, 6)
    shifts = encode(boxes, references, (10.0, 5.0))
    assert np.allclose(to_numpy(decode(shifts, references, (10.0, 5.0))), boxes, atol=1e-3)


def test_shifts_of_a_network_that_knows_nothing_give_finite_boxes() -> None:
    references = np.array([[10.0, 10, 20, 20]] * 2, np.float32)
    boxes = to_numpy(
        decode(
            np.array([[0, 0, 1e3, 1e4], [50, -50, -1e4, 0]], np.float32), references, (10.0, 5.0)
        )
    )
    # Sides grow 62.5 times at most.
    assert np.allclose(boxes[0], [15 - 312.5, 15 - 312.5, 15 + 312.5, 15 + 312.5], rtol=1e-4)
    assert np.allclose(boxes[1], [65, -40, 65, -30], atol=1e-3)


def test_encoding_of_a_known_box() -> None:
    # The centre moves from (5, 10) by half a height and a quarter of a width; the height doubles.
    shifts = to_numpy(
        encode(
            np.array([[0.0, 10, 20, 20]], np.float32),
            np.array([[0.0, 0, 10, 20]], np.float32),
            (10.0, 5.0),
        )
    )
    assert np.allclose(shifts, [[5.0, 2.5, 5 * np.log(2), 5 * np.log(0.5)]], atol=1e-5)


def test_boxes_are_clipped_to_the_image() -> None:
    clipped = to_numpy(clip(np.array([[-3.0, -1, 50, 70]], np.float32), 40, 60))
    assert np.array_equal(clipped, [[0, 0, 40, 60]])


def test_rows_are_taken_image_by_image() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    indices = np.array([[2, 0], [1, 1]], np.int32)
    assert np.array_equal(to_numpy(take(values, indices)), [values[0][[2, 0]], values[1][[1, 1]]])
    assert np.array_equal(
        to_numpy(take(values[..., 0], indices)), [values[0, [2, 0], 0], values[1, [1, 1], 0]]
    )


def test_anchors_sit_in_the_middle_of_their_squares() -> None:
    anchors = to_numpy(level_anchors((2, 3), 8, 16.0, (1.0, 4.0)))
    assert anchors.shape == (2 * 3 * 2, 4)
    assert np.allclose(anchors[0], [4 - 8, 4 - 8, 4 + 8, 4 + 8])
    # Ratio 4: twice as high and half as wide, of the same area; the next position lies one stride
    # to the right.
    assert np.allclose(anchors[1], [4 - 16, 4 - 4, 4 + 16, 4 + 4])
    assert np.allclose(anchors[2] - anchors[0], [0, 8, 0, 8])
    assert np.allclose(anchors[6] - anchors[0], [8, 0, 8, 0])


@given(seed=st.integers(0, 10_000), greatest=st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_suppression_is_the_greedy_one(seed: int, greatest: float) -> None:
    generator = np.random.default_rng(seed)
    boxes = random_boxes(generator, 2, 30, extent=20.0)
    valid = generator.random((2, 30)) < 0.8
    groups = generator.integers(0, 2, (2, 30)).astype(np.int32)
    kept = to_numpy(suppress(boxes, valid, groups, greatest))
    for image in range(2):
        assert np.array_equal(
            kept[image], plain_suppression(boxes[image], valid[image], groups[image], greatest)
        )


def test_suppression_of_a_long_chain() -> None:
    # Each box overlaps its neighbours alone, so every second one stays: as many rounds as there are
    # boxes.
    start = np.arange(60, dtype=np.float32) * 4
    boxes = np.stack([np.zeros(60), start, np.full(60, 10), start + 10], axis=-1)[None].astype(
        np.float32
    )
    kept = to_numpy(suppress(boxes, np.ones((1, 60), bool), np.zeros((1, 60), np.int32), 0.3))
    assert np.array_equal(kept[0], np.arange(60) % 2 == 0)
