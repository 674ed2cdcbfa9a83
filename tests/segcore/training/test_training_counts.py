"""What is counted in the masks before a training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training import dataset as datasets
from maskloom.segcore.training.class_counts import ClassCounts, count_classes, require_labelled
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.labels import Index, Instances
from maskloom.segcore.training.pairs import Pair

CLASSES = ("background", "cell")


def counts(folder, labels, masks):
    pairs = []
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(path := folder / f"{number}.png")
        spec = FORMATS["picture"].describe(str(path), "1")
        pairs.append(Pair(str(number), spec, spec))
    return count_classes(Dataset(pairs, labels.decoder(CLASSES), 64), CLASSES, lambda *_: None)


def test_the_typical_size_of_objects_is_their_median_whatever_the_strips(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_STRIP_PIXELS", 64)
    random = np.random.default_rng(0)
    masks = [np.kron(random.integers(0, n, (20, 3)), np.ones((9, 9), int)) for n in (6, 30)]
    masks = [mask.astype(np.uint16) for mask in (*masks, np.zeros((200, 9)))]
    found = counts(tmp_path, Instances(), masks)
    medians = [np.median(np.unique(m[m > 0], return_counts=True)[1]) for m in masks[:2]]
    assert found.typical_sizes([0, 1, 2]) == {1: (min(medians), max(medians))}
    assert found.typical_sizes([1, 2]) == {1: (medians[1], medians[1])}
    assert found.typical_sizes([2]) == {}


def test_masks_of_classes_tell_no_size(tmp_path):
    masks = [np.eye(9, dtype=np.uint8)]
    assert counts(tmp_path, Index(), masks).typical_sizes([0]) == {}


@pytest.mark.parametrize(("training", "warned"), [([0, 1], True), ([1], False)])
def test_a_score_on_images_of_training_gives_a_warning(training, warned):
    counts = ClassCounts((np.ones((1, 1, 2), np.int64),) * 2)
    warnings = require_labelled(counts, training, [0], ("soil", "weed"))
    assert any("split.validation" in each for each in warnings) == warned
