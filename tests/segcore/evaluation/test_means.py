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


def scored(name: str, found: np.ndarray, truth: np.ndarray) -> Score:
    sides = [
        ImageObjects(ids := np.unique(each[each > 0]).astype(np.int64), np.ones(len(ids), np.int64))
        for each in (found, truth)
    ]
    objects = Matching.of(Overlaps.of(found, truth), *sides).counts(2)
    confusion = Confusion.of((truth > 0).astype(int), (found > 0).astype(int), 2)
    return Score(name, "", confusion, Boundary.none(2), objects, 0)


def by_hand(found: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """Dice, PQ, AP at 0.5 and over all thresholds, by comparing all pairs."""
    ours, theirs = ([each == i for i in range(1, each.max() + 1)] for each in (found, truth))
    overlaps = np.array([[(a & b).sum() / (a | b).sum() for b in theirs] for a in ours])
    hits = [(overlaps > limit).sum() for limit in np.arange(50, 100, 5) / 100]
    precision = [n / (len(ours) + len(theirs) - n) for n in hits]
    quality = 2 * overlaps[overlaps > 0.5].sum() / (len(ours) + len(theirs))
    dice = 2 * ((found > 0) & (truth > 0)).sum() / ((found > 0).sum() + (truth > 0).sum())
    return dice, quality, precision[0], np.mean(precision)


def test_means_are_those_of_the_images_that_have_objects():
    pairs = [(cells(seed, 0.03), cells(seed, 0.0)) for seed in range(3)]
    nothing = np.zeros((60, 70), int)
    scores = [scored(str(i), *pair) for i, pair in enumerate([*pairs, (nothing, nothing)])]
    classes = Classes(("background", "cell"), (1.0, 1.0), "px", 4 * 60 * 70)
    _, cell = Result(classes, tuple(scores)).means()
    assert (cell["class_name"], cell["images"]) == ("cell", 3)
    measures = [cell[name] for name in ("dice", "pq", "ap_dsb2018_50", "ap_dsb2018")]
    assert measures == pytest.approx(np.mean([by_hand(*pair) for pair in pairs], axis=0))
    assert 0 < cell["ap_dsb2018"] < cell["ap_dsb2018_50"] < 1
