"""DeepLab v3+, a network with dilated convolutions.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation".

The last stages of a residual backbone dilate their convolutions instead of halving the feature maps
(Chen et al. 2017, v3), so the backbone ends at `output_stride`. Atrous spatial pyramid pooling
(ASPP) convolves these maps at several dilation rates in parallel. The decoder upsamples the result
to stride 4, concatenates it with the backbone's maps of stride 4, convolves twice, and upsamples
the scores bilinearly to the size of the image. Height and width must be multiples of
`output_stride`.

The last ASPP branch of the paper is the mean of the whole map. Here it is added after the
projection. This is equivalent to concatenating it before the projection, because a 1x1 convolution
of concatenated maps is a sum of 1x1 convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from maskloom.segcore.deep.networks.layers.applications import APPLICATIONS, feature_maps
from maskloom.segcore.deep.networks.recipe import (
    NETWORKS,
    check_choice,
    check_counts,
    check_width,
)

if TYPE_CHECKING:
    import keras

Tensor = Any
DeeplabBackbone = Literal[
    "resnet18", "resnet50", "resnet50v1", "mobilenetv3small", "mobilenetv3large"
]
ScaleNormalisation = Literal["batch", "group"]
ImagePooling = Literal["none", "whole_image"]
_LOW_STRIDE = 4
# The rates of a recipe apply to output stride 16.
_RATES_AT = 16


@NETWORKS.register("deeplab")
@dataclass(frozen=True, slots=True)
class Deeplab:
    """DeepLab v3+ (Chen 2018). Height and width must be multiples of `output_stride`."""

    backbone: DeeplabBackbone = "resnet50"
    """Backbone that extracts the feature maps. `resnet50v1` and those after it are those of
    keras.applications, with weights for `initial: imagenet`; mobilenetv3 takes means over the whole
    image.
    """
    output_stride: Literal[8, 16] = 16
    """Image pixels per pixel of the deepest feature maps. 8 resolves more detail and takes about
    three times the work.
    """
    rates: tuple[int, ...] = (6, 12, 18)
    """Dilation rates of ASPP at output stride 16 (doubled at 8): the last one reaches rate * 16
    pixels.
    """
    image_pooling: ImagePooling = "none"
    """`whole_image`, as published, adds the mean over the whole image: the result then depends on
    the tiling.
    """
    width: int = 64
    """Channels of the backbone's first stage, 64 in the papers; ASPP has four times as many. 8
    trains in minutes on two cores.
    """
    normalisation: ScaleNormalisation = "batch"
    """`group` suits small batches, but its means span the whole image, so the result depends on the
    tiling.
    """

    def __post_init__(self) -> None:
        check_choice("backbone", self.backbone, get_args(DeeplabBackbone))
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
        check_choice("image_pooling", self.image_pooling, get_args(ImagePooling))
        check_width(self.width)
        check_choice("normalisation", self.normalisation, get_args(ScaleNormalisation))

    @property
    def application(self) -> str | None:
        """The backbone of keras.applications that it has. None: it has another."""
        return self.backbone if self.backbone in APPLICATIONS else None

    def build(self, channels: int, classes: int) -> keras.Model:
        """Build the model for `channels` bands and `classes` classes.

        The model maps (image, y, x, `channels`) float32 to class probabilities (image, y, x,
        `classes`) float32. Raises `ValueError` for fewer than one channel or two classes.
        """
        check_counts(channels, classes)
        return deeplab(self, channels, classes)


def deeplab(recipe: Deeplab, channels: int, classes: int) -> keras.Model:
    """Return the model: (image, y, x, channel) float32 to probabilities (image, y, x, class)."""
    import keras
    from keras import layers

    from maskloom.segcore.deep.networks.layers.backbones import Unit, resnet
    from maskloom.segcore.deep.networks.layers.upsampling import Upsampling

    inputs = keras.Input((None, None, channels), name="image")
    if recipe.application is not None:
        _, low, *_, deep = feature_maps(inputs, recipe.application, recipe.output_stride)
    else:
        low, *_, deep = resnet(
            inputs, recipe.backbone, recipe.width, recipe.normalisation, recipe.output_stride
        )
    x = Upsampling(recipe.output_stride // _LOW_STRIDE, "bilinear", name="decoder_up")(
        _pyramid(deep, recipe)
    )
    # The paper's 48 of 256 channels: enough for outlines, few enough not to outweigh ASPP.
    low = Unit(max(1, recipe.width * 3 // 4), 1, normalisation=recipe.normalisation)(
        low, "decoder_low"
    )
    x = layers.Concatenate(name="decoder_join")([low, x])
    for number in (1, 2):
        x = _separable(x, recipe, 1, f"decoder{number}")
    x = layers.Conv2D(classes, 1, name="scores_low")(x)
    x = Upsampling(_LOW_STRIDE, "bilinear", name="logits")(x)
    return keras.Model(inputs, layers.Softmax(dtype="float32", name="scores")(x), name="deeplab")


def _pyramid(x: Tensor, recipe: Deeplab) -> Tensor:
    """ASPP: a 1x1 convolution and dilated 3x3 convolutions in parallel.

    Their outputs are concatenated and projected to the number of channels of one branch.
    """
    from keras import layers

    from maskloom.segcore.deep.networks.layers.backbones import Unit, normalised

    filters = 4 * recipe.width
    branches = [Unit(filters, 1, normalisation=recipe.normalisation)(x, "aspp_point")]
    branches += [
        _separable(x, recipe, rate * _RATES_AT // recipe.output_stride, f"aspp_rate{rate}")
        for rate in recipe.rates
    ]
    y = layers.Concatenate(name="aspp_join")(branches)
    y = layers.Conv2D(
        filters, 1, use_bias=False, kernel_initializer="he_normal", name="aspp_project"
    )(y)
    if recipe.image_pooling == "whole_image":
        mean = layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean")(x)
        # Not normalised: in a batch of one image, the mean is a single value, which would become 0.
        mean = Unit(filters, 1, normalisation="none")(mean, "aspp_mean")
        mean = layers.Conv2D(filters, 1, use_bias=False, name="aspp_mean_project")(mean)
        y = layers.Add(name="aspp_add_mean")([y, mean])
    return layers.ReLU(name="aspp_relu")(normalised(y, recipe.normalisation, "aspp_norm"))


def _separable(x: Tensor, recipe: Deeplab, rate: int, name: str) -> Tensor:
    """Dilated 3x3 depthwise convolution, then a 1x1 convolution across channels."""
    from keras import layers

    from maskloom.segcore.deep.networks.layers.backbones import Unit, normalised

    x = layers.DepthwiseConv2D(
        3, padding="same", dilation_rate=rate, use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = layers.ReLU(name=f"{name}_depthwise_relu")(
        normalised(x, recipe.normalisation, f"{name}_depthwise_norm")
    )
    return Unit(4 * recipe.width, 1, normalisation=recipe.normalisation)(x, name)
