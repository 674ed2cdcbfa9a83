"""Trainings that start with a backbone of keras.applications. The files are made here, in the
layout of those that Keras offers, with random weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import fsspec
import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils
from training_support import TINY, blocks
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.segcore.deep.networks.layers.applications import (
    APPLICATIONS,
    feature_maps,
    kernels_for,
)
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training.imagenet import ImageNet
from maskloom.segcore.training.optimisers import optimiser, take_over
from maskloom.segcore.training.recipe import Training

NETWORK_OF = {
    "vgg16": ("fcn", {"backbone": "vgg16", "normalisation": "none"}),
    "vgg19": ("unet", {"encoder": "vgg19", "depth": 5, "width": 2}),
    "resnet50v1": ("deeplab", {"backbone": "resnet50v1", "width": 2}),
    "mobilenetv3small": ("unet", {"encoder": "mobilenetv3small", "depth": 4, "width": 2}),
    "mobilenetv3large": ("fcn", {"backbone": "mobilenetv3large"}),
    "efficientnetv2b0": ("fcn", {"backbone": "efficientnetv2b0"}),
    "efficientnetv2s": ("unet", {"encoder": "efficientnetv2s", "depth": 2, "width": 2}),
    "convnext_tiny": ("fcn", {"backbone": "convnext_tiny"}),
}
DEEPEST = {
    "vgg16": "stage5_pool",
    "vgg19": "stage5_pool",
    "resnet50v1": "conv4_block6_out",
    "mobilenetv3small": "expanded_conv_7_add",
    "efficientnetv2s": "block2d_add",
}
"""The last layer that the network takes over; otherwise the application's last map."""
SMALL = ("mobilenetv3small", "vgg16")
EVERY = [
    pytest.param(name, marks=[pytest.mark.nightly] * (name not in SMALL)) for name in APPLICATIONS
]


def application(name, size=(64, 64), **options):
    """The network of Keras with random weights and, if it has one, its own preprocessing."""
    keras.utils.set_random_seed(3)
    build = getattr(keras.applications, APPLICATIONS[name].constructor)
    network = build(include_top=False, weights=None, input_shape=(*size, 3), **options)
    generator = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, each.shape) for each in layer.weights])
    return network


def preprocessed(name, pixels):
    if APPLICATIONS[name].options:
        return pixels  # The network does it itself.
    module = keras.applications.resnet if "resnet" in name else keras.applications.vgg16
    return module.preprocess_input(pixels.copy())


def saved(network, folder):
    path = folder / "weights_notop.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return str(path)


@pytest.mark.parametrize("name", EVERY)
def test_the_maps_are_those_of_the_application(name, tmp_path):
    network = application(name)
    kind, recipe = NETWORK_OF[name]
    ours = NETWORKS[kind](**recipe)
    assert ours.application == name
    model = ours.build(3, 2)
    start = ImageNet.of(saved(network, tmp_path), ours)
    assert start.give(model) == (
        f"Starting with {APPLICATIONS[name].constructor} trained on ImageNet."
    )
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype("float32")
    scaled = start.scaling_for(3, 1 / 255).apply(pixels)
    last = DEEPEST.get(name, APPLICATIONS[name].maps[-1:] and APPLICATIONS[name].maps[-1])
    theirs = keras.Model(network.input, network.get_layer(last.replace("stage5", "block5")).output)
    mine = keras.Model(model.input, model.get_layer(last).output)
    expected = theirs.predict(preprocessed(name, pixels), verbose=0)
    found = mine.predict(scaled, verbose=0)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_an_image_of_equal_bands_gives_what_it_gave_with_three(channels):
    kernels = np.random.default_rng(0).normal(size=(3, 3, 3, 5))
    grey = np.random.default_rng(1).normal(size=(3, 3))
    expected = np.einsum("yx,yxbf->f", grey, kernels)
    for reverse in (False, True):
        found = kernels_for(channels, kernels, reverse)
        np.testing.assert_allclose(np.einsum("yx,yxbf->f", grey, found), expected)
    if channels > 3:
        own = kernels_for(channels, kernels, True)[:, :, :3] * channels / 3
        np.testing.assert_allclose(own, kernels[:, :, ::-1])


