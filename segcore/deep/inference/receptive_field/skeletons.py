"""Skeletons of keras models: graphs whose output is positive exactly where it depends on the input.

Kernels become positive numbers, biases are dropped, norms and non-linearities pass their input on,
products become sums. Where possible, each layer has only one channel: mixing across channels does
not matter here, and a skeleton of one channel costs next to nothing.

Layers that span the whole image (global pooling, spatial norms, attention) are recorded in
`Skeleton.bounded` and output zeros, so that the stride of the rest can be measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.receptive_field.measure import (
    measure,
    measure_fixed_size,
    verified,
)
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
    from maskloom.segcore.deep.inference.receptive_field.measure import Network

_CONVOLUTIONS = (
    *("Conv2D", "Conv2DTranspose", "SeparableConv2D", "DepthwiseConv2D"),
    *("Conv3D", "Conv3DTranspose"),
)
_TRANSPOSED = ("Conv2DTranspose", "Conv3DTranspose")
_IDENTITY = frozenset(
    # A list would take a line for each name.
    "Activation ActivityRegularization AlphaDropout BatchNormalization Dropout ELU "  # noqa: SIM905
    "GaussianDropout GaussianNoise Identity LeakyReLU "
    "Normalization PReLU ReLU Rescaling Softmax SpatialDropout2D SpatialDropout3D "
    # Operations of keras.ops in a functional model.
    "Absolute BatchNorm Cast Celu Clip Elu Exp Gelu GeluTanh HardSigmoid HardSilu HardTanh "
    "LeakyRelu LogSigmoid LogSoftmax "
    "Negative Relu Relu6 Selu Sigmoid Silu Softplus Softsign Square Sqrt Tanh".split()
)
_SUMS = frozenset(
    ["Add", "Average", "Divide", "Maximum", "Minimum", "Multiply", "Subtract", "TrueDivide"]
)
_REDUCTIONS = frozenset("Amax Amin Max Mean Min Prod Std Sum Var".split())  # noqa: SIM905
_NORMS = frozenset(
    ["GroupNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization"]
)
_GLOBAL = frozenset(f"Global{kind}Pooling{axes}D" for kind in ("Average", "Max") for axes in (2, 3))
_ATTENTION = frozenset(
    [
        "AdditiveAttention",
        "Attention",
        "GroupedQueryAttention",
        "MultiHeadAttention",
        "PixelAttention",
    ]
)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A skeleton, ready to be measured."""

    network: Network
    bounded: bool
    """Whether no layer spans the whole image."""


def receptive_field_of(model: Any) -> ReceptiveField:
    """Measure the receptive field of a keras model (image, y, x, channel) to (image, y, x, class),
    or of one of volumes with z before y.

    A model without a skeleton (subclassed, or with dense layers over space) gets no finite halo.
    Raises `WeightsError` if the model has no per-pixel scores.
    """
    *size, channels = model.input_shape[1:]
    dimensions = len(size)
    skeleton, network = skeleton_of(model), runner(model)
    if None not in size:
        field = measure_fixed_size(network, channels, tuple(size))
        if skeleton is None or not skeleton.bounded:
            return field
        try:
            measured = measure(skeleton.network, channels, dimensions)
        except WeightsError:
            # The model contains fixed sizes, so its skeleton cannot run at any other size.
            return field
        return replace(measured, fixed=field.fixed)
    if skeleton is None:
        return replace(measure(network, channels, dimensions), halo=None)
    field = measure(skeleton.network, channels, dimensions)
    if not skeleton.bounded:
        return replace(field, halo=None)
    return verified(field, network, channels, dimensions)


def runner(model: Any) -> Network:
    """Return a keras model as a function of arrays.

    It raises `ValueError` for sizes that the model does not accept.
    """
    import keras

    shape_errors = _shape_errors()
    call = _on_processor(model) if keras.backend.backend() == "jax" else model

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            output = keras.ops.convert_to_numpy(call(batch, training=False))
        except shape_errors as error:
            raise ValueError(str(error)) from error
        return np.asarray(output, np.float32)

    return run


