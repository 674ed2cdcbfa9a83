"""Units of the bands decide nothing where a method promises it: x -> a x + b, with a > 0, changes
no label.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from skimage.filters import threshold_li, threshold_multiotsu, threshold_otsu, threshold_triangle
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler
from tests_support import assert_at_rest_in_scikit_learn

from maskloom.segcore.errors import FitError
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.segmenters.kmeans import KMeans, KMeansModel
from maskloom.segcore.segmenters.mean_shift import MeanShift
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled


def full(pixels: np.ndarray, interpretation: Any = "bands") -> Picture:
    return Picture(np.ascontiguousarray(pixels), np.ones(pixels.shape[:2], bool), interpretation)


def labels_of(
    recipe: Any,
    pixels: np.ndarray,
    interpretation: Any = "bands",
    tile: tuple[int, int] | None = None,
) -> np.ndarray:
    picture = full(pixels, interpretation)
    return labelled(fitted(recipe, [picture], tile), picture, tile)


def two_classes(scales: list[tuple[float, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """A picture of float32 bands, each (value of the darker class, of the brighter, noise), and its
    classes.
    """
    truth = np.zeros((40, 60), np.uint8)
    truth[:16, :40] = 1
    noise = np.random.default_rng(0).standard_normal((40, 60, len(scales)))
    bands = [
        low + (high - low) * truth + spread * noise[..., i]
        for i, (low, high, spread) in enumerate(scales)
    ]
    return np.stack(bands, axis=-1).astype("float32"), truth


SMALL = [(0.0005, 0.0015, 0.0001)] * 3
MIXED = [(3000.0, 3000.0, 300.0), (0.0005, 0.0015, 0.0001)]


@pytest.mark.parametrize(
    ("scales", "covariance"),
    # Spheres cannot tell a class that one band alone shows, in scikit-learn neither.
    [
        *((SMALL, covariance) for covariance in ("full", "tied", "diag", "spherical")),
        (MIXED, "full"),
        (MIXED, "diag"),
    ],
)
def test_a_mixture_finds_classes_of_small_and_of_mixed_units(
    scales: list[Any], covariance: Any
) -> None:
    pixels, truth = two_classes(scales)
    assert np.array_equal(
        labels_of(MixtureOfGaussians(components=2, covariance=covariance), pixels), truth
    )
    rows = StandardScaler().fit_transform(pixels.reshape(-1, pixels.shape[-1]).astype(float))
    reference = GaussianMixture(2, covariance_type=covariance, means_init=[rows[-1], rows[0]]).fit(
        rows
    )
    assert np.array_equal(reference.predict(rows), truth.ravel())


def test_auto_counts_components_in_any_units() -> None:
    for scales in (SMALL, MIXED):
        pixels, truth = two_classes(scales)
        assert np.array_equal(
            labels_of(MixtureOfGaussians(components="auto", max_components=4), pixels), truth
        )


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
@pytest.mark.parametrize("name", ["small_values_3band", "mixed_scales_2band"])
def test_the_reported_images_have_978_bright_pixels(name: str) -> None:
    with rasterio.open(Path(os.environ["MASKLOOM_TEST_DATA"], "reports", f"{name}.tif")) as file:
        pixels = np.moveaxis(file.read(), 0, -1)
    for recipe in (MixtureOfGaussians(components=2), KMeans(clusters=2, standardise=True)):
        assert np.count_nonzero(labels_of(recipe, pixels)) == 978


def test_kmeans_on_mixed_units_tells_and_standardises() -> None:
    pixels, truth = two_classes(MIXED)
    (picture, band_1, band_2) = (full(part) for part in (pixels, pixels[..., :1], pixels[..., 1:]))
    plain = fitted(KMeans(clusters=2), [picture])
    assert np.array_equal(labelled(plain, picture), labels_of(KMeans(clusters=2), band_1.pixels))
    assert "band 2 (0.000" in plain.provenance()["note"]
    assert "beside band 1 (3" in plain.provenance()["note"]
    chosen = fitted(KMeans(clusters=2, bands=(2, 1)), [picture]).provenance()["note"]
    assert "band 2 (0.000" in chosen
    wanted = fitted(KMeans(clusters=2, standardise=True), [picture])
    assert np.array_equal(labelled(wanted, picture), truth)
    for model in (
        wanted,
        fitted(KMeans(clusters=2), [band_2]),
        fitted(KMeans(clusters=2), [full(data.coffee()[::8, ::8], "rgb")]),
    ):
        assert "note" not in model.provenance()
    assert "band 2 (0.000" in fitted(MeanShift(), [picture]).provenance()["note"]
    assert "note" not in fitted(MeanShift(standardise=True), [picture]).provenance()


PHOTOS = {
    "few colours": data.coffee()[::6, ::6],
    "many colours": np.concatenate(
        [data.astronaut()[:300], data.astronaut()[:220, :, ::-1] // 2 + 60]
    ),
    "16 bit": data.astronaut()[::6, ::6].astype("uint16") * np.array([1, 20, 250], "uint16"),
    "floats": data.chelsea()[::5, ::5].astype("float32") * np.array([1e-4, 1, 1e4], "float32"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (name not in ("16 bit", "floats")))
        for name in PHOTOS
    ],
)
def test_standardised_kmeans_is_scikit_learn_on_standardised_bands(name: str) -> None:
    picture = full(PHOTOS[name], "rgb")
    scaler = StandardScaler()
    rows = scaler.fit_transform(picture.pixels.reshape(-1, 3).astype(float))
    model = fitted(KMeans(clusters=5, standardise=True), [picture], (200, 300))
    assert isinstance(model, KMeansModel)
    centres = scaler.transform(np.array(model.centres))
    assert_at_rest_in_scikit_learn(
        model, centres, rows, labelled(model, picture, (77, 300)).ravel()
    )
    assert model.deviations == pytest.approx(scaler.scale_, rel=1e-12)


# ---- x -> a x + b
# --------------------------------------------------------------------------------------------------


@st.composite
def clouds(draw: st.DrawFn, bands: tuple[int, int] = (1, 3)) -> np.ndarray:
    """A picture of overlapping clouds, float64."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.integers(*bands))
    centres = random.normal(0, 4, (draw(st.integers(2, 4)), channels))
    return centres[random.integers(0, len(centres), (24, 31))] + random.standard_normal(
        (24, 31, channels)
    )


