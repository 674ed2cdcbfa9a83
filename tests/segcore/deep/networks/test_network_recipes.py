"""Every network: what its recipe takes, that it learns, comes back from its file, and moves with
the image.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import maskloom.segcore.deep.networks
from maskloom.segcore.deep.networks.deeplab import Deeplab
from maskloom.segcore.deep.networks.fcn import Fcn
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.deep.networks.unet import Unet

# Keras 3.15 turns its variables to arrays in a way that NumPy 2 calls deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SMALL = [
    Unet(width=3, depth=2),
    Unet(width=4, depth=2, normalisation="batch", upsampling="nearest", dropout=0.3),
    Unet(width=2, depth=2, upsampling="bilinear", output_kernel=3),
    Unet(width=4, depth=1, normalisation="group", upsampling="bed_of_nails"),
    Unet(width=4, depth=2, upsampling="unpooling"),
    Fcn(width=4),
    Fcn("tutorial", "vgg19", width=4, normalisation="none"),
    Fcn("16s", "resnet18", width=4, normalisation="group"),
    Deeplab(
        "resnet18",
        output_stride=8,
        rates=(1,),
        image_pooling="whole_image",
        width=4,
        normalisation="group",
    ),
]

SEMANTIC = ("unet", "fcn", "deeplab")
"""Networks that give scores of classes for every pixel; Mask R-CNN gives objects and is tested by
itself.
"""


def image(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, height, width, channels), np.float32)


def stirred(recipe: Any, channels: int = 1, classes: int = 3) -> keras.Model:
    """A network as training might leave it: biases and moving averages are not at their start."""
    keras.utils.set_random_seed(7)
    model = recipe.build(channels, classes)
    random = np.random.default_rng(8)
    for weight in model.weights:
        if len(weight.shape) == 1 and "seed" not in weight.path:
            weight.assign(weight.numpy() + random.random(weight.shape) / 4)
    return model


def scores(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(model(pixels, training=False)))


@pytest.mark.parametrize("recipe", SMALL, ids=str)
def test_gives_probabilities_learns_and_comes_back(recipe: Any, tmp_path: Path) -> None:
    model = stirred(recipe, channels=2)
    assert model.input_shape == (None, None, None, 2)
    assert model.output_shape == (None, None, None, 3)
    pixels = image(32, 96, 2)
    before = scores(model, pixels)
    assert before.shape == (1, 32, 96, 3)
    assert before.dtype == np.float32
    np.testing.assert_allclose(before.sum(-1), 1, atol=1e-5)

    model.save(tmp_path / "network.keras")
    assert np.array_equal(
        scores(keras.saving.load_model(tmp_path / "network.keras"), pixels), before
    )

    start = [weight.numpy().copy() for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", run_eagerly=True)
    loss = model.train_on_batch(pixels, np.random.default_rng(1).integers(0, 3, (1, 32, 96)))
    assert np.isfinite(loss)
    still = [
        w.path
        for w, old in zip(model.trainable_weights, start, strict=True)
        if np.array_equal(w.numpy(), old)
    ]
    assert still == []


@pytest.fixture
def bfloat16() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("recipe", [SMALL[1], SMALL[3], SMALL[4], SMALL[5]], ids=str)
def test_mixed_precision_gives_nearly_the_same_in_float32(recipe: Any, bfloat16: None) -> None:
    mixed = stirred(recipe)
    keras.config.set_dtype_policy("float32")
    full = recipe.build(1, 3)
    full.set_weights(mixed.get_weights())
    got, expected = scores(mixed, image(32, 64)), scores(full, image(32, 64))
    assert got.dtype == np.float32
    assert not np.array_equal(got, expected)
    # Single pixels may differ more: of two values that are nearly equal, max-unpooling keeps the
    # place of one.
    assert np.abs(got - expected).mean() < 0.01
    mixed.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(mixed.train_on_batch(image(32, 64), np.zeros((1, 32, 64), int)))


@pytest.mark.parametrize(
    ("recipe", "stride", "reach"),
    [
        (Unet(width=2, depth=2, upsampling="transposed"), 4, 32),
        (
            Unet(width=2, depth=2, normalisation="batch", upsampling="bilinear", output_kernel=3),
            4,
            40,
        ),
        (Unet(width=2, depth=2, upsampling="unpooling"), 4, 32),
        (Unet(width=2, depth=2, upsampling="bed_of_nails"), 4, 32),
        (Fcn("8s", width=2), 32, 192),
        (Deeplab("resnet18", rates=(1, 2), width=2), 16, 352),
    ],
    ids=str,
)
def test_a_crop_on_the_lattice_gives_what_the_whole_gives(
    recipe: Any, stride: int, reach: int
) -> None:
    """Beyond reach of the crop's border. Off the lattice it does not: the stride is no larger than
    it must be.
    """
    size = -(-2 * reach // 32) * 32 + 32
    pixels = image(size + 64, size + 32)
    model = stirred(recipe)
    whole = scores(model, pixels)
    inside = slice(reach, size - reach)

    def difference(y: int, x: int) -> float:
        part = scores(model, pixels[:, y : y + size, x : x + size])
        return float(
            np.abs(
                part[:, inside, inside] - whole[:, y : y + size, x : x + size][:, inside, inside]
            ).max()
        )

    assert whole[:, inside, inside].std((1, 2)).min() > 1e-4
    assert difference(stride, 0) < 1e-6
    assert difference(32, 32) < 1e-6
    assert difference(stride // 2, 0) > 1e-5


@pytest.mark.parametrize("recipe", [SMALL[3], SMALL[8]], ids=str)
def test_what_looks_at_the_whole_image_sees_a_far_pixel(recipe: Any) -> None:
    model = stirred(recipe)
    pixels = image(16, 1600)
    other = pixels.copy()
    other[:, :, -1] += 20
    assert np.abs(scores(model, pixels) - scores(model, other))[:, :, 0].max() > 1e-6


@pytest.mark.parametrize("name", SEMANTIC)
def test_defaults_build(name: str) -> None:
    model = NETWORKS[name]().build(3, 2)
    assert model.output_shape == (None, None, None, 2)
    assert model.name.startswith(name)


@pytest.mark.parametrize("name", SEMANTIC)
@pytest.mark.parametrize(
    ("channels", "classes", "message"),
    [(0, 2, "channels: expected one or more; got 0"), (1, 1, "classes: .*; got 1")],
)
def test_counts_are_checked(name: str, channels: int, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NETWORKS[name]().build(channels, classes)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Unet, {"width": 0}),
        (Unet, {"depth": 9}),
        (Unet, {"padding": "full"}),
        (Unet, {"normalisation": "layer"}),
        (Unet, {"upsampling": "cubic"}),
        (Unet, {"output_kernel": 2}),
        (Unet, {"dropout": 1.0}),
        (Unet, {"dropout": float("nan")}),
        (Fcn, {"variant": "4s"}),
        (Fcn, {"backbone": "vgg11"}),
        (Fcn, {"width": 1000}),
        (Fcn, {"normalisation": "none", "backbone": "resnet50"}),
        (Deeplab, {"backbone": "vgg16"}),
        (Deeplab, {"output_stride": 32}),
        (Deeplab, {"rates": ()}),
        (Deeplab, {"rates": (6, 6)}),
        (Deeplab, {"rates": (0,)}),
        (Deeplab, {"image_pooling": "max"}),
        (Deeplab, {"normalisation": "none"}),
        (Deeplab, {"width": -1}),
    ],
)
def test_wrong_fields_are_named(kind: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: .*; got ") as caught:
        kind(**wrong)
    first = next(iter(wrong.values()))
    assert str(list(first) if isinstance(first, tuple) else first) in str(caught.value)


def test_no_network_imports_tensorflow() -> None:
    files = sorted(Path(next(iter(maskloom.segcore.deep.networks.__path__))).rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            modules = [*names, node.module or ""] if isinstance(node, ast.ImportFrom) else names
            assert not [
                name for name in modules if name.split(".")[0] in {"tensorflow", "jax", "torch"}
            ], file


def test_recipes_load_no_keras() -> None:
    """Also not by way of what they import."""
    import subprocess
    import sys

    code = (
        "import sys, maskloom.segcore.deep.networks.recipe; "
        "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
