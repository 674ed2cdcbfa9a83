"""Networks of objects in training: a patch has objects, each with its pixels, and the score is how
many of them are found.

An object is found where an object of its class shares more than half of the pixels of both
(intersection over union above 0.5). The score is found / (found + invented + missed), the average
precision of the Data Science Bowl 2018 at one threshold. Void pixels count for nobody, and what is
found mostly in them is no error (as in `segcore.evaluation.instances`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.card import Card, ReceptiveField
from maskloom.segcore.figures.training import Curve, Example, shown
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.training.class_counts import CELL
from maskloom.segcore.training.labels import VOID
from maskloom.segcore.training.metrics import matched
from maskloom.segcore.training.sampling import Batch, PatchShape, lattice, scaled
from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress, TrainingSetup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.training.dataset import Dataset
    from maskloom.segcore.training.recipe import TrainingRecipe

_LEAST_SCORE, _GREATEST_OVERLAP = 0.5, 0.5
"""As the segmenter has them unless told otherwise."""
_EXAMPLES = 4


def frame_of(recipe: TrainingRecipe) -> PatchShape:
    """The whole patch: such networks take any size."""
    return PatchShape(recipe.training.patch)


@dataclass(frozen=True, slots=True)
class InstanceSubject:
    """A network of objects in training; see `Subject`."""

    lesson: TrainingSetup

    @property
    def score_name(self) -> str:
        """What its score is called."""
        return "AP@0.5"

    def trainer(self, model: Any) -> Any:
        """The network itself, which has losses of its own."""
        return model, None

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """What `train_on_batch` takes."""
        from maskloom.segcore.deep.networks.mask_rcnn.targets import UNLABELLED, training_batch

        if batch.ids is None:
            raise ValueError("a batch for objects has their ids")
        numbers, classes_of = np.zeros(batch.ids.shape, np.int32), []
        for i, (ids, classes) in enumerate(zip(batch.ids, batch.classes, strict=True)):
            numbers[i], class_of = _numbered(ids, classes)
            numbers[i, classes == VOID] = UNLABELLED
            classes_of.append(class_of)
        return training_batch(batch.pixels, numbers, classes_of)

    def measure(self, trainer: Any, most: int | None, told: OnProgress) -> MeasuredEpoch:
        """Objects found, invented and missed in windows that cover the validation images."""
        lesson = self.lesson
        windows = [
            (number, box)
            for number in lesson.validation
            for box, _ in lattice(
                lesson.collection.shape(number), lesson.frame, lesson.frame.patch // 8
            )
        ]
        if most is not None and len(windows) > most:
            windows = [windows[i * len(windows) // most] for i in range(most)]
        detector, counts = _detector(trainer), np.zeros((len(lesson.recipe.classes), 3), np.int64)
        for done, (number, box) in enumerate(windows, 1):
            true, said = self._objects(detector, number, box)
            for name in range(1, len(counts)):
                counts[name] += matched(
                    *(np.where(classes[ids] == name, ids, 0) for ids, classes in (said, true))
                )
            told(done, len(windows))
        found, invented, missed = (int(value) for value in counts.sum(axis=0))
        score = found / max(found + invented + missed, 1)
        record = {"found": found, "invented": invented, "missed": missed, "ap50": round(score, 6)}
        by_class = {
            name: {"ap50": _ratio(int(row[0]), int(row.sum())), "objects": int(row[0] + row[2])}
            for name, row in zip(lesson.recipe.classes[1:], counts[1:], strict=True)
        }
        return MeasuredEpoch(score, record, {**record, "classes": by_class})

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network. Its boxes depend on the whole of what it sees, so it has no
        reach, but it tells how large objects are.
        """
        lesson, recipe = self.lesson, self.lesson.recipe
        # Of what is larger than a patch, training has seen parts alone.
        largest = min(largest_side(lesson.collection, lesson.training), lesson.frame.patch)
        return Card(
            kind=recipe.kind,
            sha256=sha256,
            channels=lesson.channels,
            classes=recipe.classes,
            scaling=lesson.scaling,
            reach=ReceptiveField(halo=None, stride=recipe.network.strides[-1]),
            output="objects",
            parameters=int(model.count_params()),
            about={**about, "largest_object": largest},
        )

    def examples(self, trainer: Any) -> list[Example]:
        """The middles of some validation images."""
        detector, found = _detector(trainer), []
        for number in self.lesson.shown_images(_EXAMPLES):
            box = self.lesson.middle(number, self.lesson.frame.patch)
            (ids, classes), (said, said_classes) = self._objects(detector, number, box)
            pixels = self.lesson.collection.window(number, box).pixels
            found.append(
                Example(shown(pixels), _outlined(ids, classes), _outlined(said, said_classes))
            )
        return found

    def panels(self, history: Sequence[Mapping[str, Any]]) -> tuple[list[Curve], list[Curve]]:
        """Curves of the loss, and of the score."""
        colour = ClassTable.of(("curve",)).colours[0]
        return [Curve("training", [record["loss"] for record in history], colour)], [
            Curve("AP@0.5", [record["ap50"] for record in history], width=3)
        ]

    def _objects(self, detector: Any, number: int, box: Box) -> tuple[Numbered, Numbered]:
        """True and said objects of a window: ids (y, x) from 1, and the class of each id."""
        window = self.lesson.collection.window(number, box)
        if window.ids is None:
            raise ValueError("a collection for objects has their ids")
        detections = detector.detect(scaled(window, self.lesson.scaling).pixels)
        said = without_void(
            detections.paint(Box.whole(window.classes.shape)), window.ids, window.classes == VOID
        )
        return _numbered(window.ids, window.classes), (
            said,
            np.concatenate([[0], detections.classes]),
        )


