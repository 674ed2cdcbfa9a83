"""ONNX Runtime as an engine: the reference for ONNX files, and on GPUs for keras files too.

On processors it runs in float32 only, since it has no bfloat16 there. On NVIDIA GPUs, the CUDA
provider runs float32, and TensorRT float16. A keras file is exported once by keras, and kept by its
digest in the user's cache.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.engines.batches import Batched, Gives
from maskloom.segcore.deep.inference.engines.gpus import (
    CPU,
    CUDA,
    TENSORRT,
    Hardware,
    has_gpu_provider,
    nvidia_gpus,
)
from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
from maskloom.segcore.deep.inference.layouts import Layout, from_network, layout_of, to_network
from maskloom.segcore.deep.inference.network_cache import folder_for, kept_export
from maskloom.segcore.deep.inference.runtime import quiet, threads
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.protocol import Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

log = logging.getLogger(__name__)
_MOST_PIXELS = 1 << 23
PROCESSOR: list[Any] = ["CPUExecutionProvider"]
"""Providers of ONNX Runtime without a GPU."""
_ERRORS_ONLY = 3
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
}


def onnx_runner(
    weights: Weights, card: Card
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function that runs a patch (1, y, x, band) of a file to (1, y, x, class) on the
    processor; for a network of volumes both have an axis z before y.

    Uses the first output if there are several. Raises `WeightsError` if the file cannot be loaded.
    """
    where = weights.location
    session = _session(_content(weights, card), where, PROCESSOR)
    taken, given = _ends_of(session, card, where)
    source, target = _layouts(taken, given, card)
    dtype = np.dtype(_DTYPES[taken.type])

    def run(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            output = session.run([given.name], {taken.name: to_network(patch, source, dtype)})[0]
        except problems() as error:
            raise WeightsError(
                f"{where} cannot be run on a patch of {patch.shape}: {str(error).strip()[:300]}"
            ) from error
        return from_network(np.asarray(output), target, where, card.dimensions)

    return run


def onnx_on_gpu(weights: Weights, card: Card, precision: Precision) -> Batched | None:
    """Return a file as an engine on a GPU; None if ONNX Runtime can use none, of which it warns.

    Raises `WeightsError` if the file cannot be loaded, or in a precision that no provider has.
    """
    if not has_gpu_provider():
        return None
    providers = providers_for(precision)
    content, where = _content(weights, card), weights.location
    session = _session(content, where, providers)
    if not {CUDA, TENSORRT} & set(session.get_providers()):
        log.warning(
            "ONNX Runtime has a provider for GPUs, but it does not start (driver or CUDA libraries "
            "of another version?): %s runs on the processor.",
            where,
        )
        return None
    return Batched(OnnxDevice(content, card, where, providers), card, where, _MOST_PIXELS)


class OnnxDevice:
    """An ONNX network with scaling and arg max inside; see `batches.Device`.

    A thread waits for the GPU while Python cuts the next patches.
    """

    fills = False

    def __init__(self, content: bytes, card: Card, where: str, providers: list[Any]) -> None:
        self.hardware = CPU if providers == PROCESSOR else Hardware(nvidia_gpus()[0], is_gpu=True)
        self.problems = (*problems(), RuntimeError)
        self._content, self._card, self._where = content, card, where
        self._providers = providers
        self._thread = ThreadPoolExecutor(1)
        self._sessions: dict[tuple[Gives, str], Any] = {}

    def start(self, gives: Gives, pixels: NDArray[np.generic], extents: NDArray[np.int32]) -> Any:  # noqa: ARG002
        """Begin to compute a batch; see `batches.Device`."""
        session = self._sessions.get((gives, pixels.dtype.name))
        if session is None:
            session = self._opened(gives, pixels.dtype)
            self._sessions[gives, pixels.dtype.name] = session
        return self._thread.submit(session.run, None, {session.get_inputs()[0].name: pixels})

    def fetch(self, running: Future[list[NDArray[np.generic]]]) -> NDArray[np.generic]:
        """Wait for a batch; see `batches.Device`."""
        return running.result()[0]

    def _opened(self, gives: Gives, dtype: np.dtype[Any]) -> Any:
        import onnx

        from maskloom.segcore.deep.inference.engines.onnx_ends import with_ends

        plain = _session(self._content, self._where, PROCESSOR)
        layouts = _layouts(*_ends_of(plain, self._card, self._where), self._card)
        model = with_ends(onnx.load_from_string(self._content), self._card, gives, dtype, layouts)
        return _session(model.SerializeToString(), self._where, self._providers)


def exported(weights: Weights) -> bytes:
    """Return a keras file as an ONNX model, made by keras. Raises `WeightsError` if it cannot."""
    from maskloom.segcore.deep.inference.files.keras_files import functional

    if importlib.util.find_spec("tf2onnx") is None:
        raise WeightsError(
            f"engine: keras needs tf2onnx to export {weights.location} for ONNX Runtime: pip "
            "install 'maskloom[onnx]'."
        )
    model = functional(weights)
    # Keras exports what has been called.
    sizes = [size or 64 for size in model.inputs[0].shape[1:]]
    model(np.zeros((1, *sizes), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.export(file, format="onnx", verbose=False)
        # tf2onnx raises exceptions of all kinds for operations that it does not know.
        except Exception as error:
            raise WeightsError(
                f"keras cannot export {weights.location} for ONNX Runtime: {str(error)[:300]} "
                "Choose another engine."
            ) from error
        return file.read_bytes()


def _content(weights: Weights, card: Card) -> bytes:
    if weights.suffix == ".onnx":
        return load_onnx(weights)
    return kept_export(weights, card, lambda: exported(weights))


def providers_for(precision: Precision) -> list[Any]:
    """The providers of ONNX Runtime on a GPU, the first first. Raises `WeightsError` if none has
    this precision.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    cuda = (CUDA, {"use_tf32": "0"})
    if precision == "float32" and CUDA in there:
        return [cuda, *PROCESSOR]
    if precision == "float16" and TENSORRT in there:
        options, kept = {"trt_fp16_enable": "1"}, folder_for("tensorrt")
        if kept is not None:
            # TensorRT compiles for minutes.
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept)}
        return [(TENSORRT, options), cuda, *PROCESSOR]
    raise WeightsError(
        f"precision: ONNX Runtime runs float32 by its CUDA provider and float16 by TensorRT; got "
        f"{precision}, and here are {', '.join(there)}. Set precision: auto."
    )


def problems() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime for models, and for inputs that do not fit."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    )


def _session(content: bytes, where: str, providers: list[Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    if threads() is not None:
        options.intra_op_num_threads = threads()
    try:
        with warnings.catch_warnings():
            # What does not start is for the caller to say.
            warnings.simplefilter("ignore", UserWarning)
            return onnxruntime.InferenceSession(content, options, providers=providers)
    except problems() as error:
        raise WeightsError(
            f"ONNX Runtime cannot load {where}: {str(error).strip()[:300]}"
        ) from error


def _ends_of(session: Any, card: Card, where: str) -> tuple[Any, Any]:
    """The input and the first output. Raises `WeightsError` unless the input is one image."""
    axes = card.dimensions + 2
    if (
        len(session.get_inputs()) != 1
        or session.get_inputs()[0].type not in _DTYPES
        or len(session.get_inputs()[0].shape) != axes
    ):
        kinds = [(item.shape, item.type) for item in session.get_inputs()]
        raise WeightsError(f"{where}: expected a network of one input of {axes} axes; got {kinds}.")
    taken = session.get_inputs()[0]
    known = {_sizes(taken.shape)[axis] for axis in (1, -1)} - {None}
    if known and card.channels not in known:
        raise WeightsError(
            f"{where} takes an input of {taken.shape}; its card says {card.channels} bands. Remove "
            "the card, so that the network is examined."
        )
    return taken, session.get_outputs()[0]


def _layouts(taken: Any, given: Any, card: Card) -> tuple[Layout, Layout]:
    source = layout_of(_sizes(taken.shape), card.channels, "first")
    if len(given.shape) != card.dimensions + 2:
        return source, source
    return source, layout_of(_sizes(given.shape), card.output_channels, source)


def _sizes(shape: list[int | str | None]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]
