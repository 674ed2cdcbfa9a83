"""Heads: predictions per position of the pyramid (proposals) and per box (class, box, mask)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers

if TYPE_CHECKING:
    from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn

BOX_SIZE, MASK_SIZE = 7, 14
"""Cells along each axis of the RoIAlign features for the box and mask heads."""


def proposal_head(recipe: MaskRcnn) -> keras.Model:
    """Head of the region proposal network.

    Maps a level (image, y, x, channel) to objectness logits (image, y, x, ratio) and box shifts
    (image, y, x, 4 * ratio) of the anchors.
    """
    inputs = keras.Input((None, None, recipe.pyramid))
    x = layers.Conv2D(
        recipe.pyramid,
        3,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name="shared",
    )(inputs)
    count = len(recipe.ratios)
    logits = layers.Conv2D(
        count, 1, kernel_initializer=_small(0.01), dtype="float32", name="objectness"
    )(x)
    shifts = layers.Conv2D(
        4 * count, 1, kernel_initializer=_small(0.01), dtype="float32", name="shifts"
    )(x)
    return keras.Model(inputs, [logits, shifts], name="proposal_head")


def box_head(recipe: MaskRcnn, classes: int) -> keras.Model:
    """Head for classes and boxes.

    Maps features (box, 7, 7, channel) to class logits (box, `classes`) and to one set of box shifts
    per object class, (box, `classes` - 1, 4).
    """
    inputs = keras.Input((BOX_SIZE, BOX_SIZE, recipe.pyramid))
    x = layers.Flatten(name="flat")(inputs)
    for name in ("first", "second"):
        x = layers.Dense(
            recipe.dense, activation="relu", kernel_initializer="he_normal", name=name
        )(x)
    logits = layers.Dense(classes, kernel_initializer=_small(0.01), dtype="float32", name="logits")(
        x
    )
    shifts = layers.Dense(
        4 * (classes - 1), kernel_initializer=_small(0.001), dtype="float32", name="shifts"
    )(x)
    return keras.Model(
        inputs, [logits, layers.Reshape((classes - 1, 4), name="by_class")(shifts)], name="box_head"
    )


def mask_head(recipe: MaskRcnn, classes: int) -> keras.Model:
    """Head for masks.

    Maps features (box, 14, 14, channel) to mask logits (box, 28, 28, `classes` - 1), one mask per
    object class.
    """
    inputs = keras.Input((MASK_SIZE, MASK_SIZE, recipe.pyramid))
    x = inputs
    for number in range(4):
        x = layers.Conv2D(
            recipe.mask,
            3,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            name=f"convolution{number}",
        )(x)
    x = layers.Conv2DTranspose(
        recipe.mask, 2, 2, activation="relu", kernel_initializer="he_normal", name="larger"
    )(x)
    logits = layers.Conv2D(
        classes - 1, 1, kernel_initializer=_small(0.01), dtype="float32", name="masks"
    )(x)
    return keras.Model(inputs, logits, name="mask_head")


def _small(deviation: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=deviation)
