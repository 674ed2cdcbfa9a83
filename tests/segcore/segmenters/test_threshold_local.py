"""Local thresholds equal scikit-image's, leave out what is not valid, and do not depend on
tiles.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pydantic import TypeAdapter, ValidationError
from skimage import data, filters

from maskloom.segcore.geometry import Box
from maskloom.segcore.methods import windows as local
from maskloom.segcore.methods.windows import LocalWindow
from maskloom.segcore.segmenters.threshold import LocalThresholdModel, Threshold
from maskloom.segcore.testing import segmenters as check
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

STATISTICS = ["gaussian", "mean", "median"]


def gray(pixels: np.ndarray, valid: np.ndarray | None = None) -> Picture:
    return Picture(pixels[..., None], np.ones(pixels.shape, bool) if valid is None else valid)


def labels_of(
    recipe: Threshold, picture: Picture, tile: tuple[int, int] | None = None
) -> np.ndarray:
    return labelled(fitted(recipe, [picture]), picture, tile)


def recipe_of(statistic: Any, window: int, offset: float = 0.0) -> Threshold:
    return Threshold(method="local", window=window, window_statistic=statistic, offset=offset)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("window", [3, 21, 51])
@pytest.mark.parametrize("offset", [0.0, 10.25, -3.0])
def test_equals_scikit_image_on_photographs(statistic: Any, window: int, offset: float) -> None:
    for photo in (data.page()[:150, :190], data.coins()[:150, 40:200].astype("uint16") * 211):
        # scikit-image takes seconds for medians of large windows.
        image = photo[:80, :80] if statistic == "median" and window > 21 else photo
        threshold = filters.threshold_local(image, window, statistic, offset)
        # Where a value equals its mean, what scikit-image says is rounding.
        clear = np.abs(image - threshold) > 1e-8
        ours = labels_of(recipe_of(statistic, window, offset), gray(image), (64, 70))
        assert np.array_equal(ours[clear], (image > threshold)[clear])
        assert not ours[~clear].any()
        assert statistic == "median" or offset or clear.mean() > 0.7


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_equal_scikit_image(statistic: Any, dtype: str) -> None:
    noise = np.random.default_rng(1).standard_normal((90, 100))
    image = (data.page()[:90, :100] / 255 + 0.1 * noise).astype(dtype)
    threshold = filters.threshold_local(image, 15, statistic, 0.02)
    clear = np.abs(image - threshold) > (1e-5 if dtype == "float32" else 1e-12)
    ours = labels_of(recipe_of(statistic, 15, 0.02), gray(image), (33, 41))
    assert clear.mean() > 0.99
    assert np.array_equal(ours[clear], (image > threshold)[clear])


def plain_local(image: np.ndarray, usable: np.ndarray, window: LocalWindow) -> np.ndarray:
    """The local value of each pixel by looking at every window by itself."""
    r = window.radius
    padded, there = (
        np.pad(array.astype(float), r, mode="symmetric")
        for array in (np.where(usable, image, 0), usable)
    )
    distance = np.arange(-r, r + 1)
    kernel = np.ones(2 * r + 1)
    if window.statistic == "gaussian":
        kernel = np.exp(-0.5 * (distance / ((window.side - 1) / 6)) ** 2)
    weights = np.outer(kernel, kernel)
    out = np.zeros(image.shape)
    for y, x in np.ndindex(*image.shape):
        values, present = (
            array[y : y + 2 * r + 1, x : x + 2 * r + 1] for array in (padded, there > 0)
        )
        if not present.any():
            continue
        out[y, x] = (
            np.median(values[present])
            if window.statistic == "median"
            else np.average(values[present], weights=weights[present])
        )
    return out


PIXELS = stn.arrays(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"]),
    stn.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=11),
    elements=st.integers(0, 100),
    fill=st.nothing(),
)


@given(PIXELS, st.sampled_from(STATISTICS), st.sampled_from([3, 5, 9, 21]), st.data())
def test_local_values_leave_out_what_is_not_usable(
    image: np.ndarray, statistic: Any, side: int, draw: Any
) -> None:
    usable = draw.draw(stn.arrays(bool, image.shape))
    window = LocalWindow(side, statistic)
    ours = window.local_values(image, usable, Box.whole(image.shape))
    assert np.allclose(ours, plain_local(image, usable, window), rtol=1e-12)


@given(
    PIXELS,
    st.sampled_from(STATISTICS),
    st.sampled_from([3, 5, 11, 31]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.data(),
)
def test_any_image_any_mask_any_tiling(
    image: np.ndarray, statistic: Any, window: int, tile: tuple[int, int], draw: Any
) -> None:
    valid = draw.draw(stn.arrays(bool, image.shape))
    offset = draw.draw(st.sampled_from([0.0, 0.1, -1.0]))
    if image.dtype.kind == "f":
        image = (image + np.random.default_rng(0).standard_normal(image.shape)).astype(image.dtype)
    check.check_tiling(recipe_of(statistic, window, offset), gray(image, valid), tile)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_local_values_are_the_same_bits_in_every_tile(statistic: Any, dtype: str) -> None:
    image = np.tile(data.coins()[:120, :200], (2, 4)).astype(dtype)
    image = image if dtype == "uint8" else image * np.float32(0.137)
    usable = np.ones(image.shape, bool)
    usable[20:40, 500:530] = (
        False  # in reach of some tiles only, and across the strips that are worked on at once
    )
    window = LocalWindow(25, statistic)
    whole = window.local_values(image, usable, Box.whole(image.shape))
    recipe = recipe_of(statistic, 25)
    for block in gray(image, usable).blocks(recipe.start(), (97, 111)):  # type: ignore[arg-type]
        core = block.tile.core.relative_to(block.tile.read)
        here = window.local_values(block.pixels[..., 0], block.valid, core)
        assert np.array_equal(here, whole[block.tile.core.slices])


def test_large_windows_do_without_opencv() -> None:
    image = np.tile(data.page(), (2, 1))[:, :300]
    everywhere, core = np.ones(image.shape, bool), Box((150, 140), (154, 150))
    for side in (255, 257):
        r = side // 2
        padded = np.pad(image, r, mode="symmetric")
        ours = LocalWindow(side, "median").local_values(image, everywhere, core)
        expected = [
            [
                np.median(padded[y : y + side, x : x + side])
                for x in range(core.start[1], core.stop[1])
            ]
            for y in range(core.start[0], core.stop[0])
        ]
        assert np.array_equal(ours, expected)


def test_medians_of_bytes_are_opencvs(monkeypatch: pytest.MonkeyPatch) -> None:
    image, everywhere = data.page(), np.ones(data.page().shape, bool)
    fast = LocalWindow(13, "median").local_values(image, everywhere, Box.whole(image.shape))
    monkeypatch.setattr(local, "_LARGEST_OF_OPENCV", 0)
    assert np.array_equal(
        fast, LocalWindow(13, "median").local_values(image, everywhere, Box.whole(image.shape))
    )


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_flat_areas_exceed_nothing(statistic: Any, dtype: str) -> None:
    for value in (0, 1, 77, 243):
        image = np.full((12, 17), value, dtype)
        valid = np.ones(image.shape, bool)
        valid[3:5] = False
        assert not labels_of(recipe_of(statistic, 11), gray(image, valid)).any()
        assert labels_of(recipe_of(statistic, 11, 1.0), gray(image)).all()
    assert not labels_of(recipe_of(statistic, 51), gray(np.full((1, 1), 9, dtype))).any()
    nothing = gray(np.zeros((3, 3), dtype), np.zeros((3, 3), bool))
    assert not labels_of(recipe_of(statistic, 3), nothing).any()


def test_infinite_values_are_labelled_but_take_no_part() -> None:
    image = data.coins()[:40, :50].astype("float32")
    holed = image.copy()
    holed[5, 5], holed[20, 9] = np.inf, -np.inf
    valid = np.isfinite(holed)
    ours = labels_of(recipe_of("mean", 7), gray(holed))
    assert ours[5, 5] == 1
    assert ours[20, 9] == 0
    assert np.array_equal(ours[valid], labels_of(recipe_of("mean", 7), gray(image, valid))[valid])


def test_below_is_the_complement_and_luminance_that_of_global_thresholds() -> None:
    rgb = data.astronaut()[:90, :80]
    picture = Picture(rgb, np.ones(rgb.shape[:2], bool), "rgb")
    above = labels_of(Threshold(method="local", window=15), picture)
    assert np.array_equal(
        labels_of(Threshold(method="local", window=15, above=False), picture), 1 - above
    )
    assert np.array_equal(
        above,
        labels_of(
            Threshold(method="local", window=15), gray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
        ),
    )


def test_needs_no_fitting_and_its_halo_is_what_it_looks_at() -> None:
    model = Threshold(method="local", window=51).start()
    assert isinstance(model, LocalThresholdModel)
    assert model.requirements.halo == 33
    assert Threshold(method="local", window=51).requirements == model.requirements
    for statistic, halo in (("mean", 10), ("median", 10), ("gaussian", 13)):
        recipe = recipe_of(statistic, 21)
        assert recipe.start().requirements.halo == halo
        # A change just inside the reach is felt, one outside is not.
        image = np.random.default_rng(2).integers(0, 50, (61, 61)).astype("float64")
        everywhere, centre = np.ones(image.shape, bool), Box((30, 30), (31, 31))
        before = LocalWindow(21, statistic).local_values(image, everywhere, centre)
        for distance, felt in ((halo, True), (halo + 1, False)):
            changed = image.copy()
            changed[30 - distance] = changed[30 + distance] = 1e6
            after = LocalWindow(21, statistic).local_values(changed, everywhere, centre)
            assert (after != before).all() == felt


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("float64", 3)])
def test_contract(statistic: Any, dtype: str, channels: int) -> None:
    photo = data.astronaut()[60:300, 90:340, :channels].astype(dtype)
    valid = np.ones(photo.shape[:2], bool)
    valid[20:60, 30:80] = False
    picture = Picture(photo, valid, "rgb" if channels == 3 else "bands")
    recipe = recipe_of(statistic, 9)
    check.check_tiling(recipe, picture, (100, 64))
    check.check_values(recipe, picture)
    check.check_labels(recipe, picture)
    check.check_memory(recipe, picture, slack=2**19)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"method": "local", "window": 4}, "window"),
        ({"method": "local", "window": 1}, "window"),
        ({"method": "local", "window": 10_001}, "window"),
        ({"method": "local", "window_statistic": "mode"}, "window_statistic"),
        ({"method": "local", "offset": float("inf")}, "offset"),
        ({"method": "local", "levels": 4}, "levels: belongs to `method: multi-otsu`"),
        ({"method": "local", "value": 3}, "value and method"),
        ({"method": "otsu", "window": 21}, "window: belongs to `method: local`"),
        ({"value": 3, "offset": 2}, "offset: belongs to `method: local`"),
        ({"window_statistic": "mean"}, "window_statistic: belongs to `method: local`"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(Threshold).validate_python(parameters)


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_real_uint16_scene_with_nodata() -> None:
    import rasterio

    (path,) = Path(os.environ["MASKLOOM_TEST_DATA"], "satseg_spacenet", "images").glob("*.tif")
    with rasterio.open(path) as scene:
        image = scene.read(1)
    valid = image > 0
    recipe = recipe_of("gaussian", 31, -20.0)
    whole = labels_of(recipe, gray(image, valid))
    assert np.array_equal(labels_of(recipe, gray(image, valid), (256, 300))[valid], whole[valid])
    # Far from nodata the mask does not matter.
    far = cv2.erode(valid.astype("uint8"), np.ones((41, 41), "uint8")) == 1
    assert far.any()
    assert np.array_equal(
        whole[far], (image > filters.threshold_local(image, 31, offset=-20.0))[far]
    )
