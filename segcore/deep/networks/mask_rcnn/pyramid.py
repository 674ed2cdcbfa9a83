"""Feature pyramid: a residual network (He et al. 2016) and a top-down path (Lin et al. 2017).

All normalisation is group normalisation (Wu and He 2018), because batches of a few images are too
small for batch normalisation. Its means span the whole input, so results depend on all of it: an
image must always be cut into the same windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from keras import layers

from maskloom.segcore.deep.networks.layers.applications import feature_maps

if TYPE_CHECKING:
    from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn

Tensor = Any


@dataclass(frozen=True, slots=True)
class Backbone:
    """A residual network with four levels, of strides 4, 8, 16 and 32."""

    stem: int
    """Channels after the first convolution."""
    blocks: tuple[int, ...]
    """Residual blocks per level."""
    width: int
    """Channels of the first level; they double with each level."""
    narrowing: int
    """Factor by which the 3x3 convolution of a block is narrower than the block (bottleneck); 1
    means two 3x3 convolutions.
    """


def backbone_of(recipe: MaskRcnn) -> Backbone:
    """Residual network of a recipe."""
    if recipe.size == "small":
        return Backbone(recipe.width, (1, 1, 1, 1), recipe.width, 1)
    return Backbone(64, (3, 4, 6, 3), 256, 4)


def feature_pyramid(recipe: MaskRcnn, channels: int) -> keras.Model:
    """Feature pyramid: images (image, y, x, `channels`) to a list of levels, finest first.

    Each level is (image, y / stride, x / stride, `recipe.pyramid`). Height and width must be
    multiples of the largest stride.
    """
    inputs = keras.Input((None, None, channels), name="image")
    if recipe.application is not None:
        return _pyramid(recipe, inputs, feature_maps(inputs, recipe.application)[1:])
    backbone = backbone_of(recipe)
    kernel = 3 if backbone.narrowing == 1 else 7
    x = normalised(
        layers.Conv2D(backbone.stem, kernel, 2, "same", use_bias=False, name="stem"), inputs, "relu"
    )
    x = layers.MaxPooling2D(3, 2, "same", name="stem_pool")(x)
    levels = []
    for level, blocks in enumerate(backbone.blocks):
        for block in range(blocks):
            stride = 2 if level > 0 and block == 0 else 1
            x = _residual(
                x, backbone.width << level, stride, backbone.narrowing, f"level{level}_block{block}"
            )
        levels.append(x)
    return _pyramid(recipe, inputs, levels)


def _pyramid(recipe: MaskRcnn, inputs: Tensor, levels: list[Tensor]) -> keras.Model:
    """The top-down path over maps of strides 4, 8, 16 and 32."""
    finer = layers.Conv2D(recipe.pyramid, 1, name="lateral3")(levels[3])
    merged = [finer]
    for level in (2, 1, 0):
        larger = layers.UpSampling2D(2, name=f"larger{level}")(finer)
        finer = layers.Add(name=f"merge{level}")(
            [layers.Conv2D(recipe.pyramid, 1, name=f"lateral{level}")(levels[level]), larger]
        )
        merged.insert(0, finer)
    outputs = [
        normalised(
            layers.Conv2D(recipe.pyramid, 3, padding="same", use_bias=False, name=f"output{level}"),
            x,
            "linear",
        )
        for level, x in enumerate(merged)
    ]
    if len(recipe.anchors) > 4:
        outputs.append(layers.MaxPooling2D(1, 2, name="output4")(outputs[-1]))
    return keras.Model(inputs, outputs, name="pyramid")


def normalised(convolution: keras.layers.Layer, x: Tensor, activation: str) -> Tensor:
    """A convolution, group normalisation (at least eight channels per group), and an activation."""
    groups = max(1, min(32, convolution.filters // 8))
    while convolution.filters % groups:
        groups -= 1
    x = layers.GroupNormalization(groups, epsilon=1e-5, name=f"{convolution.name}_norm")(
        convolution(x)
    )
    return layers.Activation(activation, name=f"{convolution.name}_{activation}")(x)


def _residual(x: Tensor, width: int, stride: int, narrowing: int, name: str) -> Tensor:
    inner = width // narrowing
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = normalised(
            layers.Conv2D(width, 1, stride, use_bias=False, name=f"{name}_shortcut"), x, "linear"
        )
    if narrowing > 1:
        x = normalised(layers.Conv2D(inner, 1, use_bias=False, name=f"{name}_narrow"), x, "relu")
    x = normalised(
        layers.Conv2D(inner, 3, stride, "same", use_bias=False, name=f"{name}_first"), x, "relu"
    )
    last = layers.Conv2D(
        width, 1 if narrowing > 1 else 3, padding="same", use_bias=False, name=f"{name}_last"
    )
    x = layers.Add(name=f"{name}_sum")([normalised(last, x, "linear"), shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)
