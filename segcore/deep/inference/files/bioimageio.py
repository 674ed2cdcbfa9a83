"""Descriptions of models in the format of bioimage.io, versions 0.4 and 0.5.

Such a model is a folder with a description (`rdf.yaml`) and weights in one or more formats. What a
card needs is read from the description: which weights, axes, bands, classes, the scaling of pixels,
the size of a pixel and the licence. Only these keys are read; the rest may say what it likes.

What a card cannot say is left to the recipe: `ask` says which parameters it must set, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from maskloom.segcore.deep.inference.card import Card, Output
from maskloom.segcore.deep.inference.files.bioimageio_steps import output_of, scaling_of
from maskloom.segcore.deep.inference.files.bioimageio_tensors import as_list, tensor_of
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import WeightsError

NAMES = ("bioimageio.yaml", "rdf.yaml", "model.yaml")
"""Names of the description in the folder of a model, the first that is there."""
MOST_BYTES = 1 << 20
_MOST_NODES = 50_000
"""Parts of a description. Names for parts (anchors) could multiply them without end."""
_RUNNABLE = ("onnx", "keras_v3", "tensorflow_saved_model_bundle", "keras_hdf5")
"""Formats of weights, the best first. keras_hdf5 needs `trust`."""
_OF_TORCH = ("pytorch_state_dict", "torchscript")
_COLOURS = (("r", "g", "b"), ("red", "green", "blue"))


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
    scaling: Scaling | ImageScaling
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
            card.scaled_by(self.scaling),
            classes=self._names(card),
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
    inputs = [tensor_of(each, "input") for each in as_list(found["inputs"])]
    outputs = [tensor_of(each, "output") for each in as_list(found["outputs"])]
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
    scaling, ask = scaling_of(image)
    output, thresholds = output_of(answer)
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
        image.dtype if isinstance(scaling, Scaling) and image.dtype[:1] in "ui" and not ask else "",
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
        for each in as_list(found.get("authors"))
        if isinstance(each, Mapping)
    ]
    cited = [
        ", ".join(str(each[key])[:500] for key in ("text", "doi", "url") if each.get(key))
        for each in as_list(found.get("cite"))
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
