"""Proposals and detections: from head outputs to a fixed number of boxes, after suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops

from maskloom.segcore.deep.networks.mask_rcnn.assignment import greatest
from maskloom.segcore.deep.networks.mask_rcnn.boxes import clip, decode, take
from maskloom.segcore.deep.networks.mask_rcnn.suppression import suppress

Tensor = Any

ANCHOR_WEIGHTS = (10.0, 5.0)
"""Scale of the anchors' shifts; see `boxes.encode`."""
BOX_WEIGHTS = (10.0, 5.0)
"""Scale of the proposals' shifts."""
_PROPOSALS_OVERLAP = 0.7
_NEVER = -1e9


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """A fixed number of boxes per image, by descending score."""

    boxes: Tensor
    """(image, box, 4); zeros for padding."""
    scores: Tensor
    """(image, box); 0 for padding."""
    classes: Tensor
    """(image, box) int32."""


def propose(
    logits: Tensor, shifts: Tensor, anchors: Tensor, limits: tuple[Any, Any, int, int]
) -> Ranked:
    """Select the proposals of the first stage, with class 0.

    Parameters
    ----------
    logits, shifts
        (image, anchor) and (image, anchor, 4).
    anchors
        (anchor, 4).
    limits
        Height and width of the images, and the number of boxes before and after suppression.
    """
    height, width, candidates, count = limits
    scores, indices = greatest(logits, candidates, _NEVER)
    boxes = decode(take(shifts, indices), ops.take(anchors, indices, axis=0), ANCHOR_WEIGHTS)
    boxes = clip(boxes, height, width)
    valid = ops.logical_and(scores > 0.5 * _NEVER, _has_area(boxes))
    kept = suppress(boxes, valid, ops.zeros_like(indices), _PROPOSALS_OVERLAP)
    return _first(Ranked(boxes, ops.sigmoid(scores), ops.zeros_like(indices)), kept, count)


def detect_boxes(scores: Tensor, boxes: Tensor, rule: tuple[float, float, int, int]) -> Ranked:
    """Select the detections of the second stage.

    Parameters
    ----------
    scores, boxes
        (image, proposal, class) and (image, proposal, class, 4), without the background: the first
        class is class 1.
    rule
        Least score, greatest IoU, and the number of boxes before and, at most, after suppression.
    """
    least, overlap, candidates, count = rule
    proposals, classes = scores.shape[1:]
    total = proposals * classes
    flat = ops.reshape(scores, (-1, total))
    values, indices = ops.top_k(flat, min(total, candidates))
    boxes = take(ops.reshape(boxes, (-1, total, 4)), indices)
    class_ids = indices % classes + 1
    kept = suppress(boxes, ops.logical_and(values >= least, _has_area(boxes)), class_ids, overlap)
    return _first(Ranked(boxes, values, class_ids), kept, count)


def _has_area(boxes: Tensor) -> Tensor:
    return ops.all(boxes[..., 2:] - boxes[..., :2] > 0, axis=-1)


def _first(ranked: Ranked, kept: Tensor, count: int) -> Ranked:
    """The first `count` boxes that are kept."""
    scores = ops.where(kept, ranked.scores, -ops.ones_like(ranked.scores))
    values, indices = greatest(scores, count, -1.0)
    present = values >= 0
    boxes = ops.where(ops.expand_dims(present, -1), take(ranked.boxes, indices), 0.0)
    return Ranked(
        boxes, ops.where(present, values, 0.0), ops.where(present, take(ranked.classes, indices), 0)
    )
