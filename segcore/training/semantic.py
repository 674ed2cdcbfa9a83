"""Training of semantic networks: every pixel of a patch has a class, and the score is the mean IoU
of the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.annotations import label_mapping
from maskloom.segcore.annotations.metrics import Confusion, mean_of_known
from maskloom.segcore.deep.inference.patches import sides_of
from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE
from maskloom.segcore.deep.networks.vectors import logits_of
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.figures.training import Curve, Example, shown
from maskloom.segcore.geometry import Box, sizes_text
from maskloom.segcore.models.calibration import Calibration
from maskloom.segcore.raster.colours import PALETTE
from maskloom.segcore.training.losses import class_weights, loss_of
from maskloom.segcore.training.sampling import Batch, PatchShape, scaled, sliding_windows
from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress, TrainingSetup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.receptive_field.field import AxisReach
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.recipe import TrainingRecipe

_CONTEXT = 8
"""Share of a patch, at each edge, that validation leaves to the neighbouring windows."""
_EXAMPLES = 4
_EXAMPLE_SIDE = 288
_MOST_CURVES = 12
_SAMPLED, _SAMPLED_SCORES = 2**18, 2**23
"""Pixels, and their scores, to which a temperature is fitted at most."""
Window = tuple[int, Box, Box]
"""Number of an image, the box that the network sees, and the box of its output that counts."""


def patch_shape_of(recipe: TrainingRecipe, channels: int, axes: int) -> PatchShape:
    """Input and output of the network for a patch, as measured, of images with 2 `axes` or volumes
    with 3. Raises `RecipeError` if the network does not take such images, or patches of this size.
    """
    from maskloom.segcore.deep.inference.receptive_field.skeletons import receptive_field_of

    model = recipe.network.build(channels, len(recipe.classes))
    dimensions = len(model.input_shape) - 2
    if dimensions > axes:
        raise RecipeError(
            f"images: this {recipe.kind} learns from volumes, and these are images. Give volumes, "
            "or set network.dimensions: 2."
        )
    patch = recipe.training.patch
    if not isinstance(patch, int) and len(patch) != dimensions:
        wanted = "[y, x]" if dimensions == 2 else "[z, y, x]"
        raise RecipeError(
            f"training.patch: this {recipe.kind} takes one number or {wanted}; got {list(patch)}."
        )
    reaches = receptive_field_of(model).axes(dimensions)
    sides = sides_of(patch, dimensions)
    _require_fitting(recipe.kind, sides, reaches)
    planar = dimensions < axes
    return PatchShape(
        (1,) * planar + sides,
        (0,) * planar + tuple(reach.margin for reach in reaches),
        (1,) * planar + tuple(reach.stride for reach in reaches),
        planar,
    )


def _require_fitting(kind: str, sides: Shape, reaches: Sequence[AxisReach]) -> None:
    """Raise `RecipeError` unless the network takes patches of these sides."""
    nearest = [_nearest(side, reach) for side, reach in zip(sides, reaches, strict=True)]
    below, above = (tuple(fits) for fits in zip(*nearest, strict=True))
    if above == sides:
        return
    least = tuple(reach.fitting(2 * reach.margin + reach.stride) for reach in reaches)
    steps = tuple(reach.stride for reach in reaches)
    proposed = " or ".join(_in_recipe(fits) for fits in sorted({below, above}))
    raise RecipeError(
        f"training.patch: {kind} does not take {sizes_text(sides)} pixels; sides are "
        f"{_in_recipe(least)} or more by steps of {_in_recipe(steps)}. Set it to {proposed}."
    )


def _nearest(side: int, reach: AxisReach) -> tuple[int, int]:
    """The nearest sizes that a network takes: not above `side` and not below it, if possible."""
    least = reach.fitting(2 * reach.margin + reach.stride)
    above = max(least, reach.fitting(side))
    return above if above == side else max(least, above - reach.stride), above


def _in_recipe(sides: Shape) -> str:
    """Sides as users write them: one number for a square."""
    return str(sides[0] if len(sides) == 2 and len(set(sides)) == 1 else list(sides))


@dataclass(slots=True)
class _Sample:
    """Some pixels of each window, evenly spaced in its order, with their logits."""

    most: int
    """Of a window."""
    labels: list[NDArray[np.uint8]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, labels: NDArray[np.uint8], logits: NDArray[np.float32]) -> None:
        """Take pixels from the labelled ones of a window: labels (n,) and logits (n, class)."""
        step = max(1, -(-len(labels) // self.most))
        self.labels.append(labels[::step].copy())
        self.logits.append(logits[::step].copy())

    def calibration(self) -> Calibration | None:
        """The calibration of these pixels. None: there are none."""
        if not sum(map(len, self.labels)):
            return None
        return Calibration.of(np.concatenate(self.logits), np.concatenate(self.labels))


@dataclass(frozen=True, slots=True)
class SemanticTask:
    """Training of a semantic network; see `TrainingTask`."""

    setup: TrainingSetup

    @property
    def score_name(self) -> str:
        """Name of the score."""
        return "mean IoU"

    def network(self) -> Any:
        """The network to train."""
        setup = self.setup
        return setup.recipe.network.build(setup.channels, len(setup.recipe.classes))

    def trainer(self, model: Any) -> Any:
        """The network up to its logits, and the loss."""
        import keras

        setup = self.setup
        counts = setup.class_counts.classes[list(setup.training)].sum(axis=0)
        wanted = setup.recipe.loss
        return keras.Model(model.inputs[0], logits_of(model)), loss_of(
            wanted, class_weights(wanted, counts)
        )

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """Arguments of `train_on_batch`."""
        return batch.pixels, batch.classes

    def measure(self, trainer: Any, most: int | None, on_progress: OnProgress) -> MeasuredEpoch:
        """IoU of all classes, and the mean cross-entropy of labelled pixels; with all windows, the
        calibration of the scores too.
        """
        return self._measured(trainer, most, on_progress)

    def _measured(
        self,
        trainer: Any,
        most: int | None,
        on_progress: OnProgress,
        observe: Callable[[int, Box, NDArray[np.float32]], None] | None = None,
    ) -> MeasuredEpoch:
        """As `measure`; `observe` gets each image's number, window, and output of the network,
        which begins with the logits of the classes.
        """
        setup = self.setup
        windows = [
            (number, *both) for number in setup.validation for both in self._sliding_windows(number)
        ]
        if most is not None and len(windows) > most:
            windows = [windows[i * len(windows) // most] for i in range(most)]
        classes, size = len(setup.recipe.classes), setup.recipe.training.batch
        confusion, loss = Confusion.none(classes), 0.0
        sample = _Sample(max(1, min(_SAMPLED, _SAMPLED_SCORES // classes) // max(1, len(windows))))
        for start in range(0, len(windows), size):
            some = windows[start : start + size]
            for (number, box, counted), labels, output in zip(
                some, *self._predict(trainer, some), strict=True
            ):
                if observe is not None:
                    observe(number, box, output)
                logits = output[..., :classes]
                cut = counted.relative_to(setup.patch_shape.output(box)).slices
                known = labels[cut] < classes
                truth = np.where(known, labels[cut].astype(np.int64), label_mapping.VOID)
                confusion += Confusion.of(truth, logits[cut].argmax(axis=-1), classes)
                loss += _cross_entropy(labels[cut][known], logits[cut][known])
                if most is None:
                    sample.add(labels[cut][known], logits[cut][known])
            on_progress(start + len(some), len(windows))
        record = {
            "validation_loss": round(loss / max(confusion.pixels, 1), 6),
            "mean_iou": round(_score(confusion), 6),
            "iou": [_rounded(value) for value in confusion.iou],
        }
        summary, calibration = _summary(confusion, setup.recipe.classes), sample.calibration()
        if calibration is not None:
            summary["calibration"] = calibration.summary
        return MeasuredEpoch(_score(confusion), record, summary, calibration)

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network, with its receptive field and stride as measured."""
        return self._card(model, sha256, about)

    def _card(self, model: Any, sha256: str, about: Mapping[str, Any], vectors: int = 0) -> Card:
        from maskloom.segcore.deep.inference.files.model_cards import card_of_model

        recipe, how = self.setup.recipe, self.setup.scalings.how
        return card_of_model(
            model, recipe.kind, recipe.classes, AS_THEY_ARE, sha256, about, vectors
        ).scaled_by(how)

    def examples(self, trainer: Any) -> list[Example]:
        """The middles of some validation images; of volumes, those of their middle planes."""
        return [self._example(trainer, number) for number in self.setup.shown_images(_EXAMPLES)]

    def panels(self, history: Sequence[Mapping[str, Any]]) -> tuple[list[Curve], list[Curve]]:
        """Curves of both losses, and of the IoU of the classes."""
        classes, colours = self.setup.recipe.classes, self.setup.recipe.class_table.colours
        losses = [
            Curve("training", [record["loss"] for record in history], PALETTE[0]),
            Curve(
                "validation, cross-entropy",
                [record["validation_loss"] for record in history],
                PALETTE[1],
            ),
        ]
        overlaps = [Curve("mean IoU", [record["mean_iou"] for record in history], width=3)]
        if len(classes) <= _MOST_CURVES:
            overlaps += [
                Curve(name, [record["iou"][i] for record in history], colours[i])
                for i, name in enumerate(classes)
            ]
        return losses, overlaps

    def _sliding_windows(self, number: int) -> list[tuple[Box, Box]]:
        patch_shape = self.setup.patch_shape
        # Without padding, the output is as good at the edge as elsewhere.
        context = tuple(
            0 if margin else side // _CONTEXT
            for side, margin in zip(patch_shape.patch, patch_shape.margin, strict=True)
        )
        return sliding_windows(self.setup.dataset.shape(number), patch_shape, context)

    def _predict(
        self, trainer: Any, windows: Sequence[Window]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels and logits of windows, for the box of the network's output."""
        setup, patch_shape = self.setup, self.setup.patch_shape
        patches = [
            patch_shape.taken(scaled(setup.dataset, number, box, setup.scalings))
            for number, box, _ in windows
        ]
        pixels = np.stack([patch.pixels for patch in patches])
        # Always the same shape, so that compiling backends compile once.
        short = setup.recipe.training.batch - len(pixels)
        padded = (
            np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), np.float32)])
            if short > 0
            else pixels
        )
        predicted = np.asarray(trainer.predict_on_batch(padded), np.float32)[: len(pixels)]
        labels = np.stack([patch.classes[patch_shape.inner] for patch in patches])
        if patch_shape.planar:
            return labels[:, np.newaxis], predicted[:, np.newaxis]
        return labels, predicted

    def _example(self, trainer: Any, number: int) -> Example:
        whole = self.setup.middle(number, _EXAMPLE_SIDE)
        truth, predicted = np.zeros(whole.shape, np.uint8), np.zeros(whole.shape, np.uint8)
        for box, counted in self._sliding_windows(number):
            common = counted & whole
            if common.size == 0:
                continue
            labels, logits = self._predict(trainer, [(number, box, counted)])
            cut, place = (
                common.relative_to(self.setup.patch_shape.output(box)).slices,
                common.relative_to(whole).slices,
            )
            truth[place], predicted[place] = labels[0][cut], logits[0][cut].argmax(axis=-1)
        pixels = self.setup.dataset.window(number, whole).pixels
        if truth.ndim > 2:
            pixels, truth, predicted = pixels[0], truth[0], predicted[0]
        return Example(shown(pixels), truth, predicted)


def _score(confusion: Confusion) -> float:
    """Mean IoU of the classes with pixels; 0 without labelled pixels."""
    return mean_of_known(confusion.iou) if confusion.pixels else 0.0


def _summary(confusion: Confusion, classes: Sequence[str]) -> dict[str, Any]:
    """All measures as JSON values; None if one is not defined."""
    measures = {
        "iou": confusion.iou,
        "dice": confusion.dice,
        "precision": confusion.precision,
        "recall": confusion.recall,
    }
    return {
        "mean_iou": round(_score(confusion), 6),
        "accuracy": _rounded(confusion.accuracy),
        "pixels": confusion.pixels,
        "classes": {
            name: {
                **{measure: _rounded(values[i]) for measure, values in measures.items()},
                "pixels": int(confusion.truth[i]),
            }
            for i, name in enumerate(classes)
        },
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _cross_entropy(labels: NDArray[np.uint8], logits: NDArray[np.float32]) -> float:
    """Sum of the cross-entropies of n pixels, from labels (n,) and logits (n, class)."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return float(
        (np.log(np.exp(values).sum(axis=-1)) - values[np.arange(len(labels)), labels]).sum()
    )
