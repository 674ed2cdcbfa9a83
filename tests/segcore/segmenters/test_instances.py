"""Instances of a network with vectors: equal under any tiling, in resampled pixels too, and refused
where the network has no vectors.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from skimage import data

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.engines.selection import agreement_of
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.deep.networks.vectors import build_with_vectors
from maskloom.segcore.errors import ModelMismatch, RecipeError, WeightsError
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.models.protocols import finds_objects
from maskloom.segcore.pipeline.in_memory import with_selection
from maskloom.segcore.segmenters.instances import Instances
from maskloom.segcore.segmenters.network import Network, Unet
from maskloom.segcore.testing import segmenters as check

CLASSES = ("background", "round", "long")
PHOTO = data.astronaut()[100:233, 150:327]
"""Sides that no stride divides."""
PICTURE = check.Picture(PHOTO, np.ones(PHOTO.shape[:2], bool), "rgb")
EXACTLY = {"engine": "tensorflow", "precision": "float32", "patch": 64, "steps": 8, "min_size": 5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A network of random weights whose vectors and classes vary over the picture."""
    keras.utils.set_random_seed(1)
    recipe = NETWORKS["unet"](width=4, depth=2)
    model = build_with_vectors(recipe, 3, len(CLASSES), 2)
    output = model.layers[-1]
    kernel, _ = output.get_weights()
    typical = np.asarray(model(PHOTO[None, :132, :176].astype(np.float32) / 255))[0]
    means, spreads = typical.mean(axis=(0, 1)), typical.std(axis=(0, 1))
    output.set_weights([kernel / spreads, -means / spreads])
    path = tmp_path_factory.mktemp("vectors") / "small.keras"
    model.save(path)
    sha256 = Weights.of(str(path)).sha256
    card = card_of_model(model, "unet", CLASSES, Scaling((0.0,), (1 / 255,)), sha256, vectors=2)
    card = replace(card, network=asdict(recipe), dtype="uint8")
    path.with_suffix(".json").write_bytes(card.dump())
    return str(path)


def sized(side: float) -> check.Picture:
    """The picture with pixels of `side` um."""

    class Sized(check.Picture):
        @property
        def spec(self):
            space = Space(metric=Metric((side, side), "um"))
            return replace(check.Picture.spec.fget(self), space=space)

    return Sized(PICTURE.pixels, PICTURE.valid, "rgb")


def with_card(weights: str, folder: Path, **changes: object) -> str:
    """The weights with another card, in another folder."""
    path = folder / "other.keras"
    path.write_bytes(Path(weights).read_bytes())
    card = replace(Weights.of(weights).card(), **changes)
    path.with_suffix(".json").write_bytes(card.dump())
    return str(path)


@pytest.mark.parametrize(
    "tile", [(50, 70), *(pytest.param(t, marks=pytest.mark.nightly) for t in ((16, 16), (33, 90)))]
)
def test_tiling_changes_no_object(weights, tile):
    recipe = Instances(weights, **EXACTLY)
    assert check.labelled(check.fitted(recipe, [PICTURE]), PICTURE).max() > 20
    check.check_tiling(recipe, PICTURE, tile)


@pytest.mark.nightly
@pytest.mark.parametrize("scaling", [None, ImageScaling("range", (0, 99.9))])
def test_the_contract_of_segmenters_is_kept(weights, scaling):
    recipe = Instances(weights, scaling=scaling, **EXACTLY)
    assert finds_objects(recipe.start())
    check.check_tiling(recipe, PICTURE, (50, 70))
    check.check_labels(recipe, PICTURE)
    check.check_values(recipe, PICTURE)
    check.check_memory(recipe, PICTURE)
    # Three times as many resampled pixels.
    check.check_memory(replace(recipe, pixel_size="0.5 um"), sized(0.9), slack=2**18)


@pytest.mark.nightly
def test_flips_turn_the_vectors_and_leave_tiles_exact(weights):
    even = check.Picture(PHOTO[:132, :176], PICTURE.valid[:132, :176], "rgb")
    recipe = Instances(weights, flips="both", **EXACTLY)
    model = recipe.start()
    (block,) = even.blocks(model)
    classes, vectors = model._inner.maps(block)
    network, pixels = keras.saving.load_model(weights), even.pixels[None].astype(np.float32) / 255
    expected = np.zeros((*PHOTO[:132, :176].shape[:2], len(CLASSES) + 2))
    for up in (1, -1):
        for left in (1, -1):
            output = network.predict(pixels[:, ::up, ::left], verbose=0)[0, ::up, ::left]
            shares = np.exp(output[..., :-2])
            shares /= shares.sum(axis=-1, keepdims=True)
            expected += np.concatenate([shares, output[..., -2:] * (left, up)], axis=-1) / 4
    np.testing.assert_allclose(classes, expected[..., :-2], atol=1e-5)
    np.testing.assert_allclose(vectors, expected[..., -2:], atol=1e-4)
    assert check.labelled(check.fitted(recipe, [PICTURE]), PICTURE).max() > 20
    check.check_tiling(recipe, PICTURE, (50, 70))


