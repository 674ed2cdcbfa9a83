"""Values that floats can hold but not square, values beside nodata that nobody declared: refused,
or told, never wrong in silence.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from maskloom.segcore.errors import FitError
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mean_shift import MeanShift
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing.segmenters import Picture, check_values, fitted, labelled

CLUSTERINGS = [
    KMeans(clusters=3),
    KMeans(clusters=3, standardise=True),
    KMeans(clusters="auto"),
    MixtureOfGaussians(components=3),
    MeanShift(),
    MeanShift(standardise=True),
]
TRUTH = np.random.default_rng(5).integers(0, 3, (60, 80))
CLEAN = np.stack([TRUTH, 2 * TRUTH], -1) + 0.05 * np.random.default_rng(6).standard_normal(
    (60, 80, 2)
)


def bands(pixels: np.ndarray) -> Picture:
    return Picture(pixels, np.ones(pixels.shape[:2], bool), "bands")


def with_columns(value: float, dtype: str = "float64") -> np.ndarray:
    pixels = CLEAN.astype(dtype)
    pixels[:, :10, 0] = value
    return pixels


def agreement(recipe: Any, pixels: np.ndarray) -> float:
    """Adjusted Rand index of the labels with the truth; a warning of NumPy is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fitted(recipe, [bands(pixels)])
        model.provenance()
        return float(adjusted_rand_score(TRUTH.ravel(), labelled(model, bands(pixels)).ravel()))


@pytest.mark.parametrize("recipe", CLUSTERINGS, ids=str)
@pytest.mark.parametrize(
    "pixels",
    [
        CLEAN * 1e160,
        np.round(CLEAN) * 1e160,
        CLEAN * 1e-170,
        with_columns(1e160),
        with_columns(-np.finfo(float).max),
    ],
    ids=["large", "large and whole", "small", "some large", "some the largest"],
)
def test_values_whose_squares_floats_cannot_hold_are_refused(
    recipe: Any, pixels: np.ndarray
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FitError, match=r"\(band 1\).*nodata") as caught:
            fitted(recipe, [bands(pixels)])
    assert caught.value.permanent


def test_the_band_is_named_by_its_number_in_the_file() -> None:
    pixels = np.concatenate([CLEAN, with_columns(1e160)], -1)
    with pytest.raises(FitError, match=r"from -0\.\d+ to 1e\+160 \(band 3\)"):
        fitted(KMeans(clusters=3, bands=(2, 3)), [bands(pixels)])


@pytest.mark.parametrize("recipe", CLUSTERINGS, ids=str)
@pytest.mark.parametrize("factor", [1e99 / 5, 1e35, 1e-99])
def test_values_inside_the_limits_are_clustered_as_others(recipe: Any, factor: float) -> None:
    assert agreement(recipe, CLEAN * factor) == 1
    assert fitted(recipe, [bands(CLEAN * factor)]).caution(bands(CLEAN).spec, {}) is None


@pytest.mark.parametrize("recipe", CLUSTERINGS, ids=str)
@pytest.mark.parametrize("value", [-3.4e38, 1e20, 1e99, 0.0])
def test_a_band_of_one_value_takes_no_part(recipe: Any, value: float) -> None:
    assert agreement(recipe, np.concatenate([CLEAN, np.full((60, 80, 1), value)], -1)) == 1


@pytest.mark.parametrize("recipe", CLUSTERINGS, ids=str)
def test_values_far_from_0_are_told_apart_as_far_as_floats_hold_them(recipe: Any) -> None:
    assert agreement(recipe, CLEAN + 1e14) == 1


@pytest.mark.parametrize(
    "recipe",
    [
        KMeans(clusters=3),
        MixtureOfGaussians(components=3),
        MeanShift(bandwidth=1e15, standardise=True),
        Threshold(band=1),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-3.4e38, "down to -3.4e+38"),
        (3.4e38, "up to 3.4e+38"),
        (-1e33, "down to -1e+33"),
        (-9999, None),
    ],
)
def test_what_looks_like_undeclared_nodata_is_told(
    recipe: Any, value: float, said: str | None
) -> None:
    picture = bands(with_columns(value, "float32"))
    model = fitted(recipe, [picture])
    caution = model.caution(picture.spec, {}) or ""
    note = f"band 1 has values {said}, which look like undeclared nodata"
    assert (note in caution) == (note in model.provenance().get("note", "")) == (said is not None)
    assert ("nodata" in caution) == (said is not None)
    check_values(recipe, picture)


def test_nodata_at_both_ends_is_told_by_a_threshold_and_a_wide_picture_is_not() -> None:
    pixels = with_columns(-3.4e38, "float32")[..., :1]
    pixels[:, 10:20] = 3.4e38
    model = fitted(Threshold(), [bands(pixels)])
    assert model.caution(bands(pixels).spec, {}) == (
        "the image has values down to -3.4e+38 and up to 3.4e+38, which look like undeclared nodata"
    )
    wide = bands(np.linspace(0, 1e36, 4800, dtype="float32").reshape(60, 80, 1))
    assert fitted(Threshold(), [wide]).caution(wide.spec, {}) is None


def test_mean_shift_refuses_values_too_far_apart_for_its_cells() -> None:
    with pytest.raises(FitError, match=r"from -3\.4e\+38 to .*nodata.*bandwidth"):
        fitted(MeanShift(), [bands(with_columns(-3.4e38, "float32"))])
