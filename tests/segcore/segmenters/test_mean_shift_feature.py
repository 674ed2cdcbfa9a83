"""Mean shift in feature space holds the contract, finds what is there, names it as asked, and
labels fast ways and slow alike.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters_support import blobs, full
from PIL import Image
from skimage import data

from maskloom.segcore.errors import FitError, ModelMismatch
from maskloom.segcore.methods.modes import LEAST_SHARE, FeatureMeanShift, ModesModel, _packed
from maskloom.segcore.methods.samples import SAMPLE_SIZE
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled


def fit(picture: Picture, tile: tuple[int, int] | None = None, **parameters: Any) -> ModesModel:
    model = fitted(FeatureMeanShift(**parameters), [picture], tile)
    assert isinstance(model, ModesModel)
    return model


CENTRES = [[30.0, 40.0, 60.0], [60.0, 180.0, 60.0], [200.0, 190.0, 90.0], [220.0, 60.0, 200.0]]


def photo(dtype: str, channels: int) -> Picture:
    """A photograph in another type and with another number of channels, a part of it without
    data.
    """
    source = data.astronaut()[60:140, 190:290]
    bands = np.concatenate([source, source[::-1]], axis=-1)[..., :channels]
    pixels = bands.astype(dtype) * (257 if dtype == "uint16" else 1)
    valid = np.ones(source.shape[:2], bool)
    valid[20:60, 30:80] = False
    if np.dtype(dtype).kind == "f":
        pixels = pixels / 255
        pixels[20:60, 30:80] = np.nan
    return Picture(pixels.astype(dtype), valid, "rgb" if channels == 3 else "bands")


# ---- contract
# --------------------------------------------------------------------------------------------------

VARIANTS = [
    FeatureMeanShift(),
    FeatureMeanShift(bandwidth=25.0, bands=(3, 1)),
    FeatureMeanShift(kernel="epanechnikov"),
    FeatureMeanShift(kernel="gaussian", seed=4),
]


@pytest.mark.parametrize(
    "recipe",
    [VARIANTS[0], *(pytest.param(each, marks=pytest.mark.nightly) for each in VARIANTS[1:])],
    ids=str,
)
def test_contract(recipe: FeatureMeanShift) -> None:
    picture = photo("uint8", 3)
    check.check_tiling(recipe, picture, (17, 129))
    check.check_merging(recipe, picture, (48, 64))
    check.check_values(recipe, picture)
    check.check_labels(recipe, picture)


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [("uint8", 1), ("int16", 1), ("uint16", 3), ("float32", 1), ("float64", 4)],
)
def test_any_type_of_pixel(dtype: str, channels: int) -> None:
    picture = photo(dtype, channels)
    check.check_tiling(FeatureMeanShift(), picture, (50, 70))
    check.check_merging(FeatureMeanShift(), picture, (50, 70))
    check.check_labels(FeatureMeanShift(), picture)


@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 3), ("uint8", 1), ("uint16", 3), ("float64", 3)]
)
def test_memory_stays_within_the_footprint(dtype: str, channels: int) -> None:
    small = photo(dtype, channels)
    large = Picture(
        np.tile(small.pixels, (12, 10, 1)), np.tile(small.valid, (12, 10)), small.interpretation
    )
    check.check_memory(FeatureMeanShift(), large, slack=SAMPLE_SIZE * (3 * 8 + 3 * 8))


# ---- relations
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "photos",
    [
        (data.coffee()[:396:9, ::9], data.coffee()[4::9, 4::9]),
        (data.coffee()[::2, ::2], data.coffee()[::-2, ::2] // 2),
    ],
)
def test_a_collection_is_its_pictures_side_by_side(photos: tuple[np.ndarray, np.ndarray]) -> None:
    together = fitted(FeatureMeanShift(), [full(one) for one in photos], (200, 150))
    assert together == fit(full(np.concatenate(photos, axis=1)))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_order_of_pixels_does_not_matter(dtype: str) -> None:
    photo = data.astronaut()[::3, ::3].astype(dtype)
    shuffled = np.random.default_rng(0).permutation(photo.reshape(-1, 3)).reshape(photo.shape)
    assert fit(full(photo)) == fit(full(shuffled))


@pytest.mark.parametrize("step", [3, 10])
@pytest.mark.parametrize("kernel", ["flat", "gaussian"])
def test_doubled_values_and_bandwidth_double_the_modes(step: int, kernel: Any) -> None:
    single = full(data.coffee()[::step, ::step].astype("float32"))
    double = full(single.pixels * 2)
    one, other = (
        fit(single, kernel=kernel, bandwidth=18.0),
        fit(double, kernel=kernel, bandwidth=36.0),
    )
    assert np.array_equal(2 * np.array(one.modes), np.array(other.modes))
    assert one.fractions == other.fractions
    assert np.array_equal(labelled(one, single), labelled(other, double))


def test_counted_and_drawn_pixels_say_the_same() -> None:
    picture = full(data.coffee()[::3, ::3])
    counted, drawn = (
        fit(picture, bandwidth=20.0),
        fit(full(picture.pixels.astype("float64")), bandwidth=20.0),
    )
    assert np.allclose(counted.modes, drawn.modes, rtol=1e-9)
    assert counted.values == drawn.values
    assert np.array_equal(labelled(counted, picture), labelled(drawn, picture))


# ---- what is found
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["flat", "epanechnikov", "gaussian"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_finds_known_clusters_in_order_of_luminance(dtype: str, kernel: Any) -> None:
    picture, truth = blobs(CENTRES, dtype)
    model = fit(picture, kernel=kernel, bandwidth=10.0 if kernel == "gaussian" else 25.0)
    luminance = np.array(CENTRES) @ [0.299, 0.587, 0.114]
    order = np.argsort(luminance)
    assert np.allclose(model.modes, np.array(CENTRES)[order], atol=1)
    assert np.array_equal(labelled(model, picture), np.argsort(order)[truth])
    assert model.classes == ("cluster_0", "cluster_1", "cluster_2", "cluster_3")


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        pytest.param(name, kernel, marks=[pytest.mark.nightly] * (i % 4 > 0))
        for i, (name, kernel) in enumerate(
            itertools.product(
                ("astronaut", "coffee", "chelsea", "camera"), ("flat", "epanechnikov", "gaussian")
            )
        )
    ],
)
def test_photographs_get_a_useful_number_of_classes(name: str, kernel: Any) -> None:
    pixels = getattr(data, name)()[::2, ::2]
    picture = full(pixels if pixels.ndim == 3 else pixels[..., None])
    model = fit(picture, kernel=kernel)
    assert 3 <= len(model.modes) <= 20
    assert model.orphans < 0.03
    assert model.exact
    assert len(dump_model(model)) < 100_000
    shares = (
        np.bincount(labelled(model, picture).ravel(), minlength=len(model.modes))
        / picture.valid.size
    )
    assert model.fractions == pytest.approx(shares, abs=1e-12)


def test_a_basin_goes_along_its_ridge_where_the_nearest_mode_is_another() -> None:
    # A long ridge that rises to its right end, and a separate peak close to its left end.
    values = np.repeat(np.arange(0, 200, dtype="uint8"), np.arange(1, 201))
    beside = np.full(3000, 20, "uint8")
    pixels = np.concatenate(
        [
            np.stack([values, np.full_like(values, 10)], -1),
            np.stack([beside, np.full_like(beside, 60)], -1),
        ]
    )
    picture = full(pixels[:, None], "bands")
    # (Windows with an edge rest where they gain and lose no value in a step: on whole numbers all
    # along such a ridge.)
    model = fit(picture, kernel="gaussian", bandwidth=8.0)
    labels = labelled(model, picture).ravel()
    assert len(model.modes) == 2
    assert len(np.unique(labels[: values.size])) == 1
    assert labels[0] != labels[-1]


def test_noise_goes_to_the_nearest_mode_and_rare_classes_stay() -> None:
    pixels = np.full((100, 100, 3), 40, "uint8")
    pixels[50:] = 200
    pixels[0, :9] = (40, 40, 250)
    assert 9 < LEAST_SHARE * 10_000 <= 10
    model = fit(full(pixels), bandwidth=20.0)
    assert model.modes == ((40.0,) * 3, (200.0,) * 3)
    assert model.orphans == pytest.approx(0.0009)
    assert not labelled(model, full(pixels))[:50].any()
    pixels[0, 9] = (40, 40, 250)
    assert fit(full(pixels), bandwidth=20.0).modes[1] == (40.0, 40.0, 250.0)


def test_unseen_values_go_to_the_nearest_mode() -> None:
    picture, _ = blobs(CENTRES)
    model = fit(picture, bandwidth=25.0)
    unseen = np.random.default_rng(2).integers(0, 256, (40, 40, 3)).astype("uint8")
    seen = {tuple(row) for row in picture.pixels.reshape(-1, 3).tolist()}
    new = np.array([tuple(row) not in seen for row in unseen.reshape(-1, 3).tolist()])
    assert new.mean() > 0.9
    expected = np.linalg.norm(unseen.reshape(-1, 1, 3) - np.array(model.modes), axis=2).argmin(
        axis=1
    )
    assert np.array_equal(labelled(model, full(unseen)).ravel()[new], expected[new])
    wide = full(
        np.array([[[-1e30, 0, 0], [1e30, 1e30, 1e30], [np.nan, np.inf, -np.inf]]], "float32")
    )
    assert labelled(model, wide).max() < 4


@pytest.mark.parametrize(
    ("channels", "dtype"), [(3, "uint8"), (2, "int8"), (1, "uint16"), (3, "bool"), (1, "float16")]
)
def test_every_way_of_labelling_agrees(channels: int, dtype: str) -> None:
    generator = np.random.default_rng(0)
    pixels = (generator.standard_normal((260, 270, channels)) * 5 + 10).round() * 4
    picture = full(pixels > 45 if dtype == "bool" else pixels.clip(0, 127).astype(dtype), "bands")
    model = fit(picture, bandwidth=0.5 if dtype == "bool" else 14.0)
    labels = labelled(model, picture)
    assert len(np.unique(labels)) == len(model.modes)
    rows = picture.pixels.reshape(-1, channels).astype(float)
    assert np.array_equal(labels.ravel(), model.label(rows))
    assert np.array_equal(labels, labelled(model, picture, (7, 100)))


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
@pytest.mark.parametrize(
    "name", ["nuc_000_brightfield_grey", "nuc_002_fluo", "nuc_024_fluo", "nuc_051_purple_purple"]
)
def test_images_of_nuclei_get_a_useful_number_of_classes(name: str) -> None:
    path = Path(os.environ["MASKLOOM_TEST_DATA"], "dsb2018", "images", f"{name}.png")
    model = fit(full(np.asarray(Image.open(path).convert("RGB"))))
    assert 3 <= len(model.modes) <= 12
    assert "note" not in model.provenance()


def test_a_note_tells_where_auto_does_not_suit() -> None:
    generator = np.random.default_rng(3)
    one = full((1000 * generator.gamma(4.0, size=(200, 200, 1))).astype("uint16"), "bands")
    model = fit(one)
    assert len(model.modes) == 1
    assert "auto` chose" in model.provenance()["note"]
    assert "one class alone" in model.provenance()["note"]
    assert load_model(dump_model(model)).provenance() == model.provenance()
    assert "note" not in fit(one, bandwidth=model.bandwidth).provenance()
    levels = full(np.tile(np.arange(0, 240, 4, dtype="uint8"), (60, 1))[..., None], "bands")
    many = fit(levels, bandwidth=1.0)
    assert len(many.modes) == 60
    assert "note" not in many.provenance()
    assert "60 classes" in replace(many, chosen=True).provenance()["note"]
    assert "note" not in fit(blobs(CENTRES)[0]).provenance()


# ---- trivial and bad input
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [np.full((9, 7, 3), 12, "uint8"), np.full((5, 5, 2), 0.3), np.zeros((1, 1, 1), "int16")],
)
@pytest.mark.parametrize("kernel", ["flat", "epanechnikov", "gaussian"])
@pytest.mark.parametrize("bandwidth", [None, 0.01, 1e9])
def test_one_colour_is_one_class(pixels: np.ndarray, kernel: Any, bandwidth: float | None) -> None:
    model = fit(full(pixels, "bands"), kernel=kernel, bandwidth=bandwidth)
    assert model.modes == pytest.approx(np.array([pixels[0, 0]], float))
    assert model.fractions == (1.0,)
    assert not labelled(model, full(pixels, "bands")).any()


def test_nan_takes_no_part() -> None:
    picture = photo("float32", 3)
    assert np.isnan(picture.pixels).any()
    model = fit(picture)
    assert np.isfinite(model.modes).all()
    # Without a mask too.
    assert fit(full(picture.pixels)).modes == model.modes


def test_an_image_without_valid_pixels_cannot_be_fitted() -> None:
    with pytest.raises(FitError, match="valid pixels"):
        fit(Picture(np.zeros((4, 4, 3), "uint8"), np.zeros((4, 4), bool)))


def test_any_number_of_stray_values_is_noise() -> None:
    # 5,000 colours far from one another, one pixel each, around one that most pixels have.
    stray = np.random.default_rng(0).permutation(
        np.stack(np.meshgrid(*[np.arange(0, 255, 12)] * 3), -1).reshape(-1, 3)
    )[:5000]
    pixels = np.full((120, 120, 3), 6, "uint8")
    pixels.reshape(-1, 3)[:5000] = stray
    model = fit(full(pixels), kernel="flat", bandwidth=5.0)
    assert model.modes == ((6.0, 6.0, 6.0),)
    assert model.orphans == pytest.approx(5000 / 14_400)


def test_too_many_modes_say_what_to_do() -> None:
    noise = full(np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype("uint8"))
    for bandwidth in (6.0, 0.5):
        with pytest.raises(FitError, match=r"bandwidth.*Raise `bandwidth`"):
            fit(noise, bandwidth=bandwidth)
    levels = full(np.tile(np.arange(256, dtype="uint8"), (256, 1))[..., None])
    with pytest.raises(FitError, match=r"256 modes.*at most 250"):
        fit(levels, bandwidth=0.5)
    assert len(fit(full(levels.pixels[:, :250]), bandwidth=0.5).modes) == 250


def test_names_must_be_as_many_as_modes() -> None:
    picture, truth = blobs(CENTRES[:3])
    with pytest.raises(FitError, match=r"2 names.*found 3 modes.*raise `bandwidth`"):
        fit(picture, bandwidth=25.0, classes=("a", "b"))
    with pytest.raises(FitError, match=r"4 names.*found 3 modes.*lower `bandwidth`"):
        fit(picture, bandwidth=25.0, classes=("a", "b", "c", "d"))
    assert fit(picture, bandwidth=25.0, classes=("dark", "middle", "light")).classes == (
        "dark",
        "middle",
        "light",
    )
    references = {"sand": "#c8be5a", "water": (20.0, 50.0, 70.0), "wood": "#30a030"}
    model = fit(picture, bandwidth=25.0, classes=references)
    assert (
        model.classes
        == FeatureMeanShift(classes=references).expected_classes
        == ("sand", "water", "wood")
    )
    assert np.array_equal(labelled(model, picture), np.array([1, 2, 0])[truth])
    assert FeatureMeanShift().expected_classes == ()


def test_bands_are_chosen_by_fitter_and_model() -> None:
    picture, _ = blobs(CENTRES)
    model = fit(picture, bandwidth=25.0, bands=(3, 1))
    assert model.modes == fit(full(picture.pixels[..., [2, 0]], "bands"), bandwidth=25.0).modes
    assert model.select(picture.spec).bands == (3, 1)
    with pytest.raises(ModelMismatch, match="fitted on 3 band"):
        fit(picture).select(full(data.camera()[..., None]).spec)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"kernel": "round"}, "kernel"),
        *(({"bandwidth": value}, "bandwidth") for value in (0.0, -1.0, math.nan, math.inf)),
        ({"classes": ()}, "classes"),
        ({"classes": ("a", "a")}, "classes"),
        ({"classes": {"a": "#12345"}}, "classes"),
        ({"bands": (0, 1)}, "bands"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        FeatureMeanShift(**parameters)


# ---- the model as a file
# -------------------------------------------------------------------------------------------


def test_a_model_comes_back_from_its_file() -> None:
    picture = full(data.coffee()[::2, ::2])
    model = fit(picture)
    again = load_model(dump_model(model))
    assert again == model
    assert np.array_equal(labelled(again, picture), labelled(model, picture))
    told = json.loads(json.dumps(dict(model.provenance()), allow_nan=False))
    assert told["clusters"] == len(told["modes"]) == len(told["fractions"])
    assert told["pixels"] == picture.valid.size
    assert told["bandwidth"] == model.bandwidth
    assert told["exact"] is True


def test_the_largest_model_file_stays_small() -> None:
    # As many cells as there may be, with keys and classes that cannot be compressed.
    generator = np.random.default_rng(0)
    keys, kinds = (
        generator.integers(0, 2**63, 2**17, np.uint64),
        generator.integers(0, 250, 2**17).astype(np.uint8),
    )
    assert len(_packed(keys)) + len(_packed(kinds)) < 1_700_000
