"""Networks as segmenters: equal under any tiling, equal to keras on the whole image, and refused
where they do not fit.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from skimage import data

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.network_model import NetworkModel
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import ModelMismatch, RecipeError, WeightsError
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.models.protocols import finds_objects, fits_each_image, gives_scores
from maskloom.segcore.models.rescaled import Rescaled
from maskloom.segcore.models.selection import pending_selections, with_selections
from maskloom.segcore.pipeline.in_memory import segment_source, with_selection
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.ensemble import Ensemble
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.network import Deeplab, Fcn, Network, Unet
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.training.export import common_pixel_size

PHOTO = data.astronaut()[100:233, 150:327]
"""Sides that no stride divides."""
PICTURE = check.Picture(PHOTO, np.ones(PHOTO.shape[:2], bool), "rgb")
CLASSES = ("sky", "land", "water")
EXACTLY = {"engine": "tensorflow", "precision": "float32", "patch": 64}


def save(model: keras.Model, path, kind: str, classes=CLASSES, dtype: str = "uint8") -> str:
    """Write the model and its card as training does; where they are."""
    model.save(path)
    sha256 = Weights.of(str(path)).sha256
    card = card_of_model(
        model, kind, classes, Scaling((0.0,), (1 / 255,)), sha256, {"licence": "none"}
    )
    path.with_suffix(".json").write_bytes(replace(card, dtype=dtype).dump())
    return str(path)


def lively(model: keras.Model) -> keras.Model:
    """Biases that make all classes appear."""
    random = np.random.default_rng(5)
    for weight in model.trainable_weights:
        if "bias" in weight.name:
            weight.assign(random.normal(0, 0.05, weight.shape))
    return model


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> str:
    keras.utils.set_random_seed(1)
    model = lively(NETWORKS["unet"](width=4, depth=2, normalisation="batch").build(3, 3))
    return save(model, tmp_path_factory.mktemp("unet") / "small.keras", "unet")


def completed(picture: np.ndarray, stride: int) -> np.ndarray:
    """A picture completed to the stride by mirroring, as float32."""
    height, width = picture.shape[:2]
    sides = [(0, -height % stride), (0, -width % stride), (0, 0)]
    return np.pad(picture, sides, mode="reflect").astype(np.float32)


def whole_by_keras(weights: str, picture: np.ndarray, stride: int) -> np.ndarray:
    """Labels of the network on the whole image, completed to the stride by mirroring."""
    height, width = picture.shape[:2]
    network = keras.saving.load_model(weights)
    scores = network.predict(completed(picture, stride)[None] / 255, verbose=0)[0]
    return scores[:height, :width].argmax(axis=-1)


def test_labels_are_those_of_keras_on_the_whole_image(unet):
    labels = check.labelled(Unet(unet, **EXACTLY).start(), PICTURE, (64, 64))
    expected = whole_by_keras(unet, PHOTO, 4)
    assert len(np.unique(expected)) > 1
    # Patches of other shapes may be summed in another order, so ties of the last bit may differ;
    # more may not.
    assert np.mean(labels != expected) < 1e-4


@pytest.mark.parametrize("tile", [(16, 16), (32, 128), (100, 60)])
def test_tiling_changes_no_label(unet, tile):
    check.check_tiling(Unet(unet, **EXACTLY), PICTURE, tile)
    check.check_labels(Unet(unet, **EXACTLY), PICTURE)


def test_a_volume_is_segmented_plane_by_plane(unet):
    planes = np.stack([PHOTO[:50, :60], PHOTO[60:110, 80:140], PHOTO[::-1][:50, :60]])
    volume = check.Picture(planes, np.ones(planes.shape[:3], bool), "rgb")
    images = [check.Picture(plane, np.ones(plane.shape[:2], bool), "rgb") for plane in planes]
    model = with_selection(Unet(unet, engine="tensorflow", patch=64).start(), volume)
    assert model.requirements.planar
    expected = np.stack([check.labelled(model, image) for image in images])
    assert np.array_equal(check.labelled(model, volume), expected)
    assert np.array_equal(check.labelled(model, volume, (2, 32, 16)), expected)
    first = volume.blocks(model)[0]
    assert np.array_equal(model.scores(first)[0].argmax(axis=-1), expected[0])
    labels, scores = model.segment_and_score(first)
    assert np.array_equal(labels.values, model.segment(first).values)
    assert np.array_equal(scores, model.scores(first))


def test_a_planar_member_leaves_an_ensemble_its_volumes(unet):
    """Tiles are not cut into planes then, and have the network's halo along z too."""
    planes = np.stack([PHOTO[:40, :50], PHOTO[60:100, 80:130], PHOTO[::-1][:40, :50]])
    volume = check.Picture(planes, np.ones(planes.shape[:3], bool), "rgb")
    network = Unet(unet, **EXACTLY)
    levels = Threshold(method="multi-otsu", levels=3, classes=CLASSES)
    recipe = Ensemble((network, levels, network), by="vote")
    model = check.fitted(recipe, [volume])
    assert not model.requirements.planar
    alone = check.labelled(network.start(), volume)
    assert np.array_equal(check.labelled(model, volume, (2, 16, 32)), alone)


