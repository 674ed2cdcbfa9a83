"""Detections as arrays, and their conversion to a mask.

A detection has a box and a mask of 28 x 28 cells that cover the box evenly. A pixel belongs to the
object where the cells, interpolated bilinearly at the pixel's centre, are at least 0.5. Beyond the
centres of the outermost cells their values are repeated; outside the box the mask is empty. Where
several objects claim a pixel, the first one gets it: detections are sorted by descending score.
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
    """Objects found in an image or in part of one."""

    boxes: NDArray[np.float64]
    """(object, 4): y0, x0, y1, x1 in pixels of the image; pixel i spans i to i + 1."""
    classes: NDArray[np.int64]
    """(object,) class ids, from 1."""
    scores: NDArray[np.float32]
    """(object,), 0 to 1."""
    masks: NDArray[np.float32]
    """(object, y, x): probability that a cell of the box belongs to the object."""

    @classmethod
    def concatenated(cls, parts: Sequence[Detections]) -> Detections:
        """Concatenate one or more sets of detections in order."""
        names = ("boxes", "classes", "scores", "masks")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Detections:
        return Detections(
            self.boxes[chosen], self.classes[chosen], self.scores[chosen], self.masks[chosen]
        )

    def moved(self, start: tuple[int, ...]) -> Detections:
        """Shift detections from the coordinates of a window to those of the image.

        `start` is the position of the window's first pixel in the image.
        """
        return Detections(
            self.boxes + np.array([*start, *start], np.float64),
            self.classes,
            self.scores,
            self.masks,
        )

    def clipped(self, shape: tuple[int, ...]) -> Detections:
        """Drop detections outside an image of this shape.

        Boxes are not clipped, because masks refer to them.
        """
        top, left, bottom, right = self.boxes.T
        return self[(top < shape[0]) & (left < shape[1]) & (bottom > 0) & (right > 0)]

    def centres(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Centres (object, 2) of the boxes clipped to an image of this shape, in pixels."""
        limits = np.array([*shape, *shape], np.float64)
        inside = np.clip(self.boxes, 0.0, limits)
        return np.asarray((inside[:, :2] + inside[:, 2:]) / 2)

    def outline(self, number: int, within: Box) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
        """Rasterise one object: its slices in an array of `within`, and its pixels (y, x) bool."""
        first, last = np.floor(self.boxes[number, :2]), np.ceil(self.boxes[number, 2:])
        place = Box(tuple(first.astype(int).tolist()), tuple(last.astype(int).tolist())) & within
        values = self.masks[number].astype(np.float64)
        for axis in (0, 1):
            values = _resampled(
                values, axis, self.boxes[number, axis::2], (place.start[axis], place.stop[axis])
            )
        return place.relative_to(within).slices, values >= 0.5

    def paint(self, within: Box) -> NDArray[np.int32]:
        """Instance mask (y, x) of `within`: 1 + index of the first object at a pixel, else 0."""
        labels = np.zeros(within.shape, np.int32)
        for number in range(len(self)):
            place, inside = self.outline(number, within)
            part = labels[place]
            part[inside & (part == 0)] = number + 1
        return labels


def overlaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of all pairs of boxes: (a, 4) and (b, 4) to (a, b); 0 for an empty box."""
    sides = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(
        one[:, None, :2], other[None, :, :2]
    )
    shared = np.prod(np.maximum(sides, 0.0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def suppressed(
    boxes: NDArray[np.float64],
    groups: NDArray[np.int64],
    rivals: NDArray[np.int64],
    greatest: float,
) -> NDArray[np.bool_]:
    """Which boxes overlap a preceding rival by an IoU above `greatest`: (box,) bool.

    A rival is a box of the same group (class) but of another of `rivals` (windows).
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
    """Interpolate cells along an axis at the centres of pixels; 0 outside `edges`.

    The cells divide the space between the two edges evenly.
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
