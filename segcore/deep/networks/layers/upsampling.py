"""Upsampling of feature maps: nearest, linear, bed of nails, max unpooling.

All functions work on tensors (image, y, x, channel) or (image, z, y, x, channel) of any size, known
or unknown. A factor is one number for all axes, or one per axis. They treat a pixel by its position
within a window of `factor` pixels, never by its position in the image: shifting the input by one
pixel shifts the output by exactly `factor` pixels. For this reason linear upsampling is written out
as fixed weights for each of the `factor` phases. An image resizer works with rounded coordinates of
the whole image, and that of keras does not trace when height and width are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
from keras import ops

from maskloom.segcore.geometry import Shape, per_axis

Tensor = Any
Method = Literal["nearest", "bilinear", "bed_of_nails"]


def nearest(x: Tensor, factor: int | Shape) -> Tensor:
    """Repeat each pixel `factor` times along each axis.

    (image, y, x, channel) to (image, y * factor, x * factor, channel).
    """
    for axis, times in enumerate(_factors(x, factor), 1):
        x = ops.repeat(x, times, axis=axis) if times > 1 else x
    return x


def bed_of_nails(x: Tensor, factor: int | Shape) -> Tensor:
    """Place each pixel at the upper left of a window of zeros, `factor` pixels along each axis.

    (image, y, x, channel) to (image, y * factor, x * factor, channel).
    """
    for axis, times in enumerate(_factors(x, factor), 1):
        x = _interleave([x, *[ops.zeros_like(x)] * (times - 1)], axis)
    return x


def bilinear(x: Tensor, factor: int | Shape) -> Tensor:
    """Interpolate linearly along each axis between pixel centres.

    (image, y, x, channel) to (image, y * factor, x * factor, channel). Uses half-pixel centres like
    TensorFlow's and OpenCV's resizing, PyTorch's with `align_corners=False` and SciPy's
    `grid_mode`: the centre of output pixel i is at (i + 0.5) / factor - 0.5 of the input. Beyond
    the outermost centres, the outermost pixels are repeated.
    """
    for axis, times in enumerate(_factors(x, factor), 1):
        x = _linear_along(x, times, axis)
    return x


def _linear_along(x: Tensor, factor: int, axis: int) -> Tensor:
    if factor == 1:
        return x
    first, but_last, but_first, last = (
        x[(slice(None),) * axis + (part,)]
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


def _interleave(phases: Sequence[Tensor], axis: int) -> Tensor:
    """Interleave the pixels of the tensors along an axis, which grows by their number."""
    if len(phases) == 1:
        return phases[0]
    _, *sizes, channels = ops.shape(phases[0])
    sizes[axis - 1] = sizes[axis - 1] * len(phases)
    return ops.reshape(ops.stack(phases, axis=axis + 1), (-1, *sizes, channels))


def _factors(x: Tensor, factor: int | Shape) -> Shape:
    """The factor along each axis of a tensor (image, ..., channel)."""
    return per_axis(factor, len(x.shape) - 2)


_METHODS: Mapping[Method, Callable[[Tensor, int | Shape], Tensor]] = {
    "nearest": nearest,
    "bilinear": bilinear,
    "bed_of_nails": bed_of_nails,
}


def max_pool(x: Tensor, size: int | Shape) -> tuple[Tensor, Tensor]:
    """Return the maximum of each window of `size` pixels along each axis, and its position in it.

    Both are (image, y / size, x / size, channel). Positions are int32, counted row by row through
    the window from 0; of equal values the first one wins. They refer to the window, not to the
    image, so the maps may be cropped. The sizes of `x` must be multiples of `size`.
    """
    sizes = _factors(x, size)
    # Comparisons instead of argmax, because OpenVINO cannot read keras' form of argmax.
    values = x[_every(sizes, 0)]
    positions = ops.zeros_like(values, dtype="int32")
    for position in range(1, math.prod(sizes)):
        other = x[_every(sizes, position)]
        greater = other > values
        values = ops.where(greater, other, values)
        positions = ops.where(greater, position, positions)
    return values, positions


def _every(sizes: Shape, position: int) -> tuple[slice, ...]:
    """The index of one position of every window."""
    parts: list[slice] = []
    for size in reversed(sizes):
        position, first = divmod(position, size)
        parts.insert(0, slice(first, None, size))
    return (slice(None), *parts)


def max_unpool(x: Tensor, positions: Tensor, size: int | Shape) -> Tensor:
    """Place each value at its position in a window of `size` pixels along each axis, zeros
    elsewhere.

    (image, y, x, channel) to (image, y * size, x * size, channel). `positions` come from `max_pool`
    and have the shape of `x`. Noh, Hong and Han 2015 (DeconvNet), Badrinarayanan et al. 2017
    (SegNet).
    """
    sizes = _factors(x, size)

    def filled(axis: int, position: int) -> Tensor:
        """The windows along the axes from `axis` on; `position` counts the axes before."""
        if axis == len(sizes):
            return ops.where(positions == position, x, ops.zeros_like(x))
        parts = [filled(axis + 1, position * sizes[axis] + i) for i in range(sizes[axis])]
        return _interleave(parts, axis + 1)

    return filled(0, 0)


@keras.saving.register_keras_serializable(package="maskloom")
class Upsampling(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Layer for `nearest`, `bilinear` or `bed_of_nails`.

    (image, y, x, channel) to (image, y * factor, x * factor, channel). Raises `ValueError` for a
    factor below 1 or an unknown method.
    """

    def __init__(
        self, factor: int | Shape, method: Method, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        factor = _checked("factor", factor)
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

    def __init__(self, size: int | Shape = 2, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.size = _checked("size", size)

    def call(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and positions."""
        return max_pool(inputs, self.size)

    def compute_output_spec(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the specs of values (in the layer's compute dtype) and positions (int32)."""
        batch, *lengths, channels = inputs.shape
        sizes = _factors(inputs, self.size)
        pooled = (n and n // size for n, size in zip(lengths, sizes, strict=True))
        shape = (batch, *pooled, channels)
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

    def __init__(self, size: int | Shape = 2, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.size = _checked("size", size)

    def call(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the upsampled feature maps."""
        return max_unpool(inputs, positions, self.size)

    def compute_output_spec(self, inputs: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002
        """Return the spec of the output: height and width multiplied by the size."""
        return keras.KerasTensor(_scaled(inputs.shape, self.size), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments of an equal layer."""
        return {**_common(self), "size": self.size}


def _scaled(shape: tuple[int | None, ...], factor: int | Shape) -> tuple[int | None, ...]:
    batch, *lengths, channels = shape
    factors = per_axis(factor, len(lengths))
    return batch, *(n and n * times for n, times in zip(lengths, factors, strict=True)), channels


def _checked(name: str, value: int | Sequence[int]) -> int | Shape:
    """A factor as an int or a tuple; keras saves tuples as lists. Raises `ValueError` below 1."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    if min(numbers) < 1:
        raise ValueError(f"{name}: expected a whole number from 1 on; got {value}")
    return value if isinstance(value, int) else numbers


def _common(layer: Any) -> dict[str, Any]:
    """Configuration that all layers of this module share."""
    config = keras.layers.Layer.get_config(layer)
    return {"name": config["name"], "dtype": config["dtype"]}
