"""Training targets: which true box each anchor or proposal is matched to, and sampling.

Shapes are static: a sample is a fixed number of entries, each with a flag that says whether it is
used. Samples are drawn with the network's own random generator, so equal seeds give equal training.

Unlabelled areas contribute no loss, like the crowd regions of COCO: an anchor or box that is more
than half unlabelled and matches no object is ignored, and so are mask cells there. One that matches
an object is used: the object is known, whatever surrounds it.
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
    """Indices of the anchors or boxes used in a training step."""

    indices: Tensor
    """(image, entry) int32: index of the anchor or box."""
    taken: Tensor
    """(image, entry) float32: 1 for a sampled entry, 0 for padding."""


def best_anchors(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Match `anchors` (anchor, 4) to the true `boxes` (image, box, 4).

    Returns the index of the box with the largest overlap, whether the anchor is positive, and
    whether it is negative, all (image, anchor). An anchor is positive if its IoU with a box is at
    least 0.7, or if no other anchor overlaps that box more; it is negative below 0.3 (Ren et al.
    2015, "Faster R-CNN").
    """
    common = overlap(anchors[None], boxes)
    best = ops.max(common, axis=2)
    # Objects with a low IoU with all anchors still get one; padded boxes, with an IoU of 0, do not.
    most = ops.max(common, axis=1, keepdims=True)
    chosen = ops.any(ops.logical_and(common >= most - 1e-6, most > 0.05), axis=2)
    positive = ops.logical_or(best >= _POSITIVE_ANCHOR, chosen)
    # An anchor selected for a small object may overlap a larger one more: match it to the object it
    # was selected for.
    wanted = ops.where(ops.logical_and(common >= most - 1e-6, most > 0.05), common + 1.0, common)
    return (
        ops.argmax(wanted, axis=2),
        positive,
        ops.logical_and(best < _NEGATIVE_ANCHOR, ops.logical_not(positive)),
    )


def best_boxes(proposals: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Index and IoU of the best true box for each of `proposals` (image, proposal, 4)."""
    common = overlap(proposals, boxes)
    return ops.argmax(common, axis=2), ops.max(common, axis=2)


def sample(eligible: Tensor, count: int, generator: keras.random.SeedGenerator) -> AnchorSample:
    """Draw up to `count` random entries of `eligible` (image, anchor or box) bool."""
    noise = keras.random.uniform(ops.shape(eligible), seed=generator)
    noise = ops.where(eligible, noise, -ops.ones_like(noise))
    values, indices = greatest(noise, count, -1.0)
    return AnchorSample(indices, ops.cast(values >= 0, "float32"))


def greatest(values: Tensor, count: int, filler: float) -> tuple[Tensor, Tensor]:
    """The `count` greatest of `values` (image, entry), descending, and their indices.

    If there are fewer, the rest is `filler` at the last index.
    """
    filling = ops.full((ops.shape(values)[0], count), filler, dtype="float32")
    found, indices = ops.top_k(ops.concatenate([values, filling], axis=1), count)
    return found, ops.minimum(indices, ops.cast(ops.shape(values)[1] - 1, indices.dtype))


def limited(drawn: AnchorSample, most: Tensor) -> AnchorSample:
    """Keep the first `most` (image,) float32 entries of a sample."""
    count = drawn.indices.shape[1]
    return AnchorSample(
        drawn.indices,
        drawn.taken * ops.cast(ops.arange(count, dtype="float32")[None] < most[:, None], "float32"),
    )


def mask_targets(instances: Tensor, boxes: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Rasterise instances in boxes: (image, box, size, size) float32 of 0 and 1.

    `instances` (image, y, x) holds the number of the instance at each pixel, `numbers` (image, box)
    the instance of each box. A cell is 1 where the instance, interpolated bilinearly at the centre
    of the cell, is at least 0.5.
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
    """Which `boxes` (image or 1, box, 4) are at least half labelled: (image, box) bool.

    Only the part of a box inside the image counts. `instances` (image, y, x) is as in
    `mask_targets`, with `UNLABELLED` for unlabelled pixels. Boxes outside the image count as
    labelled.
    """
    shape = ops.shape(instances)
    height, width = (ops.cast(side, "int32") for side in shape[1:])
    boxes = clip(boxes, height, width)
    # Summed-area table, interpolated linearly between corners: exact for fractions of a pixel.
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
    """Which proposals contain an object, from their largest IoU with a true box."""
    return overlaps >= _POSITIVE_BOX
