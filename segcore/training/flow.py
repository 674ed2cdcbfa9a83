"""Training of networks that show each pixel the way to the middle of its object, for the segmenter
`instances`: every pixel has a class and, in an object, a vector. The score is that of objects found
(`segcore.training.instances`).

Vectors are made from the numbers of objects in a patch, after augmentation: so they are right under
any flip, turn or deformation, and an object that the patch cuts has the middle of what is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.annotations.object_metrics import ObjectCounts
from maskloom.segcore.deep.networks.vectors import build_with_vectors
from maskloom.segcore.figures.training import Curve, Example, shown
from maskloom.segcore.geometry import Box
from maskloom.segcore.objects.flow import FlowRule
from maskloom.segcore.raster.colours import PALETTE
from maskloom.segcore.training.instances import (
    ObjectLabels,
    match,
    object_record,
    outlined,
)
from maskloom.segcore.training.labels import Instances, LabelKind, Polygons
from maskloom.segcore.training.losses import class_weights, loss_of
from maskloom.segcore.training.semantic import SemanticTask
from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.training.loss_terms import LossTerms
    from maskloom.segcore.training.sampling import Batch

Tensor = Any
VECTORS = 2
_WEIGHT = 2.0
"""Of both terms of the vectors, beside the loss of the classes."""
_RULE = FlowRule()
_EXAMPLES = 4


def is_flow(labels: LabelKind) -> bool:
    """Whether networks learn vectors beside classes."""
    return isinstance(labels, Instances | Polygons) and labels.target == "flow"


def vectors_of(ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """The offset of each pixel from the middle of its object, along x and y (y, x, 2), each divided
    by the object's reach to that side, so from -1 to 1; 0 outside objects. Ids (y, x): 0 for none.
    """
    from maskloom.segcore.kernels.flow import offsets

    values, ranks = np.unique(ids, return_inverse=True)
    found = np.zeros((*ids.shape, VECTORS), np.float32)
    offsets(ranks.reshape(ids.shape), values == 0, found)
    return found


def flow_loss(terms: LossTerms, weights: NDArray[np.float32]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of truth (image, y, x, 3: class, x, y) and output (image, y, x, class + 2: logits,
    x, y).

    To the loss of the classes are added, both twice: the squared error of x and y, mean of both and
    of the pixels in objects; and that of their differences along their own axis, mean of both and
    of the neighbours in objects (HoVer-Net has a Sobel filter there). The latter makes steps
    between touching objects steep.
    """
    from keras import ops

    by_class, classes = loss_of(terms, weights), len(weights)

    def mean_of(values: Tensor, counted: Tensor) -> Tensor:
        return ops.sum(values * counted) / ops.maximum(ops.sum(counted), 1.0)

    def loss(truth: Tensor, output: Tensor) -> Tensor:
        """The loss of `truth` (image, y, x, 1 + 2: label and vector) and `output` (image, y, x,
        class + 2: logits and vector).
        """
        labels = truth[..., 0]
        inside = ops.cast((labels > 0) & (labels < classes), "float32")
        x, y = (
            ops.cast(output[..., classes + axis], "float32") - truth[..., 1 + axis]
            for axis in range(VECTORS)
        )
        apart = mean_of(x * x + y * y, inside) / VECTORS
        along_x, along_y = x[:, :, 1:] - x[:, :, :-1], y[:, 1:] - y[:, :-1]
        steps = mean_of(along_x * along_x, inside[:, :, 1:] * inside[:, :, :-1])
        steps += mean_of(along_y * along_y, inside[:, 1:] * inside[:, :-1])
        steps /= VECTORS
        return by_class(labels, output[..., :classes]) + _WEIGHT * (apart + steps)

    return loss


