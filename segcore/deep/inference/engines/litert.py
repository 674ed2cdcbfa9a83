"""LiteRT as an engine, for .tflite files: networks of one fixed size, often quantised.

A network with integer input gets rounded pixels, so the scaling in its card is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference.layouts import from_network, to_network
from maskloom.segcore.deep.inference.runtime import quiet, threads
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.files.weights import Weights


def litert_runner(weights: Weights) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function that runs a patch (1, y, x, band) of a .tflite file to (1, y, x, class).

    Quantised scores are dequantised. Raises `WeightsError` if LiteRT cannot load the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    where = weights.location
    try:
        with quiet():
            interpreter = Interpreter(model_content=weights.read(), num_threads=threads())
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise WeightsError(
            f"LiteRT cannot load {where}: {str(error).strip()[:300]} Copy it again."
        ) from error
    taken, given = interpreter.get_input_details(), interpreter.get_output_details()
    if len(taken) != 1 or len(taken[0]["shape"]) != 4:
        raise WeightsError(
            f"{where}: expected a network of one input of four axes; got "
            f"{[tuple(item['shape']) for item in taken]}."
        )
    place, result = taken[0]["index"], given[0]["index"]
    dtype, (scale, zero) = np.dtype(taken[0]["dtype"]), given[0]["quantization"]
    shape = tuple(int(size) for size in taken[0]["shape"])

    def run(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        if patch.shape != shape:
            raise WeightsError(f"{where} takes patches of {shape} only; got {patch.shape}.")
        interpreter.set_tensor(place, to_network(patch, "last", dtype))
        interpreter.invoke()
        output = from_network(interpreter.get_tensor(result), "last", where)
        return (output - np.float32(zero)) * np.float32(scale) if scale else output

    return run
