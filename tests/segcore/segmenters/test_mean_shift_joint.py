"""The joint mean shift filters as defined, finds the patches that are there, and gives the same
objects for any tiling.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage
from skimage import data

from maskloom.segcore.geometry import Box
from maskloom.segcore.segmenters.mean_shift import JointMeanShift, MeanShift
from maskloom.segcore.testing.segmenters import (
    Picture,
    check_labels,
    check_memory,
    check_tiling,
    check_values,
    fitted,
    object_mask,
    started,
)

F = np.float32
REAL = os.environ.get("MASKLOOM_TEST_DATA")


def joint(**parameters: Any) -> JointMeanShift:
    model = started(MeanShift(space="joint", **parameters))
    assert isinstance(model, JointMeanShift)
    return model


def full(pixels: np.ndarray) -> Picture:
    return Picture(
        pixels if pixels.ndim == 3 else pixels[..., None], np.ones(pixels.shape[:2], bool)
    )


def modes(model: JointMeanShift, picture: Picture) -> np.ndarray:
    (block,) = picture.blocks(model)
    return model.modes(block, block.tile.core)


def plain_modes(model: JointMeanShift, picture: Picture) -> np.ndarray:
    """The definition, pixel by pixel, all pixels of the image looked at in every step; float32
    where the kernel has it.
    """
    height, width, channels = picture.pixels.shape
    rows, columns = np.indices((height, width))
    near, alike = F(model.spatial_radius**2), F(model.range_radius**2)
    rest = F(0.01) * F(0.01)
    found = np.full((2 + channels, height, width), np.nan, F)
    planes = picture.pixels.astype(F)
    for y, x in np.argwhere(picture.valid):
        place, value = np.zeros(2, F), planes[y, x].copy()
        for _ in range(model.max_iterations):
            dy, dx = (rows - y).astype(F), (columns - x).astype(F)
            unlike = np.zeros((height, width), F)
            for channel in range(channels):
                unlike += (planes[..., channel] - value[channel]) ** 2
            chosen = (
                ((dx - place[1]) ** 2 <= near - (dy - place[0]) ** 2)
                & (unlike <= alike)
                & picture.valid
            )
            if not chosen.any():
                break
            new_place = np.array(
                [dy[chosen].mean(dtype=float), dx[chosen].mean(dtype=float)]
            ).astype(F)
            new_value = (planes[chosen].astype(float).sum(axis=0) / chosen.sum()).astype(F)
            rests = ((new_place - place) ** 2).sum() <= rest * near and (
                (new_value - value) ** 2
            ).sum() <= rest * alike
            place, value = new_place, new_value
            if rests:
                break
        found[:2, y, x], found[2:, y, x] = place, value
    return found


@pytest.mark.parametrize(
    ("dtype", "scale", "channels", "radii"),
    [
        ("uint8", 1, 3, (5, 15.0)),
        ("uint8", 1, 1, (3, 20.0)),
        ("uint8", 1, 2, (9, 25.0)),
        ("uint8", 1, 5, (1, 60.0)),
        ("uint16", 257, 3, (4, 4000.0)),
        ("float32", 1 / 256, 4, (2, 0.1)),
        ("float64", -1 / 8, 1, (8, 2.0)),
        ("int16", -128, 3, (17, 2500.0)),
    ],
)
def test_filters_as_a_slow_plain_program_does(
    dtype: str, scale: float, channels: int, radii: tuple[int, float]
) -> None:
    generator = np.random.default_rng(channels)
    photo = data.astronaut()[60:84, 200:221].astype(float)
    photo = np.concatenate([photo, photo[::-1, ::-1]], axis=2)[..., :channels]
    # Sums stay exact for the fractions, too, so that the order of adding cannot matter.
    picture = Picture((photo * scale).astype(dtype), generator.random(photo.shape[:2]) > 0.1)
    for iterations in (1, 6):
        model = joint(spatial_radius=radii[0], range_radius=radii[1], max_iterations=iterations)
        assert np.array_equal(modes(model, picture), plain_modes(model, picture), equal_nan=True)


def test_edges_weigh_the_larger_of_the_squared_distances() -> None:
    from maskloom.segcore.kernels.mean_shift import weigh_edges

    generator = np.random.default_rng(1)
    modes = generator.normal(0, 4, (5, 9, 8)).astype(F)
    modes[:, 3, 4] = np.nan
    # One row and one column belong to the next tiles; there are none after those.
    right, down = np.empty((2, 8, 8), F)
    weigh_edges(modes, (F(9), F(49), F(3)), right, down)
    places = modes[:2].astype(float) + np.indices((9, 8))
    for found, axis in ((right, 1), (down, 0)):
        near = (np.diff(places, axis=axis + 1) ** 2).sum(axis=0) / 9
        alike = (np.diff(modes[2:].astype(float), axis=axis + 1) ** 2).sum(axis=0) / 49
        expected = np.maximum(near, alike)
        assert (near > alike).any()
        assert (near < alike).any()
        expected = np.nan_to_num(
            np.pad(expected, ((0, 1 - axis), (0, axis)), constant_values=np.inf),
            nan=np.inf,
            posinf=np.inf,
        )
        assert np.allclose(found, expected[:8, :8], rtol=1e-5)


def test_smooths_like_opencv() -> None:
    photo = data.astronaut()[:200, 150:350]
    ours = np.moveaxis(modes(joint(spatial_radius=6, range_radius=20.0), full(photo))[2:], 0, 2)
    # OpenCV's window is a square and its values are rounded after every step, so pixels agree but
    # for details.
    theirs = cv2.pyrMeanShiftFiltering(photo, 6, 20, maxLevel=0)
    assert np.median(np.abs(ours - theirs)) < 2
    # It must smooth, and most where there is no edge.
    roughness = [
        float(np.median(np.abs(np.diff(image.astype(float), axis=1)))) for image in (photo, ours)
    ]
    assert roughness[1] < 0.5 * roughness[0]


def patches(noise: float, dtype: str = "uint8") -> tuple[Picture, np.ndarray]:
    """Flat patches of different shapes with noise, and which patch each pixel belongs to."""
    rows, columns = np.indices((90, 120))
    truth = np.ones((90, 120), int)
    truth[10:50, 10:40] = 2
    truth[(rows - 45) ** 2 + (columns - 80) ** 2 < 900] = 3
    truth[(rows - 45) ** 2 + (columns - 80) ** 2 < 150] = 4
    truth[70:, :60] = 5
    colours = np.array(
        [[0, 0, 0], [40, 60, 90], [120, 60, 60], [200, 180, 40], [90, 200, 210], [230, 230, 230]]
    )
    pixels = colours[truth] + noise * np.random.default_rng(3).standard_normal((90, 120, 3))
    if dtype == "uint16":
        pixels *= 200
    return full(
        np.clip(pixels, 0, np.iinfo(dtype).max if dtype != "float32" else np.inf).astype(dtype)
    ), truth


@pytest.mark.parametrize(
    ("dtype", "range_radius"), [("uint8", 25.0), ("uint16", 5000.0), ("float32", 25.0)]
)
@pytest.mark.parametrize("tile", [None, (37, 41)])
def test_finds_the_patches_under_the_noise(
    dtype: str, range_radius: float, tile: tuple[int, int] | None
) -> None:
    picture, truth = patches(7.0, dtype)
    ids = object_mask(joint(range_radius=range_radius), picture, tile)[0]
    order = {value: number for number, value in enumerate(dict.fromkeys(truth.ravel().tolist()), 1)}
    assert np.array_equal(ids, np.vectorize(order.get)(truth))


def test_without_noise_no_region_leaves_its_connected_part() -> None:
    picture = (ndimage.gaussian_filter(np.random.default_rng(8).random((70, 60)), 3) > 0.5).astype(
        np.uint8
    ) * 100
    ids = object_mask(joint(min_size=1), full(picture), (16, 23))[0]
    ones, count = ndimage.label(picture)
    parts = np.where(picture > 0, ones, ndimage.label(picture == 0)[0] + count)
    # A part that is no blob has several modes and may be cut between them, far from its border.
    assert (
        len(np.unique(np.stack([ids, parts], 2).reshape(-1, 2), axis=0))
        == ids.max()
        < 2 * parts.max()
    )


def test_min_size_holds_wherever_there_are_neighbours() -> None:
    photo = full(data.coffee()[:150, :170])
    counts = [
        np.bincount(object_mask(joint(min_size=size), photo, (64, 64))[0].ravel())[1:]
        for size in (1, 20, 200)
    ]
    assert counts[0].min() < 20 <= counts[1].min() < 200 <= counts[2].min()
    assert len(counts[0]) > len(counts[1]) > len(counts[2]) > 1


SMALL = {"spatial_radius": 3, "max_iterations": 8, "min_size": 30}
PHOTOS: dict[str, tuple[np.ndarray, float]] = {
    "uint8": (data.astronaut()[:230, 100:340], 12.0),
    "uint16": (data.coffee()[:210, :190].astype(np.uint16) * 257, 3000.0),
    "float32": (data.chelsea()[:200, :180].astype(np.float32) / F(255), 0.06),
    "one band": (data.camera()[:240, :240, None], 10.0),
    "five bands": (
        np.concatenate([data.astronaut()[:130, :140], data.astronaut()[130:260, :140, :2]], axis=2),
        30.0,
    ),
}


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("holes", [False, True])
def test_tiles_give_the_objects_of_the_whole_photo(name: str, holes: bool) -> None:
    pixels, range_radius = PHOTOS[name]
    valid = np.ones(pixels.shape[:2], bool)
    if holes:
        valid = ndimage.gaussian_filter(np.random.default_rng(4).random(valid.shape), 4) > 0.48
        if pixels.dtype.kind == "f":
            pixels = np.where(valid[..., None], pixels, np.nan)
    model, picture = joint(range_radius=range_radius, **SMALL), Picture(pixels, valid)
    whole, classes = object_mask(model, picture)
    assert np.array_equal(whole > 0, valid)
    assert np.array_equal(classes, valid)
    assert whole.max() > 20
    for tile in ((64, 64), (100, 37)) if holes else ((96, 96), (230, 16)):
        assert np.array_equal(object_mask(model, picture, tile)[0], whole), tile


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_tiny_tiles_far_smaller_than_the_halo(
    seed: int, shape: tuple[int, int], tile: tuple[int, int], radius: int, min_size: int
) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 6, (*shape, 1)).astype(np.uint8)
    model = joint(spatial_radius=radius, range_radius=1.5, min_size=min_size, max_iterations=4)
    picture = Picture(pixels, generator.random(shape) > 0.15)
    assert np.array_equal(object_mask(model, picture, tile)[0], object_mask(model, picture)[0])


def test_pixels_beyond_the_halo_do_not_matter_and_all_within_may() -> None:
    # One shift of radius 3 a step along a ramp that is steep enough to drag pixels on: what they
    # reach is the halo.
    model = joint(spatial_radius=3, range_radius=4.0, max_iterations=5)
    halo = model.requirements.halo
    assert halo == 16
    generator = np.random.default_rng(0)
    row = generator.integers(0, 9, (9, 80, 1)).astype(np.uint8)
    other = row.copy()
    other[:, 40 + halo - 1 :] = generator.integers(0, 9, other[:, 40 + halo - 1 :].shape)
    part = Box((0, 30), (9, 41))
    (one,), (two,) = full(row).blocks(model), full(other).blocks(model)
    assert np.array_equal(model.modes(one, part), model.modes(two, part))
    assert not np.array_equal(
        model.modes(one, Box((0, 41), (9, 60))), model.modes(two, Box((0, 41), (9, 60)))
    )


def test_flat_images_single_pixels_and_images_without_data() -> None:
    model = joint()
    assert (
        object_mask(model, full(np.full((20, 30, 3), 7, np.uint8)), (8, 8))[0].tolist()
        == [[1] * 30] * 20
    )
    assert object_mask(model, full(np.zeros((1, 1, 1), np.uint8)))[0].tolist() == [[1]]
    none = Picture(np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), bool))
    assert not object_mask(model, none, (7, 9))[0].any()
    apart = Picture(np.zeros((1, 5, 1), np.uint8), np.array([[True, False, True, False, True]]))
    assert object_mask(model, apart, (1, 2))[0].tolist() == [[1, 0, 2, 0, 3]]


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, -3.4e38])
def test_values_that_are_no_measurements_are_background(strange: float) -> None:
    pixels = np.ones((20, 20, 2), np.float32)
    pixels[5:9, 5:9, 1] = strange
    ids = object_mask(joint(), full(pixels), (8, 8))[0]
    assert np.array_equal(ids == 0, pixels[..., 1] != 1)
    assert ids.max() == 1


def test_bands_are_chosen() -> None:
    pixels = PHOTOS["five bands"][0]
    model = joint(bands=(4, 2), range_radius=20.0, **SMALL)
    alone = joint(range_radius=20.0, **SMALL)
    assert np.array_equal(
        object_mask(model, full(pixels), (50, 60))[0],
        object_mask(alone, full(pixels[..., [3, 1]]))[0],
    )


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_holds_the_contract_of_segmenters(dtype: str) -> None:
    recipe = MeanShift(
        space="joint", min_size=5, range_radius=4.0, max_iterations=3, classes=("field",)
    )
    assert fitted(recipe, []).classes == ("background", "field")
    noise = np.random.default_rng(6).integers(0, 256, (256, 256, 3)).astype(dtype)
    check_memory(recipe, full(noise))
    check_values(recipe, full(noise[:9, :9]))
    check_labels(recipe, Picture(noise[:50, :60], np.random.default_rng(0).random((50, 60)) > 0.2))
    check_tiling(recipe, full(noise[:50, :60]), (17, 13))


def test_defaults_are_those_of_the_documentation() -> None:
    recipe = TypeAdapter(MeanShift).validate_python({"space": "joint"})
    model = recipe.start()
    assert dataclasses.asdict(model) == {
        "spatial_radius": 5,
        "range_radius": 15.0,
        "min_size": 50,
        "max_iterations": 20,
        "bands": None,
        "classes": ("background", "region"),
    }
    assert model.requirements.halo == 101


def test_space_feature_starts_with_the_fitter_of_modes() -> None:
    from maskloom.segcore.methods.modes import FeatureMeanShift

    recipe = MeanShift(bandwidth=12, kernel="gaussian", bands=(1, 2), classes=("a", "b"), seed=4)
    assert recipe.start() == FeatureMeanShift(
        kernel="gaussian", bandwidth=12.0, bands=(1, 2), classes=("a", "b"), seed=4
    )
    assert MeanShift().start() == FeatureMeanShift(
        kernel="gaussian", bandwidth=None, bands=None, classes=None, seed=0
    )


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"space": "spatial"}, "space"),
        ({"spatial_radius": 0}, "spatial_radius"),
        ({"spatial_radius": -3}, "spatial_radius"),
        ({"spatial_radius": 101}, "spatial_radius"),
        ({"spatial_radius": 10**9}, "spatial_radius"),
        ({"range_radius": 0}, "range_radius"),
        ({"range_radius": -1.5}, "range_radius"),
        ({"range_radius": float("nan")}, "range_radius"),
        ({"range_radius": float("inf")}, "range_radius"),
        ({"range_radius": 1e30}, "range_radius"),
        ({"min_size": 0}, "min_size"),
        ({"min_size": 2**40}, "min_size"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": 10**6}, "max_iterations"),
        ({"classes": ["a", "b"]}, "classes"),
        ({"classes": ["background"]}, "classes"),
        ({"classes": {"a": [1, 2]}}, "classes"),
        ({"classes": []}, "classes"),
        ({"bands": [0]}, "bands"),
        ({"bandwidth": 3.0}, "bandwidth: only space feature has it"),
        ({"kernel": "flat"}, "kernel: only space feature has it"),
        ({"seed": 1}, "seed: only space feature has it"),
        ({"space": "feature", "spatial_radius": 7}, "spatial_radius: only space joint has it"),
        ({"space": "feature", "range_radius": 7}, "range_radius: only space joint has it"),
        ({"space": "feature", "min_size": 7}, "min_size: only space joint has it"),
        ({"space": "feature", "max_iterations": 7}, "max_iterations: only space joint has it"),
        ({"space": "feature", "bandwidth": 0}, "bandwidth"),
        ({"space": "feature", "bandwidth": float("nan")}, "bandwidth"),
        ({"space": "feature", "kernel": "box"}, "kernel"),
        ({"space": "feature", "seed": -1}, "seed"),
        ({"space": "feature", "classes": ["a", "a"]}, "classes"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(MeanShift).validate_python({"space": "joint", **parameters})


@pytest.mark.skipif(REAL is None, reason="MASKLOOM_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("pattern", "range_radius"),
    [
        ("satseg_spacenet/**/*.tif", 60.0),
        ("satseg_dubai/**/*.jpg", 12.0),
        ("dsb2018/**/*.png", 8.0),
    ],
)
def test_real_images_are_the_same_tiled_and_whole(pattern: str, range_radius: float) -> None:
    path = next(
        each
        for each in sorted(Path(str(REAL)).glob(pattern))
        if "mask" not in str(each) and "label" not in str(each)
    )
    with rasterio.open(path) as file:
        pixels = np.moveaxis(file.read(), 0, 2)[150:500, :260]
        valid = file.dataset_mask()[150:500, :260] > 0
    model = joint(range_radius=range_radius)
    whole = object_mask(model, Picture(pixels, valid))[0]
    assert whole.max() > 5
    assert np.array_equal(object_mask(model, Picture(pixels, valid), (128, 128))[0], whole)
