"""Backbones that turn an image into feature maps, for FCN and DeepLab.

VGG (Simonyan and Zisserman 2015) without its dense layers, and residual networks (He et al. 2016)
without the last pooling and dense layer. Weights start at random. `width` 64 gives the sizes of the
papers; smaller widths train on two cores.

The residual networks differ from the paper in two details that keep the maps aligned with the
image. The kernel of a stride-2 convolution has a centre pixel, but the pair of pixels merged into
one has none; padded the same way in every stage, a map of stride 16 would be shifted by 7.5 pixels
relative to where upsampling assumes it. Here the side with more padding alternates from stage to
stage, so maps are aligned to within a fifth of one of their own pixels. And shortcuts of stride 2
average 2x2 pixels instead of taking one of four (He et al. 2019, "Bag of Tricks", ResNet-D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from keras import layers

if TYPE_CHECKING:
    from maskloom.segcore.deep.networks.recipe import Normalisation

Tensor = Any
_VGG_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
_STEM_STRIDE = 4
_BOTTLENECK = 4


@dataclass(frozen=True, slots=True)
class Unit:
    """One convolution with its padding, normalisation and activation."""

    filters: int
    kernel: int = 3
    stride: Literal[1, 2] = 1
    rate: int = 1
    """Distance between the kernel's taps in pixels (dilated convolution)."""
    side: int = 0
    """For stride 2: 1 centres each output on the second of the two pixels it replaces, 0 on the
    first.
    """
    normalisation: Normalisation = "batch"
    activation: Literal["relu", "none"] = "relu"

    def __call__(self, x: Tensor, name: str) -> Tensor:
        """Map (image, y, x, channel) to (image, y / stride, x / stride, filters)."""
        padding = "same"
        if self.stride == 2:
            x, padding = _padded(x, self.kernel, self.side, f"{name}_pad"), "valid"
        x = layers.Conv2D(
            self.filters,
            self.kernel,
            strides=self.stride,
            dilation_rate=self.rate,
            padding=padding,
            use_bias=self.normalisation == "none",
            kernel_initializer="he_normal",
            name=f"{name}_conv",
        )(x)
        x = normalised(x, self.normalisation, f"{name}_norm")
        return layers.ReLU(name=f"{name}_relu")(x) if self.activation == "relu" else x


def normalised(x: Tensor, normalisation: Normalisation, name: str) -> Tensor:
    """Apply batch or group normalisation, or return the maps unchanged."""
    if normalisation == "batch":
        return layers.BatchNormalization(name=name)(x)
    if normalisation == "group":
        return layers.GroupNormalization(math.gcd(8, x.shape[-1]), name=name)(x)
    return x


def vgg(
    x: Tensor,
    kind: str,
    width: int = 64,
    normalisation: Normalisation = "none",
    unpooled: list[Tensor] | None = None,
) -> list[Tensor]:
    """Feature maps of `vgg16` or `vgg19` after each of the five poolings. Those before are added to
    `unpooled`.

    Strides are 2, 4, 8, 16 and 32; channels grow from `width` to 8 * `width`. With width 64, three
    input channels and no normalisation: 14,714,688 and 20,024,384 parameters.
    """
    maps = []
    for stage, convolutions in enumerate(_VGG_CONVOLUTIONS[kind], start=1):
        unit = Unit(width << min(stage - 1, 3), normalisation=normalisation)
        for number in range(1, convolutions + 1):
            x = unit(x, f"stage{stage}_{number}")
        if unpooled is not None:
            unpooled.append(x)
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        maps.append(x)
    return maps


def resnet(
    x: Tensor, kind: str, width: int, normalisation: Normalisation, output_stride: int = 32
) -> list[Tensor]:
    """Feature maps of `resnet18` or `resnet50` after each of the four stages.

    Strides are 4, 8, 16 and 32, limited to `output_stride`. Stages beyond `output_stride` keep
    their size and dilate their convolutions instead: by 2 in the first such stage, by 4 in the
    next. The last stage of a dilated network multiplies the rates of its blocks by 1, 2 and 4
    (multi-grid of DeepLab v3).
    """
    blocks = _RESNET_BLOCKS[kind]
    block = _bottleneck if kind == "resnet50" else _basic
    x = Unit(width, 7, stride=2, side=1, normalisation=normalisation)(x, "stem")
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(_padded(x, 3, 0, "stem_pool_pad"))
    maps = []
    for stage, count in enumerate(blocks):
        wanted = _STEM_STRIDE << stage
        stride: Literal[1, 2] = 2 if _STEM_STRIDE < wanted <= output_stride else 1
        rate = max(1, wanted // output_stride)
        for number in range(count):
            grid = 1 << min(number, 2) if rate > 1 and stage == len(blocks) - 1 else 1
            # The stem has used both sides, the second pixel first.
            unit = Unit(
                width << stage,
                3,
                stride if number == 0 else 1,
                rate * grid,
                stage % 2,
                normalisation,
            )
            x = block(x, unit, f"stage{stage + 1}_{number + 1}")
        maps.append(x)
    return maps


def _basic(x: Tensor, unit: Unit, name: str) -> Tensor:
    """Two 3x3 convolutions and a shortcut."""
    last = Unit(unit.filters, rate=unit.rate, normalisation=unit.normalisation, activation="none")
    branch = last(unit(x, f"{name}_a"), f"{name}_b")
    return _residual_sum(x, branch, unit, name)


def _bottleneck(x: Tensor, unit: Unit, name: str) -> Tensor:
    """1x1, 3x3 and 1x1 convolutions to four times the channels, and a shortcut."""
    first = Unit(unit.filters, 1, normalisation=unit.normalisation)
    last = Unit(unit.filters * _BOTTLENECK, 1, normalisation=unit.normalisation, activation="none")
    branch = last(unit(first(x, f"{name}_a"), f"{name}_b"), f"{name}_c")
    return _residual_sum(x, branch, unit, name)


def _residual_sum(x: Tensor, branch: Tensor, unit: Unit, name: str) -> Tensor:
    filters = branch.shape[-1]
    if unit.stride == 2:
        x = layers.AveragePooling2D(2, name=f"{name}_shortcut_pool")(x)
    if unit.stride == 2 or x.shape[-1] != filters:
        x = Unit(filters, 1, normalisation=unit.normalisation, activation="none")(
            x, f"{name}_shortcut"
        )
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, branch]))


def _padded(x: Tensor, kernel: int, side: int, name: str) -> Tensor:
    """Zero padding for an odd kernel of stride 2.

    The kernel is centred on the first (`side` 0) or second (`side` 1) pixel of each pair.
    """
    before, after = kernel // 2 - side, kernel // 2 - 1 + side
    return layers.ZeroPadding2D(((before, after), (before, after)), name=name)(x)
