"""Weights of classes and images in sampling, and folds of images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formats import describe
from maskloom.segcore.training.balance import chosen, class_rates, require_drawable, weighted
from maskloom.segcore.training.class_counts import ClassCounts, count_classes
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.labels import Index
from maskloom.segcore.training.pairs import Pair
from maskloom.segcore.training.recipe import Sampling
from maskloom.segcore.training.sampling import PatchShape, Sampler, SamplingOptions
from maskloom.segcore.training.scalings import Scalings
from maskloom.segcore.training.split import Split

CLASSES = ("soil", "crop", "weed")
IMAGES = [("a", "/x/a.png"), ("b", "/x/b.png"), ("c", "/y/c.png")]


def test_classes_and_images_are_drawn_as_often_as_is_wanted(tmp_path: Any) -> None:
    """Each image has one value, and each class one image of its own."""
    pairs = []
    for i, (name, _) in enumerate(IMAGES):
        for kind, value in (("image", 50 * i), ("mask", i)):
            Image.fromarray(np.full((40, 40), value, np.uint8)).save(tmp_path / f"{kind}{i}.png")
        specs = (describe(str(tmp_path / f"{kind}{i}.png")) for kind in ("image", "mask"))
        pairs.append(Pair(name, *specs))
    dataset = Dataset(pairs, Index().decoder(CLASSES), 64)
    found = count_classes(dataset, CLASSES, lambda *_: None)

    def drawn(wanted: Sampling, balance: float) -> Counter[int]:
        options = SamplingOptions(
            PatchShape.square(16), 300, balance, 3, (), class_rates(wanted, CLASSES)
        )
        counts = weighted(found, wanted, dataset.names)
        sampler = Sampler(dataset, counts, [0, 1, 2], Scalings(Scaling((0.0,), (1.0,))), options)
        return Counter((sampler.batch(0, 0).pixels[:, 0, 0, 0] // 50).astype(int).tolist())

    # 300 draws: five standard deviations are at most 43.
    alike = drawn(Sampling(), 1.0)
    assert all(abs(alike[i] - 100) < 43 for i in range(3))
    weeds = drawn(Sampling(classes={"weed": 4, "soil": 0}), 1.0)
    assert weeds[0] == 0
    assert abs(weeds[2] - 240) < 43
    images = drawn(Sampling(images={"*image1.png": 0, "*image2.png": 3}), 0.0)
    assert images[1] == 0
    assert abs(images[2] - 225) < 43


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Sampling(images={"z*": 2}), r"'z\*' matches none of the 3 images"),
        (Sampling(images={"a": 0, "b": 0}), "all training images .* have the weight 0"),
        (Sampling(classes={"soil": 0, "crop": 0}), "no class with a weight above 0 has a pixel"),
    ],
)
def test_nothing_to_draw_is_said(wanted: Sampling, message: str) -> None:
    # The third image, which alone has weeds, is not trained on.
    counts = ClassCounts(tuple(np.array([[each]]) for each in ([5, 3, 0], [4, 0, 0], [0, 0, 9])))
    with pytest.raises(RecipeError, match=message):
        require_drawable(counts, wanted, CLASSES, IMAGES, [0, 1])
    require_drawable(counts, Sampling(images={"/x/*": 0.5}), CLASSES, IMAGES, [0, 1])


@given(st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=1, max_size=6), st.integers(0, 99))
def test_what_has_no_share_is_never_chosen(rates: list[float], seed: int) -> None:
    shares = np.cumsum(rates)
    if shares[-1] > 0:
        random = np.random.default_rng(seed)
        assert all(rates[chosen(shares, random)] > 0 for _ in range(20))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(2, 6), st.integers(0, 99))
def test_folds_hold_each_image_once_and_keep_groups_together(
    groups: list[int], folds: int, seed: int
) -> None:
    names = [f"p{group}_{i}" for i, group in enumerate(groups)]
    split = Split(group=r"p\d+", folds=folds, seed=seed)
    if len(set(groups)) < folds:
        with pytest.raises(RecipeError, match=rf"split\.folds: {folds} folds need as many groups"):
            split.divide(names, names)
        return
    held = []
    for number, each in enumerate(split.each, 1):
        assert each == replace(split, fold=number)
        assert (each.each, each.all_folds) == ((each,), split.each)
        training, validation = each.divide(names, names)
        assert sorted(training + validation) == list(range(len(names)))
        assert not {groups[i] for i in training} & {groups[i] for i in validation}
        held.append(validation)
    assert sorted(i for fold in held for i in fold) == list(range(len(names)))
    # As even as the largest group allows.
    sizes = [len(fold) for fold in held]
    assert max(sizes) - min(sizes) <= max(Counter(groups).values())
    # A column of a list gives the same folds as a pattern of names.
    column = Split(group_column="plot", folds=folds, seed=seed, fold=2)
    plots = {name: f"p{group}" for name, group in zip(names, groups, strict=True)}
    assert column.divide(names, names, plots) == split.each[1].divide(names, names)


def test_images_without_a_group_are_named() -> None:
    split = Split(group_column="plot", folds=2)
    with pytest.raises(RecipeError, match=r"1 of 3 images have no 'plot' in the list, .*c"):
        split.divide("abc", "abc", {"a": "1", "b": "2"})
    with pytest.raises(RecipeError, match="2 folds need as many images; there is 1"):
        Split(folds=2).divide("a", "a")
