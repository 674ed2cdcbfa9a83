"""Losses of the two stages, each averaged over the sampled entries.

He et al. 2017, section 3; Ren et al. 2015, equation 1.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def binary(logits: Tensor, targets: Tensor, taken: Tensor) -> Tensor:
    """Binary cross-entropy; all three tensors have the same shape.

    `taken` is 1 for entries that count, else 0.
    """
    # log(1 + exp(x)) without overflow.
    losses = ops.maximum(logits, 0.0) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))
    return mean(losses, taken)


def categorical(logits: Tensor, targets: Tensor, taken: Tensor) -> Tensor:
    """Cross-entropy of logits (..., class) for class ids (...)."""
    chosen = ops.one_hot(targets, logits.shape[-1], dtype="float32")
    return mean(-ops.sum(ops.log_softmax(logits, axis=-1) * chosen, axis=-1), taken)


def smooth(shifts: Tensor, targets: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    """Smooth L1 (Girshick 2015, "Fast R-CNN", equation 3) of box shifts (..., 4).

    It is summed over the four shifts of a box. `positive` is 1 for boxes that contain an object.
    The sum over these is divided by `count`, the number of all sampled boxes, so that the weight of
    boxes relative to classes does not depend on the number of objects.
    """
    away = ops.abs(shifts - targets)
    losses = ops.where(away < 1.0, 0.5 * ops.square(away), away - 0.5)
    return ops.sum(ops.sum(losses, axis=-1) * positive) / ops.maximum(count, 1.0)


def mean(values: Tensor, taken: Tensor) -> Tensor:
    """Mean of the values with `taken` 1; 0 if there are none."""
    return ops.sum(values * taken) / ops.maximum(ops.sum(taken), 1.0)
