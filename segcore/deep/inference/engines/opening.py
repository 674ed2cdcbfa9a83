"""Opening a network with the selected engine.

On a processor every engine runs one patch at a time, whatever the size of the batch: libraries sum
in another order for other batch sizes, and the result of a patch must not depend on the others.
This costs nothing, since a single patch fills the processor and makes better use of its caches.
GPUs get batches, whose shape depends on the image alone (`segcore.deep.inference.engines.batches`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference import runtime
from maskloom.segcore.deep.inference.engines.batches import require_fitting, sizes_wanted
from maskloom.segcore.deep.inference.engines.gpus import (
    CPU,
    Hardware,
    has_gpu_provider,
    nvidia_gpus,
)
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.protocol import Choice, Engine, EngineName
    from maskloom.segcore.deep.inference.files.weights import Weights
    from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
    from maskloom.segcore.deep.inference.scaling import Scaling

ENGINES_OF: dict[str, tuple[EngineName, ...]] = {
    ".keras": ("tensorflow", "jax", "torch", "openvino", "onnxruntime"),
    ".onnx": ("onnxruntime", "openvino"),
    ".tflite": ("litert",),
    ".pb": ("tensorflow", "openvino"),
}
"""Engines per kind of file; the first that is available is the reference for the others."""
_MOST_LOADED = 4
"""Networks that stay loaded, for example the members of an ensemble."""
_MODULES: dict[EngineName, str] = {
    "tensorflow": "tensorflow",
    "jax": "jax",
    "torch": "torch",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert",
}
_INSTALL = {
    **{name: f"pip install 'maskloom[{name}]'" for name in (*runtime.BACKENDS, "openvino")},
    "onnxruntime": "pip install 'maskloom[onnx]'",
    "litert": "pip install 'maskloom[litert]'",
}


def configure(threads: int) -> None:
    """Set the number of threads of this process's engines. Call it before opening the first."""
    runtime.set_threads(threads)


def is_installed(engine: EngineName) -> bool:
    """Whether the library of an engine is installed."""
    return importlib.util.find_spec(_MODULES[engine]) is not None


def engines_of(weights: Weights) -> tuple[EngineName, ...]:
    """Return the engines that can run a file, installed or not.

    Raises `WeightsError` if no engine can.
    """
    suffix = ".keras" if weights.trust and weights.suffix in (".h5", ".hdf5") else weights.suffix
    if suffix not in ENGINES_OF:
        raise WeightsError(
            f"{weights.location}: expected a file ending in {', '.join(ENGINES_OF)}; got "
            f"{weights.suffix or 'no suffix'}."
        )
    return ENGINES_OF[suffix]


def available_engines(weights: Weights) -> list[EngineName]:
    """Return the engines that can run a file in this process, the reference first.

    Of TensorFlow, JAX and PyTorch, that is the one that Keras runs on. Raises `WeightsError` if no
    engine can run such a file, installed or not.
    """
    able = [engine for engine in engines_of(weights) if is_installed(engine)]
    if not is_keras(weights):
        return able
    backend = runtime.keras_backend()
    ours: tuple[EngineName, ...] = () if backend is None else (backend,)
    if backend == "tensorflow":
        # They run what TensorFlow makes of the file, the second only where it is worth that.
        ours += ("openvino", "onnxruntime") if has_gpu_provider() else ("openvino",)
    return [engine for engine in able if engine in ours]


def hardware_of(engine: EngineName) -> Hardware:
    """What an engine runs on in this process."""
    if engine in runtime.BACKENDS:
        from maskloom.segcore.deep.inference.engines.device import keras_device

        return keras_device()
    if engine == "onnxruntime" and has_gpu_provider():
        return Hardware(nvidia_gpus()[0], is_gpu=True)
    return CPU


def is_keras(weights: Weights) -> bool:
    """Whether Keras reads a file."""
    return engines_of(weights) == ENGINES_OF[".keras"]


def check_engine(weights: Weights, engine: EngineName) -> None:
    """Raise `WeightsError` if an engine cannot run a file in this process, or is not installed."""
    able = engines_of(weights)
    if engine not in able:
        raise WeightsError(
            f"engine: {engine} cannot run {weights.location}; expected {', '.join(able[:-1])}"
            f"{' or ' if able[1:] else ''}{able[-1]}, or auto."
        )
    if not is_installed(engine):
        raise WeightsError(f"engine: {engine} is not installed here: {_INSTALL[engine]}.")
    if is_keras(weights) and engine in runtime.BACKENDS:
        runtime.use_backend(engine)
    elif is_keras(weights) and runtime.keras_backend() != "tensorflow":
        raise WeightsError(
            f"engine: {engine} needs TensorFlow to read {weights.location}; Keras runs on "
            f"{runtime.keras_backend() or 'nothing'} here. Install it (pip install "
            "'maskloom[tensorflow]', and unset KERAS_BACKEND), or set engine: auto."
        )