def test_blended_windows_do_not_depend_on_tiles_either(unet):
    model = Unet(unet, windows="blended", **EXACTLY).start()
    assert model.exactness.value == "approximate"
    assert np.array_equal(check.labelled(model, PICTURE), check.labelled(model, PICTURE, (32, 32)))


def test_patches_are_large_where_a_halo_would_waste_more_than_half(tmp_path):
    def sides(channels: int = 1, **changes) -> tuple[int, ...]:
        reach = ReceptiveField(changes.pop("halo", 107), 4)
        card = Card("network", "", channels, CLASSES, Scaling(), reach, bytes_per_pixel=224)
        (tmp_path / "any.keras").write_bytes(b"")
        sha256 = Weights.of(str(tmp_path / "any.keras")).sha256
        options = {name: changes.pop(name) for name in ("windows", "patch") if name in changes}
        card = replace(card, sha256=sha256, **changes)
        (tmp_path / "any.json").write_bytes(card.dump())
        return Network(str(tmp_path / "any.keras"), **options).start().layout.sides

    assert sides() == (1024, 1024)
    # The halo is small, or the memory would be large, or the result would be another.
    assert sides(halo=64) == sides(bytes_per_pixel=700) == (512, 512)
    assert sides(windows="blended") == (512, 512)
    assert sides(patch=256) == (256, 256)


def test_models_are_values(unet):
    check.check_values(Unet(unet, **EXACTLY), PICTURE)


def test_a_gpu_is_wanted_for_tensorflow_and_until_the_engine_is_selected(unet):
    def device(**options) -> str:
        return Unet(unet, **options).start().requirements.device

    assert device() == device(engine="tensorflow") == "gpu"
    model = Unet(unet).start()
    for engine, expected in (("tensorflow", "gpu"), ("openvino", "any")):
        chosen = model.with_selection({"engine": engine, "precision": "float32", "record": {}})
        assert chosen.requirements.device == expected
    # One member that wants a GPU is enough.
    levels = Threshold(method="multi-otsu", levels=3)
    assert Ensemble((levels, Unet(unet)), by="vote").start().requirements.device == "gpu"
    assert Ensemble((levels, levels), by="vote").start().requirements.device == "any"


def test_what_has_no_data_does_not_reach_its_neighbours(tmp_path):
    keras.utils.set_random_seed(2)
    weights = save(
        lively(NETWORKS["unet"](width=4, depth=1).build(1, 2)),
        tmp_path / "grey.keras",
        "unet",
        ("a", "b"),
        "",
    )
    pixels = PHOTO[..., :1].astype(np.float32)
    valid = np.ones(pixels.shape[:2], bool)
    valid[40:60, 50:90] = False
    broken = np.where(valid[..., None], pixels, np.nan).astype(np.float32)
    model = Unet(weights, **EXACTLY).start()
    by_nan, by_zero = (
        check.labelled(
            model,
            check.Picture(np.where(valid[..., None], pixels, gap).astype(np.float32), valid),
            (64, 64),
        )
        for gap in (np.nan, 0.0)
    )
    assert np.isnan(broken).any()
    assert np.array_equal(by_nan[valid], by_zero[valid])


