"""A network that runs patches of many sizes in one shape, as each would be in its own.

Compiling backends compile once for each shape, and images of many sizes have patches of many sizes
at their borders. So patches are filled up with zeros to a common shape, and the network is told the
true extent of each. A layer that pads with zeros sees zeros beyond the extent too, and computes
what it would at the border of the smaller patch. This is known to hold for the layers below; a
network with any other runs each size as it is (`masked` returns None).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

Tensor = Any
_POINTWISE = frozenset(
    # A list would take a line for each name.
    "Activation ActivityRegularization AlphaDropout Dropout ELU GaussianDropout "  # noqa: SIM905
    "GaussianNoise Identity LeakyReLU ReLU Rescaling SpatialDropout2D SpatialDropout3D "
    "Add Average Maximum Minimum Multiply Subtract InputLayer".split()
)
_CONVOLUTIONS = frozenset(
    ["Conv2D", "Conv3D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Conv3DTranspose"]
)
_TRANSPOSED = frozenset(["Conv2DTranspose", "Conv3DTranspose"])
_POOLINGS = frozenset(["MaxPooling2D", "MaxPooling3D", "AveragePooling2D", "AveragePooling3D"])
_PADDING = frozenset(["ZeroPadding2D", "ZeroPadding3D"])


@dataclass(slots=True)
class Extents:
    """The sizes of the patches of the batch that is being computed, set while it is traced."""

    shape: tuple[int, ...] = ()
    """Sizes of the batch along the axes."""
    value: Tensor = None
    """(patch, axis), the sizes of each patch. None: that of the batch."""


class _Inside(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Zeros beyond the extent of each patch, on maps of any stride."""

    def __init__(self, extents: Extents, dtype: Any) -> None:
        super().__init__(dtype=dtype)
        self.extents = extents

    def call(self, inputs: Tensor) -> Tensor:
        """Return the maps with zeros beyond the extents."""
        return within(inputs, self.extents)

    def compute_output_spec(self, inputs: Tensor) -> Tensor:
        """Return the spec of the input."""
        return keras.KerasTensor(inputs.shape, self.compute_dtype)


def within(maps: Tensor, extents: Extents) -> Tensor:
    """Maps (patch, y, x, channel) with zeros beyond the extents."""
    if extents.value is None:
        return maps
    sizes = maps.shape[1:-1]
    for axis, (size, whole) in enumerate(zip(sizes, extents.shape, strict=True)):
        if whole % size:
            raise ValueError(f"a map of {size} pixels does not divide a patch of {whole}")
        limit = extents.value[:, axis : axis + 1] // (whole // size)
        inside = ops.arange(size, dtype="int32") < limit
        shape = [-1, *(size if other == axis else 1 for other in range(len(sizes))), 1]
        maps = ops.where(ops.reshape(inside, shape), maps, ops.zeros_like(maps))
    return maps


def masked(
    model: Any, extents: Extents, policies: Mapping[str, str], padded: bool
) -> tuple[Any, bool]:
    """A functional model in other precisions, and whether it may be given patches filled up with
    zeros.

    Takes over the layers of `model`, and gives them the dtype policies by name. `padded` says that
    its output is as large as its input: layers then pad with zeros, and `extents` must be set.
    Without padding layers, what lies beyond an extent does not reach what lies within.
    """
    whole = keras.Model(model.inputs[0], model.outputs[0])
    fits = all(_suits(layer, padded) for layer in whole.layers)
    for layer in whole.layers:
        if layer.name in policies:
            layer.dtype_policy = keras.dtype_policies.get(policies[layer.name])

    def call(layer: Any, *arguments: Any, **options: Any) -> Any:
        if fits and padded and _looks_around(layer):
            first, *others = arguments
            return layer(_Inside(extents, first.dtype)(first), *others, **options)
        return layer(*arguments, **options)

    return keras.models.clone_model(
        whole, clone_function=lambda layer: layer, call_function=call
    ), fits


def _suits(layer: Any, padded: bool) -> bool:
    kind = type(layer).__name__
    check = _CHECKS.get(kind)
    return kind in _POINTWISE or (check is not None and check(layer, padded))


def _looks_around(layer: Any) -> bool:
    """Whether a layer sees neighbours, and zeros beyond the border of its input."""
    kind = type(layer).__name__
    if kind in _PADDING:
        return True
    if kind not in _CONVOLUTIONS or layer.padding != "same":
        return False
    reach = layer.strides if kind in _TRANSPOSED else (1,) * len(layer.kernel_size)
    return any(side > free for side, free in zip(layer.kernel_size, reach, strict=True))


def _convolution(layer: Any, padded: bool) -> bool:
    if layer.data_format != "channels_last":
        return False
    if type(layer).__name__ in _TRANSPOSED and tuple(layer.kernel_size) == tuple(layer.strides):
        return True
    alone = set(layer.kernel_size) == {1}
    if not padded:
        return alone or layer.padding == "valid"
    return alone or layer.padding == "same" or _follows_padding(layer)


def _pooling(layer: Any, padded: bool) -> bool:
    apart = tuple(layer.pool_size) == tuple(layer.strides)
    return (
        layer.data_format == "channels_last"
        and layer.padding == "valid"
        and (apart or (padded and _follows_padding(layer)))
    )


def _follows_padding(layer: Any) -> bool:
    """Whether the zeros that a layer sees were put around its input by a layer before."""
    # keras tells it nowhere else.
    maker = layer.input._keras_history.operation  # noqa: SLF001
    return type(maker).__name__ in _PADDING


def _last_axis(layer: Any, _padded: bool) -> bool:
    axes: Sequence[int] = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return list(axes) in ([-1], [len(layer.output.shape) - 1])


def _upsampling(layer: Any, _padded: bool) -> bool:
    # Linear interpolation repeats the outermost pixel.
    return getattr(layer, "method", None) in ("nearest", "bed_of_nails")


def _nearest(layer: Any, _padded: bool) -> bool:
    return (
        layer.data_format == "channels_last"
        and getattr(layer, "interpolation", "nearest") == "nearest"
    )


_CHECKS: Mapping[str, Callable[[Any, bool], bool]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_POOLINGS, _pooling),
    **dict.fromkeys(_PADDING, lambda _layer, padded: padded),
    **dict.fromkeys(["BatchNormalization", "Concatenate", "Softmax", "Normalization"], _last_axis),
    **dict.fromkeys(["UpSampling2D", "UpSampling3D"], _nearest),
    "Upsampling": _upsampling,
    "MaxPoolingWithPositions": lambda _layer, _padded: True,
    "MaxUnpooling": lambda _layer, _padded: True,
    "Cropping2D": lambda _layer, padded: not padded,
}
"""Layers that are not pointwise, and whether this one may run in a larger shape."""
