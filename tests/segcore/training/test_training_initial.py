"""A training that starts from the weights of another."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training.initial import Initial

NETWORK = {"width": 2, "depth": 1, "normalisation": "batch"}
SCALING = Scaling((100.0,), (0.01,))


def network(classes=2, seed=0, **changed):
    keras.utils.set_random_seed(seed)
    return NETWORKS["unet"](**{**NETWORK, **changed}).build(1, classes)


@pytest.fixture
def trained(tmp_path):
    """The file of a network, its model and its location."""
    model, path = network(seed=1), tmp_path / "trained.keras"
    model.save(path)
    classes = ("background", "cell")
    card = card_of_model(model, "unet", classes, SCALING, Weights.of(str(path)).sha256)
    card = replace(card, network=asdict(NETWORKS["unet"](**NETWORK)), dtype="uint8")
    path.with_suffix(".json").write_bytes(card.dump())
    return model, str(path)


def test_layers_of_the_same_shape_take_over_their_weights(trained):
    model, path = trained
    initial, same, other = Initial.of(path, "unet"), network(), network(classes=3)
    assert initial.scaling == SCALING
    assert initial.give(same) == "Starting from trained.keras."
    for one, two in zip(same.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    fresh = network(classes=3).get_layer("logits").get_weights()
    assert initial.give(other) == (
        "Starting from trained.keras, but for layers of other shapes: logits."
    )
    for layer in other.layers:
        expected = fresh if layer.name == "logits" else model.get_layer(layer.name).get_weights()
        for one, two in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(one, two)


def test_scaling_by_the_image_is_taken_over(trained):
    _, path = trained
    place = Path(path).with_suffix(".json")
    how = ImageScaling("range", (1.0, 99.0))
    place.write_bytes(Card.load(place.read_bytes(), "").scaled_by(how).dump())
    assert Initial.of(path, "unet").scaling_for(1, 1 / 255) == how


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    _, path = trained
    with pytest.raises(RecipeError, match=r"no layer of trained\.keras has the shape"):
        Initial.of(path, "unet").give(network(width=3))
    with pytest.raises(RecipeError, match=r"initial: trained\.keras is a unet, .* trains a fcn"):
        Initial.of(path, "fcn")
    with pytest.raises(RecipeError, match=r"initial: .*nowhere\.keras cannot be read"):
        Initial.of(str(tmp_path / "nowhere.keras"), "unet")
    (tmp_path / "trained.json").unlink()
    with pytest.raises(RecipeError, match="no card that says how it is built"):
        Initial.of(path, "unet")


@pytest.mark.nightly
def test_a_training_goes_on_from_where_its_start_was(trained, tmp_path):
    """With next to no rate it ends there, but for the means of batch normalisation; and another
    file in its place is another training.
    """
    from typer.testing import CliRunner

    from maskloom.flows.cli import app

    model, path = trained
    random = np.random.default_rng(0)
    for folder, most in (("images", 255), ("masks", 2)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            pixels = random.integers(0, most, (20, 20)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    recipe = {
        "name": "next",
        "images": "images/*.png",
        "masks": "masks/",
        "output": "out",
        "network": {"kind": "unet", **NETWORK},
        "initial": path,
        "classes": ["background", "cell"],
        "split": {"validation": 0.5},
        "training": {"patch": 16, "batch": 1, "epochs": 1, "steps": 2, "rate": 1e-12, "decay": 0},
    }
    (tmp_path / "train.yaml").write_text(json.dumps(recipe))
    command = ["train", str(tmp_path / "train.yaml"), "-q"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "out" / "next.json").read_bytes())
    assert card["scaling"] == {"offset": [100.0], "factor": [0.01]}
    assert card["about"]["recipe"]["initial"] == Weights.of(path).sha256
    found = keras.saving.load_model(tmp_path / "out" / "next.keras", compile=False)
    for one, two in zip(found.weights, model.weights, strict=True):
        if "moving" not in one.path:
            np.testing.assert_allclose(one, two, atol=1e-9)
    network(seed=2).save(path)
    changed = Weights.of(path).sha256
    stored = json.loads((tmp_path / "trained.json").read_bytes())
    (tmp_path / "trained.json").write_text(json.dumps({**stored, "sha256": changed}))
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "initial was" in " ".join(refused.output.split())