def test_what_has_no_data_is_0_after_scaling_whatever_the_type_of_the_pixels(unet):
    valid = np.ones(PHOTO.shape[:2], bool)
    valid[40:60, 50:90] = False
    plain = Unet(unet, scaling=Scaling((103.9, -20.5, 300.25), (1 / 255,)), **EXACTLY).start()
    (whole,) = check.Picture(PHOTO, valid).blocks(plain)
    (exact,) = check.Picture(PHOTO.astype(np.float32), valid).blocks(plain)
    exact.pixels[~valid] = plain.card.scaling.offset
    assert np.array_equal(
        plain.scores(whole), plain.scores(replace(exact, valid=np.ones_like(valid)))
    )


def ids_of_brightness(path) -> str:
    """A network of one fixed size that looks at all of it: 2 where its input is bright in all, 7
    where it is dark.
    """
    image = keras.Input((32, 32, 1))
    bright = keras.ops.relu(
        keras.ops.sign(keras.ops.mean(image, axis=(1, 2, 3), keepdims=True) - 0.5)
    )
    keras.Model(image, image * 0.0 + 7.0 - 5.0 * bright).save(path)
    weights = Weights.of(str(path))
    card = Card(
        "network",
        weights.sha256,
        1,
        tuple("abcdefgh"),
        Scaling(),
        ReceptiveField(None, fixed=(32, 32)),
        "labels",
    )
    path.with_suffix(".json").write_bytes(card.dump())
    return str(path)


def test_models_around_a_network_wait_for_the_scaling_of_their_image(unet):
    network = Unet(unet, scaling=ImageScaling("deviation"), **EXACTLY)
    levels = Threshold(method="multi-otsu", levels=3, classes=CLASSES)
    parts = ConnectedParts(network, parts=("land",))
    assert finds_objects(parts.start())
    for recipe in (parts, Ensemble((network, network))):
        assert fits_each_image(recipe.start())
        check.check_tiling(recipe, PICTURE, (60, 50))
    # One member is fitted to what `fit` says, so that this decides.
    assert not fits_each_image(Ensemble((network, levels), by="vote").start())
    mean = PHOTO.reshape(-1, 3).mean(axis=0)
    model = check.fitted(network, [PICTURE])
    np.testing.assert_allclose(model.provenance()["scaling"]["offset"], mean)
    stated = replace(network, scaling=model.scaling).start()
    assert np.array_equal(check.labelled(stated, PICTURE), check.labelled(model, PICTURE))


def test_class_ids_of_windows_are_not_averaged(tmp_path):
    model = Network(
        ids_of_brightness(tmp_path / "ids.keras"), engine="tensorflow", precision="float32"
    ).start()
    pixels = np.zeros((70, 90, 1), np.uint8)
    pixels[:, 45:] = 255
    picture = check.Picture(pixels, np.ones((70, 90), bool))
    labels = check.labelled(model, picture)
    assert set(np.unique(labels)) == {2, 7}
    assert np.array_equal(labels, check.labelled(model, picture, (16, 32)))
    (block,) = picture.blocks(model)
    assert np.array_equal(model.scores(block).argmax(axis=-1), labels)
    assert not gives_scores(model)
    with pytest.raises(RecipeError, match=r"flips: ids\.keras gives class ids"):
        Network(model.weights.location, flips="both").start()


def test_class_ids_without_a_class_are_refused(tmp_path):
    model = replace(
        Network(
            ids_of_brightness(tmp_path / "ids.keras"), engine="tensorflow", precision="float32"
        ).start(),
        classes=tuple("abc"),
    )
    (bright,), (dark,) = (
        check.Picture(np.full((32, 32, 1), value, np.uint8), np.ones((32, 32), bool)).blocks(model)
        for value in (255, 0)
    )
    assert (model.segment(bright).values == 2).all()
    for ask in (model.segment, model.scores):
        with pytest.raises(WeightsError, match="class ids 7 to 7, but has 3 classes"):
            ask(dark)


