"""ONNX Runtime as an engine: the reference for ONNX files, and on GPUs for keras files too.

On processors it runs in float32 only, since it has no bfloat16 there. On NVIDIA GPUs, the CUDA
provider runs float32, and TensorRT, or the CUDA provider where it is missing, float16: the types
are those of the model (`onnx_half`), so that both compute the same. A keras file is exported once
by keras, and kept by its digest in the user's cache.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
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
from maskloom.segcore.deep.inference.network_cache import folder_for_compiled, kept_export
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
_ON_GPUS: tuple[Precision, ...] = ("float32", "float16")
_CUDA = (CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
"""The CUDA provider. By default it computes float32 in fewer bits, and measures which algorithm is
the fastest, which another worker may find to be another one, with other last bits.
"""
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
    """Return a file as an engine on a GPU; None if ONNX Runtime can use none, of which it warns
    once.

    Raises `WeightsError` if the file cannot be loaded, or in a precision that no provider has.
    """
    if not has_gpu_provider():
        return None
    if precision not in _ON_GPUS:
        raise WeightsError(
            f"precision: ONNX Runtime runs {' and '.join(_ON_GPUS)} on GPUs; got {precision}. Set "
            "one of them, or auto."
        )
    if not _cuda_starts():
        return None
    content, where = _content(weights, card), weights.location
    hardware = Hardware(nvidia_gpus()[0], is_gpu=True)
    device = OnnxDevice(content, card, where, precision, hardware)
    return Batched(device, card, where, _MOST_PIXELS)


class OnnxDevice:
    """An ONNX network with scaling and arg max inside; see `batches.Device`.

    A thread waits for the GPU while Python cuts the next patches.
    """

    fills = False

    def __init__(
        self,
        content: bytes,
        card: Card,
        where: str,
        precision: Precision = "float32",
        hardware: Hardware = CPU,
    ) -> None:
        self.hardware = hardware
        self.problems = (*problems(), RuntimeError)
        self._content, self._card, self._where = content, card, where
        self._precision = precision
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
        from maskloom.segcore.deep.inference.engines.onnx_half import in_half

        plain = _session(self._content, self._where, PROCESSOR)
        layouts = _layouts(*_ends_of(plain, self._card, self._where), self._card)
        model = onnx.load_from_string(self._content)
        if self._precision == "float16":
            model = in_half(model)
        content = with_ends(model, self._card, gives, dtype, layouts).SerializeToString()
        providers = providers_for(self._precision, content) if self.hardware.is_gpu else PROCESSOR
        return _session(content, self._where, providers)


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


def providers_for(precision: Precision, model: bytes) -> list[Any]:
    """The providers of ONNX Runtime that run a model on a GPU, the first first."""
    import onnxruntime

    chosen = [_CUDA, *PROCESSOR]
    if precision == "float16" and TENSORRT in onnxruntime.get_available_providers():
        options, kept = {}, folder_for_compiled("tensorrt", model)
        if kept is not None:
            # TensorRT compiles for minutes.
            options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept)}
        chosen.insert(0, (TENSORRT, options))
    return chosen


@cache
def _cuda_starts() -> bool:
    """Whether the CUDA provider finds its driver and libraries; warns if not."""
    import onnx

    info = onnx.helper.make_tensor_value_info
    ends = [[info(name, onnx.TensorProto.FLOAT, [1])] for name in "xy"]
    nodes = [onnx.helper.make_node("Neg", ["x"], ["y"])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "start", *ends),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=9,
    )
    session = _session(model.SerializeToString(), "a network", [_CUDA, *PROCESSOR])
    if CUDA in session.get_providers():
        return True
    log.warning(
        "ONNX Runtime has a provider for GPUs, but it does not start (driver or CUDA libraries of "
        "another version?): it runs networks on the processor. Check the driver with nvidia-smi."
    )
    return False


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
