"""Examiners: one for each kind of file, which loads and runs the network in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.files.model_cards import (
    MOST_LABELS,
    card_of_model,
    class_names,
    memory_per_pixel,
    output_of,
    peak_bytes,
    probe_size,
    scaling_to,
)
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.receptive_field.measure import Network

_TRIED = 64
"""Side of the patch on which a network is tried only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What an examination gets beside the file."""

    loop_seconds: float
    """Time that a network with loops gets to run."""
    halo: int | None = None
    """Receptive field to each side in pixels, as a description claims it. None: not claimed."""


def _examine_keras(weights: Weights, request: Request) -> Card:  # noqa: ARG001 - all is measured
    from maskloom.segcore.deep.inference.files.keras_files import load_keras

    model = load_keras(weights)
    card = card_of_model(model, "network", (), Scaling(), weights.sha256)
    return dataclasses.replace(card, scaling=scaling_to(model.inputs[0].dtype))


def _examine_onnx(weights: Weights, request: Request) -> Card:
    from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
    from maskloom.segcore.deep.inference.files.onnx_models import (
        count_parameters,
        maps_of,
        runner,
        scored,
        signature_of,
    )
    from maskloom.segcore.deep.inference.receptive_field.measure import (
        measure_fixed_size,
        measure_sizes,
    )

    content = load_onnx(weights)
    import onnx

    model = onnx.load_from_string(content)
    _limit_loops(model, request.loop_seconds)
    signature = signature_of(model, weights.location)
    # For a network that outputs class ids, examine the scores before the ArgMax: they give the
    # number of classes and the receptive field.
    before = scored(model)
    if before is not None:
        model, signature = before[0], dataclasses.replace(signature, given=before[1])
    elif (
        onnx.helper.tensor_dtype_to_np_dtype(model.graph.output[0].type.tensor_type.elem_type).kind
        in "iub"
    ):
        raise WeightsError(
            f"{weights.location} gives whole numbers that no ArgMax produces, so their meaning is "
            "unknown. Write a card beside it."
        )
    network = runner(model, signature, weights.location)
    if signature.fixed is None:
        field = measure_sizes(network, signature.channels, signature.dimensions)
        field = _confirmed(field, request.halo, network, signature.channels, signature.dimensions)
    else:
        field = measure_fixed_size(network, signature.channels, signature.fixed)
    _end_limit()
    size = probe_size(field, signature.dimensions)
    output, scores, about = output_of(network, size, signature.channels, _implied_output(model))
    if before is not None:
        output = "labels"
    maps = maps_of(model, signature, size)
    return Card(
        kind="network",
        sha256=weights.sha256,
        channels=signature.channels,
        classes=class_names((), scores),
        scaling=scaling_to(signature.dtype),
        reach=field,
        output=output,
        dimensions=signature.dimensions,
        parameters=count_parameters(model),
        bytes_per_pixel=memory_per_pixel(None if maps is None else peak_bytes(*maps), size),
        about=about,
    )


def _implied_output(model: Any) -> Output | None:
    """The kind of output that the last operator of an ONNX model implies, if any."""
    ends = {node.op_type for node in model.graph.node if model.graph.output[0].name in node.output}
    if "Sigmoid" in ends:
        return "sigmoid"
    return "logits" if ends & {"Conv", "ConvTranspose", "Add"} else None


def _limit_loops(model: Any, loop_seconds: float) -> None:
    """End this process in a while if an ONNX model has loops and they have not ended by then.

    A signal ends it even while native code computes.
    """
    from maskloom.segcore.deep.inference.files.onnx_files import has_loops

    if has_loops(model):
        signal.setitimer(signal.ITIMER_REAL, loop_seconds)


def _end_limit() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _confirmed(
    field: ReceptiveField, halo: int | None, network: Network, channels: int, dimensions: int
) -> ReceptiveField:
    """The field with the halo that a description claims, if a trial confirms it; else unknown."""
    from maskloom.segcore.deep.inference.receptive_field.measure import verified

    if halo is None:
        return field
    claimed = dataclasses.replace(field, halo=halo)
    return claimed if verified(claimed, network, channels, dimensions) == claimed else field


def _examine_saved_model(weights: Weights, request: Request) -> Card:
    from maskloom.segcore.deep.inference.files.saved_models import load_saved_model
    from maskloom.segcore.deep.inference.receptive_field.measure import (
        measure_fixed_size,
        measure_sizes,
    )

    model = load_saved_model(weights)
    channels, fixed, dimensions = model.channels, model.fixed, model.dimensions
    if fixed is None:
        field = measure_sizes(model.run, channels, dimensions)
        field = _confirmed(field, request.halo, model.run, channels, dimensions)
    else:
        field = measure_fixed_size(model.run, channels, fixed)
    output, scores, about = output_of(model.run, probe_size(field, dimensions), channels, None)
    return Card(
        kind="network",
        sha256=weights.sha256,
        channels=channels,
        classes=class_names((), scores),
        scaling=scaling_to(model.dtype),
        reach=field,
        output=output,
        dimensions=dimensions,
        parameters=model.parameters,
        about=about,
    )


def _examine_litert(weights: Weights, request: Request) -> Card:
    from maskloom.segcore.deep.inference.engines.litert import litert_runner
    from maskloom.segcore.deep.inference.receptive_field.measure import measure_fixed_size

    signal.setitimer(signal.ITIMER_REAL, request.loop_seconds if _litert_loops(weights) else 0)
    run, (taken, given) = litert_runner(weights), _litert_details(weights)
    _, height, width, channels = (int(length) for length in taken["shape"])
    field = measure_fixed_size(run, channels, (height, width))
    _end_limit()
    scaling = scaling_to(taken["dtype"])
    if np.dtype(given["dtype"]).kind in "iu" and not given["quantization"][0]:
        # Class ids; only the user knows their number and names them.
        return Card(
            "network",
            weights.sha256,
            channels,
            class_names((), MOST_LABELS),
            scaling,
            field,
            "labels",
        )
    output, scores, about = output_of(run, probe_size(field), channels, None)
    return Card(
        "network",
        weights.sha256,
        channels,
        class_names((), scores),
        scaling,
        field,
        output,
        about=about,
    )


def _litert_loops(weights: Weights) -> bool:
    """Whether there may be a loop: its condition and its body, however deep it is inside other
    operations, are graphs beside that of the network.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        return int(Interpreter(model_content=weights.read()).num_subgraphs()) > 1
    except (ValueError, RuntimeError):
        return False  # it cannot be loaded, which is said next


def _litert_details(weights: Weights) -> tuple[dict[str, Any], dict[str, Any]]:
    """LiteRT's details of the input and of the first output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=weights.read())
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


_OTHERS = {".onnx": _examine_onnx, ".tflite": _examine_litert, ".pb": _examine_saved_model}


def examine_file(weights: Weights, request: Request) -> Card:
    """The card of a file, by loading and running it. Raises `WeightsError`."""
    return _OTHERS.get(weights.suffix, _examine_keras)(weights, request)


def try_network(weights: Weights, request: Request) -> None:
    """Run the network once on a small patch of some size, if it accepts that."""
    if weights.suffix == ".tflite":
        if _litert_loops(weights):
            _examine_litert(weights, request)
        return
    from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
    from maskloom.segcore.deep.inference.files.onnx_models import runner, signature_of

    content = load_onnx(weights)
    import onnx

    model = onnx.load_from_string(content)
    _limit_loops(model, request.loop_seconds)
    signature = signature_of(model, weights.location)
    size = signature.fixed or (_TRIED,) * signature.dimensions
    with contextlib.suppress(ValueError):
        runner(model, signature, weights.location)(
            np.zeros((1, *size, signature.channels), np.float32)
        )