def test_scores_are_probabilities_of_the_labels(unet):
    model = Unet(unet, **EXACTLY).start()
    (block,) = PICTURE.blocks(model)
    scores = model.scores(block)
    assert np.allclose(scores.sum(axis=-1), 1, atol=1e-5)
    labels = model.segment(block).values
    assert np.array_equal(scores.argmax(axis=-1), labels)
    together = model.segment_and_score(block)
    assert np.array_equal(together[0].values, labels)
    assert np.array_equal(together[1], scores)


def test_a_temperature_changes_scores_as_divided_logits_would_and_no_label(unet):
    model = Unet(unet, **EXACTLY).start()
    cool = replace(model, card=replace(model.card, temperature=2.5))
    (block,) = PICTURE.blocks(model)
    labels, scores = cool.segment_and_score(block)
    assert np.array_equal(labels.values, model.segment(block).values)
    powers = model.scores(block).astype(float) ** (1 / 2.5)
    np.testing.assert_allclose(scores, powers / powers.sum(axis=-1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_tiling_changes_no_bit_of_a_score(unet, temperature):
    model = Unet(unet, **EXACTLY).start()
    model = replace(model, card=replace(model.card, temperature=temperature))
    (whole,) = PICTURE.blocks(model)
    scores = model.scores(whole)
    for block in PICTURE.blocks(model, (32, 128)):
        found = block.tile.trim(model.segment_and_score(block)[1])
        assert np.array_equal(found, scores[block.tile.core.slices])


@pytest.mark.parametrize("windows", ["exact", pytest.param("blended", marks=pytest.mark.nightly)])
def test_flips_average_the_probabilities_of_keras_whatever_the_tiles(unet, windows):
    model = Unet(unet, flips="both", windows=windows, **EXACTLY).start()
    picture = check.Picture(PHOTO[:61, :70], np.ones((61, 70), bool), "rgb")
    (whole,) = picture.blocks(model)
    labels, scores = model.segment_and_score(whole)
    assert np.array_equal(labels.values, scores.argmax(axis=-1))
    for block in picture.blocks(model, (32, 64)):
        assert np.array_equal(block.tile.trim(model.scores(block)), scores[block.tile.core.slices])
    if windows == "exact":
        network, pixels = keras.saving.load_model(unet), completed(picture.pixels, 4)
        expected = np.mean(
            [
                network.predict(pixels[None, ::up, ::left] / 255, verbose=0)[0, ::up, ::left]
                for up in (1, -1)
                for left in (1, -1)
            ],
            axis=0,
        )
        np.testing.assert_allclose(scores, expected[:61, :70], atol=1e-5)
    plain = replace(model, flips="none")
    assert not np.allclose(plain.scores(whole), scores, atol=1e-3)
    assert "flips" not in plain.provenance()
    assert model.provenance()["flips"] == "both"


def test_networks_stand_inside_other_segmenters(unet):
    both = check.fitted(
        Ensemble(
            (Unet(unet, **EXACTLY), MixtureOfGaussians(components=3, classes=CLASSES)), by="scores"
        ),
        [PICTURE],
    )
    assert np.array_equal(check.labelled(both, PICTURE), check.labelled(both, PICTURE, (64, 64)))
    parts = ConnectedParts(Unet(unet, **EXACTLY), parts=("land",)).start()
    assert check.labelled(parts, PICTURE, (64, 64)).max() > 0


def test_the_choice_is_made_once_wherever_the_network_stands(unet):
    parts = ConnectedParts(Unet(unet, patch=64), parts=("land",)).start()
    (key,) = pending_selections(parts)
    decided = with_selection(parts, PICTURE)
    assert pending_selections(decided) == {}
    assert pickle.loads(pickle.dumps(decided)) == decided
    again = with_selections(
        parts, {key: {"engine": "tensorflow", "precision": "float32", "record": {}}}
    )
    assert np.array_equal(
        segment_source(again, PICTURE).values,
        check.labelled(ConnectedParts(Unet(unet, **EXACTLY), parts=("land",)).start(), PICTURE),
    )
    reference = check.labelled(Unet(unet, **EXACTLY).start(), PICTURE)
    assert (
        np.mean(
            check.labelled(with_selection(Unet(unet, patch=64).start(), PICTURE), PICTURE)
            == reference
        )
        > 0.99
    )


def test_networks_without_padding_see_the_image_mirrored(tmp_path):
    keras.utils.set_random_seed(4)
    model = lively(NETWORKS["unet"](width=4, depth=2, padding="valid").build(3, 3))
    weights = save(model, tmp_path / "valid.keras", "unet")
    decided = with_selection(Unet(weights, patch=64, precision="float32").start(), PICTURE)
    margin = decided.card.reach.margin
    assert margin > 0
    labels = check.labelled(decided, PICTURE, (32, 32))
    assert np.array_equal(labels, check.labelled(decided, PICTURE))
    # The size that the network takes beyond the image's, all of it mirrored.
    height, width = (
        side + (-side - 2 * margin + decided.card.reach.residue) % 4 for side in PHOTO.shape[:2]
    )
    padded = np.pad(
        PHOTO,
        [
            (margin, margin + height - PHOTO.shape[0]),
            (margin, margin + width - PHOTO.shape[1]),
            (0, 0),
        ],
        mode="reflect",
    )
    scores = model.predict(padded[None].astype(np.float32) / 255, verbose=0)[0]
    assert np.mean(labels != scores[: PHOTO.shape[0], : PHOTO.shape[1]].argmax(axis=-1)) < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (1, 2)}, "wants 3 bands"),
        ({"classes": ("a", "b")}, "has 3 classes"),
        ({"scaling": Scaling((1.0, 2.0), (1.0,))}, r"scaling\.offset"),
    ],
)
def test_parameters_that_do_not_suit_the_network_are_refused(unet, changes, message):
    with pytest.raises(RecipeError, match=message):
        Unet(unet, **changes).start()


