"""K-means agrees with scikit-learn, finds what is there, and names it as asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from clusters_support import blobs, full
from pydantic import TypeAdapter, ValidationError
from skimage import data
from sklearn.metrics import adjusted_rand_score
from tests_support import assert_at_rest_in_scikit_learn

from maskloom.segcore.errors import FitError, ModelMismatch
from maskloom.segcore.methods.pointwise import Scores
from maskloom.segcore.segmenters.kmeans import KMeans, KMeansModel
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled


def fit(recipe: KMeans, picture: Picture, tile: tuple[int, int] | None = None) -> KMeansModel:
    model = fitted(recipe, [picture], tile)
    assert isinstance(model, KMeansModel)
    return model


CENTRES = [[30.0, 40.0, 60.0], [60.0, 180.0, 60.0], [200.0, 190.0, 90.0], [220.0, 60.0, 200.0]]

PHOTOS = {
    "few colours": data.coffee()[::6, ::6],
    "many colours": np.concatenate(
        [data.astronaut()[:300], data.astronaut()[:220, :, ::-1] // 2 + 60]
    ),
    "16 bit": data.astronaut()[::6, ::6].astype("uint16") * 250 + 7,
    "one band": data.camera()[::4, ::4, None],
    "floats": data.chelsea()[::5, ::5].astype("float32") / 255,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (name not in ("few colours", "floats")))
        for name in PHOTOS
    ],
)
def test_scikit_learn_does_not_move_our_centres_nor_beat_them(name: str) -> None:
    picture = full(PHOTOS[name])
    rows = picture.pixels.reshape(-1, picture.pixels.shape[-1]).astype(float)
    model = fit(KMeans(clusters=5), picture, (200, 300))
    centres = np.array(model.centres)
    assert_at_rest_in_scikit_learn(
        model, centres, rows, labelled(model, picture, (77, 300)).ravel()
    )


def test_many_colours_use_cells_and_still_come_to_rest() -> None:
    model = fit(KMeans(clusters=6), full(PHOTOS["many colours"]))
    assert model.values > 2**16
    assert model.exact
    rows = PHOTOS["many colours"].reshape(-1, 3)
    labels = labelled(model, full(PHOTOS["many colours"])).ravel()
    means = [rows[labels == label].mean(axis=0) for label in range(6)]
    # At rest each centre is the mean of its pixels, to the last bit but those of dividing.
    assert np.allclose(means, model.centres, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_finds_known_clusters_in_order_of_luminance(dtype: str) -> None:
    picture, truth = blobs(CENTRES, dtype)
    model = fit(KMeans(clusters=4), picture)
    luminance = np.array(CENTRES) @ [0.299, 0.587, 0.114]
    order = np.argsort(luminance)
    assert np.allclose(model.centres, np.array(CENTRES)[order], atol=0.6)
    assert np.array_equal(labelled(model, picture), np.argsort(order)[truth])
    assert model.classes == ("cluster_0", "cluster_1", "cluster_2", "cluster_3")


def test_bands_that_are_no_colours_are_ordered_by_their_mean() -> None:
    # By luminance the second would be the brighter one, by mean the first.
    picture, _ = blobs([[50.0, 20.0, 250.0], [20.0, 200.0, 20.0]])
    plain = Picture(picture.pixels, picture.valid, "bands")
    assert fit(KMeans(clusters=2), picture).centres[0][2] > 200
    assert fit(KMeans(clusters=2), plain).centres[0][2] < 50


@pytest.mark.parametrize("number", [2, 3, 4])
def test_auto_finds_the_clear_number(number: int) -> None:
    picture, truth = blobs(CENTRES[:number])
    model = fit(KMeans(clusters="auto"), picture)
    assert model.provenance()["clusters"] == number
    assert adjusted_rand_score(truth.ravel(), labelled(model, picture).ravel()) == 1


def test_references_give_names_and_their_order() -> None:
    picture, truth = blobs(CENTRES[:3])
    recipe = KMeans(classes={"sand": "#c8be5a", "water": (20.0, 50.0, 70.0), "wood": "#30a030"})
    model = fit(recipe, picture)
    assert model.classes == ("sand", "water", "wood")
    assert np.array_equal(labelled(model, picture), np.array([1, 2, 0])[truth])
    with pytest.raises(FitError, match="3 numbers each, the images 1"):
        fit(recipe, full(data.camera()[..., None]))


def test_names_alone_follow_the_luminance() -> None:
    picture, _ = blobs(CENTRES[:3])
    assert fit(KMeans(classes=("dark", "middle", "light")), picture).classes == (
        "dark",
        "middle",
        "light",
    )


def test_bands_are_chosen_by_fitter_and_model() -> None:
    picture, _ = blobs(CENTRES)
    model = fit(KMeans(clusters=3, bands=(3, 1)), picture)
    alone = fit(KMeans(clusters=3), full(picture.pixels[..., [2, 0]], "bands"))
    assert model.centres == alone.centres
    assert model.select(picture.spec).bands == (3, 1)
    with pytest.raises(ModelMismatch, match="fitted on 3 band"):
        fit(KMeans(clusters=3), picture).select(full(data.camera()[..., None]).spec)


def test_too_few_values_say_what_to_do() -> None:
    with pytest.raises(FitError, match=r"3 clusters.*have 1\. Ask for fewer"):
        fit(KMeans(clusters=3), full(np.zeros((9, 9, 3), "uint8")))


def test_seed_decides_and_nothing_else() -> None:
    picture = full(PHOTOS["16 bit"])
    assert fit(KMeans(seed=3), picture) == fit(KMeans(seed=3), picture, (31, 64))


@pytest.mark.parametrize("kind", ["memo", "table", "direct"])
def test_every_way_of_labelling_agrees(kind: str) -> None:
    generator = np.random.default_rng(0)
    channels, dtype = {"memo": (3, "uint8"), "table": (2, "int8"), "direct": (4, "uint16")}[kind]
    limits = np.iinfo(dtype)
    pixels = generator.integers(limits.min, limits.max, (300, 301, channels)).astype(dtype)
    factors = tuple(
        tuple(map(tuple, np.tril(generator.standard_normal((channels, channels))).tolist()))
        for _ in range(6)
    )
    means = tuple(map(tuple, pixels[0, :6].astype(float).tolist()))
    scores = Scores(tuple(generator.standard_normal(6).tolist()), means, factors)
    labels = scores.label(pixels)
    assert np.array_equal(labels.ravel(), scores.evaluate(pixels.reshape(-1, channels)))
    assert np.array_equal(labels[:7, 5:9], scores.label(pixels[:7, 5:9]))
    difference = pixels.reshape(-1, 1, channels) - np.array(means)
    plain = np.array(scores.constants) - 0.5 * (
        np.einsum("kij,nkj->nki", np.array(factors), difference) ** 2
    ).sum(axis=2)
    assert np.array_equal(labels.ravel(), plain.argmax(axis=1))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"clusters": 1}, "clusters"),
        ({"clusters": 3, "classes": ["a", "b"]}, "classes"),
        ({"clusters": "auto", "classes": ["a", "b"]}, "clusters"),
        ({"classes": {"a": "#12345", "b": "#000000"}}, "classes"),
        ({"classes": {"a": [1, 2], "b": [1]}}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"bands": [0, 1]}, "bands"),
        ({"bands": [2, 2]}, "bands"),
        ({"seed": -1}, "seed"),
        ({"max_clusters": 1}, "max_clusters"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(KMeans).validate_python(parameters)


def test_right_parameters_from_a_file() -> None:
    recipe = TypeAdapter(KMeans).validate_python(
        {"classes": {"water": [1, 2, 3], "land": "#ffffff"}, "bands": [1, 2, 3]}
    )
    assert recipe.classes == {"water": (1.0, 2.0, 3.0), "land": "#ffffff"}
    assert TypeAdapter(KMeans).validate_python({"classes": ["a", "b"]}) == KMeans(
        classes=("a", "b")
    )


def test_a_name_given_twice_merges_clusters() -> None:
    picture = full(data.astronaut()[::4, ::4])
    names = ("shade", "skin", "shade", "white")
    apart, merged = (fit(KMeans(classes=each), picture) for each in (tuple("abcd"), names))
    assert KMeans(classes=names).expected_classes == merged.classes == ("shade", "skin", "white")
    assert merged.centres == apart.centres
    expected = np.array([0, 1, 0, 2])[labelled(apart, picture)]
    assert np.array_equal(labelled(merged, picture), expected)
    assert merged.provenance()["class_of"] == [0, 1, 0, 2]


def test_one_name_for_all_clusters_is_refused() -> None:
    with pytest.raises(ValueError, match="all 3 clusters are called 'a'"):
        KMeans(classes=("a", "a", "a"))
