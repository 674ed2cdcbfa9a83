"""Boxes as tensors: overlap, clipping, and the shifts by which the network corrects them.

A box is (y0, x0, y1, x1) in pixels, float32, where pixel i spans from i to i + 1: height is y1 -
y0. Empty boxes (0, 0, 0, 0) stand for "none" where numbers of boxes are padded to a fixed one; they
overlap nothing.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

Tensor = Any

# Beyond this a box would grow by more than a thousand sixteenths; keeps the exponential finite
# while the network knows nothing yet.
_GREATEST_LOGARITHM = math.log(1000 / 16)
_LEAST_SIDE = 1e-3


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of all pairs: boxes (..., a, 4) and (..., b, 4) to (..., a, b); 0
    where a box is empty.
    """
    a, b = ops.expand_dims(one, -2), ops.expand_dims(other, -3)
    sides = ops.maximum(
        ops.minimum(a[..., 2:], b[..., 2:]) - ops.maximum(a[..., :2], b[..., :2]), 0.0
    )
    shared = sides[..., 0] * sides[..., 1]
    union = _area(a) + _area(b) - shared
    return ops.where(union > 0, shared / ops.maximum(union, 1e-9), ops.zeros_like(shared))


def encode(boxes: Tensor, references: Tensor, weights: tuple[float, float]) -> Tensor:
    """What makes `boxes` of `references`, both (..., 4): shifts of the centre in sides, logarithms
    of the growth of the sides.

    The first two are multiplied by `weights[0]`, the others by `weights[1]` (R-CNN, Girshick 2014,
    appendix C).
    """
    centre, sides = _centre_and_sides(boxes)
    reference_centre, reference_sides = _centre_and_sides(references)
    shift = (centre - reference_centre) / reference_sides
    growth = ops.log(sides / reference_sides)
    return ops.concatenate([shift * weights[0], growth * weights[1]], axis=-1)


def decode(shifts: Tensor, references: Tensor, weights: tuple[float, float]) -> Tensor:
    """The boxes that `shifts` make of `references`, both (..., 4): the inverse of `encode`."""
    centre, sides = _centre_and_sides(references)
    centre = centre + shifts[..., :2] / weights[0] * sides
    half = 0.5 * sides * ops.exp(ops.minimum(shifts[..., 2:] / weights[1], _GREATEST_LOGARITHM))
    return ops.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """The parts of boxes (..., 4) inside an image."""
    limits = ops.cast(ops.stack([height, width, height, width]), boxes.dtype)
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def take(values: Tensor, indices: Tensor) -> Tensor:
    """For each image the rows of `values` (image, row, ...) at `indices` (image, place): (image,
    place, ...).
    """
    for _ in range(len(values.shape) - 2):
        indices = ops.expand_dims(indices, -1)
    return ops.take_along_axis(values, indices, axis=1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], _LEAST_SIDE)
    return 0.5 * (boxes[..., :2] + boxes[..., 2:]), sides
