"""Backbones of keras.applications, which exist with weights trained on ImageNet.

They are built layer by layer as `keras.applications` builds them, so that its files fit, and their
maps of strides 2 to 32 are taken for FCN, U-Net, DeepLab and Mask R-CNN. What their makers did to
pixels before (preprocessing) is a `Scaling` here; the order blue, green, red of some is undone in
the kernels of the first layer, so that bands are red, green, blue everywhere.

Sources: Simonyan and Zisserman 2015 (VGG), He et al. 2016 (ResNet), Howard et al. 2019
(MobileNetV3), Tan and Le 2021 (EfficientNetV2), Liu et al. 2022 (ConvNeXt).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tensor = Any
Arrays = dict[str, "list[NDArray[Any]]"]
"""Arrays of the layers of a network, by name of the layer."""

PAPER_WIDTH = 64
"""Channels of the first stage of VGG."""
_COARSEST = 32
_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications"
_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_CAFFE_MEAN = (123.68, 116.779, 103.939)
_LAYER_NUMBER = re.compile(r"(?:expanded_)?conv_?(\d+)_")


@dataclass(frozen=True, slots=True)
class Application:
    """A backbone of keras.applications."""

    constructor: str
    """Its name in keras.applications."""
    maps: tuple[str | None, ...]
    """Layers whose outputs have the strides 2, 4, 8, 16 and 32. None: there is no such map."""
    file: str
    """Its weights without the top layers, below the address of all."""
    digest: str
    """MD5 or SHA-256 of this file, as Keras has it."""
    mean: tuple[float, ...]
    """Subtracted from red, green and blue values of 0 to 255."""
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    """By which the differences are divided."""
    reverse: bool = False
    """Whether the kernels of its files expect blue, green, red."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the constructor."""
    late: tuple[int, ...] = ()
    """Numbers in the names of layers from which the strides are 16 and 32. Empty: these stages
    cannot be dilated.
    """

    @property
    def address(self) -> str:
        """Where Keras fetches the file."""
        return f"{_ADDRESS}/{self.file}"

    @property
    def file_name(self) -> str:
        """Name of the file in Keras' cache."""
        return self.file.rpartition("/")[2]


_SYMMETRIC = (127.5, 127.5, 127.5)
_HALVED = (128.0, 128.0, 128.0)
_BARE = {"include_preprocessing": False}

APPLICATIONS: dict[str, Application] = {
    "vgg16": Application(
        "VGG16",
        (),
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "6d6bbae143d832006294945121d1f1fc",
        _CAFFE_MEAN,
        reverse=True,
    ),
    "vgg19": Application(
        "VGG19",
        (),
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "253f8cb515780f3b799900260a226db6",
        _CAFFE_MEAN,
        reverse=True,
    ),
    "resnet50v1": Application(
        "ResNet50",
        (
            "conv1_relu",
            "conv2_block3_out",
            "conv3_block4_out",
            "conv4_block6_out",
            "conv5_block3_out",
        ),
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "4d473c1dd8becc155b73f8504c6f6626",
        _CAFFE_MEAN,
        reverse=True,
        late=(4, 5),
    ),
    "mobilenetv3small": Application(
        "MobileNetV3Small",
        (
            "conv_bn",
            "expanded_conv_project_bn",
            "expanded_conv_2_add",
            "expanded_conv_7_add",
            "expanded_conv_10_add",
        ),
        "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
        _SYMMETRIC,
        _SYMMETRIC,
        options=_BARE,
        late=(3, 8),
    ),
    "mobilenetv3large": Application(
        "MobileNetV3Large",
        (
            "expanded_conv_add",
            "expanded_conv_2_add",
            "expanded_conv_5_add",
            "expanded_conv_11_add",
            "expanded_conv_14_add",
        ),
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
        _SYMMETRIC,
        _SYMMETRIC,
        options=_BARE,
        late=(6, 12),
    ),
    "efficientnetv2b0": Application(
        "EfficientNetV2B0",
        (
            "block1a_project_activation",
            "block2b_add",
            "block3b_add",
            "block5e_add",
            "top_activation",
        ),
        "efficientnet_v2/efficientnetv2-b0_notop.h5",
        "893217f2bb855e2983157299931e43ff",
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        options=_BARE,
    ),
    "efficientnetv2s": Application(
        "EfficientNetV2S",
        (
            "block1b_add",
            "block2d_add",
            "block3d_add",
            "block5i_add",
            "top_activation",
        ),
        "efficientnet_v2/efficientnetv2-s_notop.h5",
        "af0682fb74e8c54910f2d4393339c070",
        # Unlike the small ones, from B0 to B3.
        _HALVED,
        _HALVED,
        options=_BARE,
    ),
    "convnext_tiny": Application(
        "ConvNeXtTiny",
        (
            None,
            "convnext_tiny_stage_0_block_2_identity",
            "convnext_tiny_stage_1_block_2_identity",
            "convnext_tiny_stage_2_block_8_identity",
            "convnext_tiny_stage_3_block_2_identity",
        ),
        "convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        options=_BARE,
    ),
}
"""By the names that recipes use. VGG is built by `backbones.vgg`, and is the same network."""