@pytest.mark.nightly
def test_other_bands_begin_with_the_mean_of_the_three(tmp_path):
    path = saved(application("mobilenetv3small"), tmp_path)
    responses = []
    for channels in (1, 2, 3, 5):
        ours = NETWORKS["fcn"](backbone="mobilenetv3small")
        model, start = ours.build(channels, 2), ImageNet.of(path, ours)
        start.give(model)
        grey = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 1)).astype("float32")
        scaled = start.scaling_for(channels, 1 / 255).apply(np.repeat(grey, channels, axis=-1))
        first = keras.Model(model.input, model.get_layer("conv").output)
        responses.append(first.predict(scaled, verbose=0))
    for each in responses:
        np.testing.assert_allclose(each, responses[2], rtol=1e-3, atol=1e-4)


def test_values_of_16_bits_are_scaled_as_those_of_8():
    start = ImageNet("imagenet", "vgg16", None)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 4, 3))
    few = start.scaling_for(3, 1 / 255).apply(pixels.astype("uint8"))
    many = start.scaling_for(3, 1 / 65535).apply((pixels * 257).astype("uint16"))
    np.testing.assert_allclose(few, many, rtol=1e-5, atol=1e-3)
    assert start.scaling_for(3, None) is None


def test_normalisation_of_the_backbone_keeps_its_means(tmp_path):
    ours = NETWORKS["fcn"](backbone="mobilenetv3small")
    model = ours.build(3, 2)
    ImageNet("imagenet", "mobilenetv3small", None).prepare(model)
    frozen = [layer.name for layer in model.layers if layer.weights and not layer.trainable]
    assert len(frozen) > 20
    assert {type(model.get_layer(name)).__name__ for name in frozen} == {"BatchNormalization"}
    before = [np.array(each) for name in frozen for each in model.get_layer(name).weights]
    model.compile("sgd", "categorical_crossentropy")
    model.train_on_batch(np.ones((1, 64, 64, 3)), np.ones((1, 64, 64, 2)))
    for one, two in zip(
        before, [each for name in frozen for each in model.get_layer(name).weights], strict=True
    ):
        np.testing.assert_array_equal(one, np.array(two))


def test_stages_end_where_maps_are_halved():
    ours = NETWORKS["fcn"](backbone="vgg16", normalisation="none")
    stages = ImageNet("imagenet", "vgg16", None).stages(ours.build(3, 2))
    assert [[layer.name for layer in stage] for stage in stages] == [
        [f"stage{number}_{each}_conv" for each in range(1, count + 1)]
        for number, count in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2))
    ]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_stages_hold_still_and_then_learn_slowly(kind):
    class Recipe:
        training = Training(
            optimiser=kind,
            rate=0.1,
            schedule="constant",
            unfreeze=(1, 2),
            stage_rate=0.5,
            ema=0.5,
        )

    # Two of one name, as in the heads of a Mask R-CNN.
    new, last, first = (keras.Variable(np.ones(3), name=name) for name in ("a", "a", "b"))
    steps, averages, made, learned = [], [], None, []
    # Epochs have two steps.
    for learning in ([new], [new, last], [new, last, first]):
        before, made = made, optimiser(Recipe, 2, [[last], [first]])
        made.build(learning)
        if before is not None:
            take_over(made, learning, before, learned)
        learned = learning
        for _ in range(2):
            start = [np.array(each) for each in (new, last, first)]
            made.apply([keras.ops.ones(3)] * len(learning))
            pairs = zip((new, last, first), start, strict=True)
            steps.append([np.abs(np.array(now) - old).max() for now, old in pairs])
            averages.append([float(each[0]) for each in (new, last, first)])
    moved = np.array(steps).T
    assert (moved[0] > 0).all()
    assert (moved[1, :2] == 0).all()
    assert (moved[2, :4] == 0).all()
    # They begin as the new ones did. Weight decay, which they are spared, is a thousandth.
    np.testing.assert_allclose(moved[1, 2:], 0.5 * moved[0, :4], rtol=0.01)
    np.testing.assert_allclose(moved[2, 4:], 0.25 * moved[0, :2], rtol=0.01)
    expected = averages[0]
    for values in averages[1:]:
        expected = 0.5 * np.array(expected) + 0.5 * np.array(values)
    made.finalize_variable_values([new, last, first])
    np.testing.assert_allclose([float(each[0]) for each in (new, last, first)], expected, rtol=1e-5)


