"""Up-sampling against cases worked out by hand, and against SciPy, OpenCV, scikit-image and
keras.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops
from scipy import ndimage, signal
from skimage.transform import resize

from maskloom.segcore.deep.networks.layers.transposed import BilinearKernel
from maskloom.segcore.deep.networks.layers.upsampling import (
    MaxPoolingWithPositions,
    MaxUnpooling,
    Upsampling,
    bed_of_nails,
    bilinear,
    max_pool,
    max_unpool,
    nearest,
)


def maps(*rows: list[float]) -> np.ndarray:
    """One image of one channel."""
    return np.array(rows, np.float32)[None, :, :, None]


def plain(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def picture(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, height, width, channels)).astype(np.float32)


def test_nearest_by_hand() -> None:
    assert np.array_equal(
        plain(nearest(maps([1, 2], [3, 4]), 2)),
        maps([1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]),
    )


def test_bed_of_nails_by_hand() -> None:
    assert np.array_equal(
        plain(bed_of_nails(maps([1, 2], [3, 4]), 2)),
        maps([1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]),
    )


def test_bilinear_by_hand() -> None:
    """Centres of the output lie at -0.25, 0.25, 0.75 and 1.25 of the input."""
    assert np.array_equal(plain(bilinear(maps([0, 8], [16, 24]), 2))[0, :, 0, 0], [0, 4, 12, 16])
    assert np.array_equal(plain(bilinear(maps([0, 8], [16, 24]), 2))[0, 0, :, 0], [0, 2, 6, 8])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_bilinear_equals_scipy_opencv_and_scikit_image_and_nearest_numpy(
    height: int, width: int, factor: int, channels: int
) -> None:
    image = picture(height, width, channels)
    got = plain(bilinear(image, factor))
    for one, larger in zip(image, got, strict=True):
        size = (height * factor, width * factor)
        by_opencv = cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(
            larger.shape
        )
        by_scipy = ndimage.zoom(one, (factor, factor, 1), order=1, mode="nearest", grid_mode=True)
        by_scikit_image = resize(one, (*size, channels), order=1, mode="edge", anti_aliasing=False)
        for other in (by_opencv, by_scipy, by_scikit_image):
            np.testing.assert_allclose(larger, other, atol=2e-5)
    repeated = np.kron(image, np.ones((1, factor, factor, 1), np.float32))
    assert np.array_equal(plain(nearest(image, factor)), repeated)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("method", ["nearest", "bilinear", "bed_of_nails"])
def test_a_pixel_of_the_input_is_factor_pixels_of_the_output_to_the_last_bit(
    method: Any, factor: int
) -> None:
    """Also far from the origin, where coordinates in float32 are coarse."""
    image = picture(2, 50_000)
    whole, moved = (
        plain(Upsampling(factor, method)(part)) for part in (image, image[:, :, 40_001:])
    )
    # The first half pixel sees the border.
    assert np.array_equal(whole[:, :, 40_002 * factor :], moved[:, :, factor:])


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bed_of_nails"])
def test_unknown_sizes_and_files(method: Any, tmp_path: Path) -> None:
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, Upsampling(3, method)(inputs))
    assert model.output_shape == (None, None, None, 3)
    model.save(tmp_path / "up.keras")
    again = keras.saving.load_model(tmp_path / "up.keras")
    for size in ((1, 1), (4, 7)):
        image = picture(*size, 3)
        assert np.array_equal(again.predict(image, verbose=0), plain(Upsampling(3, method)(image)))


def test_max_pool_and_unpool_by_hand() -> None:
    image = maps([1, 5, 0, 0], [2, 3, 0, -1], [7, 7, -4, -3], [7, 7, -2, -1])
    values, positions = max_pool(image, 2)
    assert np.array_equal(plain(values), maps([5, 0], [7, -1]))
    # Row by row in the window, of equal values the first.
    assert np.array_equal(plain(positions)[0, :, :, 0], [[1, 0], [0, 3]])
    assert np.array_equal(
        plain(max_unpool(values, positions, 2)),
        maps([0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 0], [0, 0, 0, -1]),
    )
    other = maps([10, 20], [30, 40])
    assert np.array_equal(
        plain(max_unpool(other, positions, 2)),
        maps([0, 10, 20, 0], [0, 0, 0, 0], [30, 0, 0, 0], [0, 0, 0, 40]),
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_unpooling_puts_maxima_back(height: int, width: int, size: int, channels: int) -> None:
    image = picture(height * size, width * size, channels)
    values, positions = max_pool(image, size)
    assert np.array_equal(plain(values), plain(ops.max_pool(image, size, size)))
    back = plain(max_unpool(values, positions, size))
    assert np.array_equal(back, np.where(image == plain(nearest(values, size)), image, 0))


def test_pooling_layers_with_unknown_sizes_and_files(tmp_path: Path) -> None:
    inputs = keras.Input((None, None, 2))
    values, positions = MaxPoolingWithPositions(2)(inputs)
    model = keras.Model(
        inputs, MaxUnpooling(2)(layers.Cropping2D(1)(values), layers.Cropping2D(1)(positions))
    )
    assert model.output_shape == (None, None, None, 2)
    model.save(tmp_path / "pool.keras")
    image = picture(8, 12, 2)
    whole = plain(max_unpool(*max_pool(image, 2), 2))
    assert np.array_equal(
        keras.saving.load_model(tmp_path / "pool.keras").predict(image, verbose=0),
        whole[:, 2:-2, 2:-2],
    )


def test_transposed_convolution_by_hand() -> None:
    """Copies of the kernel 1 2 3, two pixels apart, weighted by 1 and 10; (2 - 1) * 2 + 3 = 5
    pixels.
    """
    layer = layers.Conv2DTranspose(1, (1, 3), (1, 2), use_bias=False)
    layer.build((None, 1, 2, 1))
    layer.set_weights([np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)])
    assert np.array_equal(plain(layer(maps([1, 10])))[0, 0, :, 0], [1, 2, 3 + 10, 20, 30])


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))
def test_transposed_convolution_is_a_bed_of_nails_convolved(
    height: int, width: int, kernel: int, stride: int
) -> None:
    image, random = picture(height, width, 2), np.random.default_rng(4)
    layer = layers.Conv2DTranspose(3, kernel, stride, "valid")
    layer.build(image.shape)
    weights, bias = (
        random.normal(size=(kernel, kernel, 3, 2)).astype(np.float32),
        random.normal(size=3).astype(np.float32),
    )
    layer.set_weights([weights, bias])
    got, nails = plain(layer(image)), plain(bed_of_nails(image, stride))
    size = tuple(side * stride + max(kernel - stride, 0) for side in (height, width))
    assert got.shape == (2, *size, 3)
    for number in range(2):
        for channel in range(3):
            parts = [
                signal.convolve2d(nails[number, ..., i], weights[:, :, channel, i])
                for i in range(2)
            ]
            expected = np.sum(parts, axis=0)[: size[0], : size[1]] + bias[channel]
            np.testing.assert_allclose(got[number, ..., channel], expected, atol=1e-4)


def test_kernel_smaller_than_the_stride_leaves_gaps() -> None:
    for padding in ("valid", "same"):
        layer = layers.Conv2DTranspose(
            1,
            (1, 2),
            (1, 4),
            padding,
            kernel_initializer="ones",
            bias_initializer=keras.initializers.Constant(7),
        )
        row = plain(layer(maps([1, 2, 3])))[0, 0, :, 0]
        # The gap after the last copy is there too: 3 * 4 pixels, not 2 * 4 + 2.
        assert row.size == 12
        start = int(np.flatnonzero(row != 7)[0])
        assert np.array_equal(np.roll(row, -start), [8, 8, 7, 7, 9, 9, 7, 7, 10, 10, 7, 7])


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_bilinear_kernel_up_samples_as_bilinear_does(factor: int) -> None:
    kernel = 2 * factor - factor % 2
    layer = layers.Conv2DTranspose(
        2, kernel, factor, "same", use_bias=False, kernel_initializer=BilinearKernel()
    )
    image = picture(5, 6, 2)
    inside = slice(factor, -factor)
    np.testing.assert_allclose(
        plain(layer(image))[:, inside, inside],
        plain(bilinear(image, factor))[:, inside, inside],
        atol=1e-5,
    )


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_bilinear_kernel_keeps_a_ramp_a_ramp(factor: int) -> None:
    kernel = 2 * factor - factor % 2
    layer = layers.Conv2DTranspose(
        1, kernel, factor, "same", use_bias=False, kernel_initializer=BilinearKernel()
    )
    ramp = np.broadcast_to(
        np.arange(6, dtype=np.float32)[:, None] * 3 + np.arange(7, dtype=np.float32), (6, 7)
    )[None, :, :, None]
    larger = plain(layer(ramp))[0, factor:-factor, factor:-factor, 0]
    np.testing.assert_allclose(np.diff(larger, axis=0), 3 / factor, atol=1e-5)
    np.testing.assert_allclose(np.diff(larger, axis=1), 1 / factor, atol=1e-5)


def test_bilinear_kernel_mixes_no_channels_and_comes_back_from_its_configuration() -> None:
    kernel = plain(
        keras.initializers.deserialize(keras.initializers.serialize(BilinearKernel()))((4, 4, 3, 3))
    )
    assert np.array_equal(kernel.sum((0, 1)), 4 * np.eye(3))
    with pytest.raises(ValueError, match="as many output as input channels; got 2 and 3"):
        BilinearKernel()((4, 4, 2, 3))


@given(st.integers(1, 4), st.sampled_from([1, 3]), st.sampled_from(["valid", "same"]))
def test_dilated_convolution_is_one_by_a_kernel_with_zeros_between(
    rate: int, kernel: int, padding: str
) -> None:
    weights = np.random.default_rng(1).normal(size=(kernel, kernel, 2, 3)).astype(np.float32)
    side = (kernel - 1) * rate + 1
    spread = np.zeros((side, side, 2, 3), np.float32)
    spread[::rate, ::rate] = weights
    image = picture(15, 13, 2)
    dilated = plain(ops.conv(image, weights, 1, padding, dilation_rate=rate))
    for number in range(2):
        for channel in range(3):
            parts = [
                signal.correlate2d(image[number, ..., i], spread[..., i, channel], padding)
                for i in range(2)
            ]
            np.testing.assert_allclose(
                dilated[number, ..., channel], np.sum(parts, axis=0), atol=1e-4
            )


def test_layers_keep_mixed_precision() -> None:
    image = picture(4, 4)
    for layer in (
        Upsampling(2, "bilinear", dtype="mixed_bfloat16"),
        Upsampling(2, "bed_of_nails", dtype="mixed_bfloat16"),
    ):
        assert keras.backend.standardize_dtype(layer(image).dtype) == "bfloat16"
    values, positions = MaxPoolingWithPositions(2, dtype="mixed_bfloat16")(image)
    assert keras.backend.standardize_dtype(values.dtype) == "bfloat16"
    assert (
        keras.backend.standardize_dtype(
            MaxUnpooling(2, dtype="mixed_bfloat16")(values, positions).dtype
        )
        == "bfloat16"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Upsampling(0, "nearest"), "factor: expected a whole number from 1 on; got 0"),
        (
            lambda: Upsampling(2, "cubic"),
            "method: expected one of nearest, bilinear, bed_of_nails; got 'cubic'",
        ),  # type: ignore[arg-type]
        (lambda: MaxPoolingWithPositions(0), "size: expected a whole number from 1 on; got 0"),
        (lambda: MaxUnpooling(-1), "size: expected a whole number from 1 on; got -1"),
    ],
)
def test_arguments_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
