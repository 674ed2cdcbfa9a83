"""OpenVINO as an engine: the fastest on CPUs of Intel and AMD, above all in bfloat16.

It runs keras and ONNX files with patches of any size.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.engines.tensorflow import frozen
from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
from maskloom.segcore.deep.inference.layouts import (
    Layout,
    from_network,
    layout_of,
    split_pixels,
    to_network,
)
from maskloom.segcore.deep.inference.network_cache import kept_network
from maskloom.segcore.deep.inference.runtime import threads
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.protocol import Precision
    from maskloom.segcore.deep.inference.files.weights import Weights

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def openvino_runner(
    weights: Weights, card: Card, precision: Precision
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function that runs a patch (1, y, x, band) of a file to (1, y, x, class); for a
    network of volumes both have an axis z before y.

    The file is a keras or ONNX file. The result is valid until the next call. Raises `WeightsError`
    if OpenVINO cannot load the file.
    """
    where = weights.location
    try:
        model = _converted(weights, card, precision)
        # One patch at a time on all threads: several at once take more memory and more time.
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if threads() is not None:
            properties["INFERENCE_NUM_THREADS"] = threads()
        compiled = _core().compile_model(model, "CPU", properties)
    except RuntimeError as error:
        raise WeightsError(
            f"OpenVINO cannot load {where}: {_reason(error)} Choose another engine."
        ) from error
    if len(compiled.inputs) != 1:
        raise WeightsError(f"{where}: expected a network of one input; got {len(compiled.inputs)}.")
    from_onnx = weights.suffix == ".onnx"
    otherwise: Layout = "first" if from_onnx else "last"
    taken = _sizes(compiled.inputs[0])
    source = layout_of(taken, card.channels, otherwise)
    target = layout_of(_sizes(compiled.outputs[0]), card.output_channels, source)
    dtype = np.dtype(compiled.inputs[0].element_type.to_dtype())
    request = compiled.create_infer_request()

    def run(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (1, y, x, class) of a patch (1, y, x, band), valid until the next call."""
        if not from_onnx:
            patch = split_pixels(patch, taken[-1] or 0)
        try:
            output = request.infer(
                [to_network(patch, source, dtype)], share_inputs=True, share_outputs=True
            )[0]
        except RuntimeError as error:
            raise WeightsError(
                f"{where} cannot be run on a patch of {patch.shape}: {_reason(error)}"
            ) from error
        return from_network(output, target, where, card.dimensions)

    return run


@cache
def _core() -> Any:
    """The one core of this process, for as long as it lives.

    Each core loads a plug-in for the processor, which gives signals another stack, and restores the
    previous one when it ends. Of several cores, one may so restore a stack that has ended before
    it; the next signal then kills the process without a word.
    """
    import openvino

    return openvino.Core()


def native_bfloat16() -> bool:
    """Whether OpenVINO reports native bfloat16 for this processor."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _converted(weights: Weights, card: Card, precision: Precision) -> Any:
    """The network as OpenVINO's model, from the file or as it was kept."""
    if weights.suffix == ".onnx":
        return _core().read_model(io.BytesIO(load_onnx(weights)))
    return kept_network(
        weights, card, precision, lambda: _from_keras(weights, precision), _core().read_model
    )


def _from_keras(weights: Weights, precision: Precision) -> Any:
    import openvino

    function = frozen(weights, precision)
    # `openvino.convert_model` would read the same graph node by node in Python, which takes
    # seconds, and send telemetry.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pb")
        path.write_bytes(function.graph.as_graph_def().SerializeToString())
        model = _core().read_model(path)
    # Drop other outputs of the graph, such as an unused shape.
    return openvino.Model([model.output(function.outputs[0].name)], model.get_parameters())


def _sizes(port: Any) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in port.get_partial_shape()]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
