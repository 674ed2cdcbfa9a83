"""Gaussian mixtures agree with scikit-learn on standardised bands and find what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from skimage import data
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from maskloom.segcore.errors import FitError, ModelMismatch
from maskloom.segcore.kernels.clustering import inverse_roots, of_inverse_roots
from maskloom.segcore.segmenters.mixture import MixtureModel, MixtureOfGaussians
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

FORMS = ["full", "tied", "diag", "spherical"]


def full(pixels: np.ndarray, interpretation: Any = "rgb") -> Picture:
    return Picture(pixels, np.ones(pixels.shape[:2], bool), interpretation)


def fit(
    recipe: MixtureOfGaussians, picture: Picture, tile: tuple[int, int] | None = None
) -> MixtureModel:
    model = fitted(recipe, [picture], tile)
    assert isinstance(model, MixtureModel)
    return model


def in_form(covariances: np.ndarray, form: str) -> np.ndarray:
    """Full matrices, one a component, the way that scikit-learn keeps those of a form."""
    return {
        "full": covariances,
        "tied": covariances[0],
        "diag": np.einsum("kii->ki", covariances),
        "spherical": covariances[:, 0, 0],
    }[form]


def test_roots_of_covariances_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 7):
        parts = random.normal(size=(3, size, size + 2))
        matrices = parts @ parts.transpose(0, 2, 1)
        found, back = np.zeros_like(matrices), np.empty_like(matrices)
        assert inverse_roots(matrices, found)
        np.testing.assert_allclose(found, np.linalg.inv(np.linalg.cholesky(matrices)), atol=1e-9)
        of_inverse_roots(found, back)
        np.testing.assert_allclose(back, matrices, rtol=1e-9, atol=1e-9)
    for flat in (np.ones((1, 2, 2)), -np.eye(2)[None], np.full((1, 2, 2), np.nan)):
        assert not inverse_roots(flat, np.zeros_like(flat))


def with_our_parameters(model: MixtureModel, form: Any, scaler: StandardScaler) -> GaussianMixture:
    """What scikit-learn makes of our parameters, in standardised units."""
    covariances = np.array(model.covariances) / np.outer(scaler.scale_, scaler.scale_)
    reference = GaussianMixture(len(model.means), covariance_type=form)
    reference.weights_, reference.means_ = (
        np.array(model.weights),
        scaler.transform(np.array(model.means)),
    )
    reference.covariances_ = in_form(covariances, form)
    roots = np.linalg.cholesky(np.linalg.inv(covariances))
    reference.precisions_cholesky_ = in_form(roots, form)
    reference.precisions_ = in_form(np.linalg.inv(covariances), form)
    return reference


PHOTOS = {
    "few colours": data.coffee()[::5, ::5],
    "many colours": np.concatenate(
        [data.astronaut()[:300], data.astronaut()[:220, :, ::-1] // 2 + 60]
    ),
    "floats": data.chelsea()[::6, ::6].astype("float32"),
    "four bands": np.concatenate(
        [data.astronaut()[::6, ::6], data.camera()[::6, ::6, None]], axis=-1
    ),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param("many colours", "full", marks=pytest.mark.nightly),
        *(("few colours", form) for form in FORMS),
        *(("four bands", form) for form in FORMS[:2]),
        *(pytest.param("four bands", form, marks=pytest.mark.nightly) for form in FORMS[2:]),
        *(pytest.param("floats", form, marks=pytest.mark.nightly) for form in FORMS),
    ],
)
def test_agrees_with_scikit_learn(name: str, form: Any) -> None:
    picture = full(PHOTOS[name])
    rows = picture.pixels.reshape(-1, picture.pixels.shape[-1]).astype(float)
    model = fit(MixtureOfGaussians(components=3, covariance=form), picture, (90, 200))
    assert model.values > 2**16 or name != "many colours"
    scaler = StandardScaler().fit(rows)
    rows = scaler.transform(rows)
    ours = with_our_parameters(model, form, scaler)
    # Same parameters, same labels and likelihood.
    assert np.mean(ours.predict(rows) == labelled(model, picture).ravel()) > 0.99999
    assert ours.score(rows) - np.log(scaler.scale_).sum() >= model.log_likelihood - 1e-9
    # EM goes no further from where we stopped than the tolerance allows.
    going_on = GaussianMixture(
        3,
        covariance_type=form,
        weights_init=ours.weights_,
        means_init=ours.means_,
        precisions_init=ours.precisions_,
        reg_covar=1e-9,
        max_iter=3,
    )
    going_on.fit(rows)
    assert going_on.converged_
    assert going_on.score(rows) == pytest.approx(ours.score(rows), abs=4e-3)
    # EM has many ends. Ours is no worse than the worse of two that scikit-learn comes to from
    # starts of its own.
    part = rows[:: max(1, len(rows) // 10_000)]
    alone = [
        GaussianMixture(3, covariance_type=form, reg_covar=1e-9, random_state=seed)
        .fit(part)
        .score(rows)
        for seed in (0, 3)
    ]
    assert ours.score(rows) > min(alone) - 0.02


def clouds(number: int = 3) -> tuple[Picture, np.ndarray]:
    """Pixels from known, elongated Gaussians that k-means would cut wrongly, and which one each
    comes from.
    """
    generator = np.random.default_rng(7)
    truth = generator.choice(
        number, (100, 120), p=np.array([0.6, 0.3, 0.1])[:number] / sum([0.6, 0.3, 0.1][:number])
    )
    means = np.array([[60.0, 60.0, 60.0], [60.0, 110.0, 60.0], [190.0, 180.0, 200.0]])
    stretch = np.array([[22.0, 3.0, 3.0], [22.0, 3.0, 3.0], [5.0, 5.0, 5.0]])
    noise = generator.standard_normal((100, 120, 3))
    return full((means[truth] + stretch[truth] * noise).astype("float32")), truth


def test_finds_known_clouds_and_their_shares() -> None:
    picture, truth = clouds()
    model = fit(MixtureOfGaussians(components=3), picture)
    assert adjusted_rand_score(truth.ravel(), labelled(model, picture).ravel()) > 0.999
    assert model.weights == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
    assert np.sqrt(np.einsum("kii->ki", np.array(model.covariances)))[0] == pytest.approx(
        [22, 3, 3], rel=0.05
    )
    assert model.exact
    assert model.converged


@pytest.mark.parametrize("number", [1, 2, 3])
def test_auto_finds_the_clear_number(number: int) -> None:
    picture, _ = clouds(number)
    assert (
        fit(MixtureOfGaussians(components="auto", max_components=5), picture).provenance()[
            "components"
        ]
        == number
    )


def test_values_far_from_zero_do_not_matter() -> None:
    picture, _ = clouds()
    pixels = picture.pixels.astype("float64")
    near, far = (
        fit(MixtureOfGaussians(components=3), full(pixels + shift)) for shift in (0.0, 1e7)
    )
    assert np.allclose(np.array(far.means) - 1e7, near.means, atol=1e-4)
    assert np.array_equal(labelled(near, full(pixels)), labelled(far, full(pixels + 1e7)))


def test_references_and_bands() -> None:
    picture, truth = clouds()
    model = fit(
        MixtureOfGaussians(
            classes={"bright": "#beb4c8", "low": "#3c3c3c", "high": (60.0, 110.0, 60.0)}
        ),
        picture,
    )
    assert model.classes == ("bright", "low", "high")
    assert np.mean(labelled(model, picture) == np.array([1, 2, 0])[truth]) > 0.999
    with pytest.raises(ModelMismatch, match="fitted on 3 band"):
        model.select(full(data.camera()[..., None]).spec)
    assert len(fit(MixtureOfGaussians(components=2, bands=(2, 3)), picture).means[0]) == 2


def test_degenerate_data_say_what_to_do() -> None:
    flat = np.zeros((20, 20, 3), "float32")
    flat[..., 0] = np.random.default_rng(0).random((20, 20))
    with pytest.raises(FitError, match="reg_covar"):
        fit(MixtureOfGaussians(components=2, reg_covar=0.0), full(flat))
    with pytest.raises(FitError, match="Ask for fewer"):
        fit(MixtureOfGaussians(components=2), full(np.zeros((9, 9, 3), "uint8")))
    assert fit(MixtureOfGaussians(components=2), full(flat)).converged


def test_a_large_constant_region_far_away_is_a_component() -> None:
    pixels = np.random.default_rng(0).normal(0.3, 0.1, (60, 60, 1)).astype("float32")
    pixels[:30] = -9999.0
    model = fit(MixtureOfGaussians(components=2), full(pixels))
    assert np.array_equal(labelled(model, full(pixels)) == 1, pixels[..., 0] > -1)
    assert fit(MixtureOfGaussians(components="auto"), full(pixels)).means


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"components": 0}, "components"),
        ({"covariance": "round"}, "covariance"),
        ({"reg_covar": -1}, "reg_covar"),
        ({"components": "auto", "classes": ["a", "b"]}, "components"),
        ({"bands": []}, "bands"),
        ({"seed": -1}, "seed"),
        ({"max_components": 0}, "max_components"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(MixtureOfGaussians).validate_python(parameters)


def test_a_name_given_twice_merges_components() -> None:
    picture, truth = clouds()
    names = ("dark", "dark", "bright")
    apart, merged = (
        fit(MixtureOfGaussians(classes=each), picture) for each in (tuple("abc"), names)
    )
    assert MixtureOfGaussians(classes=names).expected_classes == ("dark", "bright")
    assert merged.classes == ("dark", "bright")
    assert merged.means == apart.means
    assert np.array_equal(labelled(merged, picture), np.array([0, 0, 1])[labelled(apart, picture)])
    assert adjusted_rand_score(labelled(merged, picture).ravel(), truth.ravel() == 2) > 0.999
    (block,) = picture.blocks(merged)
    scores = apart.scores(block)
    summed = np.stack([scores[..., :2].sum(axis=-1), scores[..., 2]], axis=-1)
    assert np.allclose(merged.scores(block), summed, atol=1e-6)
    assert merged.provenance()["class_of"] == [0, 0, 1]
    assert "class_of" not in apart.provenance()
