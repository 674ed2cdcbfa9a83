"""Mask R-CNN: the whole network, its training step and its detections.

He, Gkioxari, Dollár and Girshick 2017, "Mask R-CNN".

    image -> pyramid -> proposals -> RoIAlign 7x7 -> class and box -> RoIAlign 14x14 -> mask 28x28

Called with images alone, the network detects objects. Called with images and their objects
(`targets.training_batch`), it returns the sampled anchors and boxes with their targets. As
`compute_loss` needs nothing else, `fit` and `train_on_batch` work on every backend of keras. The
numbers of boxes are fixed and padded with zeros, so shapes depend on the size of the images alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from maskloom.segcore.deep.networks.mask_rcnn import losses
from maskloom.segcore.deep.networks.mask_rcnn.anchors import level_anchors
from maskloom.segcore.deep.networks.mask_rcnn.assignment import (
    best_anchors,
    best_boxes,
    is_labelled,
    is_object,
    limited,
    mask_targets,
    sample,
)
from maskloom.segcore.deep.networks.mask_rcnn.boxes import clip, decode, encode, take
from maskloom.segcore.deep.networks.mask_rcnn.heads import (
    BOX_SIZE,
    MASK_SIZE,
    box_head,
    mask_head,
    proposal_head,
)
from maskloom.segcore.deep.networks.mask_rcnn.proposals import (
    ANCHOR_WEIGHTS,
    BOX_WEIGHTS,
    Ranked,
    detect_boxes,
    propose,
)
from maskloom.segcore.deep.networks.mask_rcnn.pyramid import feature_pyramid
from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn
from maskloom.segcore.deep.networks.mask_rcnn.roi_align import roi_align
from maskloom.segcore.deep.networks.mask_rcnn.targets import UNLABELLED

Tensor = Any

LEAST_SCORE, GREATEST_OVERLAP = 0.05, 0.5
"""Thresholds of plain calls: the values of the paper's evaluation."""
_SAMPLED_ANCHORS = 256


