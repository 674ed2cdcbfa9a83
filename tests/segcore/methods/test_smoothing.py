"""Smoothing agrees with a slow implementation over the whole array, and never lowers what it
maximises.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from maskloom.segcore.geometry import Tile
from maskloom.segcore.ground.space import Metric, Space
from maskloom.segcore.methods.smoothing import HALF_ROUNDS
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.segmenters.mixture import MixtureModel, MixtureOfGaussians
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

IMAGE, VOLUME = (37, 41), (11, 17, 14)
SHAPES = pytest.mark.parametrize("shape", [IMAGE, VOLUME], ids=["image", "volume"])


def scene(shape: tuple[int, ...], dtype: str = "uint8", bands: int = 2) -> Picture:
    """Three smooth regions in strong noise, with a hole of no data."""
    generator = np.random.default_rng(5)
    field = ndimage.gaussian_filter(generator.normal(size=shape), 3)
    region = np.digitize(field, np.quantile(field, [0.3, 0.7]))
    means = np.array([[70.0, 140.0], [110.0, 90.0], [150.0, 120.0]])[:, :bands]
    pixels = means[region] + generator.normal(0, 22, (*shape, bands))
    valid = np.ones(shape, np.bool_)
    valid[tuple(slice(n // 3, n // 2) for n in shape)] = False
    whole = np.rint(pixels).clip(0, 255) if np.dtype(dtype).kind in "iu" else pixels
    return Picture(whole.astype(dtype), valid)


def recipe(smoothness: float = 1.3, **others: Any) -> MixtureOfGaussians:
    return MixtureOfGaussians(components=3, smoothness=smoothness, **others)


def model_of(picture: Picture, **others: Any) -> MixtureModel:
    model = fitted(recipe(**others), [picture])
    assert isinstance(model, MixtureModel)
    return model


def block_of(picture: Picture, metric: Metric | None = None) -> Block:
    space = replace(picture.spec.space, metric=metric)
    tile = Tile.whole(picture.valid.shape)
    return replace(picture.block(tile, picture.spec), spec=replace(picture.spec, space=space))


# ---- a slow implementation, of whole arrays
# --------------------------------------------------------------------------------------------------


def densities(model: MixtureModel, picture: Picture) -> np.ndarray:
    """log(weight x density) of each component, (..., component)."""
    found = []
    for weight, mean, covariance in zip(model.weights, model.means, model.covariances, strict=True):
        away = picture.pixels.astype(float) - mean
        squares = np.einsum("...i,ij,...j", away, np.linalg.inv(covariance), away)
        found.append(np.log(weight) - 0.5 * (squares + np.linalg.slogdet(covariance)[1]))
    return np.stack(found, axis=-1)


def agreeing(classes: np.ndarray, valid: np.ndarray, weights: list[float]) -> np.ndarray:
    """The weights of the valid neighbours of each class, (..., class)."""
    kernel = np.zeros((3,) * classes.ndim)
    for axis, weight in enumerate(weights):
        for end in (0, 2):
            kernel[(1,) * axis + (end,) + (1,) * (classes.ndim - axis - 1)] = weight
    votes = [
        ndimage.correlate(((classes == k) & valid).astype(float), kernel, mode="constant")
        for k in range(classes.max() + 1)
    ]
    return np.stack(votes, axis=-1)


def smoothed(
    model: MixtureModel, picture: Picture, weights: list[float], half_rounds: int = HALF_ROUNDS
) -> list[np.ndarray]:
    """The classes after 0, 1, 2 ... half rounds."""
    scores = densities(model, picture)
    class_of = np.array(model.class_of or range(scores.shape[-1]))
    steps = [class_of[scores.argmax(axis=-1)]]
    colour = np.indices(picture.valid.shape).sum(axis=0) % 2
    for number in range(half_rounds):
        votes = agreeing(steps[-1], picture.valid, weights)
        better = class_of[(scores + model.smoothness * votes[..., class_of]).argmax(axis=-1)]
        steps.append(np.where(colour == number % 2, better, steps[-1]))
    return steps


@SHAPES
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", "float16"])
def test_labels_are_those_of_the_slow_implementation(shape: Any, dtype: str) -> None:
    picture = scene(shape, dtype)
    model = model_of(picture)
    *_, expected = smoothed(model, picture, [1.0] * len(shape))
    ours = labelled(model, picture)
    assert np.array_equal(ours[picture.valid], expected[picture.valid])
    alone = labelled(replace(model, smoothness=0.0), picture)
    assert np.mean((ours != alone)[picture.valid]) > 0.05


@SHAPES
def test_near_neighbours_count_more_where_the_spacing_is_known(shape: Any) -> None:
    picture, spacing = scene(shape), (6.0, 1.5, 1.0)[-len(shape) :]
    model = model_of(picture)
    *_, expected = smoothed(model, picture, [min(spacing) / each for each in spacing])
    ours = model.segment(block_of(picture, Metric(spacing, "mm"))).values
    assert np.array_equal(ours[picture.valid], expected[picture.valid])
    assert not np.array_equal(ours, model.segment(block_of(picture)).values)


@SHAPES
def test_no_half_round_lowers_the_sum_of_scores_and_agreeing_neighbours(shape: Any) -> None:
    picture = scene(shape, "float64")
    model = model_of(picture)
    scores, weights = densities(model, picture), [1.0] * len(shape)
    block = block_of(picture)
    alone = replace(model, smoothness=0.0).segment(block).values.astype(np.uint8)

    def total(classes: np.ndarray) -> float:
        each = np.take_along_axis(scores, classes[..., None].astype(int), axis=-1)[..., 0]
        pairs = np.take_along_axis(
            agreeing(classes, picture.valid, weights), classes[..., None].astype(int), axis=-1
        )[..., 0]
        return float((each + model.smoothness * pairs / 2)[picture.valid].sum())

    sums = [total(model._smooth.label(block, alone, n)) for n in range(40)]
    assert np.diff(sums).min() > -1e-9
    assert sums[1] < sums[HALF_ROUNDS]
    settled = model._smooth.label(block, alone, 40)
    assert np.array_equal(settled, model._smooth.label(block, alone, 41))
    assert np.array_equal(settled, model._smooth.label(block, alone, 42))


@SHAPES
@pytest.mark.parametrize("classes", [None, ("a", "b", "a")], ids=["apart", "merged"])
def test_tiling_does_not_matter(shape: Any, classes: Any) -> None:
    for tile in ((7, 9), (16, 41)) if len(shape) == 2 else ((3, 5, 14), (1, 17, 6), (8, 8, 8)):
        check.check_tiling(recipe(5.0, classes=classes), scene(shape), tile)


def test_labels_depend_on_pixels_as_far_as_the_halo_and_no_further() -> None:
    """Each pixel of a line gives in to its left neighbour as soon as this one does: from the second
    pixel on, one in every half round.
    """
    model = MixtureModel(
        weights=(1 / 3,) * 3,
        means=((0.0, 0.0, 0.0),) * 3,
        # The score of class k is -x**2 / 2 for the value x of band k.
        factors=tuple(tuple(map(tuple, np.diag(row).tolist())) for row in np.eye(3)),
        constants=(0.0,) * 3,
        classes=("a", "b", "c"),
        bands=None,
        covariance="full",
        log_likelihood=0.0,
        steps=1,
        converged=True,
        pixels=1,
        values=1,
        exact=True,
        smoothness=1.0,
    )
    scores = np.zeros((1, 2 * HALF_ROUNDS, 3))
    scores[0, 0::2], scores[0, 1::2] = (-3, -0.5, 0), (0, -0.5, -3)
    reached = []
    for first in (0, -9):
        scores[0, 1] = (first, -9 - first, -9)
        pixels = np.sqrt(-2 * scores)
        picture = Picture(pixels, np.ones(pixels.shape[:2], np.bool_))
        reached.append(labelled(model, picture)[0])
    differing = np.flatnonzero(reached[0] != reached[1])
    assert differing.tolist() == list(range(HALF_ROUNDS + 2))
    assert model.requirements.halo == HALF_ROUNDS


@SHAPES
def test_pixels_without_data_have_no_vote(shape: Any) -> None:
    picture = scene(shape)
    model = model_of(picture)
    other = picture.pixels.copy()
    other[~picture.valid] = 255
    changed = labelled(model, Picture(other, picture.valid))
    assert np.array_equal(changed[picture.valid], labelled(model, picture)[picture.valid])


@SHAPES
def test_a_vanishing_smoothness_changes_nothing(shape: Any) -> None:
    picture = scene(shape, "float64")
    model = model_of(picture, smoothness=1e-12)
    alone = replace(model, smoothness=0.0)
    assert model.requirements.halo > alone.requirements.halo == 0
    assert np.array_equal(
        labelled(model, picture)[picture.valid], labelled(alone, picture)[picture.valid]
    )
    probabilities = (each.scores(block_of(picture)) for each in (model, alone))
    assert np.allclose(*probabilities, atol=1e-6)


@SHAPES
@pytest.mark.parametrize("merged", [False, True])
def test_probabilities_are_those_of_the_labels(shape: Any, merged: bool) -> None:
    picture = scene(shape, "float64")
    model = model_of(picture, classes=("a", "b", "b") if merged else None)
    scores, labels = model.scores(block_of(picture)), labelled(model, picture)
    assert scores.shape == (*shape, len(model.classes))
    assert np.allclose(scores.sum(axis=-1), 1, atol=1e-6)
    agree = (scores.argmax(axis=-1) == labels)[picture.valid].mean()
    # The probabilities of merged components add up, so their sum can win where neither does.
    assert agree == 1 if not merged else agree > 0.98
    steps = smoothed(model, picture, [1.0] * len(shape), HALF_ROUNDS - 1)
    class_of = np.array(model.class_of or range(3))
    votes = agreeing(steps[-1], picture.valid, [1.0] * len(shape))[..., class_of]
    exponents = densities(model, picture) + model.smoothness * votes
    parts = np.exp(exponents - exponents.max(axis=-1, keepdims=True))
    expected = np.stack([parts[..., class_of == k].sum(-1) for k in range(len(model.classes))], -1)
    expected /= expected.sum(axis=-1, keepdims=True)
    assert np.allclose(scores[picture.valid], expected[picture.valid], atol=1e-5)


def test_noise_is_removed() -> None:
    generator = np.random.default_rng(1)
    truth = np.zeros((60, 60), np.uint8)
    truth[15:45, 20:50] = 1
    pixels = (truth * 40 + generator.normal(100, 25, truth.shape)).astype("float32")[..., None]
    picture = Picture(pixels, np.ones(truth.shape, np.bool_))
    recipes = (MixtureOfGaussians(components=2, smoothness=each) for each in (0.0, 1.0))
    alone, smooth = (
        np.mean(labelled(fitted(each, [picture]), picture) != truth) for each in recipes
    )
    assert smooth < alone / 4


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_nonsense_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="smoothness: expected a finite number from 0 on"):
        MixtureOfGaussians(smoothness=wrong)


def test_an_image_is_smoothed_as_a_volume_of_one_plane() -> None:
    picture = scene(IMAGE)
    deep = Picture(picture.pixels[None], picture.valid[None])
    model = model_of(picture)
    assert picture.spec.space == Space()
    assert np.array_equal(labelled(model, deep)[0], labelled(model, picture))
