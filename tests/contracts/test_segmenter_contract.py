"""The contract of segmenters over the whole registry, plus variants of the classical ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from skimage import data

from maskloom.flows.catalogue import catalogue
from maskloom.segcore.methods.samples import SAMPLE_SIZE
from maskloom.segcore.models.planes import PLANAR
from maskloom.segcore.models.protocols import (
    SEGMENTERS,
    Exactness,
    Fitter,
    ObjectSegmenter,
    Segmenter,
)
from maskloom.segcore.segmenters.connected_parts import ConnectedParts
from maskloom.segcore.segmenters.ensemble import Ensemble
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mean_shift import MeanShift
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.quickshift import Quickshift
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.segmenters.watershed import Watershed
from maskloom.segcore.testing import segmenters as check


def without_arguments() -> list[Any]:
    """A recipe of each kind that can be made without arguments (a network needs its weights)."""
    absent = dataclasses.MISSING
    return [
        kind()
        for kind in SEGMENTERS.values()
        if all(
            field.default is not absent or field.default_factory is not absent
            for field in dataclasses.fields(kind)
        )
    ]


def picture(dtype: str, channels: int) -> check.Picture:
    """A real photograph in another type and with another number of channels, a fifth of it without
    data.
    """
    photo = data.astronaut()[60:140, 190:290]
    bands = np.concatenate([photo, photo[::-1]], axis=-1)[..., :channels]
    pixels = bands.astype(dtype) * (257 if dtype == "uint16" else 1)
    if np.dtype(dtype).kind == "f":
        pixels = (
            pixels / 255 + 1e-4 * np.random.default_rng(0).standard_normal(pixels.shape)
        ).astype(dtype)
    valid = np.ones(photo.shape[:2], bool)
    valid[20:60, 30:80] = False
    return check.Picture(pixels, valid, "rgb" if channels == 3 else "bands")


RGB = picture("uint8", 3)
VARIANTS = [
    *without_arguments(),
    Threshold(value=100.5),
    Threshold(method="multi-otsu", levels=4),
    Threshold(method="li", band=2),
    Threshold(method="triangle", above=False),
    KMeans(clusters=3, bands=(1, 2)),
    KMeans(clusters="auto", max_clusters=4),
    KMeans(clusters=3, standardise=True),
    KMeans(classes={"dark": "#000000", "light": (255.0, 255.0, 255.0)}),
    MixtureOfGaussians(components=2, covariance="diag"),
    MixtureOfGaussians(components="auto", max_components=3, covariance="tied"),
    MixtureOfGaussians(classes=("dark", "light", "dark"), smoothness=1),
    KMeans(classes=("dark", "light", "dark")),
    Threshold(method="local", window=15),
    MeanShift(standardise=True),
    MeanShift(space="joint", spatial_radius=3, max_iterations=5, min_size=12),
    Quickshift(kernel_size=2, max_dist=5),
    ConnectedParts(Threshold()),
    ConnectedParts(KMeans(clusters=3), min_size=3),
    Watershed(Threshold(value=100), distance=6),
    Ensemble((Threshold(), Threshold(method="li"), Threshold(method="triangle"))),
    Ensemble((MixtureOfGaussians(components=2, seed=0), MixtureOfGaussians(components=2, seed=1))),
]
named = pytest.mark.parametrize("recipe", VARIANTS, ids=str)


@named
def test_a_recipe_starts_as_fitter_or_segmenter(recipe: Any) -> None:
    model = recipe.start()
    assert isinstance(model, Fitter | Segmenter | ObjectSegmenter)
    assert isinstance(model, Fitter) or isinstance(model.exactness, Exactness)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_every_segmenter_says_what_units_change(kind: str) -> None:
    assert f"{SEGMENTERS[kind].units}." in catalogue("segmenters")


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_every_segmenter_says_what_it_does_with_volumes(kind: str) -> None:
    assert f"Volumes: {SEGMENTERS[kind].volumes}." in catalogue("segmenters")


@pytest.mark.parametrize("recipe", without_arguments(), ids=str)
def test_planar_segmenters_say_so(recipe: Any) -> None:
    planar = recipe.start().requirements.planar
    assert planar == (recipe.volumes == PLANAR)


@named
@pytest.mark.parametrize("tile", [(32, 32), (17, 129)])
def test_tiling_does_not_matter(recipe: Any, tile: tuple[int, int]) -> None:
    check.check_tiling(recipe, RGB, tile)


@named
def test_merging_does_not_depend_on_order(recipe: Any) -> None:
    check.check_merging(recipe, RGB, (48, 64))


@named
def test_values_travel(recipe: Any) -> None:
    check.check_values(recipe, RGB)


@named
def test_labels_are_classes(recipe: Any) -> None:
    check.check_labels(recipe, RGB)


CLASSICAL = [
    Threshold(),
    Threshold(method="li"),
    KMeans(clusters=3),
    KMeans(clusters=3, standardise=True),
    MixtureOfGaussians(components=2),
    MixtureOfGaussians(components=2, smoothness=0.5),
]


@pytest.mark.parametrize("recipe", CLASSICAL, ids=str)
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        ("uint8", 1),
        ("int16", 1),
        ("uint16", 3),
        pytest.param("int32", 1, marks=pytest.mark.nightly),
        ("float32", 1),
        ("float64", 4),
    ],
)
def test_any_type_of_pixel(recipe: Any, dtype: str, channels: int) -> None:
    image = picture(dtype, channels)
    check.check_tiling(recipe, image, (50, 70))
    check.check_merging(recipe, image, (50, 70))
    check.check_labels(recipe, image)


SAMPLE_BYTES = SAMPLE_SIZE * (3 * 8 + 3 * 8)


@pytest.mark.parametrize("recipe", CLASSICAL, ids=str)
@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 3), ("uint8", 1), ("uint16", 3), ("float64", 3)]
)
def test_memory_stays_within_the_footprint(recipe: Any, dtype: str, channels: int) -> None:
    small = picture(dtype, channels)
    large = check.Picture(
        np.tile(small.pixels, (12, 10, 1)), np.tile(small.valid, (12, 10)), small.interpretation
    )
    check.check_memory(recipe, large, slack=SAMPLE_BYTES)