def test_weights_of_another_network_are_refused(unet, tmp_path):
    with pytest.raises(WeightsError, match="is a unet, not a fcn"):
        Fcn(unet).start()
    assert Network(unet).start().classes == CLASSES
    with pytest.raises(WeightsError, match="cannot be read"):
        Deeplab(str(tmp_path / "none.keras")).start()


def test_a_card_of_other_weights_is_refused(unet, tmp_path):
    record = json.loads(Weights.of(unet).card().dump())
    (tmp_path / "other.keras").write_bytes(b"not these")
    (tmp_path / "other.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="belongs to other weights"):
        Unet(str(tmp_path / "other.keras")).start()
    (tmp_path / "other.json").unlink()
    for suffix, told in (
        (".pt", "torch.onnx"),
        (".safetensors", "maskloom convert"),
        (".h5", "trust"),
    ):
        (tmp_path / f"other{suffix}").write_bytes(b"not these")
        with pytest.raises(
            WeightsError, match=rf"expected a .keras, .onnx.* got \{suffix}.*{told}"
        ):
            Network(str(tmp_path / f"other{suffix}")).start()
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(WeightsError, match="is not the card"):
        Unet(str(tmp_path / "other.keras")).start()


@pytest.mark.parametrize(
    "change",
    [
        {"reach": {"halo": -5, "stride": 4}},
        {"reach": {"halo": 16, "stride": 0}},
        {"reach": {"halo": 16, "stride": 4.0}},
        {"reach": {"halo": "16", "stride": 4}},
        {"reach": {"halo": 16, "stride": 4, "fixed": [256]}},
        {"channels": "3"},
        {"classes": "abc"},
        {"classes": ["a", "a", "b"]},
        {"classes": [1, 2, 3]},
        {"bytes_per_pixel": -1},
        {"scaling": {"offset": [0], "factor": [0]}},
        {"scaling": {"offset": [0], "factor": [1e300]}},
        {"output": "poetry"},
    ],
)
def test_cards_of_nonsense_are_refused(unet, change):
    record = json.loads(Weights.of(unet).card().dump())
    with pytest.raises(WeightsError, match="is not the card"):
        Card.load(json.dumps({**record, **change}).encode(), "a.json")
    with pytest.raises(WeightsError, match="is not the card"):
        Card.load(b"[" * 200_000, "a.json")


def test_a_card_that_says_too_short_a_reach_is_found_out(unet):
    model = Unet(unet, **EXACTLY).start()
    short = replace(model, card=replace(model.card, reach=replace(model.card.reach, halo=4)))
    (block,) = PICTURE.blocks(model)
    assert model.select_engine(block)["engine"] == "tensorflow"
    with pytest.raises(WeightsError, match="its card says 4"):
        short.select_engine(block)


def test_images_that_do_not_suit_are_refused(unet):
    model = Unet(unet).start()
    grey = check.Picture(PHOTO[..., :1], PICTURE.valid)
    with pytest.raises(ModelMismatch, match=r"has 1 band.*\[1, 1, 1\]"):
        model.select(grey.spec)
    deep = check.Picture(PHOTO.astype(np.uint16), PICTURE.valid, "rgb").spec
    centred = replace(model, card=replace(model.card, scaling=Scaling((127.5,), (1 / 255,))))
    with pytest.raises(
        ModelMismatch, match=r"pixels of uint16.* 4095 for example (\{.*\});"
    ) as info:
        centred.select(deep)
    # The example maps black and white to what they were in training.
    told = re.search(r"offset: \[(.+)\], factor: \[(.+)\]\}", str(info.value))
    assert told is not None
    example = Scaling((float(told[1]),), (float(told[2]),))
    assert example.apply(np.array([0, 4095])) == pytest.approx([-0.5, 0.5], rel=1e-5)
    with pytest.raises(ModelMismatch, match=r"pixels of float32.*\(value - offset\) \* factor"):
        model.select(check.Picture(PHOTO.astype(np.float32), PICTURE.valid, "rgb").spec)
    shown = Unet(unet, bands=(1, 1, 1), **EXACTLY).start()
    three = check.Picture(np.repeat(PHOTO[..., :1], 3, axis=2), PICTURE.valid, "rgb")
    assert np.array_equal(
        check.labelled(shown, grey, (64, 64)), check.labelled(Unet(unet, **EXACTLY).start(), three)
    )


def test_networks_without_a_card_are_made_for_8_bits(unet, tmp_path, monkeypatch):
    """Divided by 255, other pixels would be far outside of what they know."""
    (tmp_path / "plain.keras").write_bytes(Path(unet).read_bytes())
    found = replace(Weights.of(unet).card(), about={})
    monkeypatch.setattr("maskloom.segcore.segmenters.network.kept_card", lambda *_: found)
    deep = check.Picture(PHOTO.astype(np.uint16), PICTURE.valid, "rgb").spec
    model = Network(str(tmp_path / "plain.keras")).start()
    assert model.select(PICTURE.spec).channels == 3
    with pytest.raises(ModelMismatch, match=r"pixels of uint16; plain.keras .* 8 bits are assumed"):
        model.select(deep)
    told = Network(str(tmp_path / "plain.keras"), scaling=Scaling((0.0,), (1 / 4095,))).start()
    assert told.select(deep).channels == 3


def test_networks_of_colours_see_grey_pictures_and_leave_further_bands_out(unet):
    plain = Unet(unet, **EXACTLY).start()
    model = replace(plain, card=replace(plain.card, interpretation="rgb"))
    grey, valid = PHOTO[..., :1], PICTURE.valid
    three = check.Picture(np.repeat(grey, 3, axis=2), valid, "rgb")
    assert np.array_equal(
        check.labelled(model, check.Picture(grey, valid)), check.labelled(plain, three)
    )
    with_infrared = check.Picture(np.concatenate([PHOTO, grey], axis=2), valid, "rgb")
    assert np.array_equal(check.labelled(model, with_infrared), check.labelled(plain, PICTURE))
    with pytest.raises(ModelMismatch, match=r"has 4 band"):
        model.select(replace(with_infrared, interpretation="bands").spec)


def test_bands_are_those_of_the_training_unless_said_otherwise(unet):
    plain = Unet(unet, **EXACTLY).start()
    model = replace(plain, card=replace(plain.card, about={"bands": [3, 2, 1]}))
    backwards = check.Picture(PHOTO[..., ::-1].copy(), PICTURE.valid)
    assert np.array_equal(
        check.labelled(model, check.Picture(PHOTO, PICTURE.valid)), check.labelled(plain, backwards)
    )
    assert np.array_equal(
        check.labelled(replace(model, bands=(1, 2, 3)), PICTURE), check.labelled(plain, PICTURE)
    )
    with pytest.raises(ModelMismatch, match=r"trained on the bands \[4, 3, 2\]"):
        replace(plain, card=replace(plain.card, about={"bands": [4, 3, 2]})).select(PICTURE.spec)


def test_cards_travel(unet):
    card = Weights.of(unet).card()
    assert Card.load(card.dump(), "x") == card
    assert card.reach.halo is not None
    assert card.reach.stride == 4


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path):
    path = tmp_path / "weights.keras"
    path.write_bytes(b"one")
    weights = Weights.of(str(path))
    path.write_bytes(b"two")
    with pytest.raises(WeightsError, match="was changed"):
        weights.read()


