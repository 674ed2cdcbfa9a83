"""Tiny networks whose weights are small whole numbers, so that float32 arithmetic is exact and
every processor gives every pixel the same class.

Biases of the last layer are quarters that differ by class: no two scores are ever equal, and what
normalisation rounds (it divides by the root of 1 within the last bit) decides nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS

CLASSES = ("low", "middle", "high")
FORMS: dict[str, dict[str, Any]] = {
    "unet": {"width": 4, "depth": 2},
    "fcn": {"backbone": "resnet18", "width": 4},
    "deeplab": {"backbone": "resnet18", "width": 4, "rates": (1, 2)},
}

BIASES = {
    "unet": (130.25, 50.5, 0),
    "fcn": (270.25, 210.5, 0),
    "deeplab": (800.25, 0, 700.5),
    "network": (17.25, 0, 1.5),
}
"""Of the last layer: they make every class appear."""


def write_networks(folder: Path) -> dict[str, str]:
    """Write one network of each kind, and a plain convolution for `network`; where, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {kind: NETWORKS[kind](**form).build(3, 3) for kind, form in FORMS.items()}
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    models["network"] = keras.Model(inputs, keras.layers.Conv2D(3, 1, activation="softmax")(x))
    paths = {kind: _written(model, kind, folder) for kind, model in models.items()}
    found = {"mask_rcnn": write_mask_rcnn(folder), "instances": _write_vectors(folder)}
    return {**paths, **found}


def _written(model: keras.Model, kind: str, folder: Path) -> str:
    for layer in model.layers:
        _set_whole_numbers(layer)
    *_, last = (layer for layer in model.layers if getattr(layer, "use_bias", False))
    last.bias.assign(BIASES[kind])
    path = folder / f"{kind}.keras"
    model.save(path)
    scaling = Scaling((0.0,), (1 / 16,))
    card = card_of_model(model, kind, CLASSES, scaling, _sha256(path))
    path.with_suffix(".json").write_bytes(replace(card, dtype="uint8").dump())
    return str(path)


def _set_whole_numbers(layer: Any) -> None:
    """Each output of a convolution is one channel of the pixel itself, and another of a neighbour
    added or taken away; the last convolution beside a shortcut only takes away, so that values do
    not grow from block to block. Normalisation does nothing; bilinear kernels stay (powers of two).
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.moving_variance.assign(np.full(layer.moving_variance.shape, 1 - layer.epsilon))
        return
    if isinstance(layer, keras.layers.Conv2DTranspose):
        if layer.use_bias:
            kernel = np.zeros(layer.kernel.shape, np.float32)
            for channel in range(kernel.shape[2]):
                kernel[:, :, channel, channel % kernel.shape[3]] = 1
            layer.kernel.assign(kernel)
        return
    if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
        return
    kernel = np.zeros(layer.kernel.shape, np.float32)
    height, width, inputs, outputs = kernel.shape
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel[height // 2, width // 2] = 1
    else:
        closing = layer.name.endswith("_b_conv")
        for channel in range(outputs):
            kernel[height // 2, width // 2, channel % inputs, channel] = 0 if closing else 1
            sign = -(channel % 2) if closing else 1 if channel % 3 else -1
            other = (channel * 5 + inputs // 2) % inputs
            kernel[channel % height, (channel // 2) % width, other, channel] += sign
    layer.kernel.assign(kernel)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_vectors(folder: Path) -> str:
    """A network of vectors: bright pixels are cells, and away from the middle is where it is
    darker. Every probability is 0 or 1 to the last bit.
    """
    inputs = keras.Input((None, None, 3))
    convolution = keras.layers.Conv2D(4, 3, padding="same")
    model = keras.Model(inputs, convolution(inputs))
    kernel = np.zeros((3, 3, 3, 4), np.float32)
    kernel[1, 1, :, 1] = 1000
    for place, sign in ((0, 1), (2, -1)):
        kernel[1, place, :, 2] = kernel[place, 1, :, 3] = sign
    convolution.set_weights([kernel, np.array([0, -12_050, 0, 0], np.float32)])
    path = folder / "instances.keras"
    model.save(path)
    scaling = Scaling((0.0,), (1 / 16,))
    classes = ("background", "cell")
    card = card_of_model(model, "network", classes, scaling, _sha256(path), vectors=2)
    path.with_suffix(".json").write_bytes(replace(card, dtype="uint8").dump())
    return str(path)


def write_mask_rcnn(folder: Path) -> str:
    """A Mask R-CNN that finds the bright squares of `squares.png`.

    Its finest level is 1 channel of the image, pooled to cells of 4 pixels: a square of 16 pixels
    fills 5 x 5 of them, the box of one anchor of 20. An anchor is proposed where its cell is
    bright, and is an object where all four corners of its box are. Every score is so far from the
    limit that it is 0 or 1 to the last bit, on any processor.
    """
    sure = 1000
    form = {"width": 8, "pyramid": 8, "dense": 1, "mask": 1, "ratios": (1.0,)}
    counts = {"candidates": 512, "proposals": 256, "detections": 64}
    network = NETWORKS["mask_rcnn"](anchors=(20.0, 32.0, 64.0, 128.0), **form, **counts).build(3, 2)
    parts = (network.pyramid, network.proposal_head, network.box_head, network.mask_head)
    every = [weight for part in parts for weight in part.weights]
    for weight in every:
        weight.assign(np.full(weight.shape, weight.path.endswith("gamma"), np.float32))
    weights = {weight.path: weight for weight in every}

    def put(path: str, *values: tuple[tuple[Any, ...], float]) -> None:
        array = np.zeros(weights[path].shape, np.float32)
        for place, value in values:
            array[place] = value
        weights[path].assign(array)

    put("stem/kernel", ((0, 0, 0), 1))
    put("lateral0/kernel", ((0, 0, range(8), range(8)), 1))
    put("output0/kernel", ((1, 1, range(8), range(8)), 1))
    put("shared/kernel", ((1, 1, range(8), range(8)), 1))
    put("objectness/kernel", ((0, 0, 0), sure))
    put("objectness/bias", ((0,), -2 * sure))
    corners = [8 * (7 * row + column) for row in (0, 6) for column in (0, 6)]
    put("first/kernel", ((corners, 0), 1), ((8 * (7 * 3 + 3), 0), -2.4))
    put("second/kernel", ((0, 0), 1))
    put("logits/kernel", ((0, 1), sure))
    put("logits/bias", ((1,), -50))
    put("convolution0/kernel", ((1, 1, 0, 0), 1))
    for number in (1, 2, 3):
        put(f"convolution{number}/kernel", ((1, 1, 0, 0), 1))
    put("larger/kernel", ((slice(None), slice(None), 0, 0), 1))
    put("masks/kernel", ((0, 0, 0, 0), sure))
    put("masks/bias", ((0,), -sure))
    path = folder / "mask_rcnn.keras"
    network.save(path)
    reach = ReceptiveField(halo=None, stride=32)
    classes = ("background", "square")
    card = Card("mask_rcnn", _sha256(path), 3, classes, Scaling(), reach, output="objects")
    path.with_suffix(".json").write_bytes(card.dump())
    return str(path)
