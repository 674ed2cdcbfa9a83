"""A kernel of transposed convolutions for bilinear upsampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