factor = st.floats(-9, 9).map(lambda exponent: 10.0**exponent)
shift = st.floats(-100, 100)

BY_BAND = [
    MixtureOfGaussians(components=3),
    MixtureOfGaussians(components=2, covariance="spherical"),
    MixtureOfGaussians(components="auto", max_components=4, covariance="diag"),
    KMeans(clusters=3, standardise=True),
    KMeans(clusters="auto", max_clusters=4, standardise=True),
    MeanShift(standardise=True),
]
ALIKE = [
    KMeans(clusters=3),
    KMeans(clusters="auto", max_clusters=4),
    MeanShift(),
    MeanShift(kernel="flat"),
]


@pytest.mark.parametrize("recipe", BY_BAND, ids=str)
@given(clouds(), st.lists(st.tuples(factor, shift), min_size=3, max_size=3))
def test_units_of_any_band_change_no_label(
    recipe: Any, pixels: np.ndarray, units: list[tuple[float, float]]
) -> None:
    changed = np.stack(
        [
            a * (pixels[..., i] + b)
            for i, (a, b) in zip(range(pixels.shape[-1]), units, strict=False)
        ],
        axis=-1,
    )
    assert np.array_equal(labels_of(recipe, changed), labels_of(recipe, pixels))


@pytest.mark.parametrize("recipe", ALIKE, ids=str)
@given(clouds(), factor, st.lists(shift, min_size=3, max_size=3))
def test_one_factor_for_all_bands_changes_no_label(
    recipe: Any, pixels: np.ndarray, a: float, shifts: list[float]
) -> None:
    changed = a * (pixels + np.array(shifts[: pixels.shape[-1]]))
    assert np.array_equal(labels_of(recipe, changed), labels_of(recipe, pixels))


METHODS = ["otsu", "multi-otsu", "li", "triangle"]
THRESHOLDS = [Threshold(method=method) for method in METHODS] + [  # type: ignore[arg-type]
    Threshold(method="local", window=5, window_statistic=statistic)  # type: ignore[arg-type]
    for statistic in ("gaussian", "mean", "median")
]


@pytest.mark.parametrize("recipe", THRESHOLDS, ids=str)
@given(clouds((1, 1)), factor, shift)
def test_units_change_no_threshold(recipe: Any, pixels: np.ndarray, a: float, b: float) -> None:
    assert np.array_equal(labels_of(recipe, a * (pixels + b)), labels_of(recipe, pixels))


