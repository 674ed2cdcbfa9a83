"""Examination: create the card of a weights file that has none.

The file is untrusted, so it is loaded and run in a separate process with limits on time and memory:
`python -m maskloom.segcore.deep.inference.files.examine` reads a request (JSON) from standard input
and writes the card or an error to standard output. Whatever happens there, the caller gets a `Card`
or a `WeightsError`, and the process does not outlive the caller's (`segcore.processes.lifeline`).

What the file does not contain is assumed by convention: 8-bit pixels, scaled to 0 ... 1 unless the
network takes integers, and classes class_0, class_1 ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.processes import lifeline, limits

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.receptive_field.measure import Network
    from maskloom.segcore.geometry import Shape

_BYTES = 12 << 30
_SPARE = 1.75
"""Memory factor for what engines need beside the feature maps: other layouts and scratch memory
(TensorFlow: 1.4 to 1.65, measured).
"""
_UNKNOWN_BYTES = 2048
LOOP_SECONDS = 60
"""What a network with loops, which may have no end, gets to run at all."""
_TRIED = 64
"""Side of the patch on which a network is tried only."""
_ACTIVATIONS: Mapping[str, Output] = {"softmax": "scores", "sigmoid": "sigmoid", "linear": "logits"}
MOST_LABELS = 250
"""Number of classes assumed if a network outputs class ids without their number."""


def examine(weights: Weights, seconds: float | None = None) -> Card:
    """Determine the card of a file by running it in another process.

    `seconds` limits the time; None takes the configured limit. Raises `WeightsError` if the file is
    broken or malicious, has no per-pixel scores, or exceeds the limits on time or memory.
    """
    answer = _asked(weights, seconds)
    return Card.load(answer["card"].encode(), weights.location)


def check_end(weights: Weights) -> None:
    """Raise `WeightsError` if a network with loops, whose card spares it the examination, does not
    come to an end.
    """
    if may_be_endless(weights):
        _asked(weights, None, trial=True)


def may_be_endless(weights: Weights) -> bool:
    """Whether the file may hold a loop; only ONNX and LiteRT files can."""
    if weights.suffix == ".onnx":
        content = weights.read()
        return b"Loop" in content or b"Scan" in content
    return weights.suffix == ".tflite"


def _asked(weights: Weights, seconds: float | None, trial: bool = False) -> Mapping[str, Any]:
    seconds = limits.configured().examine if seconds is None else seconds
    request = json.dumps(
        {
            "location": weights.location,
            "sha256": weights.sha256,
            "trust": weights.trust,
            "trial": trial,
            "loop_seconds": LOOP_SECONDS,
        }
    )
    try:
        with lifeline.child_lifeline() as line:
            child = subprocess.run(
                # Import nothing from the current folder, not even a checkout of maskloom.
                [sys.executable, "-P", "-m", __name__, str(line)],
                input=request,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                pass_fds=(line,),
            )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(
            f"{weights.location} could not be examined within {seconds:.4g} s. Write a card beside "
            "it, use a smaller network, or raise "
            "limits.examine if it is only slow."
        ) from error
    lines = child.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if "error" in answer:
        raise WeightsError(answer["error"])
    if child.returncode == -signal.SIGALRM:
        raise WeightsError(
            f"{weights.location} has a loop and did not finish within {LOOP_SECONDS:g} s on a "
            "small patch: it seems to have no end. Export the network without loops."
        )
    if child.returncode != 0 or not answer:
        last = " ".join(child.stderr.strip().splitlines()[-1:])
        raise WeightsError(
            f"{weights.location} could not be examined: the process that loaded it ended with "
            f"{child.returncode} ({last[-300:]}). "
            "The file is damaged, needs too much memory, or is not what its suffix says."
        )
    found: Mapping[str, Any] = answer
    return found


def card_of_model(
    model: Any,
    kind: str,
    classes: tuple[str, ...],
    scaling: Scaling,
    sha256: str,
    about: Mapping[str, Any] | None = None,
    vectors: int = 0,
) -> Card:
    """Determine the card of a keras model in this process; its last `vectors` outputs are those of
    `Card.vectors`, behind logits.

    Without `classes` they are named by number. Raises `WeightsError` if the model has no per-pixel
    scores or their number does not match the classes.
    """
    from maskloom.segcore.deep.inference.files.keras_files import check_finite
    from maskloom.segcore.deep.inference.receptive_field.skeletons import receptive_field_of, runner

    shape = getattr(model, "input_shape", None)
    if (
        not isinstance(shape, tuple)
        or len(shape) not in (4, 5)
        or shape[-1] is None
        or len(model.outputs) != 1
    ):
        raise WeightsError(
            f"The network takes {shape}; expected one image (n, y, x, bands), or one volume (n, z, "
            "y, x, bands), of a known number of bands, and one output."
        )
    check_finite(model, "The network")
    field, dimensions = receptive_field_of(model), len(shape) - 2
    size = probe_size(field, dimensions)
    output, scores, about_scores = _output_of(
        runner(model), size, shape[-1], _last_activation(model)
    )
    return Card(
        kind=kind,
        sha256=sha256,
        channels=shape[-1],
        classes=_names(classes, scores - vectors),
        scaling=scaling,
        reach=field,
        output="logits" if vectors else output,
        dimensions=dimensions,
        vectors=vectors,
        parameters=model.count_params(),
        bytes_per_pixel=_bytes_per_pixel(_live_bytes(model, size), size),
        about={**about_scores, **(about or {})},
    )


def probe_size(field: ReceptiveField, dimensions: int = 2) -> Shape:
    """Size of a valid test patch: the fixed size, or slightly more than 256 pixels a side, in
    volumes 48 voxels.
    """
    least = 256 if dimensions == 2 else 48
    return tuple(reach.fitting(least + 2 * reach.margin) for reach in field.axes(dimensions))


def _bytes_per_pixel(live: int | None, size: Shape) -> int:
    return _UNKNOWN_BYTES if live is None else int(np.ceil(_SPARE * live / math.prod(size)))


def _scaling_to(dtype: Any) -> Scaling:
    """Scaling of 8-bit pixels to an input of this NumPy type.

    Floats get 0 to 1; integers get the pixels unchanged, signed bytes shifted by -128.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return Scaling()
    return Scaling((float(-np.iinfo(kind).min) if kind.itemsize == 1 else 0.0,), (1.0,))


