"""Matches agree with an assignment by brute force; panoptic quality and both APs with their
definitions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matching_support import iou_matrix, matches
from scipy import ndimage

from maskloom.segcore.annotations.object_metrics import (
    THRESHOLDS,
    ImageObjects,
    Matching,
    ObjectCounts,
    Overlaps,
    RankedObjects,
)


def cells(seed: int, shape: tuple[int, int] = (60, 70)) -> np.ndarray:
    """Labels of blobs."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return ndimage.label(field > 0.03)[0].astype(np.int64)


def disturbed(labels: np.ndarray, seed: int) -> np.ndarray:
    """The same cells, some moved, some gone, some merged, with other numbers."""
    random = np.random.default_rng(seed)
    out = np.roll(labels, (int(random.integers(0, 4)), int(random.integers(0, 3))), (0, 1))
    for i in range(1, labels.max() + 1):
        if random.random() < 0.25:
            out[out == i] = random.choice([0, max(1, i - 1)])
    order = random.permutation(labels.max() + 1) + 5
    return np.where(out > 0, order[out], 0)


def objects(
    labels: np.ndarray, class_of: dict[int, int] | None = None, scores: np.ndarray | None = None
) -> ImageObjects:
    ids = np.unique(labels[labels > 0])
    return ImageObjects(
        ids, np.array([(class_of or {}).get(int(i), 0) for i in ids], np.int64), scores
    )


@given(st.integers(0, 10**6))
def test_agrees_with_an_assignment_by_brute_force(seed: int) -> None:
    truth = cells(seed)
    predicted = disturbed(truth, seed)
    matching = Matching.of(Overlaps.of(predicted, truth), objects(predicted), objects(truth))
    found = matching.counts(1)
    for t, threshold in enumerate(THRESHOLDS):
        matched, false, missed, overlap = matches(predicted, truth, threshold)
        assert found.tallies[0, t].tolist() == [matched, false, missed]
        assert found.ap_dsb2018[0, t] == pytest.approx(matched / (matched + false + missed))
        if t == 0 and matched:
            assert found.sq[0] == pytest.approx(overlap / matched)
            assert found.pq[0] == pytest.approx(overlap / (matched + false / 2 + missed / 2))
    pairs = {
        (int(a), int(b)) for a, b in zip(matching.predicted.ids, matching.partner, strict=True) if b
    }
    assert all(iou_matrix(predicted == a, truth == b)[0, 0] > 0.5 for a, b in pairs)


