"""Anchors: the reference boxes of the region proposal network.

Each level of the pyramid has anchors of one size (Lin et al. 2017, "Feature Pyramid Networks").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

Tensor = Any


def level_anchors(
    shape: tuple[Any, Any], stride: int, size: float, ratios: Sequence[float]
) -> Tensor:
    """Anchors of one level with (height, width) positions, as boxes (anchor, 4).

    They are ordered by row, column and ratio; there are height * width * ratios of them. All have
    the area size ** 2 and are centred on the stride x stride pixels of a position; a ratio is
    height divided by width.
    """
    height, width = shape
    y = (ops.cast(ops.arange(height), "float32") + 0.5) * stride
    x = (ops.cast(ops.arange(width), "float32") + 0.5) * stride
    centres = ops.stack(ops.meshgrid(y, x, indexing="ij"), axis=-1)
    halves = [(0.5 * size * math.sqrt(ratio), 0.5 * size / math.sqrt(ratio)) for ratio in ratios]
    offsets = ops.convert_to_tensor([(-dy, -dx, dy, dx) for dy, dx in halves], "float32")
    anchors = ops.concatenate([centres, centres], axis=-1)[:, :, None, :] + offsets
    return ops.reshape(anchors, (-1, 4))
