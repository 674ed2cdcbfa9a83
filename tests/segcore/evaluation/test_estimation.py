"""Accuracy from samples: the published example, brute force, and what a census says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.evaluation.areas import NORMAL_95, estimate_areas
from maskloom.segcore.evaluation.estimation import (
    Sample,
    allocated,
    estimate,
    planned_size,
)

CLASSES = ("deforestation", "forest gain", "stable forest", "stable non-forest")
SIZES = dict(zip(CLASSES, (200_000, 150_000, 3_200_000, 6_450_000), strict=True))
COUNTS = ((66, 0, 5, 4), (0, 55, 8, 12), (1, 0, 153, 11), (2, 1, 9, 313))
"""Olofsson et al. (2014), table 8: rows are the map, columns the reference."""


def of_matrix(counts: tuple[tuple[int, ...], ...], classes: tuple[str, ...]) -> list[Sample]:
    """Samples whose strata are the classes of the map."""
    return [
        Sample(row, row, column)
        for row, of_row in zip(classes, counts, strict=True)
        for column, count in zip(classes, of_row, strict=True)
        for _ in range(count)
    ]


def test_the_example_of_olofsson_et_al() -> None:
    found = estimate(SIZES, of_matrix(COUNTS, CLASSES), CLASSES)
    first = found.classes[0]
    assert round(first.area.value) == 235_086
    assert round(first.area.half) == 68_418
    hectares = first.area.times(0.09)  # pixels of 30 m
    assert (round(hectares.value), round(hectares.half)) == (21_158, 6_158)
    assert round(found.overall.value, 3) == 0.947
    assert round(found.overall.half, 3) == 0.018
    # Where the strata are the classes, their formulas 5 to 7 are special cases.
    theirs = estimate_areas(np.array(COUNTS), np.array(list(SIZES.values()), float))
    assert theirs is not None
    for ours, name in (("users", "users"), ("producers", "producers")):
        figures = [getattr(each, ours) for each in found.classes]
        np.testing.assert_allclose([each.value for each in figures], getattr(theirs, name))
        np.testing.assert_allclose(
            [each.standard_error for each in figures], getattr(theirs, f"{name}_error")
        )
    assert np.sum(found.matrix) == pytest.approx(1)
    assert found.counts == COUNTS


def test_strata_that_are_not_the_classes() -> None:
    """Stehman (2014), section 4: a hypothetical sample of 40 pixels in strata A to D."""
    sizes = {"A": 40_000, "B": 30_000, "C": 20_000, "D": 10_000}
    rows = {
        "A": ["AA"] * 5 + ["AB"] + ["BA"] + ["BB"] * 2 + ["CC"],
        "B": ["AA"] + ["BB"] * 6 + ["BA"] + ["BC"] + ["BB"],
        "C": ["CC"] * 5 + ["BB"] * 2 + ["BC"] + ["CB"] + ["DD"],
        "D": ["DD"] * 7 + ["DC"] + ["CC"] + ["BB"],
    }
    samples = [Sample(stratum, each[0], each[1]) for stratum, of in rows.items() for each in of]
    found = estimate(sizes, samples, "ABCD")
    assert found.overall.value == pytest.approx(
        sum(sizes[s] * np.mean([e[0] == e[1] for e in of]) for s, of in rows.items()) / 100_000
    )
    # The variance of a ratio by resampling: the linearised one is right to a few per cent.
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        chosen = {s: rng.choice(len(of), len(of)) for s, of in rows.items()}
        right = sum(
            sizes[s] * np.mean([rows[s][i] == "BB" for i in of]) for s, of in chosen.items()
        )
        mapped = sum(
            sizes[s] * np.mean([rows[s][i][0] == "B" for i in of]) for s, of in chosen.items()
        )
        drawn.append(right / mapped)
    # Resampling 10 of 10 gives 9/10 of the variance.
    bootstrap = np.std(drawn) * math.sqrt(10 / 9)
    assert found.classes[1].users.standard_error == pytest.approx(bootstrap, rel=0.06)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    mapped = rng.choice(2, 40_000, p=[0.9, 0.1])
    truth = np.where(rng.random(40_000) < 0.1, 1 - mapped, mapped)
    sizes = {"0": int((mapped == 0).sum()), "1": int((mapped == 1).sum())}
    held = 0
    for _ in range(400):
        places = [rng.choice(np.flatnonzero(mapped == label), 80, False) for label in (0, 1)]
        samples = [
            Sample(str(mapped[i]), str(mapped[i]), str(truth[i])) for of in places for i in of
        ]
        area = estimate(sizes, samples, "01").classes[1].area
        held += abs(area.value - truth.sum()) <= area.half
    assert 0.91 < held / 400 < 0.985


def test_a_census_is_exact() -> None:
    labels = list(itertools.product("AB", "AB", (1.0, 2.5)))
    samples = [Sample(m, m, r, a) for m, r, a in labels]
    found = estimate({"A": 4, "B": 4}, samples, "AB")
    assert found.classes[0].area.value == pytest.approx(2 * (1 + 2.5))
    assert found.overall.value == 0.5


def test_what_cannot_be_said_is_not_a_number() -> None:
    found = estimate({"A": 10, "B": 5}, [Sample("A", "A", "A")] * 3 + [Sample("B", "B", "A")], "AB")
    assert math.isnan(found.classes[1].producers.value)
    assert math.isnan(found.overall.standard_error)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"A": 10, "B": 5}, "stratum 'B' has 5 pixels and no labelled sample"),
        ({"B": 5}, "in stratum 'A', which has no pixels"),
    ],
)
def test_strata_and_samples_must_fit(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        estimate(sizes, [Sample("A", "A", "A")] * 2, "AB")


def test_a_sample_of_the_planned_size_has_the_wanted_interval() -> None:
    accuracies = dict(zip(CLASSES, (0.7, 0.6, 0.9, 0.95), strict=True))
    # Olofsson et al. (2014), section 5.1.1: a standard error of 0.01 takes 641 samples.
    assert planned_size(SIZES, accuracies, NORMAL_95 * 0.01) == 641
    shares = allocated(SIZES, 641, 75)
    assert shares["deforestation"] == shares["forest gain"] == 75
    assert sum(shares.values()) == 641
