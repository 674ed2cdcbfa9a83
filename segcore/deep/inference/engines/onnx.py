"""ONNX Runtime as an engine: the reference for ONNX files.

It runs in float32 only, since it has no bfloat16 on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
from maskloom.segcore.deep.inference.layouts import from_network, layout_of, to_network
from maskloom.segcore.deep.inference.runtime import threads
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.files.weights import Weights

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
    """Return a function that runs a patch (1, y, x, band) of an ONNX file to (1, y, x, class); for
    a network of volumes both have an axis z before y.

    Uses the first output if there are several. Raises `WeightsError` if the file cannot be loaded.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    problems = (
        state.Fail,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    )
    where = weights.location
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    if threads() is not None:
        options.intra_op_num_threads = threads()
    try:
        session = onnxruntime.InferenceSession(
            load_onnx(weights), options, providers=["CPUExecutionProvider"]
        )
    except problems as error:
        raise WeightsError(
            f"ONNX Runtime cannot load {where}: {str(error).strip()[:300]}"
        ) from error
    axes = card.dimensions + 2
    if (
        len(session.get_inputs()) != 1
        or session.get_inputs()[0].type not in _DTYPES
        or len(session.get_inputs()[0].shape) != axes
    ):
        kinds = [(item.shape, item.type) for item in session.get_inputs()]
        raise WeightsError(f"{where}: expected a network of one input of {axes} axes; got {kinds}.")
    taken, given = session.get_inputs()[0], session.get_outputs()[0]
    known = {_sizes(taken.shape)[axis] for axis in (1, -1)} - {None}
    if known and card.channels not in known:
        raise WeightsError(
            f"{where} takes an input of {taken.shape}; its card says {card.channels} bands. Remove "
            "the card, so that the network is examined."
        )
    source = layout_of(_sizes(taken.shape), card.channels, "first")
    target = (
        layout_of(_sizes(given.shape), card.output_channels, source)
        if len(given.shape) == axes
        else source
    )
    dtype = np.dtype(_DTYPES[taken.type])

    def run(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            output = session.run([given.name], {taken.name: to_network(patch, source, dtype)})[0]
        except problems as error:
            raise WeightsError(
                f"{where} cannot be run on a patch of {patch.shape}: {str(error).strip()[:300]}"
            ) from error
        return from_network(np.asarray(output), target, where, card.dimensions)

    return run


def _sizes(shape: list[int | str | None]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]