def open_engine(weights: Weights, card: Card, choice: Choice) -> Engine:
    """Return the loaded network; the last few stay loaded in the process.

    Raises `WeightsError` if the engine cannot run it in the selected precision.
    """
    # Some engines scale pixels themselves.
    ends = (card.channels, card.output_channels, card.scaling)
    request = _Request(weights, choice, (*ends, card.reach, runtime.threads()), card)
    engine = _loaded.pop(request, None) or _open(request)
    # Least recently used first.
    _loaded[request] = engine
    for oldest in list(_loaded)[:-_MOST_LOADED]:
        _loaded.pop(oldest, None)
    return engine


def close_others(weights: Weights, choice: Choice) -> None:
    """Free the memory of a network in all engines and precisions except the selected one."""
    for request in list(_loaded):
        if request.weights == weights and request.choice != choice:
            _loaded.pop(request, None)


@dataclass(frozen=True, slots=True)
class _Request:
    """What decides an engine; the key of those that are loaded."""

    weights: Weights
    choice: Choice
    settings: tuple[int, int, Scaling, ReceptiveField, int | None]
    card: Card = field(compare=False)


@dataclass(frozen=True, slots=True)
class _PatchByPatch:
    """An `Engine` made of a function that runs one patch."""

    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    card: Card
    where: str

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        require_fitting(self.card, self.where, batch.shape)
        patches = np.ascontiguousarray(batch, np.float32)
        try:
            scores = self.run(patches[:1])
        except WeightsError as error:
            raise WeightsError(
                f"{error} Its card says that it takes {self.card.channels} band(s), and heights "
                f"and widths of {sizes_wanted(self.card)}; if that is wrong, remove the card, so "
                "that the network is measured again."
            ) from error
        if len(patches) > 1:
            # The output of a run is valid until the next one.
            first, scores = scores, np.empty((len(patches), *scores.shape[1:]), np.float32)
            scores[0] = first[0]
            for index in range(1, len(patches)):
                scores[index] = self.run(patches[index : index + 1])[0]
        scores = scores.view()
        scores.flags.writeable = False
        return scores


_loaded: dict[_Request, Engine] = {}
"""Networks loaded in this process."""


def _open(request: _Request) -> Engine:
    weights, card, choice = request.weights, request.card, request.choice
    check_engine(weights, choice.engine)
    if is_keras(weights) and choice.engine in runtime.BACKENDS:
        from maskloom.segcore.deep.inference.engines.device import device_engine

        on_gpu = hardware_of(choice.engine).is_gpu
        if choice.engine != "tensorflow" or on_gpu:
            return device_engine(weights, card, choice.precision)
    if choice.engine == "onnxruntime" and card.output != "labels":
        from maskloom.segcore.deep.inference.engines.onnx import onnx_on_gpu

        engine = onnx_on_gpu(weights, card, choice.precision)
        if engine is not None:
            return engine
    return _PatchByPatch(_runner(weights, card, choice), card, weights.location)


def _runner(
    weights: Weights, card: Card, choice: Choice
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    if choice.precision == "float16":
        raise WeightsError(
            f"precision: float16 is for GPUs, and {choice.engine} runs {weights.location} on the "
            "processor here. Set float32 or auto."
        )
    if choice.engine == "openvino":
        from maskloom.segcore.deep.inference.engines.openvino import openvino_runner

        return openvino_runner(weights, card, choice.precision)
    if choice.engine == "tensorflow":
        from maskloom.segcore.deep.inference.engines.tensorflow import tensorflow_runner

        return tensorflow_runner(weights, choice.precision)
    if choice.precision != "float32":
        raise WeightsError(
            f"precision: {choice.engine} runs in float32 only; got {choice.precision}. Choose "
            "auto, or another engine."
        )
    if choice.engine == "onnxruntime":
        from maskloom.segcore.deep.inference.engines.onnx import onnx_runner

        return onnx_runner(weights, card)
    from maskloom.segcore.deep.inference.engines.litert import litert_runner

    return litert_runner(weights)