@keras.saving.register_keras_serializable(package="maskloom")
class MaskRcnnNetwork(keras.Model):  # type: ignore[misc]  # keras is untyped
    """Mask R-CNN that maps images (image, y, x, channel) float32 of any size to detections.

    The result is a dict of `boxes` (image, object, 4), `classes` (image, object) int32 from 1, with
    0 for padding, `scores` (image, object), and `masks` (image, object, 28, 28), the probability
    that a cell of the box belongs to the object. Raises `ValueError` for fewer than one channel or
    two classes.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        recipe: MaskRcnn | Mapping[str, Any],
        name: str = "mask_rcnn",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if channels < 1 or classes < 2:
            raise ValueError(
                f"expected at least one band and, beside the background, one class; got {channels} "
                f"and {classes}"
            )
        self.channels, self.classes = channels, classes
        self.recipe = recipe if isinstance(recipe, MaskRcnn) else _recipe_of(recipe)
        self.pyramid = feature_pyramid(self.recipe, channels)
        self.proposal_head = proposal_head(self.recipe)
        self.box_head = box_head(self.recipe, classes)
        self.mask_head = mask_head(self.recipe, classes)
        self.generator = keras.random.SeedGenerator(self.recipe.seed)
        # XLA under TensorFlow would compile for minutes, and again for every image size and number
        # of objects.
        self.supports_jit = keras.backend.backend() == "jax"
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Do nothing: the constructor builds all parts."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments of an equal network."""
        recipe = dataclasses.asdict(self.recipe)
        return {
            "name": self.name,
            "channels": self.channels,
            "classes": self.classes,
            "recipe": recipe,
        }

    def call(
        self, inputs: Tensor | Mapping[str, Tensor], training: bool | None = None
    ) -> dict[str, Tensor]:
        """Detect objects in images; for images with objects, return all that the loss needs."""
        if isinstance(inputs, Mapping):
            return self._training_outputs(inputs, training)
        return self.detect(inputs, LEAST_SCORE, GREATEST_OVERLAP)

    def detect(
        self, images: Tensor, least_score: float, greatest_overlap: float
    ) -> dict[str, Tensor]:
        """Detect objects in images (image, y, x, channel); the dict of detections is padded.

        Detections score at least `least_score`; two of one class have a box IoU of at most
        `greatest_overlap`.
        """
        size = ops.shape(images)[1:3]
        levels, proposals, *_ = self._first_stage(images, training=False)
        logits, shifts = self._box_head(levels, proposals.boxes, training=False)
        boxes = decode(shifts, ops.expand_dims(proposals.boxes, 2), BOX_WEIGHTS)
        boxes = clip(boxes, *size)
        # Padded proposals are never objects, whatever the head predicts for an empty box.
        scores = ops.softmax(logits)[..., 1:] * ops.cast(proposals.scores > 0, "float32")[..., None]
        found = detect_boxes(
            scores,
            boxes,
            (least_score, greatest_overlap, self.recipe.candidates, self.recipe.detections),
        )
        masks = ops.sigmoid(self._masks(levels, found.boxes, found.classes, training=False))
        return {
            "boxes": found.boxes,
            "classes": found.classes,
            "scores": found.scores,
            "masks": masks,
        }

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Tensor:
        """Return the sum of the five losses.

        `y_pred`, the network's output for images with objects, holds all that they need.
        """
        del x, y, sample_weight
        return sum(self.losses_of(y_pred).values())

    def losses_of(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the five losses by name, from the network's output for images with objects."""
        anchors, positive = outputs["anchor_taken"], outputs["anchor_positive"]
        boxes = outputs["box_taken"]
        return {
            "objectness": losses.binary(outputs["anchor_logits"], positive, anchors),
            "anchors": losses.smooth(
                outputs["anchor_shifts"],
                outputs["anchor_targets"],
                positive * anchors,
                ops.sum(anchors),
            ),
            "classes": losses.categorical(outputs["box_logits"], outputs["box_classes"], boxes),
            "boxes": losses.smooth(
                outputs["box_shifts"],
                outputs["box_targets"],
                outputs["box_positive"],
                ops.sum(boxes),
            ),
            "masks": losses.binary(
                outputs["mask_logits"], outputs["mask_targets"], outputs["mask_taken"]
            ),
        }

    def _first_stage(
        self, images: Tensor, training: bool | None
    ) -> tuple[list[Tensor], Ranked, Tensor, Tensor, Tensor]:
        """Run pyramid and proposals.

        Returns the levels of the pyramid and the proposals, and for all anchors their logits
        (image, anchor), their shifts (image, anchor, 4) and the anchors (anchor, 4).
        """
        height, width = ops.shape(images)[1:3]
        levels = self.pyramid(_padded(images, self.recipe.strides[-1]), training=training)
        logits, shifts, anchors = [], [], []
        for level, stride, side in zip(
            levels, self.recipe.strides, self.recipe.anchors, strict=True
        ):
            objectness, moves = self.proposal_head(level, training=training)
            shape = ops.shape(level)
            count = shape[1] * shape[2] * len(self.recipe.ratios)
            logits.append(ops.reshape(objectness, (-1, count)))
            shifts.append(ops.reshape(moves, (-1, count, 4)))
            anchors.append(level_anchors((shape[1], shape[2]), stride, side, self.recipe.ratios))
        logits, shifts, anchors = (
            ops.concatenate(logits, 1),
            ops.concatenate(shifts, 1),
            ops.concatenate(anchors, 0),
        )
        limits = (height, width, self.recipe.candidates, self.recipe.proposals)
        # No gradient flows from the second stage through the proposals; the first stage learns from
        # its own losses alone.
        proposals = propose(ops.stop_gradient(logits), ops.stop_gradient(shifts), anchors, limits)
        return levels, proposals, logits, shifts, anchors

    def _training_outputs(
        self, inputs: Mapping[str, Tensor], training: bool | None
    ) -> dict[str, Tensor]:
        boxes, classes = ops.cast(inputs["boxes"], "float32"), ops.cast(inputs["classes"], "int32")
        instances = inputs["instances"]
        levels, proposals, logits, shifts, anchors = self._first_stage(inputs["image"], training)
        outputs = self._anchor_targets((logits, shifts, anchors), boxes, instances)
        # True boxes are added to the proposals, so that the heads can learn before proposals are
        # good.
        candidates = ops.concatenate([proposals.boxes, boxes], axis=1)
        matches, overlaps = best_boxes(candidates, boxes)
        present = ops.any(candidates > 0, axis=-1)
        objects = is_object(overlaps)
        positive = sample(
            ops.logical_and(present, objects), self.recipe.sampled // 4, self.generator
        )
        rest = self.recipe.sampled - self.recipe.sampled // 4
        background = ops.logical_and(ops.logical_not(objects), is_labelled(instances, candidates))
        negative = sample(ops.logical_and(present, background), rest, self.generator)
        # At most three negatives per positive, but some even if there are no positives.
        negative = limited(negative, ops.maximum(3 * ops.sum(positive.taken, axis=1), rest // 4))
        matched = take(matches, positive.indices)
        chosen = take(candidates, positive.indices)
        return {
            **outputs,
            **self._box_targets(
                levels,
                (chosen, take(candidates, negative.indices)),
                (take(boxes, matched), take(classes, matched)),
                (positive.taken, negative.taken),
                training,
            ),
            **self._mask_targets(
                levels,
                (chosen, take(classes, matched), matched + 1),
                positive.taken,
                instances,
                training,
            ),
        }

    def _anchor_targets(
        self, first: tuple[Tensor, Tensor, Tensor], boxes: Tensor, instances: Tensor
    ) -> dict[str, Tensor]:
        """Outputs of the `first` stage (logits, shifts, anchors) and targets from true `boxes`."""
        logits, shifts, anchors = first
        matches, objects, background = best_anchors(anchors, boxes)
        positive = sample(objects, _SAMPLED_ANCHORS // 2, self.generator)
        negative = sample(
            ops.logical_and(background, is_labelled(instances, anchors[None])),
            _SAMPLED_ANCHORS,
            self.generator,
        )
        negative = limited(negative, _SAMPLED_ANCHORS - ops.sum(positive.taken, axis=1))
        indices = ops.concatenate([positive.indices, negative.indices], axis=1)
        true = take(boxes, take(matches, indices))
        return {
            "anchor_logits": take(logits, indices),
            "anchor_shifts": take(shifts, indices),
            "anchor_targets": encode(true, ops.take(anchors, indices, axis=0), ANCHOR_WEIGHTS),
            "anchor_positive": ops.concatenate(
                [positive.taken, ops.zeros_like(negative.taken)], axis=1
            ),
            "anchor_taken": ops.concatenate([positive.taken, negative.taken], axis=1),
        }

    def _box_targets(
        self,
        levels: list[Tensor],
        boxes: tuple[Tensor, Tensor],
        true: tuple[Tensor, Tensor],
        taken: tuple[Tensor, Tensor],
        training: bool | None,
    ) -> dict[str, Tensor]:
        """Outputs and targets for classes and boxes.

        `boxes` and `taken` hold a pair for proposals with and without an object; `true` holds the
        boxes and classes of the former.
        """
        logits, shifts = self._box_head(levels, ops.concatenate(boxes, axis=1), training)
        count = boxes[0].shape[1]
        true_boxes, true_classes = true
        index = ops.maximum(true_classes - 1, 0)[..., None, None]
        background = ops.zeros_like(taken[1], dtype="int32")
        return {
            "box_logits": logits,
            "box_classes": ops.concatenate([true_classes, background], axis=1),
            "box_taken": ops.concatenate(taken, axis=1),
            "box_positive": taken[0],
            "box_shifts": ops.take_along_axis(shifts[:, :count], index, axis=2)[:, :, 0],
            "box_targets": encode(true_boxes, boxes[0], BOX_WEIGHTS),
        }

    def _mask_targets(
        self,
        levels: list[Tensor],
        objects: tuple[Tensor, Tensor, Tensor],
        taken: Tensor,
        instances: Tensor,
        training: bool | None,
    ) -> dict[str, Tensor]:
        """Outputs and targets of masks; `objects` are boxes, classes and numbers in `instances`."""
        boxes, classes, numbers = objects
        logits = self._masks(levels, boxes, classes, training)
        unlabelled = mask_targets(
            instances, boxes, ops.full_like(numbers, UNLABELLED), 2 * MASK_SIZE
        )
        return {
            "mask_logits": logits,
            "mask_targets": mask_targets(instances, boxes, numbers, 2 * MASK_SIZE),
            "mask_taken": taken[..., None, None] * (1 - unlabelled),
        }

    def _box_head(
        self, levels: list[Tensor], boxes: Tensor, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        count = boxes.shape[1]
        features = roi_align(levels, self.recipe.strides, boxes, BOX_SIZE)
        logits, shifts = self.box_head(
            ops.reshape(features, (-1, *features.shape[2:])), training=training
        )
        return ops.reshape(logits, (-1, count, self.classes)), ops.reshape(
            shifts, (-1, count, self.classes - 1, 4)
        )

    def _masks(
        self, levels: list[Tensor], boxes: Tensor, classes: Tensor, training: bool | None
    ) -> Tensor:
        """Mask logits of each box for its class: (image, box, 28, 28)."""
        count = boxes.shape[1]
        features = roi_align(levels, self.recipe.strides, boxes, MASK_SIZE)
        logits = self.mask_head(ops.reshape(features, (-1, *features.shape[2:])), training=training)
        logits = ops.reshape(logits, (-1, count, 2 * MASK_SIZE, 2 * MASK_SIZE, self.classes - 1))
        index = ops.maximum(classes - 1, 0)[..., None, None, None]
        return ops.take_along_axis(logits, index, axis=4)[..., 0]


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Pad images with zeros at the bottom and right to multiples of `multiple`."""
    for axis in (1, 2):
        shape = list(ops.shape(images))
        shape[axis] = -shape[axis] % multiple
        images = ops.concatenate([images, ops.zeros(shape, images.dtype)], axis=axis)
    return images


def _recipe_of(config: Mapping[str, Any]) -> MaskRcnn:
    """Recipe from the JSON of a model file, which has lists instead of tuples."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }
    return MaskRcnn(**fields)
