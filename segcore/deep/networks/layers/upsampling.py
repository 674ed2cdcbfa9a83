"""Upsampling of feature maps: nearest, bilinear, bed of nails, max unpooling.

All functions work on tensors (image, y, x, channel) of any height and width, known or unknown. They
treat a pixel by its position within a window of `factor` pixels, never by its position in the
image: shifting the input by one pixel shifts the output by exactly `factor` pixels. For this reason
bilinear upsampling is written out as fixed weights for each of the `factor` phases. An image
resizer works with rounded coordinates of the whole image, and that of keras does not trace when
height and width are unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
from keras import ops

Tensor = Any
Method = Literal["nearest", "bilinear", "bed_of_nails"]
_Y, _X = 1, 2


def nearest(x: Tensor, factor: int) -> Tensor:
    """Repeat each pixel `factor` x `factor` times.

    (image, y, x, channel) to (image, y * factor, x * factor, channel).
    """
    return ops.repeat(ops.repeat(x, factor, axis=_Y), factor, axis=_X)


def bed_of_nails(x: Tensor, factor: int) -> Tensor:
    """Place each pixel at the upper left of `factor` x `factor` zeros.

    (image, y, x, channel) to (image, y * factor, x * factor, channel).
    """
    zeros = [ops.zeros_like(x)] * (factor - 1)
    rows = _interleave([x, *zeros], _Y)
    return _interleave([rows, *[ops.zeros_like(rows)] * (factor - 1)], _X)


def bilinear(x: Tensor, factor: int) -> Tensor:
    """Interpolate linearly between pixel centres.

    (image, y, x, channel) to (image, y * factor, x * factor, channel). Uses half-pixel centres like
    TensorFlow's and OpenCV's resizing, PyTorch's with `align_corners=False` and SciPy's
    `grid_mode`: the centre of output pixel i is at (i + 0.5) / factor - 0.5 of the input. Beyond
    the outermost centres, the outermost pixels are repeated.
    """
    return _bilinear_along(_bilinear_along(x, factor, _Y), factor, _X)


def _bilinear_along(x: Tensor, factor: int, axis: int) -> Tensor:
    first, but_last, but_first, last = (
        _part(x, axis, part)
        for part in (slice(None, 1), slice(None, -1), slice(1, None), slice(-1, None))
    )
    # Interpolating by differences keeps constant areas constant to the last bit.
    before, after = (
        ops.concatenate([first, but_last], axis=axis) - x,
        ops.concatenate([but_first, last], axis=axis) - x,
    )
    offsets = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
    return _interleave(
        [x + (after if offset > 0 else before) * abs(offset) for offset in offsets], axis
    )


def _part(x: Tensor, axis: int, part: slice) -> Tensor:
    return x[:, part] if axis == _Y else x[:, :, part]


def _interleave(phases: Sequence[Tensor], axis: int) -> Tensor:
    """Interleave the pixels of the tensors along an axis, which grows by their number."""
    _, height, width, channels = ops.shape(phases[0])
    size = (height * len(phases), width) if axis == _Y else (height, width * len(phases))
    return ops.reshape(ops.stack(phases, axis=axis + 1), (-1, *size, channels))


_METHODS: Mapping[Method, Callable[[Tensor, int], Tensor]] = {
    "nearest": nearest,
    "bilinear": bilinear,
    "bed_of_nails": bed_of_nails,
}


def max_pool(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the maximum of each window of `size` x `size` pixels and its position in the window.

    Both are (image, y / size, x / size, channel). Positions are int32, counted row by row through
    the window from 0; of equal values the first one wins. They refer to the window, not to the
    image, so the maps may be cropped. Height and width of `x` must be multiples of `size`.
    """
    # Comparisons instead of argmax, because OpenVINO cannot read keras' form of argmax.
    values = x[:, ::size, ::size]
    positions = ops.zeros_like(values, dtype="int32")
    for position in range(1, size * size):
        other = x[:, position // size :: size, position % size :: size]
        greater = other > values
        values = ops.where(greater, other, values)
        positions = ops.where(greater, position, positions)
    return values, positions


def max_unpool(x: Tensor, positions: Tensor, size: int) -> Tensor:
    """Place each value at its position in a window of `size` x `size` pixels, zeros elsewhere.

    (image, y, x, channel) to (image, y * size, x * size, channel). `positions` come from `max_pool`
    and have the shape of `x`. Noh, Hong and Han 2015 (DeconvNet), Badrinarayanan et al. 2017
    (SegNet).
    """
    rows = []
    for row in range(size):
        columns = [
            ops.where(positions == row * size + column, x, ops.zeros_like(x))
            for column in range(size)
        ]
        rows.append(_interleave(columns, _X))
    return _interleave(rows, _Y)


@keras.saving.register_keras_serializable(package="maskloom")
class Upsampling(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Layer for `nearest`, `bilinear` or `bed_of_nails`.

    (image, y, x, channel) to (image, y * factor, x * factor, channel). Raises `ValueError` for a
    factor below 1 or an unknown method.
    """

    def __init__(
        self, factor: int, method: Method, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if factor < 1:
            raise ValueError(f"factor: expected a whole number from 1 on; got {factor}")
        if method not in _METHODS:
            raise ValueError(f"method: expected one of {', '.join(_METHODS)}; got {method!r}")
        self.factor = factor
        self.method = method

    def call(self, inputs: Tensor) -> Tensor:
        """Return the upsampled feature maps."""
        return _METHODS[self.method](inputs, self.factor)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the input shape with height and width multiplied by the factor."""
        return _scaled(input_shape, self.factor)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments of an equal layer."""
        return {**_common(self), "factor": self.factor, "method": self.method}


@keras.saving.register_keras_serializable(package="maskloom")
class MaxPoolingWithPositions(keras.layers.Layer):  # type: ignore[misc]
    """Layer for `max_pool`: returns the maxima and their positions (int32).

    Both are (image, y / size, x / size, channel). Raises `ValueError` for a size below 1.
    """

    def __init__(self, size: int = 2, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        if size < 1:
            raise ValueError(f"size: expected a whole number from 1 on; got {size}")
        self.size = size

    def call(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and positions."""
        return max_pool(inputs, self.size)

    def compute_output_spec(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the specs of values (in the layer's compute dtype) and positions (int32)."""
        batch, height, width, channels = inputs.shape
        shape = (batch, height and height // self.size, width and width // self.size, channels)
        return keras.KerasTensor(shape, self.compute_dtype), keras.KerasTensor(shape, "int32")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments of an equal layer."""
        return {**_common(self), "size": self.size}


@keras.saving.register_keras_serializable(package="maskloom")
class MaxUnpooling(keras.layers.Layer):  # type: ignore[misc]
    """Layer for `max_unpool`, called with values and positions.

    (image, y, x, channel) to (image, y * size, x * size, channel). Raises `ValueError` for a size
    below 1.
    """

    def __init__(self, size: int = 2, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        if size < 1:
            raise ValueError(f"size: expected a whole number from 1 on; got {size}")
        self.size = size

    def call(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the upsampled feature maps."""
        return max_unpool(inputs, positions, self.size)

    def compute_output_spec(self, inputs: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Return the spec of the output: height and width multiplied by the size."""
        return keras.KerasTensor(_scaled(inputs.shape, self.size), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments of an equal layer."""
        return {**_common(self), "size": self.size}


def _scaled(shape: tuple[int | None, ...], factor: int) -> tuple[int | None, ...]:
    batch, height, width, channels = shape
    return batch, height and height * factor, width and width * factor, channels


def _common(layer: Any) -> dict[str, Any]:
    """Configuration that all layers of this module share."""
    config = keras.layers.Layer.get_config(layer)
    return {"name": config["name"], "dtype": config["dtype"]}
