"""Non-maximum suppression: of boxes that overlap much, the one with the highest score stays.

The greedy rule (from the highest score down, a box stays unless one that stays overlaps it) is
found without a loop over boxes: all boxes start as kept, and "unless one that is kept overlaps it"
is applied to all at once until nothing changes. After n rounds at least the first n boxes are
decided for good, so the end is the greedy result; in fact the rounds are as many as the longest
chain of overlaps, three or four.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from maskloom.segcore.deep.networks.mask_rcnn.boxes import overlap

Tensor = Any


def suppress(boxes: Tensor, valid: Tensor, groups: Tensor, greatest: Any) -> Tensor:
    """Which boxes stay: (image, box) bool.

    Parameters
    ----------
    boxes
        (image, box, 4), by descending score.
    valid
        (image, box) bool. What is not valid neither stays nor suppresses.
    groups
        (image, box) integers. Boxes of different groups (classes, levels) do not suppress one
        another.
    greatest
        The intersection over union that two boxes may have at most if both are to stay.
    """
    count = boxes.shape[1]
    order = ops.arange(count)
    earlier = order[None, :] < order[:, None]
    same = ops.expand_dims(groups, 2) == ops.expand_dims(groups, 1)
    hit = ops.logical_and(ops.logical_and(overlap(boxes, boxes) > greatest, same), earlier)
    hit = ops.cast(hit, "float32")

    def changing(_: Tensor, changed: Tensor) -> Tensor:
        return changed

    def round_of(kept: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        hits = ops.squeeze(ops.matmul(hit, ops.expand_dims(ops.cast(kept, "float32"), -1)), -1)
        now = ops.logical_and(valid, hits < 0.5)
        return now, ops.any(ops.not_equal(now, kept))

    kept, _ = ops.while_loop(
        changing, round_of, (valid, ops.any(valid)), maximum_iterations=count + 1
    )
    return kept