def test_what_cannot_start_so_is_said(tmp_path, monkeypatch):
    plain = NETWORKS["unet"](width=2)
    with pytest.raises(RecipeError, match=r"initial: imagenet fits backbones"):
        ImageNet.of("imagenet", plain)
    other = saved(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), tmp_path)
    ours = NETWORKS["fcn"](backbone="mobilenetv3small")
    with pytest.raises(RecipeError, match="does not fit MobileNetV3Small without its top"):
        ImageNet.of(other, ours).give(ours.build(3, 2))

    with pytest.raises(ValueError, match=r"depth: `encoder: vgg16` .*: expected 2 to 5; got 6"):
        NETWORKS["unet"](encoder="vgg16", depth=6)
    with pytest.raises(ValueError, match="width: resnet50v1 has its own; leave it out; got 8"):
        NETWORKS["fcn"](backbone="resnet50v1", width=8)


def test_without_internet_the_file_that_is_missing_is_named_and_found_there(tmp_path, monkeypatch):
    def unreachable(*_):
        raise URLError("no route to host")

    monkeypatch.setattr(file_utils, "urlretrieve", unreachable)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    ours = NETWORKS["fcn"](backbone="mobilenetv3small")
    start, kind = ImageNet.of("imagenet", ours), APPLICATIONS["mobilenetv3small"]
    with pytest.raises(RecipeError) as refused:
        start.check()
    folder = tmp_path / "home" / "models"
    said = str(refused.value)
    assert "MobileNetV3Small could not be fetched: no route to host." in said
    for each in (str(folder), kind.address, f"MD5 {kind.digest}", "fsspec URI", kind.file_name):
        assert each in said

    network = application("mobilenetv3small")
    stored = network.get_layer("expanded_conv_10_project").get_weights()
    path = Path(saved(network, tmp_path))
    shutil.copy(path, folder / kind.file_name)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(APPLICATIONS, "mobilenetv3small", replace(kind, digest=digest))
    memory = fsspec.filesystem("memory")
    memory.pipe("/starts/small.h5", path.read_bytes())
    named = [ImageNet.of(each, ours) for each in ("memory://starts/small.h5", f"file://{path}")]
    assert named[0].identity == named[1].identity != start.identity
    for each in (start, named[0]):
        found = each._arrays()["expanded_conv_10_project"]
        np.testing.assert_array_equal(found, stored)
    # Another file under this name is not taken.
    (folder / kind.file_name).write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecipeError, match="no route to host"):
        start.check()


