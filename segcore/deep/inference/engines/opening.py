"""Opening a network with the selected engine.

Every engine runs one patch at a time, whatever the size of the batch: libraries sum in another
order for other batch sizes, and the result of a patch must not depend on the others. This costs
nothing, since a single patch fills the processor and makes better use of its caches.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference import runtime
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card, ReceptiveField
    from maskloom.segcore.deep.inference.engines.protocol import Choice, Engine, EngineName
    from maskloom.segcore.deep.inference.files.weights import Weights

ENGINES_OF: dict[str, tuple[EngineName, ...]] = {
    ".keras": ("tensorflow", "openvino"),
    ".onnx": ("onnxruntime", "openvino"),
    ".tflite": ("litert",),
    ".pb": ("tensorflow", "openvino"),
}
"""Engines per kind of file; the first is the reference for the others."""
_MOST_LOADED = 4
"""Networks that stay loaded, for example the members of an ensemble."""
_MODULES = {
    "tensorflow": "tensorflow",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert",
}
_INSTALL = {
    "tensorflow": "pip install tensorflow",
    "openvino": "pip install 'maskloom[openvino]'",
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


def check_engine(weights: Weights, engine: EngineName) -> None:
    """Raise `WeightsError` if an engine cannot run a file or is not installed."""
    able = engines_of(weights)
    if engine not in able:
        raise WeightsError(
            f"engine: {engine} cannot run {weights.location}; expected {' or '.join(able)}, or "
            "auto."
        )
    if not is_installed(engine):
        raise WeightsError(f"engine: {engine} is not installed here: {_INSTALL[engine]}.")


def open_engine(weights: Weights, card: Card, choice: Choice) -> Engine:
    """Return the loaded network; the last few stay loaded in the process.

    Raises `WeightsError` if the engine cannot run it in the selected precision.
    """
    request = _Request(
        weights, choice, (card.channels, card.output_channels, card.reach, runtime.threads()), card
    )
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
    weights: Weights
    choice: Choice
    settings: tuple[int, int, ReceptiveField, int | None]
    card: Card = field(compare=False)


@dataclass(frozen=True, slots=True)
class _PatchByPatch:
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    card: Card
    where: str

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        dimensions = self.card.dimensions
        if batch.ndim != dimensions + 2 or len(batch) == 0 or batch.shape[-1] != self.card.channels:
            axes = "y, x" if dimensions == 2 else "z, y, x"
            raise WeightsError(
                f"{self.where} takes patches (patch, {axes}, {self.card.channels}); got "
                f"{batch.shape}. Choose other bands or weights."
            )
        field, lengths = self.card.reach, batch.shape[1:-1]
        sizes = str(field.fixed or f"{field.residue} modulo {field.stride}")
        # Not every library checks sizes; some read out of bounds.
        if any(
            size != reach.fitting(size)
            for size, reach in zip(lengths, field.axes(dimensions), strict=True)
        ):
            raise WeightsError(
                f"{self.where} takes heights and widths of {sizes}; got patches of {lengths}."
            )
        patches = np.ascontiguousarray(batch, np.float32)
        try:
            scores = self.run(patches[:1])
        except WeightsError as error:
            raise WeightsError(
                f"{error} Its card says that it takes {self.card.channels} band(s), and heights "
                f"and widths of {sizes}; if that is wrong, remove the card, so that the network is "
                "measured again."
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
    return _PatchByPatch(_runner(weights, card, choice), card, weights.location)


def _runner(
    weights: Weights, card: Card, choice: Choice
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
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
