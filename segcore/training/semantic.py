"""Semantic networks in training: every pixel of a patch has a class, and the score is the mean IoU
of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.figures.training import Curve, Example, shown
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.training.losses import class_weights, loss_of
from maskloom.segcore.training.metrics import confusion, mean_overlap, overlap, summary
from maskloom.segcore.training.sampling import Batch, PatchShape, lattice, scaled
from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress, TrainingSetup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.training.recipe import TrainingRecipe

_CONTEXT = 8
"""What is measured of a window keeps this part of the patch away from its edge."""
_EXAMPLES = 4
_EXAMPLE_SIDE = 288
_MOST_CURVES = 12
Seen = tuple[int, Box, Box]
"""An image, what the network sees of it, and what of its answer counts."""


def frame_of(recipe: TrainingRecipe, channels: int) -> PatchShape:
    """What the network sees of a patch and answers, as measured. Raises `RecipeError` where the
    patch does not suit it.
    """
    from maskloom.segcore.deep.inference.receptive_field.skeletons import receptive_field_of

    field = receptive_field_of(recipe.network.build(channels, len(recipe.classes)))
    patch, stride = recipe.training.patch, field.stride
    least = 2 * field.margin + stride
    least += (field.residue - least) % stride
    below = patch - (patch - field.residue) % stride
    if below != patch or patch < least:
        fits = sorted({max(below, least), max(below + stride, least)})
        raise RecipeError(
            f"training.patch: {recipe.kind} does not take {patch} x {patch} pixels; heights and "
            f"widths are {least} or more by steps of {stride}. "
            f"Set it to {' or '.join(map(str, fits))}."
        )
    return PatchShape(patch, field.margin, stride)


@dataclass(frozen=True, slots=True)
class Semantic:
    """A semantic network in training; see `Subject`."""

    lesson: TrainingSetup

    @property
    def score_name(self) -> str:
        """What its score is called."""
        return "mean IoU"

    def trainer(self, model: Any) -> Any:
        """The network up to its logits, and the loss."""
        import keras

        lesson = self.lesson
        counts = lesson.found.classes[list(lesson.training)].sum(axis=0)
        wanted = lesson.recipe.loss
        return keras.Model(model.inputs, _logits_of(model)), loss_of(
            wanted, class_weights(wanted, counts)
        )

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """What `train_on_batch` takes."""
        return batch.pixels, batch.classes

    def measure(self, trainer: Any, most: int | None, told: OnProgress) -> MeasuredEpoch:
        """IoU of all classes, and the mean cross-entropy of labelled pixels."""
        lesson = self.lesson
        windows = [
            (number, *both) for number in lesson.validation for both in self._lattice(number)
        ]
        if most is not None and len(windows) > most:
            windows = [windows[i * len(windows) // most] for i in range(most)]
        classes, size = len(lesson.recipe.classes), lesson.recipe.training.batch
        matrix, missed = np.zeros((classes, classes), np.int64), 0.0
        for start in range(0, len(windows), size):
            some = windows[start : start + size]
            for (_, box, counted), labels, logits in zip(
                some, *self._predict(trainer, some), strict=True
            ):
                cut = counted.relative_to(_answered(box, lesson.frame)).slices
                matrix += confusion(labels[cut], logits[cut].argmax(axis=-1), classes)
                there = labels[cut] < classes
                missed += _cross_entropy(labels[cut][there], logits[cut][there])
            told(start + len(some), len(windows))
        record = {
            "validation_loss": round(missed / max(int(matrix.sum()), 1), 6),
            "mean_iou": round(mean_overlap(matrix), 6),
            "iou": [
                None if np.isnan(value) else round(float(value), 6) for value in overlap(matrix)
            ],
        }
        return MeasuredEpoch(mean_overlap(matrix), record, summary(matrix, lesson.recipe.classes))

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network, its reach and stride measured."""
        from maskloom.segcore.deep.inference.files.examine import card_of_model

        recipe = self.lesson.recipe
        return card_of_model(model, recipe.kind, recipe.classes, self.lesson.scaling, sha256, about)

    def examples(self, trainer: Any) -> list[Example]:
        """The middles of some validation images."""
        return [self._example(trainer, number) for number in self.lesson.shown_images(_EXAMPLES)]

    def panels(self, history: Sequence[Mapping[str, Any]]) -> tuple[list[Curve], list[Curve]]:
        """Curves of both losses, and of the IoU of the classes."""
        classes = self.lesson.recipe.classes
        colours = ClassTable.of(tuple(f"curve {i}" for i in range(max(len(classes), 2)))).colours
        losses = [
            Curve("training", [record["loss"] for record in history], colours[0]),
            Curve(
                "validation, cross-entropy",
                [record["validation_loss"] for record in history],
                colours[1],
            ),
        ]
        overlaps = [Curve("mean IoU", [record["mean_iou"] for record in history], width=3)]
        if len(classes) <= _MOST_CURVES:
            overlaps += [
                Curve(name, [record["iou"][i] for record in history], colours[i])
                for i, name in enumerate(classes)
            ]
        return losses, overlaps

    def _lattice(self, number: int) -> list[tuple[Box, Box]]:
        frame = self.lesson.frame
        # Without padding, what is answered is as good at the edge as anywhere.
        context = 0 if frame.margin else frame.patch // _CONTEXT
        return lattice(self.lesson.collection.shape(number), frame, context)

    def _predict(
        self, trainer: Any, windows: Sequence[Seen]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Labels and logits of windows, of the part that the network answers."""
        lesson, frame = self.lesson, self.lesson.frame
        patches = [
            scaled(lesson.collection.window(number, box), lesson.scaling)
            for number, box, _ in windows
        ]
        pixels = np.stack([patch.pixels for patch in patches])
        # Always the same shape, which compiling backends ask for.
        short = lesson.recipe.training.batch - len(pixels)
        padded = (
            np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), np.float32)])
            if short > 0
            else pixels
        )
        said = np.asarray(trainer.predict_on_batch(padded), np.float32)[: len(pixels)]
        inner = slice(frame.margin, frame.patch - frame.margin)
        return np.stack([patch.classes[inner, inner] for patch in patches]), said

    def _example(self, trainer: Any, number: int) -> Example:
        whole = self.lesson.middle(number, _EXAMPLE_SIDE)
        truth, said = np.zeros(whole.shape, np.uint8), np.zeros(whole.shape, np.uint8)
        for box, counted in self._lattice(number):
            common = counted & whole
            if common.size == 0:
                continue
            labels, logits = self._predict(trainer, [(number, box, counted)])
            cut, place = (
                common.relative_to(_answered(box, self.lesson.frame)).slices,
                common.relative_to(whole).slices,
            )
            truth[place], said[place] = labels[0][cut], logits[0][cut].argmax(axis=-1)
        return Example(shown(self.lesson.collection.window(number, whole).pixels), truth, said)


def _cross_entropy(labels: NDArray[np.uint8], logits: NDArray[np.float32]) -> float:
    """Sum over pixels, of labels (n,) and logits (n, class)."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return float(
        (np.log(np.exp(values).sum(axis=-1)) - values[np.arange(len(labels)), labels]).sum()
    )


def _answered(box: Box, frame: PatchShape) -> Box:
    return box.grow((-frame.margin, -frame.margin))


def _logits_of(model: Any) -> Any:
    """What the last softmax of a network is taken of; else the logarithm of its probabilities,
    which has the same softmax.
    """
    import keras

    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return last.input
    return keras.ops.log(
        keras.ops.maximum(keras.ops.cast(model.outputs[0], "float32"), keras.backend.epsilon())
    )
