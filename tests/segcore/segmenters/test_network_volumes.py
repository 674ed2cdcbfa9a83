"""Networks of volumes as segmenters: equal under any tiling, equal to keras on the whole volume,
refused for images.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.opening import is_installed
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import ModelMismatch, RecipeError
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.pipeline.in_memory import with_selection
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.ensemble import Ensemble
from maskloom.segcore.segmenters.network import Network, Unet
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing import segmenters as check

SHAPE = (7, 30, 26)
"""Sides that no stride divides."""
VOXELS = np.random.default_rng(0).integers(0, 256, (*SHAPE, 1), np.uint8)
VOLUME = check.Picture(VOXELS, np.ones(SHAPE, bool))
CLASSES = ("air", "soft", "bone")
EXACTLY = {"engine": "tensorflow", "precision": "float32", "patch": (4, 16, 8)}


def saved(folder, **options) -> str:
    """A U-Net of volumes with its card, as training writes it."""
    keras.utils.set_random_seed(1)
    recipe = NETWORKS["unet"](width=2, dimensions=3, **options)
    model = recipe.build(1, len(CLASSES))
    random = np.random.default_rng(5)
    for weight in model.trainable_weights:
        if "bias" in weight.name:
            weight.assign(random.normal(0, 0.1, weight.shape))
    path = folder / "volumes.keras"
    model.save(path)
    digest = Weights.of(str(path)).sha256
    card = card_of_model(model, "unet", CLASSES, Scaling(), digest)
    card = replace(card, dtype="uint8", network=asdict(recipe))
    path.with_suffix(".json").write_bytes(card.dump())
    return str(path)


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("unet"), depth=2, pooling=((1, 2, 2), (2, 2, 2)))


@pytest.fixture(scope="module")
def model(unet):
    return Unet(unet, **EXACTLY).start()


@pytest.fixture(scope="module")
def whole(model):
    labels = check.labelled(model, VOLUME)
    assert len(np.unique(labels)) > 1
    return labels


def by_keras(weights: str) -> np.ndarray:
    """Labels of the network on the whole volume, completed to the strides by mirroring."""
    padding = [(0, -n % stride) for n, stride in zip(SHAPE, (2, 4, 4), strict=True)]
    padded = np.pad(VOXELS, [*padding, (0, 0)], mode="reflect")
    network = keras.saving.load_model(weights)
    scores = network.predict(padded[None].astype(np.float32) / 255, verbose=0)[0]
    return scores[tuple(slice(0, n) for n in SHAPE)].argmax(axis=-1)


def test_labels_are_those_of_keras_on_the_whole_volume(unet, whole):
    # Patches of other shapes may be summed in another order, so ties of the last bit may differ;
    # more may not.
    assert np.mean(whole != by_keras(unet)) < 1e-3


@given(st.tuples(st.integers(2, 9), st.integers(7, 40), st.integers(7, 40)))
def test_no_tiling_changes_a_voxel(model, whole, tile):
    assert np.array_equal(check.labelled(model, VOLUME, tile), whole)


def test_the_halo_is_that_of_each_axis(model):
    assert model.requirements.halo == (13, 23, 23)
    assert not model.requirements.planar
    assert model.exactness.value == "exact"


def test_openvino_gives_the_same_labels_in_any_tiling(unet, whole):
    if not is_installed("openvino"):
        pytest.skip("OpenVINO is not installed")
    other = Unet(unet, engine="openvino", precision="float32", patch=(4, 16, 8)).start()
    labels = check.labelled(other, VOLUME)
    assert np.mean(labels != whole) < 1e-3
    assert np.array_equal(check.labelled(other, VOLUME, (3, 16, 20)), labels)


def test_an_engine_is_selected_on_a_cube(unet):
    made = with_selection(Unet(unet).start(), VOLUME)
    assert made.pending_selection is None
    assert len(made.choice.record.get("patch", [0] * 4)) == 4


@pytest.mark.parametrize(
    "options", [pytest.param({"windows": "blended"}, marks=pytest.mark.nightly), {}]
)
def test_blended_windows_do_not_depend_on_tiles_either(unet, tmp_path, options):
    """Asked for, or because the norms of the network span the volume."""
    weights = unet if options else saved(tmp_path, depth=1, normalisation="group")
    blended = Unet(weights, **EXACTLY, **options).start()
    assert blended.exactness.value == "approximate"
    labels = check.labelled(blended, VOLUME)
    for tile in ((3, 16, 20), (7, 9, 26)):
        assert np.array_equal(check.labelled(blended, VOLUME, tile), labels)
    scores = blended.scores(VOLUME.blocks(blended)[0])
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
    assert np.array_equal(scores.argmax(-1), labels)


def test_voxels_without_data_do_not_reach_their_neighbours(unet):
    valid = np.ones(SHAPE, bool)
    valid[2:5, 8:20, 5:22] = False
    network = Unet(unet, scaling=Scaling(), **EXACTLY).start()
    by_gap = [
        check.labelled(
            network,
            check.Picture(np.where(valid[..., None], VOXELS, gap).astype(np.float32), valid),
            (3, 16, 20),
        )
        for gap in (np.nan, 7e4)
    ]
    assert np.array_equal(by_gap[0][valid], by_gap[1][valid])


def test_models_are_values(unet, model):
    check.check_values(Unet(unet, **EXACTLY), VOLUME)
    assert load_model(dump_model(model)) == model


def test_images_and_settings_of_images_are_refused(unet, model):
    image = check.Picture(VOXELS[0], np.ones(SHAPE[1:], bool))
    with pytest.raises(ModelMismatch, match=r"is an image; volumes.keras is a network of volumes"):
        model.select(image.spec)
    with pytest.raises(RecipeError, match=r"patch: volumes.keras .* one number or \[z, y, x\]"):
        Unet(unet, patch=(16, 16)).start()
    with pytest.raises(RecipeError, match=r"halo: volumes.keras .* one number or \[z, y, x\]"):
        Unet(unet, halo=(16, 16)).start()


def test_one_number_is_a_cube_of_about_as_many_voxels(unet):
    assert Unet(unet, patch=512).start().layout.sides == (64, 64, 64)


def test_other_models_take_its_labels(unet, whole):
    parts = ConnectedParts(Unet(unet, **EXACTLY))
    ids, classes = check.object_mask(parts.start(), VOLUME)
    tiled, _ = check.object_mask(parts.start(), VOLUME, (3, 16, 20))
    assert np.array_equal(ids, tiled)
    # Objects have a background before their classes.
    assert np.array_equal(classes, whole + 1)
    levels = Threshold(method="multi-otsu", levels=3, classes=CLASSES)
    network = Unet(unet, **EXACTLY)
    vote = check.fitted(Ensemble((network, levels, network), by="vote"), [VOLUME])
    assert vote.requirements.halo == (13, 23, 23)
    assert np.array_equal(check.labelled(vote, VOLUME, (3, 16, 20)), whole)


def test_a_halo_that_is_too_small_is_found_out(unet):
    weights = Network(unet, halo=(1, 4, 4), engine="tensorflow", precision="float32")
    with pytest.raises(Exception, match=r"has a receptive field of .* says 1 x 4 x 4"):
        with_selection(weights.start(), VOLUME)


def test_a_card_needs_numbers_for_its_axes():
    with pytest.raises(ValueError, match="expected numbers for 2 axes"):
        Card("unet", "", 1, ("a", "b"), Scaling(), ReceptiveField((1, 2, 2)))
    with pytest.raises(ValueError, match="2 or 3 axes"):
        ReceptiveField((1, 2, 2), (1, 2))


def test_onnx_networks_of_volumes_run(tmp_path):
    """A kernel of 3 x 3 x 3, channels first: examined in its own process, and confirmed."""
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    axes = ("z", "y", "x")
    image, scores = (
        make.make_tensor_value_info(name, kind, [1, channels, *axes])
        for name, channels in (("image", 1), ("scores", 3))
    )
    kernel = np.random.default_rng(2).normal(size=(3, 1, 3, 3, 3)).astype(np.float32)
    convolution = make.make_node("Conv", ["image", "kernel"], ["scores"], pads=[1] * 6)
    graph = make.make_graph(
        [convolution], "net", [image], [scores], [onnx.numpy_helper.from_array(kernel, "kernel")]
    )
    opset = [make.make_opsetid("", 17)]
    path = tmp_path / "kernel.onnx"
    path.write_bytes(make.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
    recipe = Network(str(path), halo=1, engine="onnxruntime", patch=(4, 16, 8))
    model = with_selection(recipe.start(), VOLUME)
    assert model.card.dimensions == 3
    labels = check.labelled(model, VOLUME)
    assert np.array_equal(check.labelled(model, VOLUME, (3, 9, 20)), labels)
    padded = np.pad(VOXELS[..., 0].astype(np.float64), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    expected = np.einsum("zyxijk,cijk->zyxc", windows, kernel[:, 0]).argmax(-1)
    assert np.mean(labels != expected) < 1e-3
