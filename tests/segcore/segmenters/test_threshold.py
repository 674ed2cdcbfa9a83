"""Thresholds equal scikit-image's on all valid pixels at once, however the pixels are cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pydantic import TypeAdapter, ValidationError
from skimage import data, filters

from maskloom.segcore.errors import FitError, ModelMismatch
from maskloom.segcore.methods.intensity import intensity
from maskloom.segcore.segmenters.threshold import Threshold, ThresholdModel
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled

METHODS = {
    "otsu": filters.threshold_otsu,
    "li": filters.threshold_li,
    "triangle": filters.threshold_triangle,
    "multi-otsu": filters.threshold_multiotsu,
}


def gray(pixels: np.ndarray, valid: np.ndarray | None = None) -> Picture:
    return Picture(pixels[..., None], np.ones(pixels.shape, bool) if valid is None else valid)


def found(
    recipe: Threshold, *pictures: Picture, tile: tuple[int, int] | None = (37, 53)
) -> tuple[float, ...]:
    model = fitted(recipe, pictures, tile)
    assert isinstance(model, ThresholdModel)
    return model.thresholds


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["camera", "coins", "page", "moon"])
def test_equals_scikit_image_on_photographs(method: Any, name: str) -> None:
    image = getattr(data, name)()
    assert found(Threshold(method=method), gray(image)) == tuple(
        np.ravel(METHODS[method](image)).astype(float)
    )


@pytest.mark.parametrize("method", ["otsu", "triangle", "multi-otsu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_equal_scikit_image(method: Any, dtype: str) -> None:
    image = filters.gaussian(data.coins(), 2).astype(dtype) * 7 - 3
    assert found(Threshold(method=method), gray(image)) == tuple(
        np.ravel(METHODS[method](image)).astype(float)
    )


def test_li_on_floats_is_right_to_a_bin() -> None:
    image = filters.gaussian(data.coins(), 2)
    bin_width = (image.max() - image.min()) / 65_536
    (threshold,) = found(Threshold(method="li"), gray(image))
    assert threshold == pytest.approx(
        filters.threshold_li(image, tolerance=bin_width / 2), abs=2 * bin_width
    )


whole_numbers = stn.arrays(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "int32"]),
    stn.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24),
    elements=st.integers(0, 120),
    fill=st.nothing(),
)


@st.composite
def masked(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """An image and which of its pixels are valid, one at least."""
    image = draw(whole_numbers)
    valid = draw(stn.arrays(bool, image.shape))
    valid[0, 0] = True
    return image, valid


# Li's iteration goes on for long where values lie far apart.
@example((np.array([[0, 13, 46, 30, 39, 52]], "uint8"), np.ones((1, 6), bool)), "li", (1, 1))
@given(
    masked(),
    st.sampled_from(["otsu", "li", "triangle"]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_whole_numbers_any_mask_any_tiling(
    drawn: tuple[np.ndarray, np.ndarray], method: Any, tile: tuple[int, int]
) -> None:
    image, valid = drawn
    expected = float(METHODS[method](image[valid]))
    assert found(Threshold(method=method), gray(image, valid), tile=tile) == (expected,)


@given(
    stn.arrays("float64", (9, 11), elements=st.floats(-1e6, 1e6, allow_subnormal=False)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_floats_any_tiling(image: np.ndarray, tile: tuple[int, int]) -> None:
    spread = np.ptp(image)
    if spread < 1e-9 * np.abs(image).max() or 0 < spread < 1e-280:
        return  # NumPy refuses bins whose edges cannot be told apart, and we the narrowest of all
    assert found(Threshold(), gray(image), tile=tile) == (float(filters.threshold_otsu(image)),)


def test_images_of_several_types_share_one_histogram() -> None:
    whole, half = data.coins(), (data.camera() / 2).astype("float32")
    together = np.concatenate([whole.ravel().astype("float32"), half.ravel()])
    assert found(Threshold(), gray(whole), gray(half)) == (float(filters.threshold_otsu(together)),)
    wide = data.camera().astype("uint16") * 200
    together = np.concatenate([whole.ravel().astype("uint16"), wide.ravel()])
    assert found(Threshold(), gray(whole), gray(wide)) == (float(filters.threshold_otsu(together)),)


def test_wide_whole_numbers_are_binned_as_floats() -> None:
    image = data.coins().astype("int32") * 10_000
    assert found(Threshold(), gray(image)) == (float(filters.threshold_otsu(image.astype(float))),)


def test_multi_otsu_gathers_many_levels_into_256() -> None:
    image = (
        data.coins().astype("uint16") * 31
        + np.arange(data.coins().size).reshape(data.coins().shape).astype("uint16") % 31
    )
    counts, edges = np.histogram(image, 256)
    expected = filters.threshold_multiotsu(
        hist=(counts / counts.sum(), (edges[:-1] + edges[1:]) / 2), classes=4
    )
    assert found(Threshold(method="multi-otsu", levels=4), gray(image)) == tuple(expected)


@pytest.mark.parametrize("method", ["otsu", "li", "triangle"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_constant_image_and_single_pixel(method: Any, dtype: str) -> None:
    for image in (np.full((5, 7), 9, dtype), np.full((1, 1), 9, dtype)):
        model = fitted(Threshold(method=method), [gray(image)])
        assert model.provenance()["thresholds"] == [9.0]
        assert not labelled(model, gray(image)).any()


def test_too_little_to_fit_says_what_to_do() -> None:
    image = np.zeros((4, 4), "uint8")
    with pytest.raises(FitError, match="nodata"):
        found(Threshold(), gray(image, np.zeros((4, 4), bool)))
    with pytest.raises(FitError, match="Lower `levels`"):
        found(Threshold(method="multi-otsu"), gray(image))


def test_infinite_values_are_left_out_of_the_fit_and_labelled() -> None:
    image = filters.gaussian(data.coins(), 2)
    holed = image.copy()
    holed[:3], holed[3:5] = np.inf, -np.inf
    assert found(Threshold(), gray(holed)) == (float(filters.threshold_otsu(image[5:])),)
    labels = labelled(fitted(Threshold(), [gray(holed)]), gray(holed))
    assert labels[:3].all()
    assert not labels[3:5].any()


@given(
    st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    st.floats(-300, 300, allow_subnormal=False),
    st.booleans(),
)
def test_a_pixel_is_one_where_it_is_greater(dtype: str, value: float, above: bool) -> None:
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    near = np.array(
        [np.floor(value), value, np.ceil(value), np.nextafter(np.float32(value), 999), -300, 300]
    )
    image = (near.clip(info.min, info.max) if info else near).astype(dtype)[None]
    labels = labelled(Threshold(value=value, above=above).start(), gray(image))  # type: ignore[arg-type]
    # Python compares numbers of any types by their true values.
    assert labels[0].tolist() == [int((pixel > value) == above) for pixel in image[0].tolist()]


def test_multi_otsu_class_is_the_number_of_smaller_thresholds() -> None:
    image = data.camera()
    model = fitted(Threshold(method="multi-otsu", levels=4), [gray(image)])
    expected = np.digitize(image, filters.threshold_multiotsu(image, classes=4), right=True)
    assert np.array_equal(labelled(model, gray(image), (100, 100)), expected)
    assert model.classes == ("class_0", "class_1", "class_2", "class_3")


@pytest.mark.parametrize("factor", [np.uint8(1), np.uint16(257)])
def test_luminance_is_that_of_opencv(factor: Any) -> None:
    rgb = data.astronaut() * factor
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(intensity(rgb, "here"), expected)
    picture = Picture(rgb, np.ones(rgb.shape[:2], bool), "rgb")
    assert found(Threshold(), picture) == (float(filters.threshold_otsu(expected)),)


def test_float_luminance_is_opencvs_to_the_last_bit_but_the_same_in_every_tile() -> None:
    rgb = (data.astronaut() / 255).astype("float32")
    whole = intensity(rgb, "here")
    assert np.abs(whole - cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)).max() <= 2**-23
    assert np.array_equal(whole[5:100, 3:10], intensity(rgb[5:100, 3:10], "here"))


def test_which_band_is_taken() -> None:
    photo = data.astronaut()[:64, :64]
    valid = np.ones(photo.shape[:2], bool)
    rgb, bands = Picture(photo, valid, "rgb"), Picture(photo, valid)
    first, luminance = (
        filters.threshold_otsu(photo[..., 0]),
        filters.threshold_otsu(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)),
    )
    assert first != luminance
    assert found(Threshold(), bands) == (float(first),)
    assert found(Threshold(), rgb) == (float(luminance),)
    assert found(Threshold(band="luminance"), bands) == (float(luminance),)
    assert found(Threshold(band=3), rgb) == (float(filters.threshold_otsu(photo[..., 2])),)
    assert found(Threshold(band="luminance"), gray(photo[..., 1])) == (
        float(filters.threshold_otsu(photo[..., 1])),
    )
    with pytest.raises(ModelMismatch, match="band 4"):
        Threshold(band=4).select(rgb.spec)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"value": 3, "method": "otsu"}, "value and method"),
        ({"value": float("nan")}, "value"),
        ({"method": "best"}, "method"),
        ({"band": 0}, "band"),
        ({"levels": 6}, "levels"),
        ({"method": "multi-otsu", "above": False}, "above"),
        ({"classes": ["one"]}, "classes"),
        ({"classes": ["same", "same"]}, "classes"),
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
    assert image.dtype == np.uint16
    for method in ("otsu", "li", "triangle"):
        expected = float(METHODS[method](image[valid]))
        assert found(Threshold(method=method), gray(image, valid), tile=(256, 300)) == (expected,)


def test_bands_are_one_band_or_the_luminance_of_three() -> None:
    photograph = data.astronaut()
    image, turned = (
        Picture(pixels, np.ones(pixels.shape[:2], bool), "rgb")
        for pixels in (photograph, photograph[..., ::-1].copy())
    )

    def thresholds(recipe: Threshold, picture: Picture) -> object:
        return fitted(recipe, [picture]).provenance()["thresholds"]

    assert thresholds(Threshold(bands=(2,)), image) == thresholds(Threshold(band=2), image)
    assert thresholds(Threshold(bands=(3, 2, 1)), image) == thresholds(Threshold(), turned)
    with pytest.raises(ValueError, match="bands"):
        Threshold(bands=(1, 2))