@dataclass(frozen=True, slots=True)
class FlowTask(SemanticTask):
    """Training of a network of classes and vectors; see `TrainingTask`."""

    @property
    def score_name(self) -> str:
        """Name of the score."""
        return "AP@0.5"

    def network(self) -> Any:
        """The network to train."""
        setup = self.setup
        return build_with_vectors(
            setup.recipe.network, setup.channels, len(setup.recipe.classes), VECTORS
        )

    def trainer(self, model: Any) -> Any:
        """The network, and the loss."""
        setup = self.setup
        counts = setup.class_counts.classes[list(setup.training)].sum(axis=0)
        wanted = setup.recipe.loss
        return model, flow_loss(wanted, class_weights(wanted, counts))

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """Arguments of `train_on_batch`."""
        if batch.ids is None:
            raise ValueError("a batch for a training of objects must have their ids")
        truth = np.empty((*batch.classes.shape, 1 + VECTORS), np.float32)
        truth[..., 0] = batch.classes
        for each, ids in zip(truth, batch.ids, strict=True):
            each[..., 1:] = vectors_of(ids)
        return batch.pixels, truth

    def measure(self, trainer: Any, most: int | None, on_progress: OnProgress) -> MeasuredEpoch:
        """Objects found, invented and missed in windows that cover the validation images, and the
        measures of their classes.
        """
        classes = len(self.setup.recipe.classes)
        counts = ObjectCounts.none(classes)

        def observe(number: int, box: Box, output: NDArray[np.float32]) -> None:
            nonlocal counts
            counts += match(self._truth(number, box), self._found(output)).counts(classes)

        measured = self._measured(trainer, most, on_progress, observe)
        score, record, summary = object_record(counts, self.setup.recipe.classes)
        return replace(
            measured,
            score=score,
            record={**measured.record, **record},
            summary={**measured.summary, "objects": summary},
        )

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network, with the side of the largest object in training."""
        setup = self.setup
        # Of objects larger than a patch, training has seen only parts.
        largest = setup.class_counts.largest_side(setup.training)
        about = {**about, "largest_object": min(largest, setup.patch_shape.target[0])}
        return self._card(model, sha256, about, VECTORS)

    def examples(self, trainer: Any) -> list[Example]:
        """The middles of some validation images, with a line between objects."""
        found = []
        for number in self.setup.shown_images(_EXAMPLES):
            windows = self._sliding_windows(number)
            box, counted = windows[len(windows) // 2]
            _, outputs = self._predict(trainer, [(number, box, counted)])
            truth, objects = self._truth(number, box), self._found(outputs[0])
            output = self.setup.patch_shape.output(box)
            inside = output & Box.whole(self.setup.dataset.shape(number))
            cut = inside.relative_to(output).slices
            found.append(
                Example(
                    shown(self.setup.dataset.window(number, inside).pixels),
                    outlined(np.maximum(truth.ids, 0)[cut], truth.class_of),
                    outlined(objects.ids[cut], objects.class_of),
                )
            )
        return found

    def panels(self, history: Any) -> tuple[list[Curve], list[Curve]]:
        """Curves of both losses, and of the scores of objects and of classes."""
        losses, overlaps = SemanticTask.panels(self, history)
        found = Curve("AP@0.5", [record["ap50"] for record in history], PALETTE[0], width=3)
        return losses, [found, *overlaps]

    def _truth(self, number: int, box: Box) -> ObjectLabels:
        """The true objects of the network's output for a box."""
        window = self.setup.dataset.window(number, self.setup.patch_shape.output(box))
        if window.ids is None:
            raise ValueError("the dataset of a training of objects must have their ids")
        return ObjectLabels.of(window.ids, window.classes)

    def _found(self, output: NDArray[np.float32]) -> ObjectLabels:
        """The objects of an output, by the segmenter's defaults."""
        classes = len(self.setup.recipe.classes)
        logits = output[..., :classes]
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = powers / powers.sum(axis=-1, keepdims=True)
        found = _RULE.whole(scores, np.ascontiguousarray(output[..., classes:]))
        return ObjectLabels(found.values.astype(np.int32), found.class_of.astype(np.int64))
