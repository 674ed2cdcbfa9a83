"""How near a network comes to what the processor reaches in its convolutions:

    python tests/benchmarks/bench_layers.py small|large [side] [rounds]

The networks are those of `bench_inference.py`, on a patch of `side` pixels (default 800: 512 with
the halo), in OpenVINO on one thread. Each of its convolutions also runs in a chain of its own, in
the same shape and precision: the sum of these times is what nothing but convolutions would take. It
is time of the processor, and the least of all rounds counts. Prints the share of that sum in the
time of the network, operations a second, and the kinds of layers that take most (by the clock).
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np
import openvino
from bench_inference import FORMS
from openvino import opset13 as ops

from maskloom.segcore.deep.inference.runtime import import_keras, import_tensorflow

CONVOLUTIONS = ("Convolution", "ConvolutionBackpropData")


def properties(precision: str) -> dict[str, Any]:
    """Those of the engine, and times by layer."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "PERF_COUNT": True,
    }


def least(request: Any, batch: Any, rounds: int) -> tuple[float, dict[str, float]]:
    """The least seconds of a run, of its thread's processor time, and of each kind of layer."""
    seconds, layers = float("inf"), defaultdict(lambda: float("inf"))
    for _ in range(rounds):
        begun = time.process_time()
        request.infer([batch], share_inputs=True, share_outputs=True)
        seconds = min(seconds, time.process_time() - begun)
        kinds: dict[str, float] = defaultdict(float)
        for each in request.profiling_info:
            kinds[each.node_type] += each.real_time.total_seconds()
        for kind, value in kinds.items():
            layers[kind] = min(layers[kind], value)
    return seconds, dict(layers)


def converted(network: Any) -> Any:
    """The network in OpenVINO, by TensorFlow's frozen graph, as the engine does."""
    import tempfile
    from pathlib import Path

    from maskloom.segcore.deep.inference.engines.openvino import _from_keras
    from maskloom.segcore.deep.inference.files.weights import Weights

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.keras")
        network.save(path)
        return _from_keras(Weights.of(str(path)), "float32")


def shapes(model: Any, side: int) -> list[tuple[str, tuple[int, ...], tuple[int, ...], list[int]]]:
    """Kind, input shape, kernel shape and strides of each convolution on a patch."""
    model = model.clone()
    model.reshape([1, side, side, 1])
    found = []
    for each in model.get_ordered_ops():
        if each.get_type_name() in CONVOLUTIONS:
            shape, kernel = tuple(each.input(0).get_shape()), tuple(each.input(1).get_shape())
            strides = list(each.get_attributes()["strides"])
            found.append((each.get_type_name(), shape, kernel, strides))
    return found


def alone(core: Any, precision: str, layer: Any, rounds: int) -> float:
    """Least seconds of one convolution, without what brings its input into the processor's form:
    what a chain of convolutions takes longer than one half as long.

    Each second one leads back from its outputs to its inputs, and does as many operations.
    """
    kind, shape, kernel, strides = layer
    values = np.random.default_rng(0).normal(0, 0.1, kernel).astype(np.float32)
    image, ones, sides = (
        ops.parameter(shape, np.float32),
        [1, 1],
        [(n - 1) // 2 for n in kernel[2:]],
    )
    batch = np.random.default_rng(1).random(shape, np.float32)

    def seconds(node: Any) -> float:
        model = openvino.Model([node], [image])
        request = core.compile_model(model, "CPU", properties(precision)).create_infer_request()
        return least(request, batch, rounds)[0]

    if kind != "Convolution":
        weights = ops.constant(values)
        return seconds(
            ops.convolution_backprop_data(image, weights, strides, auto_pad="same_upper")
        )
    node, taken = image, []
    for _ in range(2):
        for weights in (values, np.ascontiguousarray(values.swapaxes(0, 1))):
            convolved = ops.convolution(node, ops.constant(weights), strides, sides, sides, ones)
            node = ops.relu(convolved)
        taken.append(seconds(node))
    return (taken[1] - taken[0]) / 2


def main(name: str, side: int, rounds: int) -> None:
    """Prints the shares."""
    import_tensorflow()
    import_keras().utils.set_random_seed(0)
    core, model = openvino.Core(), converted(FORMS[name].build(1, 3))
    layers = shapes(model, side)
    operations = sum(
        2
        * np.prod(kernel)
        * np.prod(shape[2:])
        / (np.prod(strides) if kind == "Convolution" else 1)
        for kind, shape, kernel, strides in layers
    )
    batch = np.random.default_rng(0).random((1, side, side, 1), np.float32)
    for precision in ("f32", "bf16"):
        compiled = core.compile_model(model, "CPU", properties(precision))
        seconds, kinds = least(compiled.create_infer_request(), batch, rounds)
        pure = [alone(core, precision, layer, rounds) for layer in layers]
        print(
            f"{precision}: network {seconds:.3f} s, {side * side / 1e6 / seconds:.2f} megapixels/s,"
            f" {operations / seconds / 1e9:.0f} GFLOP/s; its {len(layers)} convolutions alone "
            f"{sum(pure):.3f} s, {operations / sum(pure) / 1e9:.0f} GFLOP/s: "
            f"{sum(pure) / seconds:.2f} of the time"
        )
        rest = sorted(kinds.items(), key=lambda item: -item[1])[:7]
        print("   " + ", ".join(f"{kind} {value:.3f}" for kind, value in rest), flush=True)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 800,
        int(sys.argv[3]) if len(sys.argv) > 3 else 5,
    )