def _names(classes: tuple[str, ...], scores: int) -> tuple[str, ...]:
    number = max(2, scores)
    if not classes:
        return tuple(f"class_{i}" for i in range(number))
    if len(classes) != number:
        raise WeightsError(
            f"classes: the network distinguishes {number} classes; got {len(classes)} names: "
            f"{', '.join(classes)[:200]}."
        )
    return classes


def _output_of(
    network: Network, size: Shape, channels: int, last: Output | None
) -> tuple[Output, int, dict[str, bool]]:
    """Return the kind of output, the number of scores per pixel, and `independent` if they are
    probabilities of classes that do not exclude each other.

    `size` is that of a patch to try; `last` is the kind that the last layer implies, if any.
    """
    pixels = np.random.default_rng(0).random((1, *size, channels), np.float32)
    scores = network(pixels)
    if not np.isfinite(scores).all():
        raise WeightsError(
            "The network gives NaN or infinite scores for ordinary pixels. Its weights are "
            "damaged, or its training diverged."
        )
    number = scores.shape[-1]
    in_unit_range = scores.min() >= 0 and scores.max() <= 1
    if number > 1:
        # Several sigmoids do not add up to 1, so they are scores to compare, not probabilities of
        # mutually exclusive classes.
        sums = np.abs(scores.sum(-1) - 1).max()
        exclusive = bool(sums < 1e-3)
        independent = {"independent": True} if in_unit_range and not exclusive else {}
        return ("scores" if in_unit_range and exclusive else "logits"), number, independent
    if scores.max() > 1 and np.array_equal(scores, np.rint(scores)):
        raise WeightsError(
            "The network gives one whole number for each pixel: class ids, it seems, without the "
            "number of classes. Export it with the scores before them, or write a card with "
            "`output: labels`."
        )
    if last in ("sigmoid", "logits"):
        return last, number, {}
    return ("sigmoid" if in_unit_range else "logits"), number, {}


