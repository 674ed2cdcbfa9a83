"""Detections as arrays, and how they become a mask.

A detection has a box and a mask of 28 x 28 cells in it, which cover the box evenly. A pixel belongs
to the object where the cells, interpolated bilinearly to the pixel's middle, are at least a half;
beyond the middles of the outermost cells they go on as they are, and outside of the box is nothing.
Where several objects claim a pixel, the first of them has it: detections come in descending order
of score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects found in an image, or a part of one."""

    boxes: NDArray[np.float64]
    """(object, 4): y0, x0, y1, x1 in pixels of the image; pixel i spans from i to i + 1."""
    classes: NDArray[np.int64]
    """(object,), from 1 on."""
    scores: NDArray[np.float32]
    """(object,), 0 to 1."""
    masks: NDArray[np.float32]
    """(object, row, column): probability that a cell of the box belongs to the object."""

    @classmethod
    def together(cls, parts: Sequence[Detections]) -> Detections:
        """All detections of one or more parts, in their order."""
        names = ("boxes", "classes", "scores", "masks")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Detections:
        return Detections(
            self.boxes[chosen], self.classes[chosen], self.scores[chosen], self.masks[chosen]
        )

    def moved(self, start: tuple[int, ...]) -> Detections:
        """The same, from the coordinates of a part of the image to the image's; the part's first
        pixel is at `start`.
        """
        return Detections(
            self.boxes + np.array([*start, *start], np.float64),
            self.classes,
            self.scores,
            self.masks,
        )

    def clipped(self, shape: tuple[int, ...]) -> Detections:
        """Those with a part in an image of this shape. Boxes, to which masks are tied, stay as they
        are.
        """
        top, left, bottom, right = self.boxes.T
        return self[(top < shape[0]) & (left < shape[1]) & (bottom > 0) & (right > 0)]

    def centres(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The middles (object, 2) of the boxes' parts in an image of this shape."""
        limits = np.array([*shape, *shape], np.float64)
        inside = np.clip(self.boxes, 0.0, limits)
        return np.asarray((inside[:, :2] + inside[:, 2:]) / 2)

    def outline(self, number: int, within: Box) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
        """The pixels of one object: where they lie in an array of `within`, and which are the
        object's.
        """
        first, last = np.floor(self.boxes[number, :2]), np.ceil(self.boxes[number, 2:])
        place = Box(tuple(first.astype(int).tolist()), tuple(last.astype(int).tolist())) & within
        values = self.masks[number].astype(np.float64)
        for axis in (0, 1):
            values = _resampled(
                values, axis, self.boxes[number, axis::2], (place.start[axis], place.stop[axis])
            )
        return place.relative_to(within).slices, values >= 0.5

    def paint(self, within: Box) -> NDArray[np.int32]:
        """The mask of `within`: 0, or 1 + the number of the first object that claims the pixel."""
        labels = np.zeros(within.shape, np.int32)
        for number in range(len(self)):
            place, inside = self.outline(number, within)
            part = labels[place]
            part[inside & (part == 0)] = number + 1
        return labels


def overlaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of all pairs of boxes: (a, 4) and (b, 4) to (a, b); 0 where a box is
    empty.
    """
    sides = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(
        one[:, None, :2], other[None, :, :2]
    )
    shared = np.prod(np.maximum(sides, 0.0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def hit_by_better(
    boxes: NDArray[np.float64],
    groups: NDArray[np.int64],
    rivals: NDArray[np.int64],
    greatest: float,
) -> NDArray[np.bool_]:
    """Which boxes overlap one before them by more than `greatest`, if it is of the same group
    (class) and another of `rivals` (window).
    """
    hit = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(boxes), _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, len(boxes)))
        before = np.arange(rows.stop)[None] < np.arange(rows.start, rows.stop)[:, None]
        rival = (groups[rows, None] == groups[None, : rows.stop]) & (
            rivals[rows, None] != rivals[None, : rows.stop]
        )
        hit[rows] = np.any(
            before & rival & (overlaps(boxes[rows], boxes[: rows.stop]) > greatest), axis=1
        )
    return hit


def _resampled(
    values: NDArray[np.float64], axis: int, edges: NDArray[np.float64], pixels: tuple[int, int]
) -> NDArray[np.float64]:
    """Cells along an axis, which span evenly between two edges, interpolated to the middles of
    pixels; 0 outside of the edges.
    """
    count = values.shape[axis]
    middles = np.arange(*pixels) + 0.5
    place = np.clip(
        (middles - edges[0]) / max(edges[1] - edges[0], 1e-9) * count - 0.5, 0, count - 1
    )
    low = np.floor(place).astype(np.int64)
    weight = np.expand_dims(place - low, 1 - axis)
    between = (
        np.take(values, low, axis) * (1 - weight)
        + np.take(values, np.minimum(low + 1, count - 1), axis) * weight
    )
    inside = np.expand_dims((middles >= edges[0]) & (middles <= edges[1]), 1 - axis)
    return np.asarray(np.where(inside, between, 0.0))
