"""Fully convolutional networks.

Long, Shelhamer and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation".

A backbone without dense layers ends in feature maps of stride 32. A 1x1 convolution computes class
scores, and transposed convolutions, initialised to bilinear upsampling, bring the scores back to
the size of the image: in one step (32s), or through stride 16 (16s) and stride 8 (8s), adding the
scores of the backbone's maps at these strides. Height and width must be multiples of 32.

Tutorials of Keras build a simpler form: one transposed convolution of stride 32, whose kernel of 7
pixels starts at random. It fills a corner of 7 x 7 pixels in each block of 32 x 32; the scores of
the others are the bias alone. With VGG19, no normalisation and 21 classes it has 20,056,787
weights.

The paper turns the two dense layers of VGG into convolutions with 4,096 channels; they are left out
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from maskloom.segcore.deep.networks.layers.applications import (
    APPLICATIONS,
    PAPER_WIDTH,
    check_own_sizes,
    feature_maps,
)
from maskloom.segcore.deep.networks.recipe import (
    NETWORKS,
    Normalisation,
    check_choice,
    check_counts,
    check_width,
)

if TYPE_CHECKING:
    import keras

Tensor = Any
FcnVariant = Literal["8s", "16s", "32s", "tutorial"]
FcnBackbone = Literal[
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet50",
    "resnet50v1",
    "convnext_tiny",
    "efficientnetv2b0",
    "efficientnetv2s",
    "mobilenetv3small",
    "mobilenetv3large",
]
_COARSEST = 32
_FINEST: dict[FcnVariant, int] = {"tutorial": 32, "32s": 32, "16s": 16, "8s": 8}
_TUTORIAL_KERNEL = 7


@NETWORKS.register("fcn")
@dataclass(frozen=True, slots=True)
class Fcn:
    """Fully convolutional network (Long 2015). Height and width must be multiples of 32."""

    variant: FcnVariant = "8s"
    """Stride of the finest feature maps that contribute scores: 8, 16 or 32. Larger strides give
    coarser outlines. tutorial: as 32s, with a kernel of 7 pixels that leaves gaps between the
    blocks that it labels; to see why the paper's is larger.
    """
    backbone: FcnBackbone = "vgg16"
    """Backbone that extracts the feature maps. `initial: imagenet` has weights for vgg16 and vgg19
    (with `normalisation: none`) and for those after resnet50, which have sizes of their own.
    """
    width: int = 64
    """Channels of the backbone's first stage, 64 in the papers. 8 trains in minutes on two cores.
    """
    normalisation: Normalisation = "batch"
    """`none` is VGG as published, hard to train from random weights. `group` spans the whole image,
    so the result depends on the tiling.
    """

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, get_args(FcnVariant))
        check_choice("backbone", self.backbone, get_args(FcnBackbone))
        check_width(self.width)
        check_choice("normalisation", self.normalisation, get_args(Normalisation))
        if self.normalisation == "none" and self.backbone.startswith("resnet"):
            raise ValueError(
                "normalisation: residual backbones need `batch` or `group`; got 'none'"
            )
        check_own_sizes(self.backbone, self.width, self.normalisation)

    @property
    def application(self) -> str | None:
        """The backbone of keras.applications that it has. None: it has another."""
        if self.backbone.startswith("vgg"):
            plain = self.width == PAPER_WIDTH and self.normalisation == "none"
            return self.backbone if plain else None
        return self.backbone if self.backbone in APPLICATIONS else None

    def build(self, channels: int, classes: int) -> keras.Model:
        """Build the model for `channels` bands and `classes` classes.

        The model maps (image, y, x, `channels`) float32 to class probabilities (image, y, x,
        `classes`) float32. Raises `ValueError` for fewer than one channel or two classes.
        """
        check_counts(channels, classes)
        return fcn(self, channels, classes)


def fcn(recipe: Fcn, channels: int, classes: int) -> keras.Model:
    """Return the model: (image, y, x, channel) float32 to probabilities (image, y, x, class)."""
    import keras
    from keras import layers

    from maskloom.segcore.deep.networks.layers.backbones import resnet, vgg

    inputs = keras.Input((None, None, channels), name="image")
    # The last three maps of both kinds of backbone have strides 8, 16 and 32.
    if recipe.backbone.startswith("vgg"):
        maps = vgg(inputs, recipe.backbone, recipe.width, recipe.normalisation)[-3:]
    elif recipe.backbone in APPLICATIONS:
        maps = feature_maps(inputs, recipe.backbone)[-3:]
    else:
        maps = resnet(inputs, recipe.backbone, recipe.width, recipe.normalisation)[-3:]
    by_stride = dict(zip((8, 16, 32), maps, strict=True))
    stride = _COARSEST
    x = layers.Conv2D(classes, 1, name=f"score{stride}")(by_stride[stride])
    while stride > _FINEST[recipe.variant]:
        stride //= 2
        score = layers.Conv2D(classes, 1, name=f"score{stride}")(by_stride[stride])
        x = layers.Add(name=f"add{stride}")([_upsampled(x, 2, f"up{stride}"), score])
    if recipe.variant == "tutorial":
        x = layers.Conv2DTranspose(
            classes, _TUTORIAL_KERNEL, strides=stride, padding="same", name="logits"
        )(x)
    else:
        x = _upsampled(x, stride, "logits")
    return keras.Model(
        inputs, layers.Softmax(dtype="float32", name="scores")(x), name=f"fcn{recipe.variant}"
    )


def _upsampled(x: Tensor, factor: int, name: str) -> Tensor:
    """Upsample scores by `factor` with a transposed convolution initialised as bilinear."""
    from keras import layers

    from maskloom.segcore.deep.networks.layers.transposed import BilinearKernel

    return layers.Conv2DTranspose(
        x.shape[-1],
        2 * factor,
        strides=factor,
        padding="same",
        use_bias=False,
        kernel_initializer=BilinearKernel(),
        name=name,
    )(x)