@given(st.integers(0, 10**6), st.integers(1, 59), st.integers(1, 69))
def test_overlaps_of_parts_add_up(seed: int, row: int, column: int) -> None:
    truth = cells(seed)
    predicted = disturbed(truth, seed)
    truth[3:9, 3:30] = -1
    whole, parts = Overlaps.of(predicted, truth), Overlaps.none()
    for y in (slice(0, row), slice(row, None)):
        for x in (slice(0, column), slice(column, None)):
            parts += Overlaps.of(predicted[y, x], truth[y, x])
    for name in ("predicted", "truth", "shared"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert whole.shared.sum() == truth.size


def test_only_objects_of_one_class_match() -> None:
    labels = np.zeros((10, 10), int)
    labels[:5, :5], labels[6:, 6:] = 1, 2
    ours, theirs = objects(labels, {1: 0, 2: 1}), objects(labels, {1: 0, 2: 0})
    found = Matching.of(Overlaps.of(labels, labels), ours, theirs).counts(2)
    assert found.tallies[:, 0].tolist() == [[1, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(found.pq, [1 / 1.5, 0])


@dataclass(frozen=True)
class Scene:
    """Truth and prediction of an image: ids, and the class and score of each object."""

    truth: np.ndarray
    predicted: np.ndarray
    truth_classes: dict[int, int]
    predicted_classes: dict[int, int]
    scores: dict[int, float]

    def counts(self) -> ObjectCounts:
        ids = sorted(self.scores)
        ours = objects(
            self.predicted, self.predicted_classes, np.array([self.scores[i] for i in ids], float)
        )
        return Matching.of(
            Overlaps.of(self.predicted, self.truth), ours, objects(self.truth, self.truth_classes)
        ).counts(CLASSES)


CLASSES = 3


def boxes(random: np.random.Generator, shape: tuple[int, int], count: int) -> np.ndarray:
    """Boxes over boxes, numbered."""
    labels = np.zeros(shape, np.int64)
    for i in range(1, count + 1):
        y, x, height, width = (
            *(int(random.integers(0, n)) for n in shape),
            *(int(n) for n in random.integers(1, 12, 2)),
        )
        labels[y : y + height, x : x + width] = i
    return labels


def scene(random: np.random.Generator, void: slice) -> Scene:
    """Objects of several classes; some are alike in both, some are in one only, some have equal
    scores. `void` columns have no truth.
    """
    shape = (int(random.integers(12, 40)), 40)
    truth = boxes(random, shape, int(random.integers(0, 12)))
    extra = boxes(random, shape, int(random.integers(0, 6)))
    predicted = np.where(
        extra > 0, extra + 50, np.roll(truth, random.integers(0, 2, 2), (0, 1))
    ) * int(random.random() < 0.9)
    truth = truth * int(random.random() < 0.9)
    truth[:, void] = -1
    true, found = (np.unique(labels[labels > 0]).tolist() for labels in (truth, predicted))
    class_of = {i: int(random.integers(0, CLASSES)) for i in range(100)}
    other = {
        i: c if random.random() < 0.8 else int(random.integers(0, CLASSES))
        for i, c in class_of.items()
    }
    return Scene(
        truth,
        predicted,
        {i: class_of[i] for i in true},
        {i: other[i] for i in found},
        {i: int(random.integers(0, 6)) / 5 for i in found},
    )


def panoptic(given: Scene, wanted: int) -> list[float]:
    """Matched, false, missed and the quality of a class, as Kirillov et al. write it down, with
    sets of pixels.
    """
    void = given.truth < 0
    ours = [given.predicted == i for i, c in given.predicted_classes.items() if c == wanted]
    theirs = [given.truth == i for i, c in given.truth_classes.items() if c == wanted]
    pairs, matched = [], set()
    for p, mine in enumerate(ours):
        for t, other in enumerate(theirs):
            iou = (mine & other).sum() / ((mine & ~void) | other).sum()
            if iou > 0.5:
                pairs.append((p, t, iou))
                matched.add(p)
    false = sum(
        p not in matched and (mine & void).sum() / mine.sum() <= 0.5 for p, mine in enumerate(ours)
    )
    missed = len(theirs) - len({t for _, t, _ in pairs})
    weight = len(pairs) + false / 2 + missed / 2
    return [len(pairs), false, missed, sum(iou for *_, iou in pairs) / weight if weight else np.nan]


@given(st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_panoptic_quality_with_classes_and_void(seed: int, void: int) -> None:
    given = scene(np.random.default_rng(seed), slice(5, 5 + void))
    found = given.counts()
    for c in range(CLASSES):
        np.testing.assert_allclose([*found.tallies[c, 0], found.pq[c]], panoptic(given, c))


def coco(scenes: list[Scene]) -> np.ndarray:
    """AP by class and threshold as pycocotools computes it; void is a crowd of each class."""
    masks, tools, evaluation = (
        pytest.importorskip(f"pycocotools.{name}") for name in ("mask", "coco", "cocoeval")
    )
    truths: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    for image, each in enumerate(scenes, 1):

        def entry(pixels: np.ndarray, category: int, image: int = image) -> dict[str, object]:
            code = masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
            return {
                "image_id": image,
                "category_id": category + 1,
                "segmentation": code,
                "area": int(pixels.sum()),
            }

        truths += [
            entry(each.truth == i, c) | {"iscrowd": 0} for i, c in each.truth_classes.items()
        ]
        truths += [
            entry(each.truth < 0, c) | {"iscrowd": 1}
            for c in range(CLASSES)
            if (each.truth < 0).any()
        ]
        found += [
            entry(each.predicted == i, c) | {"score": each.scores[i]}
            for i, c in each.predicted_classes.items()
        ]
    sides = []
    for entries in (truths, found):
        side = tools.COCO()
        side.dataset = {
            "images": [
                {"id": i, "height": len(each.truth), "width": 40}
                for i, each in enumerate(scenes, 1)
            ],
            "categories": [{"id": c + 1} for c in range(CLASSES)],
            "annotations": [
                {"id": i, "iscrowd": 0, "ignore": 0} | each for i, each in enumerate(entries, 1)
            ],
        }
        side.createIndex()
        sides.append(side)
    judge = evaluation.COCOeval(*sides, "segm")
    judge.params.maxDets, judge.params.areaRng, judge.params.areaRngLbl = (
        [1000],
        [[0, 1e10]],
        ["all"],
    )
    # What equals a threshold is no match here.
    judge.params.iouThrs = np.array(THRESHOLDS) + 1e-9
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]
    known = (precision > -1).any(axis=1)
    return np.where(known, precision.mean(axis=1), np.nan).T


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_ap_coco_agrees_with_pycocotools(seed: int, images: int) -> None:
    random = np.random.default_rng(seed)
    scenes = [beside_void(scene(random, slice(0, 9 * (i % 2)))) for i in range(images)]
    found = sum((each.counts() for each in scenes), ObjectCounts.none(CLASSES)).ap_coco
    assert found is not None
    np.testing.assert_allclose(found, coco(scenes))


def beside_void(given: Scene) -> Scene:
    """The scene without predicted objects that lie in void by a part: for these each has a rule of
    its own.
    """
    void = given.truth < 0
    parts = np.intersect1d(given.predicted[void], given.predicted[~void])
    classes, scores = (
        {i: v for i, v in known.items() if i not in parts}
        for known in (given.predicted_classes, given.scores)
    )
    return replace(
        given,
        predicted=np.where(np.isin(given.predicted, parts), 0, given.predicted),
        predicted_classes=classes,
        scores=scores,
    )


def test_void_pixels_count_for_neither_side() -> None:
    truth, predicted = np.zeros((10, 20), int), np.zeros((10, 20), int)
    truth[:, :6], truth[:, 6:10] = 1, -1
    # Of object 7 six columns are in object 1 and four are void: the rest is a perfect match.
    predicted[:, :10], predicted[:, 14:] = 7, 8
    truth[:, 13:18] = -1
    found = Matching.of(Overlaps.of(predicted, truth), objects(predicted), objects(truth))
    assert found.iou.tolist() == [1, 0]
    # Object 8 lies for the greater part in void pixels: it is no error.
    assert found.in_void.tolist() == [False, True]
    assert found.counts(1).tallies[0, 0].tolist() == [1, 0, 0]


def test_what_lies_in_void_is_no_error_at_thresholds_that_it_misses() -> None:
    truth, predicted = np.zeros((10, 20), int), np.zeros((10, 20), int)
    truth[:, :8], truth[:, 8:] = 1, -1
    predicted[:, 1:] = 7
    # Seven of its columns are in the object of eight; twelve are void.
    found = Matching.of(Overlaps.of(predicted, truth), objects(predicted), objects(truth))
    assert found.iou.tolist() == [7 / 8]
    assert found.in_void.tolist() == [True]
    assert found.counts(1).tallies[0, :, :2].tolist() == [[1, 0]] * 8 + [[0, 0]] * 2


def average_precision(predicted: np.ndarray, truth: np.ndarray, number: int = 0) -> float:
    """`ap_dsb2018` of two label images at a threshold, by its number."""
    matching = Matching.of(Overlaps.of(predicted, truth), objects(predicted), objects(truth))
    return float(matching.counts(1).ap_dsb2018[0, number])


def test_average_precision_of_plain_cases() -> None:
    truth = cells(3)
    assert average_precision(truth, truth) == 1
    assert average_precision(np.zeros_like(truth), truth) == 0
    renumbered = (truth + 3 * (truth > 0)).astype(np.uint32)
    assert average_precision(truth.astype(np.uint16), renumbered, THRESHOLDS.index(0.95)) == 1
    assert np.isnan(average_precision(np.zeros((4, 4), int), np.zeros((4, 4), int)))
    # Half of an object is not more than half of it.
    half = np.zeros((4, 4), int)
    half[:, :2] = 1
    assert average_precision(half, np.ones((4, 4), int)) == 0


def ranked(scores: list[float], hits: list[int], true: int) -> float:
    """`ap_coco` of one class at one threshold."""
    hit = np.repeat(np.array(hits, np.int8)[:, None], len(THRESHOLDS), axis=1)
    tallies = np.zeros((1, len(THRESHOLDS), 3), np.int64)
    tallies[..., 0] = hits.count(1)
    tallies[..., 2] = true - hits.count(1)
    found = ObjectCounts(
        tallies, np.zeros(1), RankedObjects(np.array(scores), np.zeros(len(scores), np.int64), hit)
    ).ap_coco
    assert found is not None
    return float(found[0, 0])


def test_ap_coco_by_hand() -> None:
    assert ranked([0.9, 0.8], [1, 1], 2) == 1
    # The false one comes last: it costs nothing. It comes first: precision is at most 2/3
    # everywhere.
    assert ranked([0.9, 0.8, 0.1], [1, 1, 0], 2) == 1
    assert ranked([0.1, 0.8, 0.9], [1, 1, 0], 2) == pytest.approx(2 / 3)
    # One of two is found: precision 1 up to recall 0.5 (51 of 101 points), 0 beyond.
    assert ranked([0.9], [1], 2) == pytest.approx(51 / 101)
    # What does not count changes nothing.
    assert ranked([0.9, 0.95], [1, -1], 2) == pytest.approx(51 / 101)
    assert np.isnan(ranked([0.9], [0], 0))


def test_scores_reach_the_ranking_and_are_missing_where_one_image_has_none() -> None:
    truth = cells(8)
    count = len(np.unique(truth)) - 1
    scored = objects(truth, scores=np.linspace(0.2, 0.9, count))
    found = Matching.of(Overlaps.of(truth, truth), scored, objects(truth)).counts(1)
    assert found.ap_coco is not None
    np.testing.assert_allclose(found.ap_coco, 1)
    both = ObjectCounts.none(1) + found + found
    assert both.ap_coco is not None
    assert both.tallies[0, 0, 0] == 2 * count
    assert (
        both + Matching.of(Overlaps.of(truth, truth), objects(truth), objects(truth)).counts(1)
    ).ap_coco is None
