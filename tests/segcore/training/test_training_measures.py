"""What a training measures on its validation images is what `maskloom evaluate` finds on masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn import metrics

from maskloom.segcore.annotations.label_mapping import (
    VOID,
    LabelMapping,
    ValueRule,
    default_rules,
    parse_values,
)
from maskloom.segcore.annotations.metrics import Confusion
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.evaluation.scoring import EvaluatedImage, EvaluationOptions, Score, score
from maskloom.segcore.formats import describe
from maskloom.segcore.training import instances, semantic
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.instances import InstanceTask
from maskloom.segcore.training.labels import Index, Instances
from maskloom.segcore.training.pairs import Pair
from maskloom.segcore.training.sampling import PatchShape
from maskloom.segcore.training.scalings import Scalings
from maskloom.segcore.training.semantic import SemanticTask
from maskloom.segcore.training.setup import TrainingSetup

SIDE = 64
CLASSES = ("background", "cell")


def blobs(seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 3)
    return np.clip(128 + 1500 * field, 0, 255).astype(np.uint8)


def setup_of(folder: Path, truths: list[np.ndarray], kind: Any) -> TrainingSetup:
    """A training on blobs, with these masks."""
    pairs = []
    for i, truth in enumerate(truths):
        for name, pixels in (("image", blobs(i)), ("truth", truth)):
            Image.fromarray(pixels).save(folder / f"{name}{i}.png")
        files = (describe(str(folder / f"{name}{i}.png")) for name in ("image", "truth"))
        pairs.append(Pair(str(i), *files))
    recipe = SimpleNamespace(classes=CLASSES, training=SimpleNamespace(batch=2))
    numbers = tuple(range(len(truths)))
    return TrainingSetup(
        cast("Any", recipe),
        Dataset(pairs, kind.decoder(CLASSES), 64),
        cast("Any", None),
        Scalings(Scaling((0.0,), (1.0,))),
        numbers,
        numbers,
        PatchShape.square(SIDE),
        1,
    )


def evaluated(
    folder: Path, masks: list[np.ndarray], rules: list[ValueRule], objects: bool
) -> list[Score]:
    """The masks of a run, compared with the same truths."""
    options = EvaluationOptions(
        LabelMapping.of(rules, CLASSES), 2.0, (1,) if objects else (), numbered=objects
    )
    scores = []
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"mask{i}.png")
        names = (str(folder / f"{name}{i}.png") for name in ("mask", "truth"))
        image = EvaluatedImage(str(i), "none", *names, np.array([0, 1]), 1 if objects else VOID)
        scores.append(score(image, options))
    return scores


def test_pixels_are_counted_as_in_evaluation(tmp_path: Path) -> None:
    truths = [(blobs(i) > 140).astype(np.uint8) for i in range(2)]
    truths[0][:9], truths[1][20:30, 5:40] = 255, 255
    masks = [(blobs(i) > 128).astype(np.uint8) for i in range(2)]

    class Network:
        def predict_on_batch(self, pixels: np.ndarray) -> np.ndarray:
            return np.concatenate([128 - pixels, pixels - 128], axis=-1)

    setup = setup_of(tmp_path, truths, Index())
    measured = SemanticTask(setup).measure(Network(), None, lambda *_: None)
    void = ValueRule(255, 255, None)
    scores = evaluated(tmp_path, masks, [*default_rules(CLASSES, None), void], objects=False)
    confusion = scores[0].confusion + scores[1].confusion
    assert measured.record["iou"] == [pytest.approx(value, abs=1e-6) for value in confusion.iou]
    cell = measured.summary["classes"]["cell"]
    assert cell["dice"] == pytest.approx(confusion.dice[1], abs=1e-6)
    assert cell["pixels"] == confusion.truth[1]
    # Both agree with scikit-learn.
    known = np.stack(truths) != 255
    both = np.stack(truths)[known], np.stack(masks)[known]
    assert measured.score == pytest.approx(metrics.jaccard_score(*both, average="macro"))
    assert measured.summary["accuracy"] == pytest.approx((both[0] == both[1]).mean(), abs=1e-6)


def test_objects_are_matched_as_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truths = [ndimage.label(blobs(i) > 140)[0].astype(np.uint16) for i in range(3)]
    truths[1][:, 40:] = 9000
    masks = [ndimage.label(np.roll(blobs(i), 1, 0) > 138)[0].astype(np.uint16) for i in range(3)]

    @dataclass
    class Found:
        ids: np.ndarray

        @property
        def classes(self) -> np.ndarray:
            return np.ones(self.ids.max(), int)

        def paint(self, box: object) -> np.ndarray:
            return self.ids.astype(np.int32)

    waiting = iter(masks)
    finder = SimpleNamespace(detect=lambda pixels: Found(next(waiting)))
    monkeypatch.setattr(instances, "_detector", lambda trainer: finder)
    setup = setup_of(tmp_path, truths, Instances(void=9000))
    measured = InstanceTask(setup).measure(None, None, lambda *_: None)
    rules = [*parse_values(["0=background", "1..=cell"]), ValueRule(9000, 9000, None)]
    tallies = sum(
        each.objects.tallies[1, 0]  # type: ignore[union-attr]
        for each in evaluated(tmp_path, masks, rules, objects=True)
    )
    record = [measured.record[name] for name in ("found", "invented", "missed")]
    assert record == tallies.tolist()  # type: ignore[union-attr]
    assert min(record) > 0
    assert measured.score == pytest.approx(record[0] / sum(record))


def test_a_class_without_pixels_on_both_sides_does_not_count() -> None:
    confusion = Confusion(np.array([[5, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]))
    assert semantic._score(confusion) == 1
    summary = semantic._summary(confusion, ("a", "b", "c"))
    assert summary["classes"]["c"] == {
        "iou": None, "dice": None, "precision": None, "recall": None, "pixels": 0,
    }  # fmt: skip
    assert semantic._score(Confusion.none(2)) == 0
