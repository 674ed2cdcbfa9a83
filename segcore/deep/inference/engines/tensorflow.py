"""TensorFlow as an engine.

The network becomes one graph with constant weights, so that TensorFlow folds normalisation and
activation into convolutions; patches of any size run through the same graph. For bfloat16,
TensorFlow rewrites the folded graph itself; this is faster than a keras policy, which computes
normalisations separately in float32. The rewriting would round the last scores and probabilities to
eight bits, which creates ties and flips labels where two classes are close. So the last convolution
is excluded by computing it in float64, which costs nothing for so few channels, and the last
activation is composed of exponentials, which the rewriting leaves in float32.

Most labels lost in bfloat16 are lost by rounding the pixels to eight bits. So pixels are passed in
two parts of eight bits each (`split_pixels`), for OpenVINO too; the first convolution, which is
cheap, adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.files.keras_files import functional
from maskloom.segcore.deep.inference.files.saved_models import load_saved_model
from maskloom.segcore.deep.inference.layouts import from_network, split_pixels
from maskloom.segcore.deep.inference.runtime import import_keras, import_tensorflow
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.engines.protocol import Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

_MIXED = "auto_mixed_precision_onednn_bfloat16"


def _ending(model: Any) -> tuple[Any, Callable[[Any], Any]]:
    return model.outputs[0], import_tensorflow().identity


def _exact_ending(model: Any) -> tuple[Any, Callable[[Any], Any]]:
    keras, last = import_keras(), model.layers[-1]
    if last.output is not model.outputs[0]:
        return _ending(model)
    activations = {
        keras.activations.softmax: _softmax,
        keras.activations.sigmoid: _sigmoid,
        keras.activations.linear: import_tensorflow().identity,
    }
    if isinstance(last, keras.layers.Softmax) and last.axis == -1:
        finish, last = _softmax, model.layers[-2]
        if (
            last.output is not model.layers[-1].input
            or getattr(last, "activation", None) is not keras.activations.linear
        ):
            return model.layers[-1].input, finish
    elif getattr(last, "activation", None) in activations:
        finish = activations[last.activation]
    else:
        return _ending(model)
    if isinstance(last, keras.layers.Conv2D | keras.layers.Conv3D):
        return last.input, lambda features: finish(_convolved(last, features))
    last.activation = keras.activations.linear
    return last.output, finish


def _with_split_pixels(network: Any) -> Any:
    """Adapt the network to `split_pixels`: each convolution of its input becomes a sum of two.

    Networks that use their input in any other way are returned unchanged.
    """
    keras, pixels = import_keras(), network.inputs[0]
    try:
        users = [
            layer
            for layer in network.layers[1:]
            if any(tensor is pixels for tensor in keras.tree.flatten(layer.input))
        ]
    except (AttributeError, ValueError):  # a layer used several times has no single input
        return network
    if not users or not all(
        isinstance(layer, keras.layers.Conv2D | keras.layers.Conv3D)
        and layer.groups == 1
        and layer.data_format == "channels_last"
        for layer in users
    ):
        return network

    def call(layer: Any, *arguments: Any, **options: Any) -> Any:
        return (
            _split_convolved(layer, arguments[0])
            if any(layer is user for user in users)
            else layer(*arguments, **options)
        )

    split = keras.Input((*pixels.shape[1:-1], 2 * pixels.shape[-1]))
    return keras.models.clone_model(
        network, split, clone_function=lambda layer: layer, call_function=call
    )


def _split_convolved(layer: Any, pixels: Any) -> Any:
    ops = import_keras().ops
    kernel = np.concatenate([ops.convert_to_numpy(layer.kernel)] * 2, axis=-2)
    scores = ops.conv(
        pixels, kernel, list(layer.strides), layer.padding, layer.data_format, layer.dilation_rate
    )
    if layer.use_bias:
        scores = scores + ops.convert_to_numpy(layer.bias)
    return layer.activation(scores)


def _convolved(layer: Any, features: Any) -> Any:
    """A convolution in float64, without its activation."""
    keras, tensorflow = import_keras(), import_tensorflow()
    kernel, features = (
        tensorflow.cast(layer.kernel, tensorflow.float64),
        tensorflow.cast(features, tensorflow.float64),
    )
    scores = keras.ops.conv(
        features, kernel, list(layer.strides), layer.padding, layer.data_format, layer.dilation_rate
    )
    if layer.use_bias:
        scores += tensorflow.cast(layer.bias, tensorflow.float64)
    return tensorflow.cast(scores, tensorflow.float32)


def _softmax(logits: Any) -> Any:
    tensorflow = import_tensorflow()
    powers = tensorflow.exp(logits - tensorflow.reduce_max(logits, axis=-1, keepdims=True))
    return powers / tensorflow.reduce_sum(powers, axis=-1, keepdims=True)


def _sigmoid(logits: Any) -> Any:
    return 1 / (1 + import_tensorflow().exp(-logits))


def tensorflow_runner(
    weights: Weights, precision: Precision
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function that runs a patch (1, y, x, band) of a keras file to (1, y, x, class); for
    a network of volumes both have an axis z before y.
    """
    tensorflow, where = import_tensorflow(), weights.location
    function = frozen(weights, precision)
    *axes, channels = function.inputs[0].shape

    def run(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (1, y, x, class) of a patch (1, y, x, band)."""
        patch = split_pixels(patch, channels)
        try:
            with _rewriting(tensorflow, precision):
                output = function(tensorflow.constant(patch))[0].numpy()
        except (tensorflow.errors.OpError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{where} cannot be run on a patch of {patch.shape}: "
                f"{str(error).strip().splitlines()[0][:300]}"
            ) from error
        return from_network(output, "last", where, len(axes) - 1)

    return run


@lru_cache(maxsize=1)
def frozen(weights: Weights, precision: Precision) -> Any:
    """Return a keras file or SavedModel as a TensorFlow function with constant weights.

    It maps patches (patch, y, x, band) float32 of any valid size to scores (patch, y, x, class)
    float32. The last one is cached for the next engine of the same precision, because loading a
    network takes longer than running it.
    """
    keras = import_keras()
    if keras.backend.backend() != "tensorflow":
        raise WeightsError(
            f"keras runs on {keras.backend.backend()} here; maskloom segments on TensorFlow. Unset "
            "KERAS_BACKEND."
        )
    tensorflow = import_tensorflow()
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )  # exported nowhere else

    if weights.suffix == ".pb":
        return load_saved_model(weights).function
    model = functional(weights)
    inputs = model.inputs
    before, finish = _ending(model) if precision == "float32" else _exact_ending(model)
    flat, dtype = keras.Model(inputs[0], before), tensorflow.as_dtype(inputs[0].dtype)
    if precision == "bfloat16" and not dtype.is_integer:
        flat = _with_split_pixels(flat)

    def scores(patches: Any) -> Any:
        """Scores as float32, of patches in the type that the network takes."""
        if dtype.is_integer:
            patches = tensorflow.clip_by_value(
                tensorflow.round(patches), float(dtype.min), float(dtype.max)
            )
        return finish(
            tensorflow.cast(
                flat(tensorflow.cast(patches, dtype), training=False), tensorflow.float32
            )
        )

    try:
        traced = tensorflow.function(
            scores,
            input_signature=[tensorflow.TensorSpec(flat.inputs[0].shape, tensorflow.float32)],
            autograph=False,
        ).get_concrete_function()
    except (tensorflow.errors.OpError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{weights.location} cannot be run on images of any size: "
            f"{str(error).strip().splitlines()[0][:300]} "
            "Give its input a fixed height and width."
        ) from error
    # A traced function holds its variables weakly. The network, which holds them, lasts until here.
    return convert_variables_to_constants_v2(traced)


@contextmanager
def _rewriting(tensorflow: Any, precision: Precision) -> Iterator[None]:
    """Enable or disable TensorFlow's rewriting to bfloat16 inside the context.

    Other graphs of the process are not affected.
    """
    optimizer = tensorflow.config.optimizer
    before = optimizer.get_experimental_options().get(_MIXED, False)
    wanted = precision == "bfloat16"
    if before == wanted:
        yield
        return
    optimizer.set_experimental_options({_MIXED: wanted})
    try:
        yield
    finally:
        optimizer.set_experimental_options({_MIXED: before})
