"""Recipes of networks: what the section `network` of a training recipe may hold.

A recipe is checked and kept without keras; `build` loads it. Adding a network takes a recipe here
and a builder in a file of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    import keras

Padding = Literal["same", "valid"]
Normalisation = Literal["none", "batch", "group"]
ScaleNormalisation = Literal["batch", "group"]
UnetUpsampling = Literal["transposed", "nearest", "bilinear", "unpooling", "bed_of_nails"]
FcnVariant = Literal["8s", "16s", "32s"]
FcnBackbone = Literal["vgg16", "vgg19", "resnet18", "resnet50"]
DeeplabBackbone = Literal["resnet18", "resnet50"]
ImagePooling = Literal["none", "whole_image"]

NETWORKS: Registry[type] = Registry("network")


@NETWORKS.register("unet")
@dataclass(frozen=True, slots=True)
class Unet:
    """U-Net (Ronneberger 2015). Width 64, depth 4, padding valid and no normalisation are the
    paper's.
    """

    width: int = 32
    """Channels of the first level; each level has twice those of the one above. 8 trains in minutes
    on two cores.
    """
    depth: int = 4
    """Number of poolings. Heights and widths are multiples of 2 ** depth; each level doubles how
    far the network looks.
    """
    padding: Padding = "same"
    """`same`: the output is as large as the input. `valid`: no made-up pixels; the output lacks a
    margin (572 gives 388 at depth 4).
    """
    normalisation: Normalisation = "none"
    """`batch` trains faster, `group` with small batches too, but its means span the whole image:
    tiles then change the result.
    """
    upsampling: UnetUpsampling = "transposed"
    """How the expanding path grows: the paper's transposed convolution, or a fixed way around a 1x1
    convolution.
    """
    output_kernel: int = 1
    """Side of the last convolution in pixels, odd."""
    dropout: float = 0.0
    """Fraction of the deepest features that training leaves out at random."""

    def __post_init__(self) -> None:
        _check_width(self.width)
        if not 1 <= self.depth <= 8:
            raise ValueError(f"depth: expected 1 to 8 poolings; got {self.depth}")
        _check_choice("padding", self.padding, get_args(Padding))
        _check_choice("normalisation", self.normalisation, get_args(Normalisation))
        _check_choice("upsampling", self.upsampling, get_args(UnetUpsampling))
        if not 1 <= self.output_kernel <= 15 or self.output_kernel % 2 == 0:
            raise ValueError(
                "output_kernel: expected an odd number of pixels from 1 to 15; got "
                f"{self.output_kernel}"
            )
        if not (math.isfinite(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(
                f"dropout: expected a fraction from 0 to less than 1; got {self.dropout}"
            )

    def build(self, channels: int, classes: int) -> keras.Model:
        """(image, y, x, `channels`) float32 to class probabilities (image, y, x, `classes`)
        float32.
        """
        from maskloom.segcore.deep.networks.unet import unet

        _check_counts(channels, classes)
        return unet(self, channels, classes)


@NETWORKS.register("fcn")
@dataclass(frozen=True, slots=True)
class Fcn:
    """Fully convolutional network (Long 2015). Heights and widths are multiples of 32."""

    variant: FcnVariant = "8s"
    """The finest maps whose scores are used: of stride 8, 16 or 32. Outlines get the coarser the
    larger the number.
    """
    backbone: FcnBackbone = "vgg16"
    """What makes the maps; weights start at random."""
    width: int = 64
    """Channels of the backbone's first stage, 64 in the papers. 8 trains in minutes on two
    cores.
    """
    normalisation: Normalisation = "batch"
    """`none` is VGG as published, hard to train from random weights; `group` spans the whole image:
    tiles then change the result.
    """

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, get_args(FcnVariant))
        _check_choice("backbone", self.backbone, get_args(FcnBackbone))
        _check_width(self.width)
        _check_choice("normalisation", self.normalisation, get_args(Normalisation))
        if self.normalisation == "none" and self.backbone.startswith("resnet"):
            raise ValueError(
                "normalisation: residual backbones need `batch` or `group`; got 'none'"
            )

    def build(self, channels: int, classes: int) -> keras.Model:
        """(image, y, x, `channels`) float32 to class probabilities (image, y, x, `classes`)
        float32.
        """
        from maskloom.segcore.deep.networks.fcn import fcn

        _check_counts(channels, classes)
        return fcn(self, channels, classes)


@NETWORKS.register("deeplab")
@dataclass(frozen=True, slots=True)
class Deeplab:
    """DeepLab v3+ (Chen 2018). Heights and widths are multiples of `output_stride`."""

    backbone: DeeplabBackbone = "resnet50"
    """What makes the maps; weights start at random."""
    output_stride: Literal[8, 16] = 16
    """Pixels of the image for one pixel of the deepest maps. 8 sees finer and takes about three
    times the work.
    """
    rates: tuple[int, ...] = (6, 12, 18)
    """Dilations of the pyramid's convolutions at output stride 16 (twice as much at 8): the last
    one looks rate * 16 pixels far.
    """
    image_pooling: ImagePooling = "none"
    """`whole_image`, as published, adds the mean over the whole image: the result then depends on
    the tiling.
    """
    width: int = 64
    """Channels of the backbone's first stage, 64 in the papers; the pyramid has four times as many.
    8 trains in minutes on two cores.
    """
    normalisation: ScaleNormalisation = "batch"
    """`group` suits small batches, but its means span the whole image: tiles then change the
    result.
    """

    def __post_init__(self) -> None:
        _check_choice("backbone", self.backbone, get_args(DeeplabBackbone))
        if self.output_stride not in (8, 16):
            raise ValueError(f"output_stride: expected 8 or 16; got {self.output_stride}")
        if (
            not self.rates
            or len(set(self.rates)) < len(self.rates)
            or not all(1 <= rate <= 64 for rate in self.rates)
        ):
            raise ValueError(
                "rates: expected different numbers from 1 to 64, at least one; got "
                f"{list(self.rates)}"
            )
        _check_choice("image_pooling", self.image_pooling, get_args(ImagePooling))
        _check_width(self.width)
        _check_choice("normalisation", self.normalisation, get_args(ScaleNormalisation))

    def build(self, channels: int, classes: int) -> keras.Model:
        """(image, y, x, `channels`) float32 to class probabilities (image, y, x, `classes`)
        float32.
        """
        from maskloom.segcore.deep.networks.deeplab import deeplab

        _check_counts(channels, classes)
        return deeplab(self, channels, classes)


def _check_width(width: int) -> None:
    if not 1 <= width <= 512:
        raise ValueError(f"width: expected 1 to 512 channels; got {width}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {value!r}")


def _check_counts(channels: int, classes: int) -> None:
    if channels < 1:
        raise ValueError(f"channels: expected one or more; got {channels}")
    if classes < 2:
        raise ValueError(f"classes: expected two or more; got {classes}")
