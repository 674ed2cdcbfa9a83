"""RoIAlign (He et al. 2017, "Mask R-CNN", section 3): features of a box, without rounding.

At a level of stride s, position i covers pixels s i to s (i + 1), and its value applies at their
centre. A box is divided into size ** 2 cells; each is sampled at 2 x 2 regular points by bilinear
interpolation, and the value of the cell is their mean. Points beyond the centres of the outermost
positions take the value at the edge.

All levels of the pyramid are concatenated into one list of positions. A box selects its level by an
index offset, so one gather serves all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

Tensor = Any

SAMPLES = 2
"""Sampling points per cell along each axis."""
# A box of the size of an ImageNet image uses the third level, as in Lin et al. 2017, equation 1.
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224.0, 2


def level_of(boxes: Tensor, levels: int) -> Tensor:
    """Pyramid level of each box (..., 4): int32 from 0 to `levels` - 1."""
    area = ops.maximum((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]), 1e-6)
    level = ops.floor(_CANONICAL_LEVEL + 0.5 * ops.log2(area) - ops.log2(_CANONICAL_SIDE) + 1e-6)
    return ops.cast(ops.clip(level, 0, levels - 1), "int32")


def roi_align(
    pyramid: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, size: int
) -> Tensor:
    """Features of boxes (image, box, 4), in pixels: (image, box, size, size, channel).

    `pyramid` holds a tensor (image, y, x, channel) for each of `strides`, finest first.
    """
    channels = pyramid[0].shape[-1]
    shapes = [ops.shape(level) for level in pyramid]
    counts = [shape[1] * shape[2] for shape in shapes]
    features = ops.concatenate(
        [ops.reshape(x, (-1, n, channels)) for x, n in zip(pyramid, counts, strict=True)], axis=1
    )
    # Interpolation needs more than the eight bits of bfloat16.
    features = ops.cast(features, "float32")
    starts = [sum(counts[:number], 0 * counts[0]) for number in range(len(counts))]
    table = ops.stack(
        [
            ops.stack([ops.cast(value, "int32") for value in row])
            for row in zip(
                starts,
                (shape[1] for shape in shapes),
                (shape[2] for shape in shapes),
                strides,
                strict=True,
            )
        ]
    )
    start, height, width, stride = ops.unstack(
        ops.take(table, level_of(boxes, len(pyramid)), axis=0), 4, axis=-1
    )
    images = ops.shape(boxes)[0]
    start = start + ops.expand_dims(
        ops.arange(images, dtype="int32") * ops.cast(sum(counts), "int32"), 1
    )
    rows = _between(boxes[..., 0], boxes[..., 2], stride, height, size * SAMPLES)
    columns = _between(boxes[..., 1], boxes[..., 3], stride, width, size * SAMPLES)
    flat = ops.reshape(features, (-1, channels))
    sampled = interpolated(flat, start, width, rows, columns)
    cells = ops.reshape(sampled, (images, -1, size, SAMPLES, size, SAMPLES, channels))
    return ops.mean(cells, axis=(3, 5))


def points(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Centres of `count` equal parts between `first` and `last`, both (...): (..., count)."""
    steps = (ops.arange(count, dtype="float32") + 0.5) / count
    return ops.expand_dims(first, -1) + ops.expand_dims(last - first, -1) * steps


def _between(
    first: Tensor, last: Tensor, stride: Tensor, length: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions before and after each sampling point, and the weight of the latter.

    The positions are (image, box, point) int32.
    """
    place = points(first, last, count) / ops.expand_dims(ops.cast(stride, "float32"), -1) - 0.5
    return neighbours(place, ops.expand_dims(length, -1))


def neighbours(place: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two positions around each of `place`, at most `length` - 1, and the second's weight."""
    place = ops.clip(place, 0.0, ops.cast(length - 1, "float32"))
    before = ops.floor(place)
    low = ops.cast(before, "int32")
    return low, ops.minimum(low + 1, length - 1), place - before


def interpolated(
    flat: Tensor,
    start: Tensor,
    width: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    columns: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Bilinear interpolation at all pairs of rows and columns: (image, box, row, column, channel).

    `flat` (position, channel) holds concatenated maps, row by row. The map of a box starts at
    `start` and has rows of `width` positions, both (image, box). `rows` and `columns` come from
    `neighbours`, (image, box, point).
    """
    top, bottom, down = rows
    left, right, across = columns
    down, across = down[:, :, :, None, None], across[:, :, None, :, None]

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (
            start[:, :, None, None]
            + row[:, :, :, None] * width[:, :, None, None]
            + column[:, :, None, :]
        )
        return ops.take(flat, index, axis=0)

    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return upper * (1 - down) + lower * down
