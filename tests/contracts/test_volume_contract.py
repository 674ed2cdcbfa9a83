"""The contract of segmenters on volumes: in memory and in tiles of any shape, and the same as other
libraries give for the whole array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import filters
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.mixture import GaussianMixture

import maskloom.segcore.segmenters  # noqa: F401  registers all segmenters
from maskloom.segcore.methods.samples import SAMPLE_SIZE
from maskloom.segcore.models.protocols import ObjectSegmenter
from maskloom.segcore.segmenters.ensemble import Ensemble
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mean_shift import MeanShift
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.quickshift import Quickshift
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

SHAPE = (9, 26, 22)


def volume(dtype: str = "uint8", bands: int = 1, *, holes: bool = False) -> Picture:
    """Two blobs of different brightness in noise, the bands differently bright."""
    generator = np.random.default_rng(4)
    z, y, x = np.indices(SHAPE)
    bright = 90.0 * np.exp(-(((z - 3) / 3) ** 2 + ((y - 8) / 6) ** 2 + ((x - 7) / 6) ** 2))
    brighter = 170.0 * np.exp(-(((z - 6) / 2) ** 2 + ((y - 18) / 5) ** 2 + ((x - 15) / 5) ** 2))
    grey = 30 + np.maximum(bright, brighter)
    pixels = np.stack([grey * (1 - 0.2 * band) for band in range(bands)], axis=-1)
    pixels += generator.normal(0, 4, pixels.shape)
    valid = np.ones(SHAPE, np.bool_)
    if holes:
        valid[2:5, 4:12, 10:20] = False
    factor = 200 if dtype in ("uint16", "int32") else 1
    whole = np.rint(pixels.clip(0, 255)) if np.dtype(dtype).kind in "iu" else pixels
    return Picture((whole * factor).astype(dtype), valid, "rgb" if bands == 3 else "bands")


EXACT = [
    Threshold(),
    Threshold(value=80.5),
    Threshold(method="multi-otsu", levels=3),
    Threshold(method="li", above=False),
    Threshold(method="triangle"),
    Threshold(method="local", window=7),
    Threshold(method="local", window=5, window_statistic="mean", offset=2),
    Threshold(method="local", window=5, window_statistic="median"),
    KMeans(clusters=3),
    KMeans(clusters=3, standardise=True),
    KMeans(clusters="auto", max_clusters=3),
    MixtureOfGaussians(components=2),
    MixtureOfGaussians(components=2, covariance="diag"),
    MixtureOfGaussians(classes=("low", "high", "low"), smoothness=1.5),
    MeanShift(),
    Ensemble((Threshold(), Threshold(method="li"), Threshold(method="local", window=5))),
]
PLANAR = [
    MeanShift(space="joint", spatial_radius=2, max_iterations=4, min_size=6),
    Quickshift(kernel_size=1, max_dist=4),
]
TILES = [(4, 9, 22), (1, 26, 7), (9, 5, 6)]
exact = pytest.mark.parametrize("recipe", EXACT, ids=str)
planar = pytest.mark.parametrize("recipe", PLANAR, ids=str)


@pytest.mark.parametrize(
    ("tile", "recipe"),
    [
        pytest.param(
            tile,
            recipe,
            id=f"{tile}-{recipe}",
            # Slow to fit, and held by one shape of tiles every time.
            marks=pytest.mark.nightly if recipe == MeanShift() and tile != TILES[0] else (),
        )
        for tile in TILES
        for recipe in EXACT
    ],
)
def test_tiling_does_not_matter(recipe: Any, tile: tuple[int, ...]) -> None:
    assert not recipe.start().requirements.planar
    check.check_tiling(recipe, volume(bands=3, holes=True), tile)


@pytest.mark.parametrize("recipe", [*EXACT, *PLANAR], ids=str)
def test_labels_are_classes_and_merging_does_not_depend_on_order(recipe: Any) -> None:
    scene = volume(holes=True)
    check.check_merging(recipe, scene, (4, 9, 22))
    if not recipe.start().requirements.planar:
        check.check_labels(recipe, scene)


@pytest.mark.parametrize("recipe", EXACT, ids=str)
@pytest.mark.parametrize(
    ("dtype", "bands"),
    [
        ("int16", 1),
        ("uint16", 4),
        pytest.param("int32", 2, marks=pytest.mark.nightly),
        ("float32", 3),
        pytest.param("float64", 1, marks=pytest.mark.nightly),
    ],
)
def test_any_type_of_voxel(recipe: Any, dtype: str, bands: int) -> None:
    check.check_tiling(recipe, volume(dtype, bands, holes=True), (4, 26, 9))


@exact
def test_a_volume_of_one_plane_is_segmented_as_an_image(recipe: Any) -> None:
    """Where the values decide alone; a cube of a single plane, mirrored, is its square too."""
    plane = volume(bands=3, holes=True)
    image = Picture(plane.pixels[3], plane.valid[3], plane.interpretation)
    deep = Picture(plane.pixels[3:4], plane.valid[3:4], plane.interpretation)
    ours, theirs = (
        labelled(fitted(recipe, [deep]), deep)[0],
        labelled(fitted(recipe, [image]), image),
    )
    assert np.array_equal(ours[image.valid], theirs[image.valid])


@pytest.mark.parametrize(
    "recipe", [Threshold(), KMeans(clusters=3), MixtureOfGaussians(components=2)], ids=str
)
def test_the_planes_of_a_volume_side_by_side_give_the_same_labels(recipe: Any) -> None:
    """Nothing but the values counts, so one long image of all planes is the same collection."""
    scene = volume(bands=3, holes=True)
    side_by_side = Picture(
        scene.pixels.reshape(-1, *scene.pixels.shape[2:]),
        scene.valid.reshape(-1, scene.valid.shape[2]),
        scene.interpretation,
    )
    ours = labelled(fitted(recipe, [scene]), scene)
    theirs = labelled(fitted(recipe, [side_by_side]), side_by_side)
    assert np.array_equal(
        ours.reshape(theirs.shape)[side_by_side.valid], theirs[side_by_side.valid]
    )


@pytest.mark.parametrize(
    "recipe",
    [
        Threshold(),
        Threshold(method="local", window=9),
        Threshold(method="local", window=9, window_statistic="mean"),
        Threshold(method="local", window=5, window_statistic="median"),
        KMeans(clusters=3),
        MixtureOfGaussians(components=3, smoothness=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_memory_stays_within_the_footprint(recipe: Any, dtype: str) -> None:
    small = volume(dtype, holes=True)
    large = Picture(np.tile(small.pixels, (4, 4, 4, 1)), np.tile(small.valid, (4, 4, 4)))
    check.check_memory(recipe, large, slack=SAMPLE_SIZE * 48)


# ---- other libraries, on the whole array
# --------------------------------------------------------------------------------------------------


def grey(scene: Picture) -> NDArray[Any]:
    return scene.pixels[..., 0]


@pytest.mark.parametrize(
    ("method", "oracle"),
    [
        ("otsu", filters.threshold_otsu),
        ("li", filters.threshold_li),
        ("triangle", filters.threshold_triangle),
    ],
)
def test_thresholds_are_those_of_scikit_image(method: Any, oracle: Any) -> None:
    scene = volume()
    found = labelled(fitted(Threshold(method=method), [scene], (4, 9, 22)), scene, (4, 9, 22))
    assert np.array_equal(found, grey(scene) > oracle(grey(scene)))


def test_levels_are_those_of_scikit_image() -> None:
    scene = volume()
    recipe = Threshold(method="multi-otsu", levels=3)
    found = labelled(fitted(recipe, [scene], (4, 9, 22)), scene, (4, 9, 22))
    levels = filters.threshold_multiotsu(grey(scene), 3)
    assert np.array_equal(found, np.digitize(grey(scene), levels, right=True))


@pytest.mark.parametrize("statistic", ["gaussian", "mean", "median"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_local_thresholds_are_those_of_scikit_image(statistic: Any, dtype: str) -> None:
    scene = volume(dtype)
    recipe = Threshold(method="local", window=7, window_statistic=statistic, offset=1.5)
    found = labelled(recipe.start(), scene, (4, 9, 22))
    local = filters.threshold_local(grey(scene).astype(float), 7, statistic, offset=1.5)
    clear = np.abs(grey(scene) - local) > 1e-6
    assert np.array_equal(found[clear], (grey(scene) > local)[clear])
    assert clear.mean() > 0.9


def test_centres_are_those_of_scikit_learn() -> None:
    scene = volume("float32", 2)
    model: Any = fitted(KMeans(clusters=3), [scene], (4, 9, 22))
    values = scene.pixels.reshape(-1, 2)
    oracle = SklearnKMeans(3, n_init=10, random_state=0, tol=0).fit(values)
    centres = oracle.cluster_centers_[np.argsort(oracle.cluster_centers_.sum(axis=1))]
    assert np.allclose(model.centres, centres, rtol=1e-3)
    found = labelled(model, scene, (4, 9, 22))
    nearest = ((values[:, None] - np.array(model.centres)) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(found.ravel(), nearest)


def test_components_are_those_of_scikit_learn() -> None:
    inside = grey(volume()) > 80
    generator = np.random.default_rng(6)
    pixels = np.where(inside[..., None], (120.0, 90.0), (40.0, 60.0))
    pixels += generator.multivariate_normal((0, 0), [[90, 40], [40, 60]], SHAPE)
    scene = Picture(pixels, np.ones(SHAPE, np.bool_))
    model: Any = fitted(MixtureOfGaussians(components=2), [scene], (4, 9, 22))
    values = scene.pixels.reshape(-1, 2)
    oracle = GaussianMixture(2, random_state=0, tol=1e-9, max_iter=2000).fit(values)
    order = np.argsort(oracle.means_.sum(axis=1))
    theirs = np.argsort(order)[oracle.predict(values)].reshape(SHAPE)
    assert np.allclose(oracle.means_[order], model.means, rtol=1e-3)
    assert (labelled(model, scene, (4, 9, 22)) == theirs).mean() > 0.999


# ---- planar methods
# --------------------------------------------------------------------------------------------------


@planar
def test_planar_methods_take_a_volume_as_its_planes(recipe: Any) -> None:
    """Objects are those of each plane as an image, and every plane has ids of its own."""
    scene = volume(bands=3, holes=True)
    model = recipe.start()
    assert model.requirements.planar
    assert isinstance(model, ObjectSegmenter)
    ids = labelled(model, scene)
    last = 0
    for plane, valid, found in zip(scene.pixels, scene.valid, ids, strict=True):
        alone = labelled(model, Picture(plane, valid, scene.interpretation))
        assert np.array_equal(found, np.where(alone > 0, alone + last, 0))
        last += int(alone.max())
    assert last > len(ids)


@planar
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiling_does_not_matter_to_planar_methods(recipe: Any, tile: tuple[int, ...]) -> None:
    check.check_tiling(recipe, volume(bands=3, holes=True), tile)
