"""Transposed convolutions: output size, and a kernel for bilinear upsampling."""

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
    """Height or width of the output of keras' `Conv2DTranspose` for `size` input pixels.

    The rule is (size - 1) * stride + kernel - 2 * P + `output_padding`: `size` copies of the kernel
    are placed `stride` pixels apart, and P pixels are cut off both ends; P is 0 for `valid` and
    kernel // 2 for `same`. With `output_padding` None, keras chooses it. For `same`, the output is
    size * stride. For `valid`, it is max(stride - kernel, 0): with a kernel smaller than the
    stride, the gap after the last copy is kept, and the output is size * stride again. Raises
    `ValueError` for a size, kernel or stride below 1.

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
    """Kernel (y, x, output, input) that upsamples each channel bilinearly (Long et al. 2015).

    It does not mix channels. It is meant for a transposed convolution with stride S, padding `same`
    and a kernel of 2 S pixels (2 S - 1 for odd S). The output has half-pixel centres, as in
    `segcore.deep.networks.layers.upsampling.bilinear`, except at the border, where zeros surround
    the image.
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Return the kernel. Raises `ValueError` unless input and output channels are equal."""
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
        """Empty: the kernel depends on its shape alone."""
        return {}


def _tent(size: int) -> NDArray[np.float64]:
    """Weights that fall linearly from the middle of a kernel to 0 just beyond its ends."""
    stride = (size + 1) // 2
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    weights: NDArray[np.float64] = 1 - distance / stride
    return weights
