"""Descriptions of models in the format of bioimage.io, versions 0.4 and 0.5.

Such a model is a folder with a description (`rdf.yaml`) and weights in one or more formats. What a
card needs is read from the description: which weights, axes, bands, classes, the scaling of pixels,
the size of a pixel and the licence. Only these keys are read; the rest may say what it likes.

Scaling has to be one line (value - offset) * factor for all images. Steps that take it from the
extremes, the mean or the deviation of each image have no such line: a tile does not know its image.
Then the description is read, and `ask` says what the recipe must set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import WeightsError

NAMES = ("bioimageio.yaml", "rdf.yaml", "model.yaml")
"""Names of the description in the folder of a model, the first that is there."""
MOST_BYTES = 1 << 20
_MOST_NODES = 50_000
"""Parts of a description. Names for parts (anchors) could multiply them without end."""
_RUNNABLE = ("onnx", "keras_v3", "tensorflow_saved_model_bundle", "keras_hdf5")
"""Formats of weights, the best first. keras_hdf5 needs `trust`."""
_OF_TORCH = ("pytorch_state_dict", "torchscript")
_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "angstrom": 1e-4, "millimeter": 1e3}
_LETTERS = {"b": "batch", "c": "channel", "z": "z", "y": "y", "x": "x"}
_PER_IMAGE = ("zero_mean_unit_variance", "scale_range", "scale_mean_variance")
_COLOURS = (("r", "g", "b"), ("red", "green", "blue"))
_LARGEST_HALO = 2**16


@dataclass(frozen=True, slots=True)
class Entry:
    """The weights that are used."""

    kind: str
    source: str
    """Name of the file or folder, relative to the description, as it is."""
    sha256: str | None

    def check(self, content: bytes, where: str) -> None:
        """Raise `WeightsError` if the file is not the one that is described."""
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, found):
            raise WeightsError(
                f"{where}: {self.source} is not the file that the description names: expected the "
                f"digest {str(self.sha256)[:12]}..., got {found[:12]}.... Download the model again."
            )


@dataclass(frozen=True, slots=True)
class Description:
    """What the description of a model says."""

    where: str
    sha256: str
    """Digest of the description."""
    weights: Entry
    channels: int | None
    """Number of bands. None: not said."""
    dimensions: int
    scores: int | None
    """Number of channels of the output. None: not said."""
    classes: tuple[str, ...]
    """Names of the channels of the output; empty: none."""
    scaling: Scaling
    output: Output | None
    """None: as measured."""
    thresholds: tuple[float, ...] = ()
    """Above which the output counts as the second class."""
    halo: int | None = None
    pixel_size: float | None = None
    interpretation: str = "bands"
    dtype: str = ""
    ask: Mapping[str, str] = field(default_factory=dict)
    """Parameters that the recipe must set, and why."""
    about: Mapping[str, Any] = field(default_factory=dict)

    def check(self, card: Card) -> None:
        """Raise `WeightsError` if a card, or what the weights are, contradicts the description."""
        scores = None if self.scores is None else max(2, self.scores)
        for what, said, found in (
            ("bands", self.channels, card.channels),
            ("axes of space", self.dimensions, card.dimensions),
            ("classes", scores, len(card.classes)),
        ):
            if said not in (None, found):
                raise WeightsError(
                    f"{self.where} contradicts its weights or their card: it says {said} {what}, "
                    f"they have {found}. Download the model again, or remove a card that you "
                    "have changed."
                )

    def complete(self, card: Card) -> Card:
        """The card that was measured on the weights, with what the description says.

        Raises `WeightsError` if they contradict each other.
        """
        self.check(card)
        # A step after the network comes on top of what it ends in itself.
        output = self.output or card.output
        middle = 0.5 if self.output else {"sigmoid": 0.5, "logits": 0.0}.get(card.output)
        if any(threshold != middle for threshold in self.thresholds):
            expected = "no threshold" if middle is None else f"the middle, {middle}"
            raise WeightsError(
                f"{self.where}: its last step, binarize, sets the second class where a score is "
                f"above {self.thresholds[0]:g}; expected {expected}. Write a card beside the "
                "weights if the greatest score will do."
            )
        ask = dict(self.ask)
        independent = card.about.get("independent") or "sigmoid" in self.about["steps"]
        if card.output_channels > 1 and self.scores != 1 and independent:
            ask["classes"] = (
                f"the network answers {len(card.classes)} independent questions "
                f"({', '.join(self.classes or card.classes)[:100]}), which need not exclude each "
                "other. If the greatest answer is to be the class of a pixel, name them"
            )
        return replace(
            card,
            classes=self._names(card),
            scaling=self.scaling,
            output=output,
            pixel_size=self.pixel_size,
            interpretation=self.interpretation,
            dtype=self.dtype,
            about={**self.about, **({"ask": ask} if ask else {})},
        )

    def _names(self, card: Card) -> tuple[str, ...]:
        names = self.classes
        if len(names) == 1 and len(card.classes) == 2:
            names = ("background" if names[0] != "background" else "rest", names[0])
        return names if len(names) == len(card.classes) else card.classes


def read(content: bytes, where: str) -> Description:
    """Read a description. Raises `WeightsError` if it is broken, or is of something else than one
    image to classes.
    """
    try:
        found = yaml.safe_load(content)
        _check_size(found)
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{where} cannot be read: {reason[:300]}. Download the model again."
        ) from error
    try:
        return _description(found, hashlib.sha256(content).hexdigest(), where)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"{where}: {reason[:400]}") from error


def _check_size(found: Any) -> None:
    nodes, pending = 0, [found]
    while pending:
        part = pending.pop()
        nodes += 1
        if nodes > _MOST_NODES:
            raise ValueError(f"it has more than {_MOST_NODES} parts")
        if isinstance(part, Mapping):
            pending += part.values()
        elif isinstance(part, list | tuple | set):
            pending += part


def _description(found: Any, sha256: str, where: str) -> Description:
    if not isinstance(found, Mapping) or found.get("type", "model") != "model":
        raise ValueError("it describes no model: expected `type: model`. Give a model's folder.")
    version = str(found.get("format_version", ""))
    if not version.startswith(("0.4", "0.5")):
        raise ValueError(
            f"it is of the format {version[:20]!r}; expected 0.4 or 0.5. Update it with "
            "bioimageio.spec, or write a card beside the weights."
        )
    inputs = [_tensor(each, "input") for each in _list(found["inputs"])]
    outputs = [_tensor(each, "output") for each in _list(found["outputs"])]
    if len(inputs) != 1 or not outputs:
        raise ValueError(
            f"it takes {len(inputs)} inputs and gives {len(outputs)} outputs; expected a network "
            "of one image"
        )
    image, answer = inputs[0], outputs[0]
    if answer.shrinks or answer.scales != image.scales:
        raise ValueError(
            "its output has other pixels than its input; expected scores for each pixel"
        )
    entry = _entry(found["weights"])
    scaling, ask = _scaling(image)
    output, thresholds = _output(answer)
    names = tuple(answer.channel_names)
    return Description(
        where,
        sha256,
        entry,
        image.channels,
        image.dimensions,
        answer.channels,
        names if len(set(names)) == len(names) else (),
        scaling,
        output,
        thresholds,
        answer.halo,
        image.pixel_size,
        "rgb" if tuple(map(str.lower, image.channel_names)) in _COLOURS else "bands",
        "" if ask else image.dtype if image.dtype.startswith(("u", "i")) else "",
        ask,
        {
            **_about(found, version),
            "steps": [step for step, _ in (*image.steps, *answer.steps)],
            "weights": entry.kind,
        },
    )


def _entry(weights: Mapping[str, Any]) -> Entry:
    for kind in _RUNNABLE:
        entry = weights.get(kind)
        if isinstance(entry, Mapping):
            source = str(entry["source"])
            if "://" in source:
                raise ValueError(
                    f"its weights are elsewhere ({source[:100]}); expected them in the folder. "
                    "Download the whole model (a zip), not its description alone."
                )
            digest = entry.get("sha256")
            return Entry(kind, source, None if digest is None else str(digest).lower())
    of_torch = [kind for kind in _OF_TORCH if kind in weights]
    if of_torch:
        raise ValueError(
            f"its weights are for PyTorch only ({', '.join(of_torch)}), which can run arbitrary "
            "code and is not run here. Convert them where PyTorch is installed, by "
            "torch.onnx.export or bioimageio.core's add_weights, and give the result."
        )
    raise ValueError(
        f"it has weights in {', '.join(map(str, weights))[:100]}; expected one of "
        f"{', '.join(_RUNNABLE)}"
    )


def _about(found: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Where the model comes from: texts for people."""
    authors = [
        str(each.get("name", ""))
        for each in _list(found.get("authors"))
        if isinstance(each, Mapping)
    ]
    cited = [
        ", ".join(str(each[key])[:500] for key in ("text", "doi", "url") if each.get(key))
        for each in _list(found.get("cite"))
        if isinstance(each, Mapping)
    ]
    told = {
        "name": str(found.get("name", ""))[:200],
        "purpose": str(found.get("description", ""))[:1000],
        "licence": str(found.get("license", "not stated"))[:200],
        "authors": authors[:50],
        "cite": cited[:50],
        "version": str(found.get("version") or "")[:50],
        "format": f"bioimage.io {version[:20]}",
    }
    return {key: value for key, value in told.items() if value}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or output, in the words of either version."""

    axes: tuple[str, ...]
    channels: int | None
    channel_names: tuple[str, ...]
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    dtype: str
    halo: int | None = None
    pixel_size: float | None = None
    scales: tuple[float, ...] = ()
    """Sizes of its pixels along y and x, in version 0.5: relative to those of the input."""
    shrinks: bool = False

    @property
    def dimensions(self) -> int:
        return 3 if "z" in self.axes else 2


def _tensor(said: Mapping[str, Any], what: str) -> _Tensor:
    old = isinstance(said["axes"], str)
    axes = (
        tuple(_LETTERS.get(letter, letter) for letter in said["axes"])
        if old
        else tuple(_axis_name(axis) for axis in said["axes"])
    )
    if not {"y", "x"} <= set(axes) <= set(_LETTERS.values()) or len(set(axes)) < len(axes):
        raise ValueError(
            f"its {what} has the axes {', '.join(axes)[:100]}; expected batch, channel, [z,] y, x"
        )
    key = "preprocessing" if what == "input" else "postprocessing"
    steps = tuple(_steps(said.get(key)))
    return _of_version_4(said, axes, steps) if old else _of_version_5(said, axes, steps)


def _of_version_4(
    said: Mapping[str, Any], axes: tuple[str, ...], steps: tuple[tuple[str, Mapping[str, Any]], ...]
) -> _Tensor:
    shape, channels, shrinks = said.get("shape"), None if "channel" in axes else 1, False
    if isinstance(shape, Mapping) and "scale" in shape:
        for axis, scale, offset in zip(axes, shape["scale"], shape["offset"], strict=True):
            if axis == "channel":
                channels = int(2 * offset) if not scale else None
            elif axis in ("z", "y", "x"):
                shrinks |= scale != 1
    elif "channel" in axes and shape:
        sizes = shape["min"] if isinstance(shape, Mapping) else shape
        channels = int(sizes[axes.index("channel")])
    halos = [int(halo) for halo in said.get("halo") or ()]
    return _Tensor(
        axes,
        channels,
        (),
        steps,
        str(said.get("data_type", "")),
        _halo(halos),
        shrinks=shrinks,
    )


def _of_version_5(
    said: Mapping[str, Any], axes: tuple[str, ...], steps: tuple[tuple[str, Mapping[str, Any]], ...]
) -> _Tensor:
    by_name = dict(zip(axes, said["axes"], strict=True))
    names = _list(by_name["channel"].get("channel_names")) if "channel" in axes else []
    space = [by_name[axis] for axis in ("y", "x")]
    data = said.get("data")
    first = data[0] if isinstance(data, list) and data else data
    scales = {(axis.get("scale", 1.0), axis.get("unit")) for axis in space}
    scale, unit = scales.pop() if len(scales) == 1 else (None, None)
    return _Tensor(
        axes,
        len(names) if "channel" in axes else 1,
        tuple(map(str, names)),
        steps,
        str(first.get("type", "")) if isinstance(first, Mapping) else "",
        _halo([int(axis.get("halo") or 0) for axis in space]),
        float(scale) * _MICROMETRES[unit] if scale and unit in _MICROMETRES else None,
        tuple(float(axis.get("scale", 1.0)) for axis in space),
    )


def _halo(halos: Sequence[int]) -> int | None:
    halo = max(halos, default=0)
    return halo if 0 < halo <= _LARGEST_HALO else None


def _axis_name(axis: Any) -> str:
    if not isinstance(axis, Mapping):
        raise ValueError(f"axes: expected mappings with a type; got {axis!r:.50}")
    kind = str(axis.get("type", ""))
    return str(axis.get("id", "")) if kind == "space" else kind


def _steps(said: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for step in _list(said):
        options = step.get("kwargs") or {}
        if not isinstance(options, Mapping):
            raise ValueError(f"kwargs: expected a mapping; got {options!r:.50}")
        yield str(step.get("id") or step.get("name")), options


def _scaling(image: _Tensor) -> tuple[Scaling, dict[str, str]]:
    """The scaling of the input, and what is left to the recipe.

    Raises `ValueError` for steps that no scaling can express.
    """
    gain, shift = np.ones(1), np.zeros(1)
    for step, options in image.steps:
        if step == "ensure_dtype" and str(options.get("dtype", "")).startswith("float"):
            continue
        if step == "clip" and _clips_nothing(options, image.dtype, gain, shift):
            continue
        line = _line(step, options)
        if line is None:
            if step in _PER_IMAGE:
                return Scaling((0.0,), (1.0,)), {"scaling": _unknown(step, options)}
            raise ValueError(
                f"preprocessing: {step[:50]!r} cannot be expressed as one scaling of all pixels, "
                "(value - offset) * factor. Export the network with this step inside."
            )
        gain, shift = gain * line[0], shift * line[0] + line[1]
    if not np.isfinite(gain).all() or not gain.all() or not np.isfinite(shift).all():
        raise ValueError(
            f"preprocessing: expected finite numbers and gains other than 0; got {gain}"
        )
    if image.channels is not None and max(gain.size, shift.size) not in (1, image.channels):
        raise ValueError(
            f"preprocessing: {max(gain.size, shift.size)} numbers for {image.channels} bands"
        )
    offset = -shift / gain + 0.0
    return Scaling(tuple(offset.tolist()), tuple(gain.tolist())), {}


def _line(step: str, options: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """A step as gain and shift; None if it is no such line."""
    if step == "scale_linear":
        return _numbers(options.get("gain", 1.0)), _numbers(options.get("offset", 0.0))
    fixed = step == "fixed_zero_mean_unit_variance"
    if fixed or (step == "zero_mean_unit_variance" and options.get("mode") == "fixed"):
        # Version 0.4 adds a small number to the deviation, 0.5 does not.
        spread = _numbers(options["std"]) + (0.0 if fixed else float(options.get("eps", 1e-6)))
        if not spread.all():
            raise ValueError("preprocessing: a standard deviation of 0")
        return 1 / spread, -_numbers(options["mean"]) / spread
    return None


def _clips_nothing(options: Mapping[str, Any], dtype: str, gain: Any, shift: Any) -> bool:
    """Whether no pixel of this type has a value that is cut off."""
    if not dtype.startswith(("uint", "int")) or any("percentile" in key for key in options):
        return False
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.max], float)[:, None] * gain + shift
    low, high = options.get("min"), options.get("max")
    return bool((low is None or low <= ends.min()) and (high is None or high >= ends.max()))


def _unknown(step: str, options: Mapping[str, Any]) -> str:
    data = (
        "the training images, which it does not state"
        if (options.get("mode") == "per_dataset")
        else "each image, which a tile does not know"
    )
    what = "the range" if step == "scale_range" else "mean and deviation"
    values = (
        "{offset: [lower end], factor: [1 / (upper end - lower end)]}"
        if step == "scale_range"
        else "{offset: [mean], factor: [1 / deviation]}"
    )
    return f"its step {step} takes {what} of {data}. Set it for your images, scaling: {values}"


def _output(answer: _Tensor) -> tuple[Output | None, tuple[float, ...]]:
    """What the network gives before the steps that follow it, and thresholds of these.

    Raises `ValueError` for steps that make something else than classes of scores.
    """
    output: Output | None = None
    thresholds: list[float] = []
    for step, options in answer.steps:
        if step in ("sigmoid", "softmax") and output is None and not thresholds:
            output = "logits"
        elif step == "binarize" and not thresholds:
            thresholds.append(float(options["threshold"]))
        elif step != "ensure_dtype":
            raise ValueError(
                f"postprocessing: {step[:50]!r} makes something else than classes of the scores; "
                "expected sigmoid, softmax or binarize"
            )
    return output, tuple(thresholds)


def _numbers(value: Any) -> Any:
    numbers = np.atleast_1d(np.asarray(value, float))
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"preprocessing: expected numbers; got {value!r:.50}")
    return numbers


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
