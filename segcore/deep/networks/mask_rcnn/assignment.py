"""What anchors and boxes are to learn: which true box each belongs to, and which of them take part
in a step.

Numbers are fixed so that shapes are static: a sample is a list of places, with a flag each that
says whether the place is taken. Which ones are taken is drawn from the network's own generator, so
equal seeds give equal training.

What nobody has labelled teaches nothing, as COCO's crowds: an anchor or box that lies for more than
half in it and matches no object takes no part, nor do cells of masks there. One that matches an
object does: the object is known, whatever surrounds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from maskloom.segcore.deep.networks.mask_rcnn.boxes import clip, overlap
from maskloom.segcore.deep.networks.mask_rcnn.roi_align import interpolated, neighbours, points
from maskloom.segcore.deep.networks.mask_rcnn.targets import UNLABELLED

Tensor = Any

_POSITIVE_ANCHOR, _NEGATIVE_ANCHOR = 0.7, 0.3
_POSITIVE_BOX = 0.5
_MOST_UNLABELLED = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class AnchorSample:
    """Places that take part in a step."""

    indices: Tensor
    """(image, place) int32: which anchor or box."""
    taken: Tensor
    """(image, place) float32: 1, or 0 where there were not enough."""


def best_anchors(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `anchors` (anchor, 4) the true box of `boxes` (image, box, 4) it overlaps most,
    whether it is one, whether it is none.

    All (image, anchor). An anchor is an object if it overlaps one by 0.7, or no other anchor
    overlaps that object more; it is none below 0.3.
    """
    common = overlap(anchors[None], boxes)
    best = ops.max(common, axis=2)
    # Objects that overlap all anchors but little still get one; padded boxes, which overlap
    # nothing, do not.
    most = ops.max(common, axis=1, keepdims=True)
    chosen = ops.any(ops.logical_and(common >= most - 1e-6, most > 0.05), axis=2)
    positive = ops.logical_or(best >= _POSITIVE_ANCHOR, chosen)
    # An anchor that is chosen for a small object may overlap a larger one more: it belongs to the
    # one that chose it.
    wanted = ops.where(ops.logical_and(common >= most - 1e-6, most > 0.05), common + 1.0, common)
    return (
        ops.argmax(wanted, axis=2),
        positive,
        ops.logical_and(best < _NEGATIVE_ANCHOR, ops.logical_not(positive)),
    )


def best_boxes(proposals: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `proposals` (image, proposal, 4) the true box it overlaps most, and by how
    much.
    """
    common = overlap(proposals, boxes)
    return ops.argmax(common, axis=2), ops.max(common, axis=2)


def sample(eligible: Tensor, count: int, generator: keras.random.SeedGenerator) -> AnchorSample:
    """Up to `count` random ones of those that are `eligible` (image, anchor or box) bool."""
    noise = keras.random.uniform(ops.shape(eligible), seed=generator)
    noise = ops.where(eligible, noise, -ops.ones_like(noise))
    values, indices = greatest(noise, count, -1.0)
    return AnchorSample(indices, ops.cast(values >= 0, "float32"))


def greatest(values: Tensor, count: int, filler: float) -> tuple[Tensor, Tensor]:
    """The `count` greatest of (image, place), descending, and where they are. Where there are
    fewer, `filler` at the last place.
    """
    filling = ops.full((ops.shape(values)[0], count), filler, dtype="float32")
    found, indices = ops.top_k(ops.concatenate([values, filling], axis=1), count)
    return found, ops.minimum(indices, ops.cast(ops.shape(values)[1] - 1, indices.dtype))


def limited(drawn: AnchorSample, most: Tensor) -> AnchorSample:
    """The first `most` (image,) float32 places of a sample."""
    count = drawn.indices.shape[1]
    return AnchorSample(
        drawn.indices,
        drawn.taken * ops.cast(ops.arange(count, dtype="float32")[None] < most[:, None], "float32"),
    )


def mask_targets(instances: Tensor, boxes: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Where an instance lies in a box: (image, box, size, size) float32 of 0 and 1.

    `instances` (image, y, x) holds the number of the instance at each pixel, `numbers` (image, box)
    the one that is asked for. A cell is 1 where the instance, interpolated to the middle of the
    cell, is at least a half.
    """
    shape = ops.shape(instances)
    height, width = (ops.cast(side, "int32") for side in shape[1:])
    top, bottom, down = neighbours(points(boxes[..., 0], boxes[..., 2], size) - 0.5, height)
    left, right, across = neighbours(points(boxes[..., 1], boxes[..., 3], size) - 0.5, width)
    down, across = down[..., :, None], across[..., None, :]
    flat = ops.reshape(instances, (-1,))
    start = (ops.arange(shape[0], dtype="int32") * (height * width))[:, None, None, None]
    wanted = ops.cast(numbers, instances.dtype)[..., None, None]

    def at(row: Tensor, column: Tensor) -> Tensor:
        found = ops.take(flat, start + row[..., :, None] * width + column[..., None, :], axis=0)
        return ops.cast(found == wanted, "float32")

    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return ops.cast(upper * (1 - down) + lower * down >= 0.5, "float32")


def is_labelled(instances: Tensor, boxes: Tensor) -> Tensor:
    """Which of `boxes` (image or 1, box, 4) are labelled in at least half of their part inside the
    image: (image, box) bool.

    `instances` (image, y, x) as in `mask_targets`, `UNLABELLED` where nobody has said what is
    there. Boxes beside the image are labelled.
    """
    shape = ops.shape(instances)
    height, width = (ops.cast(side, "int32") for side in shape[1:])
    boxes = clip(boxes, height, width)
    # Sums of all pixels above and to the left of a corner, which are linear between corners: exact
    # for any fraction of a pixel.
    sums = ops.cumsum(ops.cumsum(ops.cast(instances == UNLABELLED, "float32"), axis=1), axis=2)
    flat = ops.reshape(ops.pad(sums, ((0, 0), (1, 0), (1, 0))), (-1, 1))
    start = ops.arange(shape[0], dtype="int32")[:, None] * ((height + 1) * (width + 1))
    rows, columns = (
        neighbours(boxes[..., 0::2], height + 1),
        neighbours(boxes[..., 1::2], width + 1),
    )
    corners = interpolated(flat, start, ops.reshape(width + 1, (1, 1)), rows, columns)[..., 0]
    unlabelled = corners[..., 1, 1] - corners[..., 0, 1] - corners[..., 1, 0] + corners[..., 0, 0]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return unlabelled <= _MOST_UNLABELLED * area + 1e-3


def is_object(overlaps: Tensor) -> Tensor:
    """Which proposals hold an object, by their greatest overlap with a true box."""
    return overlaps >= _POSITIVE_BOX
