"""Losses of semantic networks, in which void pixels have no weight.

All are computed from logits in float32. Written in `keras.ops`, so they run on every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.training.loss_terms import LossTerms

Tensor = Any
_SMOOTH = 1.0
"""Pixels added to both sides of a Dice coefficient, so that a class that is absent and not
predicted costs nothing.
"""


def class_weights(terms: LossTerms, counts: NDArray[np.integer]) -> NDArray[np.float32]:
    """(class,): weights, from the number of labelled pixels of each class. Balanced ones give all
    classes that occur the same total, with a mean of 1 per pixel.
    """
    if terms.weights == "none":
        return np.ones(len(counts), np.float32)
    if not isinstance(terms.weights, str):
        return np.array(terms.weights, np.float32)
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights.astype(np.float32)


def loss_of(terms: LossTerms, weights: NDArray[np.float32]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss, one number, of labels (image, y, x), in which all but class ids are void, and
    logits (image, y, x, class); those of volumes have an axis z before y.

    Cross-entropy and focal loss (Lin 2017) are weighted means of the labelled pixels; Dice
    (Milletari 2016) is that of the whole batch by class, then the weighted mean of the classes.
    """
    import keras
    from keras import ops

    classes = len(weights)

    def loss(truth: Tensor, logits: Tensor) -> Tensor:
        """See `loss_of`."""
        ids = ops.cast(truth, "int32")
        known = ops.cast(ids < classes, "float32")
        actual = (
            ops.one_hot(ops.minimum(ids, classes - 1), classes, dtype="float32") * known[..., None]
        )
        # Kept out of bfloat16, in which small differences are lost.
        likely = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        by_class = ops.convert_to_tensor(weights)
        weight = ops.sum(actual * by_class, axis=-1)
        missed = -ops.sum(actual * likely, axis=-1)
        whole = ops.maximum(ops.sum(weight), keras.backend.epsilon())
        total = ops.zeros(())
        if terms.cross_entropy:
            total = total + terms.cross_entropy * ops.sum(weight * missed) / whole
        if terms.focal:
            doubt = ops.maximum(1 - ops.exp(-missed), keras.backend.epsilon()) ** terms.gamma
            total = total + terms.focal * ops.sum(weight * doubt * missed) / whole
        if terms.dice:
            predicted = ops.exp(likely) * known[..., None]
            pixels = tuple(range(len(likely.shape) - 1))
            common, both = (
                ops.sum(actual * predicted, pixels),
                ops.sum(actual + predicted, pixels),
            )
            dice = (2 * common + _SMOOTH) / (both + _SMOOTH)
            total = total + terms.dice * ops.sum(by_class * (1 - dice)) / ops.sum(by_class)
        return total

    return loss
