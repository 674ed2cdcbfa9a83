"""Training of networks of objects: a patch has objects, each with its pixels, and the score is the
share of objects found.

Objects are matched as in evaluation (`segcore.annotations.object_metrics`): an object is found if a
predicted object of its class has an intersection over union above 0.5 with it. The score is found /
(found + invented + missed), the average precision of the Data Science Bowl 2018 at one threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.annotations import label_mapping
from maskloom.segcore.annotations.object_metrics import (
    ImageObjects,
    Matching,
    ObjectCounts,
    Overlaps,
)
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.scaling import AS_THEY_ARE
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.figures.training import Curve, Example, shown
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.colours import PALETTE
from maskloom.segcore.training.labels import VOID
from maskloom.segcore.training.sampling import Batch, PatchShape, scaled, sliding_windows
from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress, TrainingSetup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.training.recipe import TrainingRecipe

_LEAST_SCORE, _GREATEST_OVERLAP = 0.5, 0.5
"""The segmenter's defaults."""
_EXAMPLES = 4


def patch_shape_of(recipe: TrainingRecipe) -> PatchShape:
    """Input and output are the whole patch: these networks take any size. Raises `RecipeError` for
    a patch that is no square.
    """
    side = recipe.training.patch
    if not isinstance(side, int):
        raise RecipeError(f"training.patch: {recipe.kind} takes squares: one number; got {side}.")
    return PatchShape.square(side)