def _last_activation(model: Any) -> Output | None:
    """Kind of output implied by the last layer's activation; None if it has none."""
    maker = model.outputs[0]._keras_history.operation  # noqa: SLF001 - keras tells it nowhere else
    if getattr(maker, "outputs", None) and getattr(maker, "layers", None):
        return _last_activation(maker)
    name = getattr(getattr(maker, "activation", None), "__name__", None) or getattr(
        maker, "name", ""
    ).rstrip("_0123456789")
    return _ACTIVATIONS.get(name)


def _live_bytes(model: Any, size: Shape) -> int | None:
    """Peak memory of all live feature maps in float32 for one image of `size`, in bytes.

    None if the model has no graph.
    """
    import keras

    steps: list[tuple[list[int], list[int]]] = []
    bytes_of: dict[int, int] = {}
    kept: list[Any] = []

    def call(layer: Any, *arguments: Any, **options: Any) -> Any:
        output = layer(*arguments, **options)
        taken, given = (
            [each for each in keras.tree.flatten(part) if isinstance(each, keras.KerasTensor)]
            for part in (arguments, output)
        )
        kept.extend((*taken, *given))
        bytes_of.update(
            {
                id(each): 4 * int(np.prod([length or 1 for length in each.shape]))
                for each in (*taken, *given)
            }
        )
        steps.append(([id(each) for each in taken], [id(each) for each in given]))
        return output

    try:
        entry = keras.Input((*size, model.input_shape[-1]), batch_size=1)
        graph = keras.Model(model.inputs[0], model.outputs[0])
        keras.models.clone_model(
            graph, entry, clone_function=lambda layer: layer, call_function=call
        )
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        return None
    return _peak(steps, bytes_of)


def _peak(steps: Sequence[tuple[Sequence[Any], Sequence[Any]]], bytes_of: Mapping[Any, int]) -> int:
    """Peak number of live bytes when each step frees what no later step uses.

    A step is a pair of the maps it takes and the maps it creates.
    """
    last = {name: i for i, (taken, _) in enumerate(steps) for name in taken}
    alive: dict[Any, int] = {}
    most = 0
    for i, (taken, given) in enumerate(steps):
        alive |= {name: bytes_of.get(name, 0) for name in (*taken, *given)}
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return most


@dataclasses.dataclass(frozen=True, slots=True)
class _Told:
    """What an examination is told besides the file."""

    loop_seconds: float
    halo: int | None = None
    """What a description claims, in pixels."""


def _examine_keras(weights: Weights, told: _Told) -> Card:  # noqa: ARG001 - all is measured
    from maskloom.segcore.deep.inference.files.keras_files import load_keras

    model = load_keras(weights)
    card = card_of_model(model, "network", (), Scaling(), weights.sha256)
    return dataclasses.replace(card, scaling=_scaling_to(model.inputs[0].dtype))


def _examine_onnx(weights: Weights, told: _Told) -> Card:
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
    _limit_loops(model, told.loop_seconds)
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
        field = _confirmed(field, told.halo, network, signature.channels, signature.dimensions)
    else:
        field = measure_fixed_size(network, signature.channels, signature.fixed)
    _end_limit()
    ends = {node.op_type for node in model.graph.node if model.graph.output[0].name in node.output}
    last: Output | None = (
        "sigmoid"
        if "Sigmoid" in ends
        else "logits"
        if ends & {"Conv", "ConvTranspose", "Add"}
        else None
    )
    size = probe_size(field, signature.dimensions)
    output, scores, about = _output_of(network, size, signature.channels, last)
    if before is not None:
        output = "labels"
    maps = maps_of(model, signature, size)
    return Card(
        kind="network",
        sha256=weights.sha256,
        channels=signature.channels,
        classes=_names((), scores),
        scaling=_scaling_to(signature.dtype),
        reach=field,
        output=output,
        dimensions=signature.dimensions,
        parameters=count_parameters(model),
        bytes_per_pixel=_bytes_per_pixel(None if maps is None else _peak(*maps), size),
        about=about,
    )


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


