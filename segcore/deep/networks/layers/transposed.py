"""Transposed convolutions: how large their output is, and the kernel that makes them bilinear
up-sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

if TYPE_CHECKING:
    from numpy.typing import NDArray


def transposed_size(
    size: int,
    kernel: int,
    stride: int,
    padding: Literal["valid", "same"] = "valid",
    output_padding: int | None = None,
) -> int:
    """Height or width of what keras' `Conv2DTranspose` makes of `size` pixels.

    The rule is (size - 1) * stride + kernel - 2 * P + `output_padding`: each of `size` copies of
    the kernel lies `stride` pixels after the one before, and P pixels are cut off both ends; P is 0
    for `valid`, kernel // 2 for `same`. Without `output_padding` (None), keras chooses it. For
    `same`: so that the output is size * stride. For `valid`: max(stride - kernel, 0), so that with
    a kernel smaller than the stride the last copy, too, is followed by the gap that follows the
    others, and the output is size * stride again.

    >>> transposed_size(4, kernel=3, stride=2)
    9
    >>> transposed_size(4, kernel=3, stride=2, output_padding=1)
    10
    >>> transposed_size(7, kernel=7, stride=32, padding="same")
    224
    >>> transposed_size(7, kernel=7, stride=32)
    224
    """
    if min(size, kernel, stride) < 1:
        raise ValueError(
            f"expected a size, a kernel and a stride from 1 on; got {size}, {kernel} and {stride}"
        )
    if output_padding is not None:
        cut = kernel // 2 if padding == "same" else 0
        return (size - 1) * stride + kernel - 2 * cut + output_padding
    return size * stride + (max(kernel - stride, 0) if padding == "valid" else 0)


@keras.saving.register_keras_serializable(package="maskloom")
class BilinearKernel(keras.initializers.Initializer):  # type: ignore[misc]  # keras is untyped
    """The kernel (y, x, output, input) that up-samples each channel bilinearly, and mixes no
    channels.

    For a transposed convolution of stride S whose kernel is 2 S pixels wide (2 S - 1 for odd S),
    padded `same`: the output lies between half-pixel centres as of
    `segcore.deep.networks.layers.upsampling.bilinear`, but for the border, where zeros stand beyond
    the image. Long et al. 2015.
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """The kernel. Raises `ValueError` where input and output channels differ in number."""
        height, width, outputs, inputs = shape
        if outputs != inputs:
            raise ValueError(
                f"a bilinear kernel needs as many output as input channels; got {outputs} and "
                f"{inputs}"
            )
        kernel = np.zeros(shape, np.float32)
        each = np.arange(inputs)
        kernel[:, :, each, each] = np.outer(_tent(height), _tent(width))[..., None]
        return ops.convert_to_tensor(kernel, dtype=dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        """Nothing: the shape says all."""
        return {}


def _tent(size: int) -> NDArray[np.float64]:
    """Weights that fall linearly from the middle of a kernel to nothing just beyond its ends."""
    stride = (size + 1) // 2
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    weights: NDArray[np.float64] = 1 - distance / stride
    return weights