@dataclass(frozen=True, slots=True)
class InstanceTask:
    """Training of a network of objects; see `TrainingTask`."""

    setup: TrainingSetup

    @property
    def score_name(self) -> str:
        """Name of the score."""
        return "AP@0.5"

    def network(self) -> Any:
        """The network to train."""
        setup = self.setup
        return setup.recipe.network.build(setup.channels, len(setup.recipe.classes))

    def trainer(self, model: Any) -> Any:
        """The network itself; it adds its losses."""
        return model, None

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """Arguments of `train_on_batch`."""
        from maskloom.segcore.deep.networks.mask_rcnn.targets import UNLABELLED, training_batch

        if batch.ids is None:
            raise ValueError("a batch for a training of objects must have their ids")
        objects = [
            ObjectLabels.of(ids, classes)
            for ids, classes in zip(batch.ids, batch.classes, strict=True)
        ]
        instances = np.stack([each.ids for each in objects])
        instances[batch.classes == VOID] = UNLABELLED
        return training_batch(batch.pixels, instances, [each.class_of for each in objects])

    def measure(self, trainer: Any, most: int | None, on_progress: OnProgress) -> MeasuredEpoch:
        """Objects found, invented and missed in windows that cover the validation images."""
        setup = self.setup
        windows = [
            (number, box)
            for number in setup.validation
            for box, _ in sliding_windows(
                setup.dataset.shape(number), setup.patch_shape, setup.patch_shape.patch[0] // 8
            )
        ]
        if most is not None and len(windows) > most:
            windows = [windows[i * len(windows) // most] for i in range(most)]
        detector, counts = _detector(trainer), ObjectCounts.none(len(setup.recipe.classes))
        for done, (number, box) in enumerate(windows, 1):
            matching = match(*self._objects(detector, number, box))
            counts += matching.counts(len(setup.recipe.classes))
            on_progress(done, len(windows))
        return MeasuredEpoch(*object_record(counts, setup.recipe.classes))

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network. Its boxes depend on the whole patch, so that it has no receptive
        field; the card gives the size of the largest object instead.
        """
        setup, recipe = self.setup, self.setup.recipe
        # Of objects larger than a patch, training has seen only parts.
        largest = setup.class_counts.largest_side(setup.training)
        return Card(
            kind=recipe.kind,
            sha256=sha256,
            channels=setup.channels,
            classes=recipe.classes,
            scaling=AS_THEY_ARE,
            reach=ReceptiveField(halo=None, stride=recipe.network.strides[-1]),
            output="objects",
            parameters=int(model.count_params()),
            about={**about, "largest_object": min(largest, setup.patch_shape.patch[0])},
        ).scaled_by(setup.scalings.how)

    def examples(self, trainer: Any) -> list[Example]:
        """The middles of some validation images. Objects that count nowhere are left out."""
        detector, found = _detector(trainer), []
        for number in self.setup.shown_images(_EXAMPLES):
            box = self.setup.middle(number, self.setup.patch_shape.patch[0])
            truth, predicted = self._objects(detector, number, box)
            matching = match(truth, predicted)
            ignored = matching.predicted.ids[matching.in_void & (matching.partner == 0)]
            ids = np.where(np.isin(predicted.ids, ignored) | (truth.ids < 0), 0, predicted.ids)
            pixels = self.setup.dataset.window(number, box).pixels
            found.append(
                Example(
                    shown(pixels),
                    outlined(np.maximum(truth.ids, 0), truth.class_of),
                    outlined(ids, predicted.class_of),
                )
            )
        return found

    def panels(self, history: Sequence[Mapping[str, Any]]) -> tuple[list[Curve], list[Curve]]:
        """Curves of the loss and of the score."""
        return [Curve("training", [record["loss"] for record in history], PALETTE[0])], [
            Curve("AP@0.5", [record["ap50"] for record in history], width=3)
        ]

    def _objects(self, detector: Any, number: int, box: Box) -> tuple[ObjectLabels, ObjectLabels]:
        """True and predicted objects of a window."""
        seen = scaled(self.setup.dataset, number, box, self.setup.scalings)
        if seen.ids is None:
            raise ValueError("the dataset of a training of objects must have their ids")
        detections = detector.detect(seen.pixels)
        predicted = ObjectLabels(
            detections.paint(Box.whole(seen.classes.shape)),
            np.concatenate([[0], detections.classes]),
        )
        return ObjectLabels.of(seen.ids, seen.classes), predicted


@dataclass(frozen=True, slots=True, eq=False)
class ObjectLabels:
    """The objects of a window."""

    ids: NDArray[np.int32]
    """(y, x): ids from 1, 0 for none, negative for void."""
    class_of: NDArray[np.int64]
    """Class of each id, including 0."""

    @classmethod
    def of(cls, ids: NDArray[np.integer], classes: NDArray[np.uint8]) -> ObjectLabels:
        """The objects of any ids (y, x), renumbered from 1 in their order, and the class of each
        pixel (y, x).
        """
        values, first, places = np.unique(ids, return_index=True, return_inverse=True)
        class_of = np.where(values > 0, classes.ravel()[first], 0).astype(np.int64)
        numbers = places.reshape(ids.shape).astype(np.int32)
        if values[0] != 0:
            numbers, class_of = numbers + 1, np.concatenate([[0], class_of])
        return cls(
            np.where(classes == VOID, label_mapping.VOID, numbers).astype(np.int32), class_of
        )

    @property
    def objects(self) -> ImageObjects:
        """Those that have pixels, for matching."""
        ids = np.unique(self.ids[self.ids > 0]).astype(np.int64)
        return ImageObjects(ids, self.class_of[ids])


def match(truth: ObjectLabels, predicted: ObjectLabels) -> Matching:
    """The objects of a window, matched."""
    return Matching.of(Overlaps.of(predicted.ids, truth.ids), predicted.objects, truth.objects)


def object_record(
    counts: ObjectCounts, classes: Sequence[str]
) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """The score of counted objects, and its entries in the history and in the card."""
    tallies = counts.tallies[:, 0]
    found, invented, missed = tallies.sum(axis=0).tolist()
    score = found / max(found + invented + missed, 1)
    record = {"found": found, "invented": invented, "missed": missed, "ap50": round(score, 6)}
    by_class = {
        name: {"ap50": _ratio(int(row[0]), int(row.sum())), "objects": int(row[0] + row[2])}
        for name, row in zip(classes[1:], tallies[1:], strict=True)
    }
    return score, record, {**record, "classes": by_class}


def outlined(ids: NDArray[np.integer], classes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Class ids (y, x), with a line of background between objects."""
    predicted: NDArray[np.uint8] = classes[ids].astype(np.uint8)
    for axis in (0, 1):
        edge = np.diff(ids, axis=axis, append=np.take(ids, [-1], axis=axis)) != 0
        predicted[edge] = 0
    return predicted


@lru_cache(maxsize=2)
def _detector(network: Any) -> Any:
    """The detector of a network; cached, because compiling it takes seconds."""
    from maskloom.segcore.deep.networks.mask_rcnn.prediction import Detector

    return Detector(network, _LEAST_SCORE, _GREATEST_OVERLAP)


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
