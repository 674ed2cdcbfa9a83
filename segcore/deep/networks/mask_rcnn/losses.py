"""The losses of the two stages (He et al. 2017, section 3; Ren et al. 2015, equation 1), each a
mean over what takes part.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def binary(logits: Tensor, targets: Tensor, taken: Tensor) -> Tensor:
    """Cross-entropy of two classes; all three of one shape. `taken` is 1 for what takes part, else
    0.
    """
    # log(1 + exp(x)) without overflow.
    losses = ops.maximum(logits, 0.0) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))
    return mean(losses, taken)


def categorical(logits: Tensor, targets: Tensor, taken: Tensor) -> Tensor:
    """Cross-entropy of logits (..., class) for class ids (...)."""
    chosen = ops.one_hot(targets, logits.shape[-1], dtype="float32")
    return mean(-ops.sum(ops.log_softmax(logits, axis=-1) * chosen, axis=-1), taken)


def smooth(shifts: Tensor, targets: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    """Smooth L1 (Girshick 2015, "Fast R-CNN", equation 3), summed over the four shifts of a box
    (..., 4).

    `positive` is 1 for the boxes that hold an object; their sum is divided by `count`, that of all
    that take part, so that the weight of boxes against classes does not depend on how many objects
    there are.
    """
    away = ops.abs(shifts - targets)
    losses = ops.where(away < 1.0, 0.5 * ops.square(away), away - 0.5)
    return ops.sum(ops.sum(losses, axis=-1) * positive) / ops.maximum(count, 1.0)


def mean(values: Tensor, taken: Tensor) -> Tensor:
    """The mean of those that take part, 0 where none does."""
    return ops.sum(values * taken) / ops.maximum(ops.sum(taken), 1.0)
