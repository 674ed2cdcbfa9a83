"""Connected parts take the classes of any segmenter apart: fitted as that one is, and the same
objects for any tiling.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage import data, measure

from maskloom.segcore.errors import FitError, ModelMismatch, RecipeError
from maskloom.segcore.models.composed import Composed
from maskloom.segcore.models.protocols import Fitter, ObjectSegmenter
from maskloom.segcore.segmenters.connected_parts import ConnectedParts, ConnectedPartsModel
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing import segmenters as check


def picture(pixels: np.ndarray, holes: bool = True) -> check.Picture:
    valid = np.ones(pixels.shape[:2], bool)
    if holes:
        valid[20:60, 30:80] = False
    return check.Picture(pixels, valid, "rgb" if pixels.shape[-1] == 3 else "bands")


PHOTO = picture(data.astronaut()[60:180, 190:330])
COINS = picture(data.coins()[..., None], holes=False)

RECIPES = [
    ConnectedParts(Threshold(value=100)),
    ConnectedParts(Threshold(), parts=("background",), connectivity=4),
    ConnectedParts(KMeans(clusters=3), min_size=9),
    ConnectedParts(
        KMeans(clusters=4), parts=("cluster_3", "cluster_1"), min_size=4, fill_holes=True
    ),
    ConnectedParts(MixtureOfGaussians(components=2), connectivity=4, fill_holes=True),
    ConnectedParts(Threshold(method="li"), fill_holes=True),
    ConnectedParts(KMeans(clusters=3), largest=2, fill_holes=True),
]
any_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=str)


@any_recipe
def test_the_contract_of_segmenters_holds(recipe: ConnectedParts) -> None:
    assert isinstance(recipe.start(), Fitter | ObjectSegmenter)
    check.check_values(recipe, PHOTO)
    check.check_labels(recipe, PHOTO)
    check.check_tiling(recipe, PHOTO, (32, 47))
    check.check_tiling(recipe, PHOTO, (7, 160))
    check.check_merging(recipe, PHOTO, (48, 64))


@any_recipe
def test_memory_stays_within_the_footprint(recipe: ConnectedParts) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 700, 3)).astype(np.uint8)
    check.check_memory(recipe, picture(pixels), slack=2**25)


def model_of(recipe: ConnectedParts, image: check.Picture) -> ConnectedPartsModel:
    model = check.fitted(recipe, [image])
    assert isinstance(model, ConnectedPartsModel)
    return model


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("fill", [False, True])
def test_parts_of_a_threshold_are_those_of_scipy(connectivity: int, fill: bool) -> None:
    recipe = ConnectedParts(Threshold(), connectivity=connectivity, fill_holes=fill)
    structure = ndimage.generate_binary_structure(2, connectivity // 4)
    mask = check.labelled(check.fitted(recipe.of, [COINS]), COINS) == 1
    if fill:
        filled = ndimage.binary_fill_holes(
            mask, ndimage.generate_binary_structure(2, 3 - connectivity // 4)
        )
        assert filled.sum() > mask.sum()
        mask = filled
    ids, classes = check.object_mask(model_of(recipe, COINS), COINS, (64, 64))
    assert np.array_equal(ids, ndimage.label(mask, structure)[0])
    assert np.array_equal(classes, mask)


def test_the_fit_is_that_of_the_inner_segmenter() -> None:
    recipe = ConnectedParts(KMeans(clusters=3))
    fitter = recipe.start()
    assert isinstance(fitter, Composed)
    assert fitter.expected_classes == ("background", "cluster_0", "cluster_1", "cluster_2")
    assert fitter.kind_of(PHOTO.spec) == recipe.of.kind_of(PHOTO.spec)
    assert fitter.requirements == recipe.of.requirements
    model = model_of(recipe, PHOTO)
    assert model.inner == check.fitted(recipe.of, [PHOTO])
    assert model.provenance()["of"]["centres"] == model.inner.provenance()["centres"]
    assert model.exactness is model.inner.exactness
    assert model.requirements.bytes_per_pixel > model.inner.requirements.bytes_per_pixel
    floats = picture(PHOTO.pixels.astype(np.float32) / 7)
    assert model_of(ConnectedParts(Threshold()), floats).inner == check.fitted(
        Threshold(), [floats]
    )


def test_a_number_of_classes_that_is_found_is_not_expected() -> None:
    fitter = ConnectedParts(KMeans(clusters="auto", max_clusters=3)).start()
    assert isinstance(fitter, Composed)
    assert fitter.expected_classes == ()


@pytest.mark.parametrize(
    ("names", "parts", "expected"),
    [
        (("background", "foreground"), None, ("background", "foreground")),
        (("water", "land"), None, ("background", "water", "land")),
        (("land", "Other"), None, ("Other", "land")),
        (("water", "land"), ("land",), ("background", "land")),
        (("background", "foreground"), ("background",), ("other", "background")),
        (
            ("background", "foreground"),
            ("foreground", "background"),
            ("other", "background", "foreground"),
        ),
    ],
)
def test_class_0_is_background(
    names: tuple[str, ...], parts: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    recipe = ConnectedParts(Threshold(value=100, classes=names), parts=parts)
    model = model_of(recipe, PHOTO)
    assert model.classes == expected
    assert recipe.classes_around(names) == expected
    ids, classes = check.object_mask(model, PHOTO, (50, 50))
    inner = check.labelled(model.inner, PHOTO)
    for number, name in enumerate(expected[1:], 1):
        assert np.array_equal(classes == number, (inner == names.index(name)) & PHOTO.valid)
    assert np.array_equal(ids == 0, classes == 0)
    wanted = measure.label(np.where(classes > 0, classes.astype(int), 0), connectivity=2)
    assert (
        len({*zip(ids.ravel().tolist(), wanted.ravel().tolist(), strict=True)})
        == ids.max() + 1
        == wanted.max() + 1
    )


def test_the_largest_parts_of_each_class_are_kept() -> None:
    every, _ = check.object_mask(model_of(ConnectedParts(Threshold()), COINS), COINS)
    model = model_of(ConnectedParts(Threshold(), largest=5), COINS)
    few, _ = check.object_mask(model, COINS, (50, 60))
    sizes = np.bincount(every.ravel())
    sizes[0] = 0
    assert np.array_equal(few > 0, np.isin(every, np.argsort(sizes)[-5:]))
    assert model.provenance()["largest"] == 5
    with pytest.raises(ValueError, match="largest: expected a number of parts from 1 on"):
        ConnectedParts(Threshold(), largest=0)


def test_small_parts_are_background() -> None:
    recipe = ConnectedParts(Threshold())
    every, _ = check.object_mask(model_of(recipe, COINS), COINS)
    large, _ = check.object_mask(model_of(replace(recipe, min_size=200), COINS), COINS, (50, 60))
    sizes = np.bincount(every.ravel())
    assert np.array_equal(large > 0, (every > 0) & (sizes[every] >= 200))
    assert 0 < large.max() < every.max()


def test_no_valid_pixel_gives_no_object() -> None:
    empty = check.Picture(PHOTO.pixels, np.zeros(PHOTO.valid.shape, bool), "rgb")
    model = model_of(ConnectedParts(Threshold(value=3), fill_holes=True), PHOTO)
    assert not check.object_mask(model, empty, (32, 32))[0].any()
    fitted = model_of(ConnectedParts(Threshold()), empty)
    assert fitted.classes == ("background", "foreground")
    assert not check.object_mask(fitted, empty, (32, 32))[0].any()
    with pytest.raises(ModelMismatch, match="has valid pixels"):
        check.object_mask(fitted, PHOTO)


def test_a_class_that_auto_did_not_find_is_a_fault_of_the_image() -> None:
    recipe = ConnectedParts(
        KMeans(clusters="auto", max_clusters=3), parts=("cluster_2", "cluster_7")
    )
    with pytest.raises(FitError, match="no class 'cluster_7'"):
        model_of(recipe, PHOTO)


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_pixel_and_of_one_value(value: int) -> None:
    for shape in ((1, 1), (30, 20)):
        flat = picture(np.full((*shape, 1), value, np.uint8), holes=False)
        ids, _ = check.object_mask(model_of(ConnectedParts(Threshold(value=9)), flat), flat, (7, 8))
        assert np.array_equal(ids, np.full(shape, value > 9))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"connectivity": 5}, "connectivity"),
        ({"min_size": 0}, "min_size"),
        ({"parts": ()}, "parts"),
        ({"parts": ("a", "a")}, "twice"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ConnectedParts(Threshold(), **parameters)


def test_names_that_do_not_suit_are_found_before_any_work() -> None:
    for of in (Threshold(), Threshold(value=3)):
        with pytest.raises(
            RecipeError, match=r"no class 'water'. Its classes: background, foreground"
        ):
            ConnectedParts(of, parts=("water",)).start()
    with pytest.raises(RecipeError, match="mean background"):
        ConnectedParts(Threshold(value=3, classes=("void", "other"))).start()


def test_objects_are_not_taken_apart_again() -> None:
    for of in (Threshold(), Threshold(value=3)):
        inner = ConnectedParts(of)
        with pytest.raises(RecipeError, match="got one that finds objects") as raised:
            ConnectedParts(inner).start()
        # A class of Python is no name for users.
        assert "ConnectedParts" not in str(raised.value)


def test_an_image_that_does_not_suit_the_inner_segmenter_is_refused() -> None:
    model = model_of(ConnectedParts(KMeans(clusters=3)), PHOTO)
    with pytest.raises(ModelMismatch, match="fitted on 3 band"):
        model.select(COINS.spec)
