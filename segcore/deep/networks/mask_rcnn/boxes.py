"""Boxes as tensors: IoU, clipping, and box regression.

A box is (y0, x0, y1, x1) in pixels, float32, where pixel i spans i to i + 1: the height is y1 - y0.
Lists of boxes are padded to a fixed length with empty boxes (0, 0, 0, 0), which overlap nothing.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

Tensor = Any

# Caps the growth of a box at about 60 times (1000 / 16); keeps the exponential finite early in
# training.
_GREATEST_LOGARITHM = math.log(1000 / 16)
_LEAST_SIDE = 1e-3


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of all pairs: boxes (..., a, 4) and (..., b, 4) to (..., a, b).

    The IoU with an empty box is 0.
    """
    a, b = ops.expand_dims(one, -2), ops.expand_dims(other, -3)
    sides = ops.maximum(
        ops.minimum(a[..., 2:], b[..., 2:]) - ops.maximum(a[..., :2], b[..., :2]), 0.0
    )
    shared = sides[..., 0] * sides[..., 1]
    union = _area(a) + _area(b) - shared
    return ops.where(union > 0, shared / ops.maximum(union, 1e-9), ops.zeros_like(shared))


def encode(boxes: Tensor, references: Tensor, weights: tuple[float, float]) -> Tensor:
    """Encode `boxes` relative to `references`, both (..., 4), as shifts (..., 4).

    The first two are shifts of the centre relative to the sides, times `weights[0]`; the last two
    are logarithms of the ratio of the sides, times `weights[1]` (Girshick et al. 2014, R-CNN,
    appendix C).
    """
    centre, sides = _centre_and_sides(boxes)
    reference_centre, reference_sides = _centre_and_sides(references)
    shift = (centre - reference_centre) / reference_sides
    growth = ops.log(sides / reference_sides)
    return ops.concatenate([shift * weights[0], growth * weights[1]], axis=-1)


def decode(shifts: Tensor, references: Tensor, weights: tuple[float, float]) -> Tensor:
    """Apply `shifts` to `references`, both (..., 4): the inverse of `encode`."""
    centre, sides = _centre_and_sides(references)
    centre = centre + shifts[..., :2] / weights[0] * sides
    half = 0.5 * sides * ops.exp(ops.minimum(shifts[..., 2:] / weights[1], _GREATEST_LOGARITHM))
    return ops.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Clip boxes (..., 4) to an image."""
    limits = ops.cast(ops.stack([height, width, height, width]), boxes.dtype)
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Gather rows per image.

    `values` (image, row, ...) at `indices` (image, entry) give (image, entry, ...).
    """
    for _ in range(len(values.shape) - 2):
        indices = ops.expand_dims(indices, -1)
    return ops.take_along_axis(values, indices, axis=1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], _LEAST_SIDE)
    return 0.5 * (boxes[..., :2] + boxes[..., 2:]), sides
