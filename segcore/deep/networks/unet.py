"""U-Net (Ronneberger, Fischer and Brox 2015, "U-Net: Convolutional Networks for Biomedical Image
Segmentation").

A contracting path of `depth` levels, each of two 3x3 convolutions and a 2x2 max-pooling, with twice
the channels from level to level; an expanding path that doubles height and width, sets the map of
the same level beside it, and convolves twice again.

With `padding="valid"` every 3x3 convolution takes one pixel off each side. The maps of the
contracting path are then cropped at their centre by what the levels below have taken off, which
follows from the depth alone: the network is built without knowing the image's size. Heights and
widths that work: those where every pooling meets an even size (572 gives 388 at depth 4). Only
bilinear up-sampling then still depends on where an image is cut: in the outermost 2 ** depth - 1
pixels of the output, for want of neighbours. With `padding="same"` output and input are of one
size, a multiple of 2 ** depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras
from keras import layers

from maskloom.segcore.deep.networks.upsampling import (
    MaxPoolingWithPositions,
    MaxUnpooling,
    Upsampling,
)

if TYPE_CHECKING:
    from maskloom.segcore.deep.networks.recipes import Unet

Tensor = Any


def unet(
    form: Unet, channels: int, classes: int, size: tuple[int | None, int | None] = (None, None)
) -> keras.Model:
    """The network: (image, y, x, `channels`) float32 to class probabilities (image, y, x,
    `classes`) float32.

    `size` is the height and width of images, where it is to be fixed.
    """
    inputs = keras.Input((*size, channels), name="image")
    skips: list[Tensor] = []
    positions: list[Tensor] = []
    x = inputs
    for level in range(form.depth):
        x = _block(x, form, level, f"down{level}")
        skips.append(x)
        if form.upsampling == "unpooling":
            x, places = MaxPoolingWithPositions(name=f"down{level}_pool")(x)
            positions.append(places)
        else:
            x = layers.MaxPooling2D(name=f"down{level}_pool")(x)
    x = _block(x, form, form.depth, "bottom")
    if form.dropout > 0:
        x = layers.Dropout(form.dropout, name="bottom_dropout")(x)
    for level in reversed(range(form.depth)):
        x = _larger(x, form, level, positions)
        x = layers.Concatenate(name=f"up{level}_join")(
            [_cropped(skips[level], _crop(form, level), f"up{level}_crop"), x]
        )
        x = _block(x, form, level, f"up{level}")
    x = layers.Conv2D(classes, form.output_kernel, padding=form.padding, name="logits")(x)
    # Probabilities stay in float32 under mixed precision: losses need their small differences.
    return keras.Model(inputs, layers.Softmax(dtype="float32", name="scores")(x), name="unet")


def unet_tutorial() -> keras.Model:
    """The form that tutorials build: 572x572x1 to 386x386x2 by an output layer of 3x3 pixels;
    31,031,682 parameters.
    """
    from maskloom.segcore.deep.networks.recipes import Unet

    return unet(Unet(width=64, padding="valid", output_kernel=3), 1, 2, (572, 572))


def skip_crop(level: int, depth: int) -> int:
    """Pixels that the skip connection of a level, 0 being the uppermost, loses at each side where
    convolutions are not padded.

    >>> [skip_crop(level, 4) for level in range(4)]  # 568 to 392, 280 to 200, 136 to 104, 64 to 56
    [88, 40, 16, 4]
    """
    # In pixels of the level: two convolutions below take 2 off each side there; in the upper half
    # of a longer way, 2 more each time.
    crop = 4
    for _ in range(depth - 1 - level):
        crop = 2 * (2 + crop + 2)
    return crop


def _block(x: Tensor, form: Unet, level: int, name: str) -> Tensor:
    """Two 3x3 convolutions, each with its normalisation and ReLU."""
    filters = form.width << level
    for number in (1, 2):
        plain = form.normalisation == "none"
        x = layers.Conv2D(
            filters,
            3,
            padding=form.padding,
            use_bias=plain,
            kernel_initializer="he_normal",
            name=f"{name}_conv{number}",
        )(x)
        if form.normalisation == "batch":
            x = layers.BatchNormalization(name=f"{name}_norm{number}")(x)
        elif form.normalisation == "group":
            x = layers.GroupNormalization(math.gcd(8, filters), name=f"{name}_norm{number}")(x)
        x = layers.ReLU(name=f"{name}_relu{number}")(x)
    return x


def _larger(x: Tensor, form: Unet, level: int, positions: list[Tensor]) -> Tensor:
    """Twice the height and width, and the level's channels. `positions` are those of each level's
    pooling, for unpooling.
    """
    filters = form.width << level
    if form.upsampling == "transposed":
        return layers.Conv2DTranspose(
            filters, 2, strides=2, kernel_initializer="he_normal", name=f"up{level}_transposed"
        )(x)
    # The 1x1 convolution comes first because it costs a quarter on the smaller map.
    x = layers.Conv2D(filters, 1, kernel_initializer="he_normal", name=f"up{level}_halve")(x)
    if form.upsampling == "unpooling":
        places = _cropped(positions[level], _crop(form, level) // 2, f"up{level}_crop_positions")
        return MaxUnpooling(name=f"up{level}_unpooling")(x, places)
    return Upsampling(2, form.upsampling, name=f"up{level}_{form.upsampling}")(x)


def _crop(form: Unet, level: int) -> int:
    return skip_crop(level, form.depth) if form.padding == "valid" else 0


def _cropped(x: Tensor, pixels: int, name: str) -> Tensor:
    return layers.Cropping2D(pixels, name=name)(x) if pixels else x
