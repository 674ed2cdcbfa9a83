"""Object metrics for training and evaluation: which objects match, and the measures of that.

Two objects of one class match if their intersection over union exceeds a threshold of 0.5 or more.
Objects of one side do not overlap, so that each has at most one match and no assignment is needed
(Kirillov et al. 2019). Void pixels of the truth count for neither side; a predicted object without
a match that has more than half of its pixels in them is no error.

Three numbers are called AP or resemble it; here they have different names:

    panoptic quality (pq)   sum of the matches' intersection over union / (matches + half the misses
                            + half the false ones), at 0.5 (Kirillov)
    ap_dsb2018              matches / (matches + misses + false ones), at a threshold (Data Science
                            Bowl 2018; StarDist and Cellpose call it AP)
    ap_coco                 area under precision and recall by falling score, at 101 recalls (COCO);
                            only for objects with scores

The last is that of pycocotools except for three things: all objects of an image count, not 100; an
overlap of exactly the threshold is no match, as in the other two; and void is void for all classes,
while crowds in COCO belong to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.annotations.metrics import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""0.50 to 0.95, as in COCO."""
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Pixels by pair of ids, predicted and true, each pair once, including 0 (no object). Overlaps
    add up over tiles.
    """

    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    """Negative: void."""
    shared: NDArray[np.int64]

    @classmethod
    def none(cls) -> Overlaps:
        """The overlaps of no pixels."""
        return cls(*(np.zeros(0, np.int64) for _ in range(3)))

    @classmethod
    def of(cls, predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> Overlaps:
        """The overlaps of two arrays of ids of one shape, counted by runs, which are fewer than
        pixels.
        """
        one, other = predicted.ravel().astype(np.int64), truth.ravel().astype(np.int64)
        if not one.size:
            return cls.none()
        starts = np.flatnonzero(
            np.concatenate([[True], (one[1:] != one[:-1]) | (other[1:] != other[:-1])])
        )
        return _summed(one[starts], other[starts], np.diff(starts, append=one.size))

    @classmethod
    def total(cls, parts: Sequence[Overlaps]) -> Overlaps:
        """The overlaps of all parts of an image, in any order."""
        parts = [cls.none(), *parts]
        return _summed(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("predicted", "truth", "shared")
            )
        )

    def __add__(self, other: Overlaps) -> Overlaps:
        return Overlaps.total([self, other])


@dataclass(frozen=True, slots=True, eq=False)
class ImageObjects:
    """The objects of one side: ascending ids, without 0, and the class and score of each."""

    ids: NDArray[np.int64]
    class_of: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    """None if not available."""


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """The predicted objects of one image matched with the true ones."""

    predicted: ImageObjects
    truth: ImageObjects
    iou: NDArray[np.float64]
    """Intersection over union of each predicted object with its match, a true object of its class;
    0 without a match above 0.5.
    """
    partner: NDArray[np.int64]
    """Id of the match, 0 for none."""
    in_void: NDArray[np.bool_]
    """Predicted objects with more than half of their pixels in void."""

    @classmethod
    def of(cls, overlaps: Overlaps, predicted: ImageObjects, truth: ImageObjects) -> Matching:
        """Match the objects of an image, from the overlaps of all its pixels."""
        sizes = _sizes(overlaps.predicted, overlaps.shared, predicted.ids)
        void = overlaps.truth < 0
        voids = _sizes(overlaps.predicted[void], overlaps.shared[void], predicted.ids)
        true_sizes = _sizes(overlaps.truth, overlaps.shared, truth.ids)
        pair = (overlaps.predicted > 0) & (overlaps.truth > 0)
        row, column = (
            np.searchsorted(predicted.ids, overlaps.predicted[pair]),
            np.searchsorted(truth.ids, overlaps.truth[pair]),
        )
        shared = overlaps.shared[pair]
        iou = shared / (sizes[row] - voids[row] + true_sizes[column] - shared)
        match = (iou > THRESHOLDS[0]) & (predicted.class_of[row] == truth.class_of[column])
        best, partner = np.zeros(len(predicted.ids)), np.zeros(len(predicted.ids), np.int64)
        best[row[match]], partner[row[match]] = iou[match], truth.ids[column[match]]
        return cls(predicted, truth, best, partner, 2 * voids > sizes)

    def counts(self, classes: int) -> ObjectCounts:
        """Objects counted by class."""
        hit = self.iou[:, None] > np.array(THRESHOLDS)
        ignored = self.in_void[:, None] & ~hit
        tallies = np.zeros((classes, len(THRESHOLDS), 3), np.int64)
        np.add.at(tallies[..., 0], self.predicted.class_of, hit)
        np.add.at(tallies[..., 1], self.predicted.class_of, ~hit & ~ignored)
        tallies[..., 2] = (
            np.bincount(self.truth.class_of, minlength=classes)[:, None] - tallies[..., 0]
        )
        iou = np.bincount(self.predicted.class_of, self.iou, classes).astype(
            np.float64
        )  # an empty bincount is of integers
        ranked = None
        if self.predicted.scores is not None:
            ranked = RankedObjects(
                self.predicted.scores,
                self.predicted.class_of,
                np.where(ignored, -1, hit).astype(np.int8),
            )
        return ObjectCounts(tallies, iou, ranked)


@dataclass(frozen=True, slots=True, eq=False)
class RankedObjects:
    """Predicted objects with their scores."""

    score: NDArray[np.float64]
    class_of: NDArray[np.int64]
    hit: NDArray[np.int8]
    """(object, threshold): 1 matched, 0 false, -1 not counted."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectCounts:
    """Matched, false and missed objects by class. Counts add up over images."""

    tallies: NDArray[np.int64]
    """(class, threshold, 3): matched, false (only predicted), missed (only in the truth)."""
    iou: NDArray[np.float64]
    """(class,): sum of the matches' intersection over union at 0.5."""
    ranked: RankedObjects | None = None
    """None if the objects have no scores."""

    @classmethod
    def none(cls, classes: int) -> ObjectCounts:
        """The counts of no objects."""
        nothing = RankedObjects(
            np.zeros(0), np.zeros(0, np.int64), np.zeros((0, len(THRESHOLDS)), np.int8)
        )
        return cls(np.zeros((classes, len(THRESHOLDS), 3), np.int64), np.zeros(classes), nothing)

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        ranked = None
        if self.ranked is not None and other.ranked is not None:
            pairs = (
                (getattr(self.ranked, name), getattr(other.ranked, name))
                for name in ("score", "class_of", "hit")
            )
            ranked = RankedObjects(*(np.concatenate(pair) for pair in pairs))
        return ObjectCounts(self.tallies + other.tallies, self.iou + other.iou, ranked)

    @property
    def ap_dsb2018(self) -> NDArray[np.float64]:
        """(class, threshold): matched / all; NaN for a class without objects on both sides."""
        return ratio(self.tallies[..., 0], self.tallies.sum(axis=2))

    @property
    def sq(self) -> NDArray[np.float64]:
        """(class,): segmentation quality, the matches' mean intersection over union; NaN without
        matches.
        """
        return ratio(self.iou, self.tallies[:, 0, 0])  # type: ignore[arg-type]

    @property
    def rq(self) -> NDArray[np.float64]:
        """(class,): recognition quality, F1 of the objects at 0.5; NaN for a class without objects
        on both sides.
        """
        matched, false, missed = np.moveaxis(self.tallies[:, 0], -1, 0)
        return ratio(2 * matched, 2 * matched + false + missed)

    @property
    def pq(self) -> NDArray[np.float64]:
        """(class,): panoptic quality, the product of both."""
        return np.where(self.tallies[:, 0, 0] > 0, np.nan_to_num(self.sq) * self.rq, 0 * self.rq)

    @property
    def ap_coco(self) -> NDArray[np.float64] | None:
        """(class, threshold); None without scores, NaN for a class that the truth lacks."""
        ranked = self.ranked
        if ranked is None:
            return None
        true = self.tallies[..., 0] + self.tallies[..., 2]
        return np.array(
            [
                [
                    _area_under(ranked.score[own], ranked.hit[own, t], int(true[i, t]))
                    for t in range(len(THRESHOLDS))
                ]
                for i, own in enumerate(ranked.class_of == i for i in range(len(true)))
            ]
        )