def test_the_place_of_the_weights_decides_nothing(unet, tmp_path):
    for suffix in (".keras", ".json"):
        (tmp_path / f"moved{suffix}").write_bytes(Path(unet).with_suffix(suffix).read_bytes())
    assert Unet(unet).start() == Unet(str(tmp_path / "moved.keras")).start()


def test_the_pixel_size_comes_from_the_segmenter_or_else_from_the_card(unet, tmp_path):
    assert isinstance(Unet(unet).start(), NetworkModel)
    assert Unet(unet, pixel_size="0.25 um").start() == Rescaled(Unet(unet).start(), 0.25)
    packaged = Unet("nuclei").start()
    assert (packaged.pixel_size, packaged.model.card.kind) == (0.5, "unet")
    assert Unet("nuclei", pixel_size="500 nm").start() == packaged
    assert Unet("nuclei", pixel_size="any").start() == packaged.model
    for wrong in ("0.5", "fine", "0 um", "1 2 um"):
        with pytest.raises(ValueError, match=r"pixel_size: .*; or say any"):
            Unet(unet, pixel_size=wrong)


@pytest.mark.parametrize("spacing", [(0.3, 0.3), (0.9, 0.62)])
def test_resampling_for_a_network_leaves_tiling_without_effect(unet, spacing):
    model = Unet(unet, pixel_size="0.5 um", **EXACTLY).start()
    shape = PICTURE.spec.shape
    image = replace(PICTURE.spec, space=Space(metric=Metric(spacing, "um")))

    @dataclass(frozen=True, eq=False)
    class Measured(check.Picture):
        spec = image

    picture = Measured(PICTURE.pixels, PICTURE.valid)
    whole = check.labelled(model, picture)
    tiled = check.labelled(model, picture, (48, 64))
    assert whole.shape == shape
    assert np.count_nonzero((whole != tiled) & PICTURE.valid) == 0
    assert np.count_nonzero(whole != check.labelled(model.model, picture)) > 0


def test_a_card_states_the_pixel_size_that_all_training_images_share():
    def spec(*spacing: float, unit: str = "um"):
        metric = Metric(spacing, unit) if spacing else None
        return replace(PICTURE.spec, space=Space(metric=metric))

    assert common_pixel_size([spec(0.25, 0.25), spec(0.26, 0.25)]) == pytest.approx(0.25)
    assert common_pixel_size([spec(0.002, 0.002, unit="mm")]) == pytest.approx(2)
    assert common_pixel_size([spec(0.25, 0.25), spec()]) is None
    assert common_pixel_size([spec(0.25, 0.25), spec(0.5, 0.5)]) is None
    assert common_pixel_size([spec()]) is None
