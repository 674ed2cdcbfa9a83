"""DeepLab v3+: dilations, sizes, and the branches of its pyramid."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from maskloom.segcore.deep.networks.deeplab import Deeplab


def dilations(model: keras.Model, start: str) -> list[int]:
    found = [
        layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)
    ]
    return [
        layer.dilation_rate[0]
        for layer in found
        if layer.name.startswith(start) and layer.kernel_size == (3, 3)
    ]


@pytest.mark.parametrize(
    ("backbone", "output_stride", "third", "fourth", "pyramid"),
    [
        # Chen et al. 2017: multi-grid 1, 2, 4 times the rate that makes up for the halvings left
        # out.
        ("resnet50", 16, [1] * 6, [2, 4, 8], [6, 12, 18]),
        ("resnet18", 16, [1] * 4, [2, 2, 4, 4], [6, 12, 18]),
        ("resnet18", 8, [2] * 4, [4, 4, 8, 8], [12, 24, 36]),
    ],
)
def test_rates_are_the_papers(
    backbone: Any, output_stride: Any, third: list[int], fourth: list[int], pyramid: list[int]
) -> None:
    model = Deeplab(backbone, output_stride, width=2).build(3, 2)
    assert dilations(model, "stage3") == third
    assert dilations(model, "stage4") == fourth
    assert dilations(model, "aspp") == pyramid
    assert dilations(model, "decoder") == [1, 1]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_sizes_along_the_way(output_stride: int) -> None:
    model = Deeplab("resnet18", output_stride, width=4).build(3, 5)  # type: ignore[arg-type]
    names = ["aspp_relu", "decoder_up", "decoder_low_relu", "scores_low", "scores"]
    parts = keras.Model(model.input, [model.get_layer(name).output for name in names])
    shapes = [tuple(part.shape[1:]) for part in parts(np.zeros((1, 64, 96, 3), np.float32))]
    deep = (64 // output_stride, 96 // output_stride)
    assert shapes == [(*deep, 16), (16, 24, 16), (16, 24, 3), (16, 24, 5), (64, 96, 5)]


def test_the_mean_over_the_image_is_the_same_as_a_branch_set_beside_the_others() -> None:
    """A 1x1 convolution of maps side by side is the sum of 1x1 convolutions."""
    model = Deeplab("resnet18", rates=(1, 2), image_pooling="whole_image", width=2).build(1, 2)
    join, mean = model.get_layer("aspp_join"), model.get_layer("aspp_mean_relu")
    parts = keras.Model(
        model.input, [join.output, mean.output, model.get_layer("aspp_add_mean").output]
    )
    pixels = np.random.default_rng(0).random((1, 64, 64, 1), np.float32)
    branches, whole, added = (np.asarray(ops.convert_to_numpy(part)) for part in parts(pixels))
    beside = np.concatenate(
        [branches, np.broadcast_to(whole, (*branches.shape[:3], whole.shape[-1]))], axis=-1
    )
    kernels = [
        model.get_layer(name).kernel.numpy() for name in ("aspp_project", "aspp_mean_project")
    ]
    kernel = np.concatenate(kernels, axis=2)
    np.testing.assert_allclose(added, beside @ kernel[0, 0], atol=1e-4)
    assert np.abs(whole).max() > 0
