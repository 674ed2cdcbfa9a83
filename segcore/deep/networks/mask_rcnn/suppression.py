"""Non-maximum suppression: of boxes with a large overlap, the highest score is kept.

The greedy rule (in descending order of score, keep a box unless a kept box overlaps it) is computed
without a loop over boxes. All boxes start as kept, and the rule is applied to all of them at once
until nothing changes. After n rounds at least the first n boxes are final, so the result is the
greedy one; in practice the number of rounds is the length of the longest chain of overlaps, three
or four.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from maskloom.segcore.deep.networks.mask_rcnn.boxes import overlap

Tensor = Any


def suppress(boxes: Tensor, valid: Tensor, groups: Tensor, greatest: Any) -> Tensor:
    """Return which boxes are kept: (image, box) bool.

    Parameters
    ----------
    boxes
        (image, box, 4), by descending score.
    valid
        (image, box) bool. Invalid boxes are neither kept nor suppress others.
    groups
        (image, box) integers. Boxes of different groups (classes, levels) do not suppress one
        another.
    greatest
        Largest IoU that two kept boxes may have.
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