def feature_maps(inputs: Tensor, name: str, output_stride: int = 32) -> list[Tensor | None]:
    """Maps of strides 2, 4, 8, 16 and 32 of (image, y, x, channel), whose height and width are
    multiples of 32; weights start at random. None: the network has no such map.

    With an `output_stride` of 8 or 16, later stages keep their size and dilate their convolutions
    instead. Every second (or fourth) pixel is then what it was, but for squeeze and excitation,
    whose means are over more pixels.
    """
    import keras

    kind = APPLICATIONS[name]
    build = getattr(keras.applications, kind.constructor)
    network = build(include_top=False, weights=None, input_tensor=inputs, **kind.options)
    if output_stride < _COARSEST:
        network = keras.models.clone_model(
            network,
            input_tensors=[inputs],
            clone_function=lambda layer: _dilated(layer, kind.late, output_stride),
        )
    return [None if each is None else network.get_layer(each).output for each in kind.maps]


def _dilated(layer: Any, late: tuple[int, ...], output_stride: int) -> Any:
    """A copy of a layer that keeps the size in stages beyond the stride."""
    config, number = layer.get_config(), _LAYER_NUMBER.match(layer.name)
    stride = 0 if number is None else 8 << sum(int(number[1]) >= first for first in late)
    rate = stride // output_stride
    if rate <= 1:
        return type(layer).from_config(config)
    if layer.name.endswith("_pad"):
        # Before a convolution of stride 2, whose last tap needs one pixel less.
        pads = ((rate // 2 * before, rate // 2 * (after + 1)) for before, after in layer.padding)
        config["padding"] = tuple(pads)
    elif "strides" in config:
        # A halving itself looks at the pixels of the stage before.
        rate //= max(config["strides"])
        config["strides"] = (1, 1)
        if max(config["kernel_size"]) > 1:
            config["dilation_rate"] = (rate, rate)
    return type(layer).from_config(config)


def check_own_sizes(backbone: str, width: int, normalisation: str) -> None:
    """Raise `ValueError` if a recipe sets what a backbone of keras.applications decides itself."""
    if backbone not in APPLICATIONS or backbone.startswith("vgg"):
        return
    for name, value, usual in (
        ("width", width, PAPER_WIDTH),
        ("normalisation", normalisation, "batch"),
    ):
        if value != usual:
            raise ValueError(f"{name}: {backbone} has its own; leave it out; got {value!r}")


def layer_in(name: str, application: str) -> str:
    """The name in keras.applications of a layer of ours.

    >>> layer_in("stage2_1_conv", "vgg16")
    'block2_conv1'
    """
    if not application.startswith("vgg"):
        return name
    return re.sub(r"^stage(\d)_(\d)_conv$", r"block\1_conv\2", name)


def kernels_for(channels: int, kernels: NDArray[Any], reverse: bool) -> NDArray[Any]:
    """Kernels (y, x, 3, filter) of a first layer for another number of bands, red, green and blue
    first. Further bands, and one or two alone, get the mean of the three. All are scaled so that an
    image of equal bands gives what it gave with three.
    """
    import numpy as np

    if reverse:
        kernels = kernels[:, :, ::-1]
    if channels == kernels.shape[2]:
        return kernels
    mean = kernels.mean(axis=2, keepdims=True)
    own = kernels if channels > kernels.shape[2] else kernels[:, :, :0]
    bands = [own, *[mean] * (channels - own.shape[2])]
    scaled: NDArray[Any] = np.concatenate(bands, axis=2) * (kernels.shape[2] / channels)
    return scaled
