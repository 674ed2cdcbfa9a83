"""The card of a loaded network, by what runs of it show: its output, classes and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.receptive_field.measure import Network
    from maskloom.segcore.geometry import Shape

_SPARE = 1.75
"""Memory factor for what engines need beside the feature maps: other layouts and scratch memory
(TensorFlow: 1.4 to 1.65, measured).
"""
_UNKNOWN_BYTES = 2048
_ACTIVATIONS: Mapping[str, Output] = {"softmax": "scores", "sigmoid": "sigmoid", "linear": "logits"}
MOST_LABELS = 250
"""Number of classes assumed if a network outputs class ids without their number."""


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
    output, scores, about_scores = output_of(
        runner(model), size, shape[-1], _last_activation(model)
    )
    return Card(
        kind=kind,
        sha256=sha256,
        channels=shape[-1],
        classes=class_names(classes, scores - vectors),
        scaling=scaling,
        reach=field,
        output="logits" if vectors else output,
        dimensions=dimensions,
        vectors=vectors,
        parameters=model.count_params(),
        bytes_per_pixel=memory_per_pixel(_live_bytes(model, size), size),
        about={**about_scores, **(about or {})},
    )


def probe_size(field: ReceptiveField, dimensions: int = 2) -> Shape:
    """Size of a valid test patch: the fixed size, or slightly more than 256 pixels a side, in
    volumes 48 voxels.
    """
    least = 256 if dimensions == 2 else 48
    return tuple(reach.fitting(least + 2 * reach.margin) for reach in field.axes(dimensions))


def memory_per_pixel(live: int | None, size: Shape) -> int:
    """Bytes per pixel of a patch of `size` whose feature maps take `live` bytes; None: unknown."""
    return _UNKNOWN_BYTES if live is None else int(np.ceil(_SPARE * live / math.prod(size)))


def scaling_to(dtype: Any) -> Scaling:
    """Scaling of 8-bit pixels to an input of this NumPy type.

    Floats get 0 to 1; integers get the pixels unchanged, signed bytes shifted by -128.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu":
        return Scaling()
    return Scaling((float(-np.iinfo(kind).min) if kind.itemsize == 1 else 0.0,), (1.0,))


def class_names(classes: tuple[str, ...], scores: int) -> tuple[str, ...]:
    """The given names, or else names by number, for so many scores per pixel; one score tells two
    classes apart. Raises `WeightsError` if there are more or fewer names.
    """
    number = max(2, scores)
    if not classes:
        return tuple(f"class_{i}" for i in range(number))
    if len(classes) != number:
        raise WeightsError(
            f"classes: the network distinguishes {number} classes; got {len(classes)} names: "
            f"{', '.join(classes)[:200]}."
        )
    return classes


def output_of(
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
        """Run a layer, and note the maps that it takes and gives."""
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
    return peak_bytes(steps, bytes_of)


def peak_bytes(
    steps: Sequence[tuple[Sequence[Any], Sequence[Any]]], bytes_of: Mapping[Any, int]
) -> int:
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