def _on_processor(model: Any) -> Callable[..., Any]:
    """A keras model on JAX as a function that is compiled as a whole, for the processor.

    Sizes are tried by the dozen, and JAX compiles for each. One by one, the operations of a U-Net
    take a GPU two minutes.
    """
    import jax

    try:
        device = jax.devices("cpu")[0]
    except RuntimeError:  # this process is limited to GPUs
        device = None
    weights = [
        [np.array(variable.value) for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    compiled = jax.jit(lambda *inputs: model.stateless_call(*inputs, training=False)[0])

    def call(batch: NDArray[np.float32], training: bool) -> Any:  # noqa: ARG001
        with jax.default_device(device):
            return compiled(*weights, batch)

    return call


def skeleton_of(model: Any) -> Skeleton | None:
    """Return the skeleton of a keras model; None if it cannot be built."""
    # Layers that depend on the number of channels (a reshape) fail with a single channel.
    for single_channel in (True, False):
        *size, channels = model.input_shape[1:]
        builder = _Builder(single_channel, len(size))
        try:
            copy = builder.copy(model, (*[None] * len(size), channels))
        except (ValueError, TypeError, AttributeError, NotImplementedError):
            continue
        return Skeleton(runner(copy), not builder.unbounded)
    return None


def _shape_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the keras backend for incompatible shapes."""
    import keras

    if keras.backend.backend() == "tensorflow":
        from tensorflow import errors

        # Aborted: raised by oneDNN for maps without pixels.
        return (
            ValueError,
            TypeError,
            errors.InvalidArgumentError,
            errors.AbortedError,
            errors.UnimplementedError,
        )
    return (ValueError, TypeError, RuntimeError)


class _Builder:
    """Builds a skeleton layer by layer while the functional graph is cloned."""

    def __init__(self, single_channel: bool, dimensions: int) -> None:
        self.single_channel = single_channel
        self.unbounded = False
        self._space = tuple(range(1, 1 + dimensions))
        self._generator = np.random.default_rng(0)

    def copy(self, model: Any, shape: tuple[int | None, ...]) -> Any:
        """Return the skeleton of a functional or sequential model for images of this shape."""
        import keras

        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(
                f"expected one input and one output; got {len(model.inputs)} and "
                f"{len(model.outputs)}"
            )
        functional = keras.Model(model.inputs[0], model.outputs[0])
        return keras.models.clone_model(
            functional,
            keras.Input(shape),
            clone_function=lambda layer: layer,
            call_function=self.call,
        )

    def call(self, layer: Any, *arguments: Any, **options: Any) -> Any:
        """Return the skeleton's output in place of a layer's."""
        import keras

        kind, first = type(layer).__name__, arguments[0]
        if isinstance(layer, keras.Model):
            return self.copy(layer, first.shape[1:])(first)
        for kinds, substitute in self._substitutes():
            if kind in kinds:
                return substitute(layer, arguments)
        if not isinstance(layer, keras.layers.Layer):
            return layer(*arguments, **options)
        fresh = type(layer).from_config(layer.get_config())
        options.pop("training", None)
        output = fresh(*arguments, **options)
        self._fill(fresh)
        return output

    def _substitutes(self) -> list[tuple[Any, Callable[[Any, tuple[Any, ...]], Any]]]:
        return [
            (_CONVOLUTIONS, self._convolution),
            (_IDENTITY, lambda _layer, arguments: arguments[0]),
            (_SUMS, lambda _layer, arguments: self._sum(arguments)),
            (_NORMS, self._norm),
            (_REDUCTIONS, self._reduction),
            (
                _GLOBAL,
                lambda layer, arguments: self._zeros(arguments[0], self._space, layer.keepdims),
            ),
            (_ATTENTION, lambda _layer, arguments: self._global(arguments[0])),
            (("Dense",), self._dense),
            (("MaxUnpooling",), _repeated),
        ]

    def _convolution(self, layer: Any, arguments: tuple[Any, ...]) -> Any:
        config = {
            name: value
            for name, value in layer.get_config().items()
            if not name.endswith(("_regularizer", "_constraint"))
        }
        config |= {"activation": None, "use_bias": False, "dtype": "float32", "name": None}
        if (
            "dilation_rate" in config
            and type(layer).__name__ in _TRANSPOSED
            and set(config["dilation_rate"]) == {1}
        ):
            config["dilation_rate"] = 1
        if self.single_channel:
            config |= {key: 1 for key in ("filters", "groups", "depth_multiplier") if key in config}
        fresh = type(layer).from_config(config)
        output = fresh(arguments[0])
        self._fill(fresh)
        return output

    def _dense(self, layer: Any, arguments: tuple[Any, ...]) -> Any:
        import keras

        fresh = keras.layers.Dense(1 if self.single_channel else layer.units, use_bias=False)
        output = fresh(arguments[0])
        self._fill(fresh)
        return output

    def _norm(self, layer: Any, arguments: tuple[Any, ...]) -> Any:
        axes = getattr(layer, "axis", None)
        rank = len(arguments[0].shape)
        across = (
            {axis % rank for axis in (axes if isinstance(axes, list | tuple) else [axes])}
            if axes is not None
            else set(self._space)
        )
        if type(layer).__name__ == "GroupNormalization" or across & set(self._space):
            self.unbounded = True
        return arguments[0]

    def _reduction(self, layer: Any, arguments: tuple[Any, ...]) -> Any:
        axes = layer.axis
        rank = len(arguments[0].shape)
        over = (
            tuple(range(rank))
            if axes is None
            else tuple(axis % rank for axis in (axes if isinstance(axes, list | tuple) else [axes]))
        )
        return (
            self._zeros(arguments[0], over, layer.keepdims)
            if set(self._space) & set(over)
            else layer(*arguments)
        )

    def _zeros(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        import keras

        self.unbounded = True
        return keras.ops.mean(x, axes, keepdims=keepdims) * 0.0

    def _global(self, x: Any) -> Any:
        self.unbounded = True
        return x

    def _sum(self, arguments: tuple[Any, ...]) -> Any:
        import keras

        terms = arguments[0] if isinstance(arguments[0], list | tuple) else arguments
        tensors = [term for term in terms if isinstance(term, keras.KerasTensor)]
        total = tensors[0]
        for term in tensors[1:]:
            total = keras.ops.add(total, term)
        return total

    def _fill(self, layer: Any) -> None:
        """Set positive kernels and no biases.

        They are scaled so that in a deep network the centre of the field does not overflow and its
        edge does not underflow.
        """
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if len(shape) < 2:
                ones = weight.name in ("gamma", "scale", "moving_variance", "variance")
                weight.assign(np.full(shape, float(ones), np.float32))
                continue
            kernel = self._generator.uniform(0.5, 1.5, shape).astype(np.float32)
            side = float(np.prod(shape[:-2])) ** 0.25
            weight.assign(kernel * np.float32(side * shape[-1] / kernel.sum()))


def _repeated(layer: Any, arguments: tuple[Any, ...]) -> Any:
    """Max unpooling: the pixel of a window that gets the value depends on the data, so all may."""
    from maskloom.segcore.deep.networks.layers.upsampling import nearest

    return nearest(arguments[0], layer.size)