def largest_side(collection: Dataset, numbers: Sequence[int]) -> int:
    """The greatest height or width of an object of these images, in pixels; 0 where there is none.
    Raises `ReadError`.
    """
    from scipy import ndimage

    largest = 0
    for number in numbers:
        boxes: dict[int, tuple[int, ...]] = {}
        for strip, window, _ in collection.strips(number, CELL):
            if window.ids is None:
                raise ValueError("a collection for objects has their ids")
            ids, ranks = np.unique(window.ids, return_inverse=True)
            for each, place in zip(
                ids.tolist(), ndimage.find_objects(ranks.reshape(strip.shape) + 1), strict=True
            ):
                top, bottom = (strip.start[0] + row for row in (place[0].start, place[0].stop))
                box = (-top, -place[1].start, bottom, place[1].stop)
                boxes[each] = tuple(map(max, box, boxes.get(each, box)))
        boxes.pop(0, None)
        largest = max(
            [
                largest,
                *(max(bottom + top, right + left) for top, left, bottom, right in boxes.values()),
            ]
        )
    return largest


Numbered = tuple["NDArray[np.int32]", "NDArray[np.int64]"]
"""Ids of objects (y, x) from 1, 0 for none, and the class of each id, 0 included."""


def _numbered(ids: NDArray[np.integer], classes: NDArray[np.uint8]) -> Numbered:
    """Objects of any ids with those from 1 on; what is void is no object."""
    values, first, places = np.unique(ids, return_index=True, return_inverse=True)
    class_of = np.where(values > 0, classes.ravel()[first], 0).astype(np.int64)
    numbers = places.reshape(ids.shape).astype(np.int32)
    if values[0] != 0:
        return numbers + 1, np.concatenate([[0], class_of])
    return numbers, class_of


def without_void(
    said: NDArray[np.int32], true: NDArray[np.integer], void: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Found objects (y, x) without void pixels, and without those that lie for more than half in
    them.

    Those stay whose rest lies for more than half on `true` objects, since they may be one of these.
    """
    count = int(said.max(initial=0)) + 1
    size, in_void, on_true = (
        np.bincount(said[place].ravel(), minlength=count)
        for place in (np.s_[:], void, ~void & (true > 0))
    )
    left_out = (2 * in_void > size) & (2 * on_true <= size - in_void)
    return np.where(void | left_out[said], 0, said).astype(np.int32)


def _outlined(ids: NDArray[np.integer], classes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Classes of pixels, with a line of background between objects."""
    said: NDArray[np.uint8] = classes[ids].astype(np.uint8)
    for axis in (0, 1):
        edge = np.diff(ids, axis=axis, append=np.take(ids, [-1], axis=axis)) != 0
        said[edge] = 0
    return said


@lru_cache(maxsize=2)
def _detector(network: Any) -> Any:
    """What detects with a network; made once, since compiling it takes seconds."""
    from maskloom.segcore.deep.networks.mask_rcnn.prediction import Detector

    return Detector(network, _LEAST_SCORE, _GREATEST_OVERLAP)


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