@pytest.mark.parametrize(
    "recipe",
    [
        MixtureOfGaussians(components=3),
        KMeans(clusters=4),
        KMeans(clusters=4, standardise=True),
        MeanShift(),
        MeanShift(standardise=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("interpretation", ["rgb", "bands"])
def test_the_type_of_the_pixels_decides_nothing(recipe: Any, interpretation: Any) -> None:
    photo = data.coffee()[::6, ::6]
    eight = labels_of(recipe, photo, interpretation)
    for changed in (
        photo.astype("uint16") * 200 + 7,
        photo.astype("float32") / 255,
        photo.astype("float64") * 0.3 - 40,
    ):
        assert np.array_equal(labels_of(recipe, changed, interpretation, (33, 50)), eight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-36, 1e-20, 1e20, 1e36])
def test_thresholds_of_very_small_and_very_large_floats(method: Any, factor: float) -> None:
    # Squares of such values, which Otsu's method takes, leave the range of float32.
    photo = data.camera()[::4, ::4, None].astype("float32")
    model = fitted(Threshold(method=method), [full(photo * np.float32(factor))])
    find = {
        "otsu": threshold_otsu,
        "multi-otsu": threshold_multiotsu,
        "li": threshold_li,
        "triangle": threshold_triangle,
    }[method]
    expected = np.ravel(find(photo[..., 0].astype("float64")))
    assert np.array(model.thresholds) / factor == pytest.approx(
        expected, rel=1e-4 if method == "li" else 1e-6
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "shift"),
    [("uint16", 9), ("int32", -(2**31)), ("int64", 2**60 + 1), ("int64", -(2**62))],
)
def test_thresholds_of_large_whole_numbers_move_along(method: Any, dtype: str, shift: int) -> None:
    photo = data.camera()[::4, ::4, None].astype("int64")
    near, far = (
        fitted(Threshold(method=method), [full(pixels)])
        for pixels in (photo.astype("uint8"), (photo + shift).astype(dtype))
    )
    assert np.array_equal(
        labelled(near, full(photo)), labelled(far, full((photo + shift).astype(dtype)))
    )
    find = {
        "otsu": threshold_otsu,
        "multi-otsu": threshold_multiotsu,
        "li": threshold_li,
        "triangle": threshold_triangle,
    }[method]
    assert near.provenance()["thresholds"] == pytest.approx(
        np.ravel(find(photo[..., 0].astype("uint8"))).tolist(), abs=1e-9
    )
    assert load_model(dump_model(far)) == far


def test_li_ends_where_scikit_image_does_whatever_the_gaps_of_whole_numbers() -> None:
    for step in (1, 4, 257):
        photo = data.camera()[::4, ::4].astype("uint16") * np.uint16(step)
        model = fitted(Threshold(method="li"), [full(photo[..., None])])
        assert model.provenance()["thresholds"] == pytest.approx([threshold_li(photo)], rel=1e-12)


@pytest.mark.parametrize("method", ["otsu", "li", "triangle"])
def test_values_that_float32_can_hardly_tell_apart_or_add(method: Any) -> None:
    random = np.random.default_rng(0).random((50, 60, 1))
    lowest = np.finfo("float32").min
    undeclared = np.where(random < 0.3, lowest, random).astype("float32")
    opposite = np.where(random < 0.3, lowest, -lowest).astype("float32")
    neighbours = np.where(random < 0.3, np.float32(1), np.nextafter(np.float32(1), np.float32(2)))
    for pixels in (undeclared, opposite, neighbours):
        assert np.array_equal(labels_of(Threshold(method=method), pixels), random[..., 0] >= 0.3)


def test_a_range_beyond_floats_is_refused_in_words() -> None:
    for extremes in ((-1.7e308, 1.7e308), (0.0, 1e-310)):
        with pytest.raises(FitError, match=r"Check nodata.*another unit"):
            fitted(Threshold(), [full(np.array(extremes).reshape(1, 2, 1))])


def test_numbering_and_references_do_not_depend_on_units() -> None:
    # Band 1 falls where band 2 rises by more: told in another unit, it must not turn the order
    # round.
    pixels, truth = two_classes([(5.0, 4.0, 0.3), (1.0, 9.0, 0.5), (2.0, 8.0, 0.5)])
    kilo = pixels * np.array([1000, 1, 1], "float32")
    for recipe in (MixtureOfGaussians(components=2), KMeans(clusters=2, standardise=True)):
        assert np.array_equal(labels_of(recipe, pixels), truth)
        assert np.array_equal(labels_of(recipe, kilo), truth)
    # Band 1 alone would swap the names: the reference of `wet` is nearer to the dry pixels there.
    pixels, truth = two_classes(MIXED)
    classes = {"wet": (3040.0, 0.0016), "dry": (2960.0, 0.0004)}
    pixels[..., 0] -= 200 * truth
    for named in (MixtureOfGaussians(classes=classes), KMeans(classes=classes, standardise=True)):
        assert np.mean(labels_of(named, pixels) == 1 - truth) > 0.99


def test_a_constant_band_and_far_values_do_not_matter() -> None:
    pixels, truth = two_classes(SMALL)
    constant = np.concatenate([pixels, np.full((*truth.shape, 1), 0.1, "float32")], axis=-1)
    far = pixels.astype("float64") + 1e4
    for recipe in (
        MixtureOfGaussians(components=2),
        KMeans(clusters=2, standardise=True),
        MeanShift(standardise=True, bandwidth=1.0),
    ):
        for changed in (pixels, constant, far):
            assert np.array_equal(labels_of(recipe, changed), truth)
    assert "note" not in fitted(KMeans(clusters=2), [full(constant)]).provenance()