@pytest.mark.parametrize("side", [0.3, pytest.param(0.9, marks=pytest.mark.nightly)])
def test_tiling_changes_no_object_in_resampled_pixels(weights, side):
    model = Instances(weights, pixel_size="0.5 um", **EXACTLY).start()
    picture = sized(side)
    expected = check.labelled(model, picture)
    assert expected.max() > 5
    assert not np.array_equal(expected, check.labelled(model, PICTURE))
    for tile in ((50, 70), (31, 64)):
        assert np.array_equal(check.labelled(model, picture, tile), expected)


def test_much_coarser_pixels_are_refused(weights):
    model = Instances(weights, pixel_size="0.5 um", **EXACTLY).start()
    with pytest.raises(ModelMismatch, match="more than 2 times as large"):
        model.select(sized(1.2).spec)


def test_classes_alone_are_those_of_the_network(weights):
    """A segmenter of classes reads the same file, and its labels are those of keras."""
    settings = {key: EXACTLY[key] for key in ("engine", "precision")}
    even = check.Picture(PHOTO[:132, :176], PICTURE.valid[:132, :176], "rgb")
    labels = check.labelled(Unet(weights, **settings).start(), even)
    network = keras.saving.load_model(weights)
    output = np.asarray(network(even.pixels[None].astype(np.float32) / 255))[0]
    assert output.shape[-1] == len(CLASSES) + 2
    assert np.mean(labels != output[..., : len(CLASSES)].argmax(axis=-1)) < 1e-4


@pytest.mark.nightly
def test_a_volume_is_segmented_plane_by_plane(weights):
    planes = np.stack([PHOTO[:50, :60], PHOTO[60:110, 80:140]])
    volume = check.Picture(planes, np.ones(planes.shape[:3], bool), "rgb")
    model = Instances(weights, **EXACTLY).start()
    found = check.labelled(model, volume)
    first = check.labelled(model, check.Picture(planes[0], volume.valid[0], "rgb"))
    assert np.array_equal(found[0], first)
    assert found[1][found[1] > 0].min() == first.max() + 1
    assert np.array_equal(check.labelled(model, volume, (1, 20, 30)), found)


def test_engines_are_compared_by_classes_and_by_vectors_in_objects(weights):
    card = Weights.of(weights).card()
    expected = np.zeros((10, 10, len(CLASSES) + 2), np.float32)
    expected[:5, :, 0] = expected[5:, :, 1] = 1
    found = expected.copy()
    found[..., -1] += 0.3
    assert agreement_of(expected, expected, card) == 1
    assert agreement_of(found, expected, card) == 0.5
    found[..., -1] -= 0.25
    assert agreement_of(found, expected, card) == 1
    found[:2, :, 2] = 2
    assert agreement_of(found, expected, card) == 0.8


@pytest.mark.nightly
def test_objects_of_the_mean_over_flips_are_those_of_the_mirrored_image(weights):
    recipe = Instances(weights, flips="both", **EXACTLY)
    check.check_tiling(recipe, PICTURE, (50, 70))
    model, size = recipe.start(), (132, 176)
    pixels, valid = PHOTO[: size[0], : size[1]], np.ones(size, bool)
    found, mirrored = (
        check.labelled(model, check.Picture(each, valid, "rgb"))
        for each in (pixels, pixels[:, ::-1])
    )
    assert found.max() > 20
    # Sums in another order may move a pixel to the place beside it.
    assert abs(int(found.max()) - int(mirrored.max())) <= 0.05 * found.max()
    assert np.mean((found > 0) != (mirrored[:, ::-1] > 0)) < 0.02


@pytest.mark.nightly
def test_an_engine_is_selected(weights):
    recipe = Instances(weights, patch=64)
    assert with_selection(recipe.start(), PICTURE).network.pending_selection is None
    check.check_tiling(recipe, PICTURE, (50, 70))


def test_a_class_around_objects_stands_in_for_vectors(weights, tmp_path):
    names = ("background", "round", "border", "long", "other")
    other = with_card(weights, tmp_path, vectors=0, classes=names)
    recipe = Instances(other, **EXACTLY)
    assert recipe.start().classes == ("background", "round", "long", "other")
    check.check_tiling(recipe, PICTURE, (50, 70))
    check.check_values(recipe, PICTURE)
    assert Instances(other, border="other").start().borders.border == 4
    with pytest.raises(RecipeError, match="edge"):
        Instances(other, border="edge").start()
    with pytest.raises(RecipeError, match="need no border"):
        Instances(weights, border="round").start()


def test_steps_follow_the_largest_object_of_training(weights, tmp_path):
    assert Instances(weights).start().rule.steps == 40
    for side, steps in ((30, 40), (90, 90), (900, 200)):
        other = with_card(weights, tmp_path, about={"largest_object": side})
        assert Instances(other).start().rule.steps == steps
        assert Instances(other, steps=50).start().rule.steps == 50


def test_what_does_not_fit_is_refused(weights, tmp_path):
    with pytest.raises(RecipeError, match="target: flow"):
        Instances(with_card(weights, tmp_path, vectors=0)).start()
    with pytest.raises(WeightsError, match="finds objects"):
        Instances(with_card(weights, tmp_path, vectors=0, output="objects")).start()
    with pytest.raises(ValueError, match="threshold"):
        Instances(weights, threshold=1.0)
    with pytest.raises(ValueError, match="vectors"):
        with_card(weights, tmp_path, vectors=3)
    card = Weights.of(weights).card()
    assert Card.load(card.dump(), "here") == card
    assert isinstance(Network(weights).start().card, Card)
