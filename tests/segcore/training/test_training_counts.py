"""What is counted in the masks before a training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training import class_counts
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


@pytest.mark.parametrize("listed", [2**20, 0])
def test_the_largest_object_is_measured_over_strips_and_pieces(tmp_path, monkeypatch, listed):
    monkeypatch.setattr(datasets, "_STRIP_PIXELS", 64)
    monkeypatch.setattr(class_counts, "_MOST_LISTED", listed)
    one, other = np.zeros((200, 30), np.uint16), np.zeros((70, 50), np.uint16)
    one[50:141, 5:9] = 60_000
    one[150:154, 2:14] = 7
    other[2, 4] = other[65, 44] = 9
    every = np.ones((10, 12), np.uint16)
    found = counts(tmp_path, Instances(), [one, other, every, np.zeros((8, 8), np.uint16)])
    assert found.largest == (91, 64, 12, 0)
    assert [each.largest for each in found.images] == [91, 64, 12, 0]
    assert (found.largest_side([1, 3]), found.largest_side([])) == (64, 0)


def test_masks_of_classes_tell_no_size(tmp_path):
    masks = [np.eye(9, dtype=np.uint8)]
    found = counts(tmp_path, Index(), masks)
    assert found.typical_sizes([0]) == {}
    with pytest.raises(ValueError, match="ids"):
        found.largest_side([0])


@pytest.mark.parametrize(("training", "warned"), [([0, 1], True), ([1], False)])
def test_a_score_on_images_of_training_gives_a_warning(training, warned):
    counts = ClassCounts((np.ones((1, 1, 2), np.int64),) * 2)
    warnings = require_labelled(counts, training, [0], ("soil", "weed"))
    assert any("split.validation" in each for each in warnings) == warned
