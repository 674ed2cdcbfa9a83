"""Boundaries: the share of a class's outline that agrees with the truth.

A boundary pixel of a class is one of its pixels with a neighbour (above, below, left, right) of
another class. The image's border and void pixels make no boundary. Precision is the share of the
mask's boundary pixels with one of the truth's within the tolerance (Euclidean distance between
centres), recall the other way round, F their harmonic mean (Csurka, Larlus and Perronnin 2013; the
tolerance there is 0.75 % of the diagonal).

A pixel depends on the pixels within the tolerance and their neighbours, so that a tile with that
halo (`halo_of`) gives the same counts as the whole image. Volumes are compared plane by plane: only
neighbours and distances in the plane count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.annotations.metrics import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Tile


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """Boundary pixels of each class. Boundaries add up over tiles and images."""

    counts: NDArray[np.int64]
    """(class, 4): boundary pixels of the mask, those of them near the truth's; of the truth, those
    of them near the mask's.
    """

    @classmethod
    def none(cls, classes: int) -> Boundary:
        """The boundaries of no pixels."""
        return cls(np.zeros((classes, 4), np.int64))

    @classmethod
    def of(
        cls,
        truth: NDArray[np.int64],
        predicted: NDArray[np.int64],
        tile: Tile,
        classes: int,
        tolerance: float,
    ) -> Boundary:
        """Count in a tile's core. The arrays, (y, x) or (z, y, x), are class ids in its `read` box,
        negative without a class.
        """
        ignored = (truth < 0) | (predicted < 0)
        ours, theirs = (np.where(ignored, -1, labels) for labels in (predicted, truth))
        edges = [np.where(_on_edge(labels), labels, -1) for labels in (ours, theirs)]
        disk = _disk(tolerance)
        counts = np.zeros((classes, 4), np.int64)
        present = np.bincount(np.concatenate(edges).ravel() + 1, minlength=classes + 1)
        for i in np.flatnonzero(present[1:]):
            mine, other = ((edge == i).astype(np.uint8) for edge in edges)
            near = [tile.trim(_dilated(edge, disk)) for edge in (other, mine)]
            mine, other = tile.trim(mine), tile.trim(other)
            counts[i] = [mine.sum(), (mine & near[0]).sum(), other.sum(), (other & near[1]).sum()]
        return cls(counts)

    def __add__(self, other: Boundary) -> Boundary:
        return Boundary(self.counts + other.counts)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(class,): share of the mask's boundary pixels near the truth's; NaN if it has none."""
        return ratio(self.counts[:, 1], self.counts[:, 0])

    @property
    def recall(self) -> NDArray[np.float64]:
        """(class,): share of the truth's boundary pixels near the mask's; NaN if it has none."""
        return ratio(self.counts[:, 3], self.counts[:, 2])

    @property
    def f(self) -> NDArray[np.float64]:
        """Harmonic mean of both; 0 if only one side has boundaries or none are near, NaN if neither
        has any.
        """
        precision, recall = np.nan_to_num(self.precision), np.nan_to_num(self.recall)
        total = precision + recall
        f = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0)
        return np.where(self.counts[:, 0] + self.counts[:, 2] > 0, f, np.nan)


def halo_of(tolerance: float) -> int:
    """Pixels that must be seen around a tile: the tolerance, and one for the neighbours."""
    return int(tolerance) + 1


def _on_edge(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    edge = np.zeros(labels.shape, np.bool_)
    across, down = (np.s_[..., :-1], np.s_[..., 1:]), (np.s_[..., :-1, :], np.s_[..., 1:, :])
    for one, other in (across, down):
        differs = (labels[one] != labels[other]) & (labels[one] >= 0) & (labels[other] >= 0)
        edge[one] |= differs
        edge[other] |= differs
    return edge


def _dilated(edge: NDArray[np.uint8], disk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each plane dilated by a disk."""
    import cv2

    planes = [cv2.dilate(plane, disk) for plane in edge.reshape(-1, *edge.shape[-2:])]
    return np.stack(planes).astype(np.uint8, copy=False).reshape(edge.shape)


def _disk(tolerance: float) -> NDArray[np.uint8]:
    """All offsets within the tolerance: dilation by it is an exact threshold on the distance."""
    reach = int(tolerance)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(y * y + x * x <= tolerance * tolerance, np.uint8)
