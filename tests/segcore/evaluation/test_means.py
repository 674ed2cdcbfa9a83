"""Means over images, as papers on nuclei give them, against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maskloom.segcore.annotations.metrics import Confusion
from maskloom.segcore.annotations.object_metrics import ImageObjects, Matching, Overlaps
from maskloom.segcore.evaluation.boundary import Boundary
from maskloom.segcore.evaluation.run_tables import Classes
from maskloom.segcore.evaluation.scoring import Score
from maskloom.segcore.evaluation.tables import Result


def cells(seed: int, least: float) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 70)), 3)
    return ndimage.label(field > least)[0]


CLASSES = ("background", "round", "long")


def class_of(ids: np.ndarray) -> np.ndarray:
    """Objects of both classes in turn, for true ones and found ones alike."""
    return np.where(ids > 0, 1 + ids % 2, 0)


def scored(name: str, found: np.ndarray, truth: np.ndarray) -> Score:
    count = len(CLASSES)
    sides = [
        ImageObjects(ids := np.unique(each[each > 0]).astype(np.int64), class_of(ids))
        for each in (found, truth)
    ]
    objects = Matching.of(Overlaps.of(found, truth), *sides).counts(count)
    confusion = Confusion.of(class_of(truth), class_of(found), count)
    return Score(name, "", confusion, Boundary.none(count), objects, 0)


def by_hand(found: np.ndarray, truth: np.ndarray, number: int) -> tuple[float, ...]:
    """Dice, PQ, AP at 0.5 and over all thresholds of a class, by comparing all pairs."""
    ours, theirs = (
        [each == i for i in range(1, each.max() + 1) if class_of(np.array(i)) == number]
        for each in (found, truth)
    )
    overlaps = np.array([[(a & b).sum() / (a | b).sum() for b in theirs] for a in ours])
    hits = [(overlaps > limit).sum() for limit in np.arange(50, 100, 5) / 100]
    precision = [n / (len(ours) + len(theirs) - n) for n in hits]
    quality = 2 * overlaps[overlaps > 0.5].sum() / (len(ours) + len(theirs))
    one, other = class_of(found) == number, class_of(truth) == number
    dice = 2 * (one & other).sum() / (one.sum() + other.sum())
    return dice, quality, precision[0], np.mean(precision)


def test_means_are_those_of_the_images_that_have_objects():
    pairs = [(cells(seed, 0.01), cells(seed, 0.0)) for seed in range(6)]
    nothing = np.zeros((60, 70), int)
    scores = [scored(str(i), *pair) for i, pair in enumerate([*pairs, (nothing, nothing)])]
    classes = Classes(CLASSES, (1.0,) * 3, "px", 7 * 60 * 70)
    _, *rows = Result(classes, tuple(scores)).means()
    for number, row in enumerate(rows, start=1):
        assert (row["class_name"], row["images"]) == (CLASSES[number], 6)
        measures = [row[name] for name in ("dice", "pq", "ap_dsb2018_50", "ap_dsb2018")]
        expected = np.mean([by_hand(*pair, number) for pair in pairs], axis=0)
        assert measures == pytest.approx(expected)
        assert 0 < row["ap_dsb2018"] < row["ap_dsb2018_50"] < 1
