"""Fully convolutional networks (Long, Shelhamer and Darrell 2015, "Fully Convolutional Networks for
Semantic Segmentation").

A backbone without dense layers ends in maps of stride 32. A 1x1 convolution scores them, and
transposed convolutions, initialised to bilinear up-sampling, bring the scores back to the image's
size: at once (32s), or by way of strides 16 (16s) and 8 (8s), adding the scores of the backbone's
maps there. Heights and widths are multiples of 32.

The paper turns VGG's two dense layers into convolutions of 4,096 channels; here they are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import layers

from maskloom.segcore.deep.networks.backbones import resnet, vgg
from maskloom.segcore.deep.networks.transposed import BilinearKernel

if TYPE_CHECKING:
    from maskloom.segcore.deep.networks.recipes import Fcn

Tensor = Any
_COARSEST = 32
_FINEST = {"32s": 32, "16s": 16, "8s": 8}


def fcn(form: Fcn, channels: int, classes: int) -> keras.Model:
    """The network: (image, y, x, `channels`) float32 to class probabilities (image, y, x,
    `classes`) float32.
    """
    inputs = keras.Input((None, None, channels), name="image")
    # Both kinds of backbone end with their maps of strides 8, 16 and 32.
    if form.backbone.startswith("vgg"):
        maps = vgg(inputs, form.backbone, form.width, form.normalisation)[-3:]
    else:
        maps = resnet(inputs, form.backbone, form.width, form.normalisation)[-3:]
    by_stride = dict(zip((8, 16, 32), maps, strict=True))
    stride = _COARSEST
    x = layers.Conv2D(classes, 1, name=f"score{stride}")(by_stride[stride])
    while stride > _FINEST[form.variant]:
        stride //= 2
        score = layers.Conv2D(classes, 1, name=f"score{stride}")(by_stride[stride])
        x = layers.Add(name=f"add{stride}")([_larger(x, 2, f"up{stride}"), score])
    x = _larger(x, stride, "logits")
    return keras.Model(
        inputs, layers.Softmax(dtype="float32", name="scores")(x), name=f"fcn{form.variant}"
    )


def fcn_tutorial() -> keras.Model:
    """The form that tutorials build: 224x224x3 to 224x224x21; 20,056,787 parameters.

    VGG19 to 7x7x512, a 1x1 convolution to the 21 classes of PASCAL VOC, and one transposed
    convolution whose kernel of 7 pixels is smaller than its stride of 32: it fills a corner of 7x7
    in each block of 32x32 pixels, and the rest shows its bias.
    """
    inputs = keras.Input((224, 224, 3), name="image")
    x = layers.Conv2D(21, 1, name="score32")(vgg(inputs, "vgg19")[-1])
    x = layers.Conv2DTranspose(21, 7, strides=32, padding="same", name="logits")(x)
    return keras.Model(
        inputs, layers.Softmax(dtype="float32", name="scores")(x), name="fcn_tutorial"
    )


def _larger(x: Tensor, factor: int, name: str) -> Tensor:
    """Scores, `factor` times as high and wide, by a transposed convolution that starts as bilinear
    up-sampling.
    """
    return layers.Conv2DTranspose(
        x.shape[-1],
        2 * factor,
        strides=factor,
        padding="same",
        use_bias=False,
        kernel_initializer=BilinearKernel(),
        name=name,
    )(x)