def _summed(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], shared: NDArray[np.int64]
) -> Overlaps:
    """Overlaps with each pair once."""
    rows, row = np.unique(predicted, return_inverse=True)
    columns, column = np.unique(truth, return_inverse=True)
    keys, place = np.unique(row * max(1, len(columns)) + column, return_inverse=True)
    sums = np.zeros(len(keys), np.int64)
    np.add.at(sums, place, shared)
    row, column = np.divmod(keys, max(1, len(columns)))
    return Overlaps(rows[row], columns[column], sums)


def _sizes(
    ids: NDArray[np.int64], shared: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pixels of each wanted id."""
    sizes = np.zeros(len(wanted), np.int64)
    found = np.isin(ids, wanted)
    np.add.at(sizes, np.searchsorted(wanted, ids[found]), shared[found])
    return sizes


def _area_under(scores: NDArray[np.float64], hit: NDArray[np.int8], true: int) -> float:
    """The mean, over 101 recalls, of the best precision at that recall or beyond."""
    if not true:
        return float("nan")
    counted = hit >= 0
    order = np.argsort(-scores[counted], kind="stable")
    found = np.cumsum(hit[counted][order])
    precision = found / np.arange(1, len(found) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return float(best[np.searchsorted(found / true, _RECALLS, side="left")].mean())
