"""Keras as an engine on any of its backends: on GPUs, and on the processor without TensorFlow.

Pixels go to the device in the type of their file, and labels come back. Scaling, network, softmax
and arg max are one compiled call between them: `jax.jit`, or `tf.function(jit_compile=True)`;
PyTorch runs them one by one. Otherwise most of the time would go into sending float32 and into
Python between the steps. Scores come back as float32, or as float16 if that is all that the
precision leaves of them.

In bfloat16 and float16, the layers that take pixels and those from the last weights on stay in
float32: most labels that a precision loses are lost in them, and they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.engines.batches import Batched, Gives
from maskloom.segcore.deep.inference.engines.gpus import CPU, Hardware
from maskloom.segcore.deep.inference.files.keras_files import functional
from maskloom.segcore.deep.inference.network_cache import folder_for
from maskloom.segcore.deep.inference.runtime import (
    import_keras,
    import_tensorflow,
    keras_backend,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.protocol import Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

Tensor = Any
Network = Callable[[Tensor], Tensor]
Whole = Callable[[Network, Gives, Tensor, Tensor], Tensor]
_MOST_PIXELS = 1 << 23
"""Of a batch on a GPU. A processor takes one patch at a time, which fills it."""
_POLICIES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def device_engine(weights: Weights, card: Card, precision: Precision) -> Batched:
    """Return a keras file as an engine on the device of Keras' backend.

    Raises `WeightsError` if it is not a network of one image and one output.
    """
    device = KerasDevice(weights, card, precision)
    return Batched(device, card, weights.location, _MOST_PIXELS if device.hardware.is_gpu else 0)


class KerasDevice:
    """A keras network on a device; see `batches.Device`."""

    def __init__(self, weights: Weights, card: Card, precision: Precision) -> None:
        import_keras()
        from maskloom.segcore.deep.inference.engines.masked import Extents, masked

        model = functional(weights)
        self._card, self._precision, self._extents = card, precision, Extents()
        self._dtype = np.dtype(str(model.inputs[0].dtype))
        policies = {} if precision == "float32" else _mixed(model, _POLICIES[precision])
        padded = not any(reach.margin for reach in card.reach.axes(card.dimensions))
        network, self.fills = masked(model, self._extents, policies, padded)
        backend = keras_backend() or "tensorflow"
        self.hardware = _DEVICES[backend]()
        self.problems = _problems(backend)
        self._call = _COMPILERS[backend](network, self._whole, precision)

    def start(self, gives: Gives, pixels: NDArray[np.generic], extents: NDArray[np.int32]) -> Any:
        """Begin to compute a batch; see `batches.Device`."""
        return self._call(gives, pixels, extents)

    def fetch(self, running: Any) -> NDArray[np.generic]:
        """Wait for a batch; see `batches.Device`."""
        found: NDArray[np.generic] = np.asarray(import_keras().ops.convert_to_numpy(running))
        return found

    def _whole(self, network: Network, gives: Gives, pixels: Tensor, extents: Tensor) -> Tensor:
        """From pixels to labels or scores, in operations of the backend."""
        ops = import_keras().ops
        self._extents.shape = tuple(pixels.shape[1:-1])
        self._extents.value = extents if self.fills else None
        inputs = ops.cast(pixels, "float32")
        if gives != "scores of scaled pixels":
            scaling = self._card.scaling
            # Tensors, since PyTorch mixes no arrays of NumPy with what is on a GPU.
            if any(scaling.offset):
                inputs = inputs - ops.convert_to_tensor(scaling.offset, "float32")
            inputs = inputs * ops.convert_to_tensor(scaling.factor, "float32")
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            inputs = ops.cast(
                ops.clip(ops.round(inputs), float(limits.min), float(limits.max)), self._dtype.name
            )
        scores = network(inputs)
        if gives != "labels":
            return ops.cast(scores, "float32" if self._precision == "float32" else "float16")
        return ops.cast(self._labels(ops.cast(scores, "float32")), self._label_type)

    def _labels(self, scores: Tensor) -> Tensor:
        ops, card = import_keras().ops, self._card
        if card.output == "labels":
            return scores[..., 0]
        if scores.shape[-1] == 1:
            return scores[..., 0] > (0.5 if card.output == "sigmoid" else 0.0)
        # Channels after those of the classes are no scores.
        return ops.argmax(scores[..., : len(card.classes)], axis=-1)

    @property
    def _label_type(self) -> str:
        return "uint8" if len(self._card.classes) <= 256 else "int32"


def _mixed(model: Any, policy: str) -> dict[str, str]:
    """The policies of the layers that compute in fewer bits, by name."""
    keras = import_keras()
    layers = [each for each in model.layers if isinstance(each, keras.layers.Layer)]
    weighted = [i for i, layer in enumerate(layers) if layer.weights]
    last = weighted[-1] if weighted else 0
    pixels = model.inputs[0]

    def takes_pixels(layer: Any) -> bool:
        try:
            return any(each is pixels for each in keras.tree.flatten(layer.input))
        except (AttributeError, ValueError):  # a layer used several times has no single input
            return False

    return {
        layer.name: policy
        for layer in layers[:last]
        if layer.dtype_policy.name == "float32"
        and not isinstance(layer, keras.layers.InputLayer)
        and not takes_pixels(layer)
    }


Call = Callable[[Gives, "NDArray[np.generic]", "NDArray[np.int32]"], Tensor]


def _with_jax(network: Any, whole: Whole, precision: Precision) -> Call:
    import jax

    # Arrays of our own: keras gives away those of the variables when it trains or predicts.
    weights = tuple(
        [jax.device_put(np.array(each.value)) for each in group]
        for group in (network.trainable_variables, network.non_trainable_variables)
    )

    def run(gives: Gives, weights: Any, pixels: Tensor, extents: Tensor) -> Tensor:
        """The result on the device, of pixels and extents that are there."""
        # Otherwise GPUs compute float32 in fewer bits (TF32).
        with jax.default_matmul_precision("highest" if precision == "float32" else "default"):
            return whole(
                lambda inputs: network.stateless_call(*weights, inputs, training=False)[0],
                gives,
                pixels,
                extents,
            )

    jitted = jax.jit(run, static_argnums=0)

    def call(gives: Gives, pixels: NDArray[np.generic], extents: NDArray[np.int32]) -> Tensor:
        # Neither call waits: sending, computing and sending back go on while Python does.
        found = jitted(gives, weights, jax.device_put(pixels), jax.device_put(extents))
        found.copy_to_host_async()
        return found

    return call


def _with_tensorflow(network: Any, whole: Whole, _precision: Precision) -> Call:
    tensorflow = import_tensorflow()

    def run(gives: Gives, pixels: Tensor, extents: Tensor) -> Tensor:
        return whole(lambda inputs: network(inputs, training=False), gives, pixels, extents)

    # One graph for each kind of result and each shape.
    jitted = tensorflow.function(run, jit_compile=True, autograph=False)

    def call(gives: Gives, pixels: NDArray[np.generic], extents: NDArray[np.int32]) -> Tensor:
        return jitted(gives, tensorflow.constant(pixels), tensorflow.constant(extents))

    return call


def _with_torch(network: Any, whole: Whole, precision: Precision) -> Call:
    import torch

    ops = import_keras().ops

    def call(gives: Gives, pixels: NDArray[np.generic], extents: NDArray[np.int32]) -> Tensor:
        """Start a call; the result is still on the device."""
        exact = precision == "float32"
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = not exact
        try:
            with torch.inference_mode():
                return whole(
                    lambda inputs: network(inputs, training=False),
                    gives,
                    ops.convert_to_tensor(pixels),
                    ops.convert_to_tensor(extents),
                )
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return call


def _jax_device() -> Hardware:
    import jax

    device = jax.config.jax_default_device or jax.local_devices()[0]
    if device.platform != "gpu":
        return CPU
    kept = folder_for("jax")
    if kept is not None and jax.config.jax_compilation_cache_dir is None:
        # Compiling takes seconds for each shape.
        jax.config.update("jax_compilation_cache_dir", str(kept))
    return Hardware(str(device.device_kind), is_gpu=True)


def _tensorflow_device() -> Hardware:
    config = import_tensorflow().config
    gpus = config.get_visible_devices("GPU")
    if not gpus:
        return CPU
    details = config.experimental.get_device_details(gpus[0])
    return Hardware(str(details.get("device_name", "GPU")), is_gpu=True)


def _torch_device() -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return CPU
    return Hardware(str(torch.cuda.get_device_name()), is_gpu=True)


_COMPILERS: dict[str, Callable[[Any, Whole, Precision], Call]] = {
    "jax": _with_jax,
    "tensorflow": _with_tensorflow,
    "torch": _with_torch,
}
_DEVICES: dict[str, Callable[[], Hardware]] = {
    "jax": _jax_device,
    "tensorflow": _tensorflow_device,
    "torch": _torch_device,
}


def keras_device() -> Hardware:
    """The device of Keras' backend."""
    import_keras()
    return _DEVICES[keras_backend() or "tensorflow"]()


def _problems(backend: str) -> tuple[type[Exception], ...]:
    """Exceptions of a backend for shapes that do not fit, and for lack of memory."""
    common = (RuntimeError, MemoryError, ValueError, TypeError, NotImplementedError)
    if backend == "tensorflow":
        return (*common, import_tensorflow().errors.OpError)
    return common
