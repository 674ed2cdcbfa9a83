"""RoIAlign against a plain one, point by point."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.networks.mask_rcnn.roi_align import level_of, roi_align

to_numpy = keras.ops.convert_to_numpy


def plain_value(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear interpolation at a place in positions; beyond the outermost ones as at the edge."""
    height, width = feature.shape[:2]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[top, left] * (left + 1 - x) + feature[top, right] * (x - left)
    lower = feature[bottom, left] * (left + 1 - x) + feature[bottom, right] * (x - left)
    return np.asarray(upper * (top + 1 - y) + lower * (y - top))


def plain_align(feature: np.ndarray, stride: int, box: np.ndarray, size: int) -> np.ndarray:
    result = np.zeros((size, size, feature.shape[-1]))
    height, width = (box[2] - box[0]) / size, (box[3] - box[1]) / size
    for row in range(size):
        for column in range(size):
            samples = [
                plain_value(
                    feature,
                    (box[0] + (row + a) * height) / stride - 0.5,
                    (box[1] + (column + b) * width) / stride - 0.5,
                )
                for a in (0.25, 0.75)
                for b in (0.25, 0.75)
            ]
            result[row, column] = np.mean(samples, axis=0)
    return result


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 3, 7]))
def test_agrees_with_the_plain_one_on_every_level(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    strides = (4, 8, 16)
    pyramid = [
        generator.normal(size=(2, 96 // stride, 128 // stride, 3)).astype(np.float32)
        for stride in strides
    ]
    start = generator.uniform(0, 60, (2, 4, 2))
    boxes = np.concatenate([start, start + generator.uniform(2, 36, (2, 4, 2))], -1).astype(
        np.float32
    )
    # Boxes as large as the levels' canonical ones, hanging over the image.
    boxes[:, 0] = [0, 0, 96, 128 * 1.3]
    boxes[:, 1] = [-100, -100, 224, 224]
    found = to_numpy(roi_align(pyramid, strides, boxes, size))
    levels = to_numpy(level_of(boxes, 3))
    assert {0, 2} <= set(levels.ravel().tolist())
    for image in range(2):
        for number in range(4):
            level = levels[image, number]
            expected = plain_align(
                pyramid[level][image], strides[level], boxes[image, number], size
            )
            assert np.allclose(found[image, number], expected, atol=1e-4)


def test_a_slope_keeps_its_values_at_any_fraction_of_a_pixel() -> None:
    # The feature is the x coordinate of the middle of each position, so a cell's value is the x
    # coordinate of its middle.
    stride = 4
    feature = np.tile((np.arange(16, dtype=np.float32) + 0.5) * stride, (16, 1))[None, ..., None]
    boxes = np.array([[[10.3, 8.7, 33.1, 50.9]]], np.float32)
    found = to_numpy(roi_align([feature], (stride,), boxes, 7))[0, 0, :, :, 0]
    middles = 8.7 + (np.arange(7) + 0.5) * (50.9 - 8.7) / 7
    assert np.allclose(found, np.tile(middles, (7, 1)), atol=1e-3)


def test_gradients_reach_the_features() -> None:
    tf = pytest.importorskip("tensorflow")
    feature = tf.Variable(np.zeros((1, 8, 8, 1), np.float32))
    with tf.GradientTape() as tape:
        total = keras.ops.sum(
            roi_align([feature], (4,), np.array([[[4.0, 4.0, 20.0, 20.0]]], np.float32), 2)
        )
    gradient = tf.convert_to_tensor(tape.gradient(total, feature)).numpy()[0, ..., 0]
    # Weights of bilinear interpolation sum to one a cell, and stay about the box.
    assert gradient.sum() == pytest.approx(4.0)
    assert gradient[0].sum() == gradient[6:].sum() == 0


def test_levels_follow_the_paper() -> None:
    sides = np.array([8.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0], np.float32)
    boxes = np.stack([np.zeros(8), np.zeros(8), sides, sides], axis=-1).astype(np.float32)
    assert to_numpy(level_of(boxes, 4)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert to_numpy(level_of(boxes * 0, 4)).tolist() == [0] * 8