@pytest.mark.parametrize("name", EVERY)
def test_files_are_those_that_the_application_fetches(name, monkeypatch):
    class Fetched(Exception):
        pass

    def get_file(*named, cache_subdir, file_hash):
        raise Fetched(*named, cache_subdir, file_hash)

    monkeypatch.setattr(file_utils, "get_file", get_file)
    kind = APPLICATIONS[name]
    with pytest.raises(Fetched) as fetched:
        getattr(keras.applications, kind.constructor)(include_top=False, input_shape=(224, 224, 3))
    assert fetched.value.args == (kind.file_name, kind.address, "models", kind.digest)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("mobilenetv3small", 8),
        pytest.param("mobilenetv3small", 16, marks=pytest.mark.nightly),
        pytest.param("mobilenetv3large", 8, marks=pytest.mark.nightly),
        pytest.param("mobilenetv3large", 16, marks=pytest.mark.nightly),
        pytest.param("resnet50v1", 8, marks=pytest.mark.nightly),
        pytest.param("resnet50v1", 16, marks=pytest.mark.nightly),
    ],
)
def test_dilated_maps_are_those_of_the_application_at_every_stride(name, output_stride):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    dense = keras.Model(inputs, feature_maps(inputs, name, output_stride)[1:])
    theirs = application(name, (96, 64), **APPLICATIONS[name].options)
    mine = {layer.name: layer for layer in dense.layers if layer.weights}
    assert len(mine) > 40
    for layer in theirs.layers:
        if "squeeze_excite" in layer.name:
            # The means of more pixels are others: here they weigh nothing.
            layer.set_weights([np.zeros_like(each) for each in layer.get_weights()])
        if layer.name in mine:
            mine[layer.name].set_weights(layer.get_weights())
    strided = [theirs.get_layer(each).output for each in APPLICATIONS[name].maps[1:]]
    image = np.random.default_rng(0).normal(size=(1, 96, 64, 3)).astype("float32")
    plain = keras.Model(theirs.input, strided)
    for stride, found, expected in zip((4, 8, 16, 32), dense(image), plain(image), strict=True):
        step, tolerance = max(1, stride // output_stride), 1e-4 * np.abs(expected).max()
        assert found.shape[1] == 96 // min(stride, output_stride)
        assert np.ptp(expected) > 0
        sampled = np.array(found)[:, ::step, ::step]
        np.testing.assert_allclose(sampled, expected, rtol=1e-3, atol=tolerance)


@pytest.mark.nightly
def test_both_layouts_of_keras_are_read_and_a_damaged_file_is_refused(tmp_path):
    network, ours = application("mobilenetv3small"), NETWORKS["fcn"](backbone="mobilenetv3small")
    old = saved(network, tmp_path)
    network.save_weights(tmp_path / "new.weights.h5")
    models = [ours.build(3, 2) for _ in range(2)]
    for model, path in zip(models, (old, str(tmp_path / "new.weights.h5")), strict=True):
        ImageNet.of(path, ours).give(model)
    backbone = ("conv", "expanded_conv_10_project")
    for name in backbone:
        one, two = (model.get_layer(name).get_weights()[0] for model in models)
        np.testing.assert_array_equal(one, two)
    cut = tmp_path / "cut.h5"
    cut.write_bytes((tmp_path / "weights_notop.h5").read_bytes()[:5000])
    with pytest.raises(RecipeError, match="truncated or damaged"):
        ImageNet.of(str(cut), ours)
    network.get_layer("conv").set_weights([np.full((3, 3, 3, 16), np.nan)])
    with pytest.raises(RecipeError, match="NaN"):
        ImageNet.of(saved(network, tmp_path), ours).check()


@pytest.mark.nightly
def test_a_dilated_backbone_comes_from_an_object_store_and_holds_still(tmp_path, s3_bucket):
    network = application("mobilenetv3small")
    location = f"{s3_bucket}/starts/small_notop.h5"
    fsspec.filesystem("s3").put_file(saved(network, tmp_path), location)
    blocks(tmp_path)
    recipe = {
        **TINY,
        "name": "own",
        "network": {"kind": "deeplab", "backbone": "mobilenetv3small", "width": 2},
        "initial": location,
        "bands": [1, 1, 1],
        "training": {"patch": 32, "batch": 2, "steps": 2, "epochs": 1, "unfreeze": [1]},
    }
    (tmp_path / "train.yaml").write_text(json.dumps(recipe))
    command = ["train", str(tmp_path / "train.yaml"), "--no-whole-images"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Starting with MobileNetV3Small trained on ImageNet." in done.stderr
    model = keras.saving.load_model(tmp_path / "out" / "own.keras", compile=False)
    mine = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    common = [layer for layer in network.layers if layer.weights and layer.name in mine]
    assert len(common) > 60
    for layer in common:
        for one, two in zip(mine[layer.name], layer.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
    depthwise = model.get_layer("expanded_conv_10_depthwise")
    assert (depthwise.strides, depthwise.dilation_rate) == ((1, 1), (2, 2))
    again = CliRunner().invoke(app, command)
    assert again.stdout.startswith("Nothing to do")


@pytest.mark.nightly
def test_a_mask_rcnn_takes_the_maps_of_the_application(tmp_path):
    network = application("resnet50v1")
    ours = NETWORKS["mask_rcnn"](size="resnet50v1", pyramid=8, dense=8, mask=8)
    model = ours.build(3, 2)
    start = ImageNet.of(saved(network, tmp_path), ours)
    start.prepare(model)
    start.give(model)
    last = "conv5_block3_out"
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3)).astype("float32")
    mine = keras.Model(model.pyramid.input, model.pyramid.get_layer(last).output)
    theirs = keras.Model(network.input, network.get_layer(last).output)
    expected = theirs.predict(preprocessed("resnet50v1", pixels), verbose=0)
    found = mine.predict(start.scaling_for(3, 1 / 255).apply(pixels), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