def _examine_saved_model(weights: Weights, told: _Told) -> Card:
    from maskloom.segcore.deep.inference.files.saved_models import load_saved_model
    from maskloom.segcore.deep.inference.receptive_field.measure import (
        measure_fixed_size,
        measure_sizes,
    )

    model = load_saved_model(weights)
    channels, fixed, dimensions = model.channels, model.fixed, model.dimensions
    if fixed is None:
        field = measure_sizes(model.run, channels, dimensions)
        field = _confirmed(field, told.halo, model.run, channels, dimensions)
    else:
        field = measure_fixed_size(model.run, channels, fixed)
    output, scores, about = _output_of(model.run, probe_size(field, dimensions), channels, None)
    return Card(
        kind="network",
        sha256=weights.sha256,
        channels=channels,
        classes=_names((), scores),
        scaling=_scaling_to(model.dtype),
        reach=field,
        output=output,
        dimensions=dimensions,
        parameters=model.parameters,
        about=about,
    )


def _examine_litert(weights: Weights, told: _Told) -> Card:
    from maskloom.segcore.deep.inference.engines.litert import litert_runner
    from maskloom.segcore.deep.inference.receptive_field.measure import measure_fixed_size

    signal.setitimer(signal.ITIMER_REAL, told.loop_seconds if _litert_loops(weights) else 0)
    run, (taken, given) = litert_runner(weights), _litert_details(weights)
    _, height, width, channels = (int(length) for length in taken["shape"])
    field = measure_fixed_size(run, channels, (height, width))
    _end_limit()
    scaling = _scaling_to(taken["dtype"])
    if np.dtype(given["dtype"]).kind in "iu" and not given["quantization"][0]:
        # Class ids; only the user knows their number and names them.
        return Card(
            "network", weights.sha256, channels, _names((), MOST_LABELS), scaling, field, "labels"
        )
    output, scores, about = _output_of(run, probe_size(field), channels, None)
    return Card(
        "network",
        weights.sha256,
        channels,
        _names((), scores),
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


def _answer(request: Mapping[str, Any]) -> dict[str, str]:
    weights = Weights(request["location"], request["sha256"], request["trust"])
    loop_seconds = request.get("loop_seconds", LOOP_SECONDS)
    try:
        if request.get("trial"):
            _try(weights, _Told(loop_seconds))
            return {"ended": weights.sha256}
        card = _card_of(weights, loop_seconds)
    except WeightsError as error:
        return {
            "error": str(error)
            if weights.location in str(error)
            else f"{weights.location}: {error}"
        }
    return {"card": card.dump().decode()}


def _card_of(weights: Weights, loop_seconds: float = LOOP_SECONDS) -> Card:
    examiners = {".onnx": _examine_onnx, ".tflite": _examine_litert, ".pb": _examine_saved_model}
    description = weights.source().description
    told = _Told(loop_seconds, None if description is None else description.halo)
    card = examiners.get(weights.suffix, _examine_keras)(weights, told)
    if description is not None:
        card = description.complete(card)
    return dataclasses.replace(card, about={**card.about, "examined": "no card beside the file"})


def _try(weights: Weights, told: _Told) -> None:
    """Run the network once on a small patch of some size, if it accepts that."""
    if weights.suffix == ".tflite":
        if _litert_loops(weights):
            _examine_litert(weights, told)
        return
    from maskloom.segcore.deep.inference.files.onnx_files import load_onnx
    from maskloom.segcore.deep.inference.files.onnx_models import runner, signature_of

    content = load_onnx(weights)
    import onnx

    model = onnx.load_from_string(content)
    _limit_loops(model, told.loop_seconds)
    signature = signature_of(model, weights.location)
    size = signature.fixed or (_TRIED,) * signature.dimensions
    with contextlib.suppress(ValueError):
        runner(model, signature, weights.location)(
            np.zeros((1, *size, signature.channels), np.float32)
        )


def main() -> None:
    """Answer one request; entry point of the process that `examine` starts."""
    # Reserve standard output for the answer, because libraries also write to it.
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.argv[1:]:
        lifeline.exit_with_parent(int(line))
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    answer = _answer(json.load(sys.stdin))
    with os.fdopen(answers, "w") as stream:
        stream.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
