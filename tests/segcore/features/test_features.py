"""Features: numbers of NumPy, SciPy and scikit-image, the same for any box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import color, data

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError
from maskloom.segcore.features.indices import INDICES
from maskloom.segcore.features.named import check_features, with_features
from maskloom.segcore.features.reader import open_features, shown, source_of
from maskloom.segcore.features.sensors import SENSORS
from maskloom.segcore.formats.arrays import HeldReader
from maskloom.segcore.formulas import FormulaError, names_in, parse
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import ReadOptions

SHAPE = (37, 53)
RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 4000, (*SHAPE, 4), dtype=np.uint16)
PIXELS[3:9, 5:20] = 0
VALID = RNG.random(SHAPE) > 0.1
NAMED = ReadOptions(band_names=("blue", "green", "red", "nir"))


class Held(NothingToClose):
    """An image in memory with invalid pixels."""

    def __init__(self, pixels: np.ndarray, valid: np.ndarray, bands: tuple[int, ...]) -> None:
        self.reader = HeldReader(pixels, pixels.dtype, bands)
        self.valid = valid

    def read(self, box: Box) -> tuple[Any, Any]:
        pixels, valid = self.reader.read(box)
        return pixels, valid & self.valid[box.slices]


def spec_of(pixels: np.ndarray, **changes: Any) -> RasterSpec:
    shape, bands = pixels.shape[:-1], pixels.shape[-1]
    known = {
        "location": "a.tif",
        "format": "tiff",
        "shape": shape,
        "bands": tuple(range(1, bands + 1)),
        "dtype": pixels.dtype.name,
        "chunks": shape,
        "version": "v",
        "file_bands": bands,
        "space": Space(axes=("z", "y", "x")[-len(shape) :]),
    }
    return RasterSpec(**{**known, **changes})


def features(
    *texts: str,
    pixels: np.ndarray = PIXELS,
    valid: np.ndarray | None = VALID,
    options: ReadOptions = NAMED,
    box: Box | None = None,
    **changes: Any,
) -> tuple[np.ndarray, np.ndarray]:
    from dataclasses import replace

    spec = with_features(spec_of(pixels, **changes), replace(options, features=texts))
    everywhere = np.ones(pixels.shape[:-1], bool) if valid is None else valid
    reader = open_features(spec, lambda source: Held(pixels, everywhere, source.bands))
    return reader.read(Box.whole(spec.shape) if box is None else box)


def test_formulas_are_those_of_numpy() -> None:
    blue, green, red, nir = (PIXELS[..., band].astype(float) for band in range(4))
    found, valid = features("ndvi", "nir / (red + 1)", "sqrt(abs(blue - green)) ** 0.5", "b3")
    with np.errstate(all="ignore"):
        wanted = [
            (nir - red) / (nir + red),
            nir / (red + 1),
            np.sqrt(np.abs(blue - green)) ** 0.5,
            red,
        ]
    for channel, numbers in enumerate(wanted):
        np.testing.assert_array_equal(found[..., channel][valid], numbers.astype(np.float32)[valid])
    # 0 / 0 is no number, so such pixels have no features.
    np.testing.assert_array_equal(valid, VALID & (nir + red > 0))


@pytest.mark.parametrize("name", sorted(INDICES))
def test_every_index_is_a_formula_of_common_names(name: str) -> None:
    common = {each for sensor in SENSORS.values() for each in sensor.common.values()}
    assert set(names_in(parse(INDICES[name].formula))) <= common
    check_features([name], sorted(common))


def test_windows_are_those_of_scipy() -> None:
    red, every = PIXELS[..., 2].astype(float), None
    found, valid = features("gaussian(red, 1.5)", "mean(red, 5)", "texture(red, 5)", valid=every)
    assert valid.all()
    inner = (slice(6, -6),) * 2
    mean = ndimage.uniform_filter(red, 5)
    wanted = [
        ndimage.gaussian_filter(red, 1.5),
        mean,
        ndimage.generic_filter(red, np.std, 5),
    ]
    for channel, numbers in enumerate(wanted):
        np.testing.assert_allclose(found[..., channel][inner], numbers[inner], rtol=1e-6, atol=1e-9)
    # At the border, and around invalid pixels, a window holds what is there.
    partly, valid = features("mean(red, 3)")
    around = red[:2, :2][VALID[:2, :2]]
    if VALID[0, 0]:
        assert partly[0, 0, 0] == pytest.approx(around.mean())
    np.testing.assert_array_equal(valid, VALID)


def test_lab_is_that_of_scikit_image() -> None:
    photo = data.astronaut()[::8, ::8]
    found, _ = features(
        "lab", pixels=photo, valid=None, options=ReadOptions(), interpretation="rgb"
    )
    np.testing.assert_allclose(found, color.rgb2lab(photo), atol=0.02)


BOX = st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in SHAPE))


@given(BOX)
def test_any_box_has_the_numbers_of_the_whole(box: Any) -> None:
    start = tuple(first for first, _ in box)
    stop = tuple(
        min(first + length, size) for (first, length), size in zip(box, SHAPE, strict=True)
    )
    texts = (
        "ndvi",
        "lab",
        "log(nir)",
        "bands",
        "gaussian(ndvi, 2)",
        "texture(mean(red, 3) / (blue + 1), 7)",
    )
    whole, valid = features(*texts)
    part = Box(start, stop)
    found, known = features(*texts, box=part)
    np.testing.assert_array_equal(found, whole[part.slices])
    np.testing.assert_array_equal(known, valid[part.slices])


def test_windows_of_volumes_are_cubes() -> None:
    volume = RNG.normal(size=(9, 20, 21, 1))
    found, _ = features("gaussian(1)", "mean(3)", pixels=volume, valid=None, options=ReadOptions())
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(
        found[..., 0][inner], ndimage.gaussian_filter(volume[..., 0], 1)[inner], rtol=1e-5
    )
    np.testing.assert_allclose(
        found[..., 1][inner], ndimage.uniform_filter(volume[..., 0], 3)[inner], atol=1e-6
    )


@pytest.mark.parametrize(
    ("names", "options", "text", "band"),
    [
        ((), ReadOptions(sensor="sentinel2"), "nir", 4),
        ((), ReadOptions(sensor="sentinel2"), "B08", 4),
        ((), ReadOptions(sensor="naip"), "red", 1),
        (("B04 red", "B03 green", "B02 blue", "B08 near infrared"), ReadOptions(), "nir", 4),
        (("B04 red", "B03 green", "B02 blue", "B08 near infrared"), ReadOptions(), "B04", 1),
        (("B04", "B03", "B02", "B08"), ReadOptions(sensor="sentinel2"), "red", 1),
        (("B04", "B03", "B02", "B08"), ReadOptions(), "b4", 4),
        (("x", "y", "z", "t"), ReadOptions(band_names=("p", "q", "r", "s")), "q", 2),
    ],
)
def test_bands_have_the_names_of_recipe_file_and_sensor(
    names: tuple[str, ...], options: ReadOptions, text: str, band: int
) -> None:
    found, valid = features(text, options=options, band_names=names)
    np.testing.assert_array_equal(found[..., 0][valid], PIXELS[..., band - 1][valid])


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        (ReadOptions(), "nir", "no band 'nir': the file has 4 band"),
        (ReadOptions(), "b5", "no band 5: the file has 4"),
        (ReadOptions(band_names=("a", "b")), "a", "`band_names` of the recipe names 2"),
        (ReadOptions(sensor="micasense"), "nir", "files of micasense usually have 5"),
        (ReadOptions(values="physical"), "b1", "states neither scale nor offset"),
    ],
)
def test_an_image_that_lacks_something_says_so(
    options: ReadOptions, text: str, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        features(text, options=options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndvy", "no band 'ndvy'"),
        ("1 + 2", "got a constant"),
        ("red > 2", "'>' gives yes or no"),
        ("tanh(red)", "no function 'tanh'"),
        ("min(red)", "expected 2 argument"),
        ("texture(red, 4)", "an odd number of pixels from 3"),
        ("gaussian(red, 100)", "at most 256 pixels"),
        ("gaussian(red, nir)", "expected a number of pixels"),
        ("gaussian(gaussian(red, 40), 40)", "nested windows look further"),
    ],
)
def test_a_feature_of_no_image_is_refused_before_work(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        check_features([text], ("red", "nir"))


def test_tags_of_a_file_make_numbers_physical(tmp_path: Path) -> None:
    path = tmp_path / "scaled.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=53, height=37, count=2, dtype="uint16"
    ) as file:
        file.write(PIXELS[..., :2].transpose(2, 0, 1))
        file.scales, file.offsets = (0.0001, 0.5), (-0.1, 0.0)
        file.descriptions = ("red", "nir")
    spec = with_features(formats.describe(str(path), "v"), ReadOptions(values="physical"))
    assert not any("taken as stored" in note for note in spec.notes)
    with formats.open_image(spec) as reader:
        found, _ = reader.read(Box.whole(SHAPE))
    wanted = PIXELS[..., :2] * np.array([0.0001, 0.5]) + np.array([-0.1, 0])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_pictures_show_the_bands_of_the_file() -> None:
    photo = data.astronaut()[:20, :30]
    spec = with_features(
        spec_of(photo, interpretation="rgb"), ReadOptions(features=("excess_green",))
    )
    picture = shown(spec.select((1,)))
    assert (picture.interpretation, picture.dtype) == ("rgb", "uint8")
    assert source_of(spec) == spec_of(photo, interpretation="rgb")
    reader = open_features(picture, lambda source: HeldReader(photo, photo.dtype, source.bands))
    pixels, _ = reader.read(Box.whole(spec.shape))
    np.testing.assert_array_equal(pixels, photo)
