"""Error-adjusted areas: the worked example of Olofsson et al. 2014, and relations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskloom.segcore.evaluation.areas import NORMAL_95, estimate_areas

# Table 8 of the paper: 640 sampled pixels by class of the map (rows) and of the reference; pixels
# mapped; 30 m pixels.
SAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED = np.array([200_000.0, 150_000, 3_200_000, 6_450_000])
HECTARES = 0.09


def test_the_example_of_the_paper() -> None:
    found = estimate_areas(SAMPLE, MAPPED)
    assert found is not None
    assert round(found.adjusted[0]) == 235_086
    assert round(NORMAL_95 * found.error[0]) == 68_418
    assert round(found.adjusted[0] * HECTARES) == 21_158
    assert round(NORMAL_95 * found.error[0] * HECTARES) == 6_158
    assert round(found.accuracy, 3) == 0.947
    assert round(NORMAL_95 * found.accuracy_error, 2) == 0.02
    np.testing.assert_allclose(found.users, [66 / 75, 55 / 75, 153 / 165, 313 / 325])


def test_standard_errors_are_the_spread_over_many_samples() -> None:
    random = np.random.default_rng(3)
    expected = estimate_areas(SAMPLE * 10, MAPPED)
    assert expected is not None
    sizes = SAMPLE.sum(axis=1) * 10
    drawn = [
        estimate_areas(
            np.array(
                [
                    random.multinomial(n, row / row.sum())
                    for n, row in zip(sizes, SAMPLE, strict=True)
                ]
            ),
            MAPPED,
        )
        for _ in range(3000)
    ]
    for measure, error in (
        ("adjusted", "error"),
        ("users", "users_error"),
        ("producers", "producers_error"),
    ):
        spread = np.std([getattr(each, measure) for each in drawn], axis=0)
        np.testing.assert_allclose(getattr(expected, error), spread, rtol=0.1)
    assert expected.accuracy_error == pytest.approx(
        np.std([each.accuracy for each in drawn]), rel=0.1
    )  # type: ignore[union-attr]


@given(
    arrays(np.int64, (3, 3), elements=st.integers(0, 40)),
    arrays(np.float64, 3, elements=st.floats(1, 1e6)),
)
def test_agrees_with_the_equations_written_out(sample: np.ndarray, mapped: np.ndarray) -> None:
    """Equations 5 to 11 of the paper, one sum after another."""
    sample = sample + 2 * np.eye(3, dtype=int)
    found = estimate_areas(sample, mapped)
    assert found is not None
    n, whole, classes = sample.sum(axis=1), mapped.sum(), range(3)
    assert found.accuracy == pytest.approx(
        sum(mapped[i] / whole * sample[i, i] / n[i] for i in classes)
    )
    right = [sample[i, i] / n[i] for i in classes]
    spread = sum((mapped[i] / whole) ** 2 * right[i] * (1 - right[i]) / (n[i] - 1) for i in classes)
    assert found.accuracy_error == pytest.approx(spread**0.5)
    for k in classes:
        cells = [mapped[i] / whole * sample[i, k] / n[i] for i in classes]
        assert found.adjusted[k] == pytest.approx(whole * sum(cells))
        inside = [
            (mapped[i] / whole * sample[i, k] / n[i] - cells[i] ** 2 / (mapped[i] / whole))
            for i in classes
        ]
        spread = sum(mapped[i] / whole * inside[i] / (n[i] - 1) for i in classes)
        assert found.error[k] == pytest.approx(whole * max(0, spread) ** 0.5, abs=whole * 1e-7)
        assert found.users[k] == pytest.approx(right[k])
        assert found.users_error[k] == pytest.approx(
            (right[k] * (1 - right[k]) / (n[k] - 1)) ** 0.5
        )
        producers = cells[k] / sum(cells)
        assert found.producers[k] == pytest.approx(producers)
        own = mapped[k] ** 2 * (1 - producers) ** 2 * right[k] * (1 - right[k]) / (n[k] - 1)
        others = sum(
            mapped[i] ** 2 * sample[i, k] / n[i] * (1 - sample[i, k] / n[i]) / (n[i] - 1)
            for i in classes
            if i != k
        )
        expected = (own + producers**2 * others) ** 0.5 / (whole * sum(cells))
        assert found.producers_error[k] == pytest.approx(expected, abs=1e-7)


def test_areas_add_up_to_the_map_and_do_not_depend_on_the_unit() -> None:
    found, hectares = estimate_areas(SAMPLE, MAPPED), estimate_areas(SAMPLE, MAPPED * HECTARES)
    assert found is not None
    assert hectares is not None
    assert found.adjusted.sum() == pytest.approx(MAPPED.sum())
    np.testing.assert_allclose(hectares.error, found.error * HECTARES)


def test_intervals_hold_what_they_promise() -> None:
    """Of many samples drawn at random, about 95 % of the intervals hold the true area."""
    random = np.random.default_rng(5)
    truth = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.02, 0.08, 0.9]])
    mapped = np.array([1e5, 4e5, 2e6])
    area = mapped @ truth
    inside = 0
    for _ in range(400):
        sample = np.array([random.multinomial(120, row) for row in truth])
        found = estimate_areas(sample, mapped)
        assert found is not None
        inside += np.mean(np.abs(found.adjusted - area) <= NORMAL_95 * found.error)
    assert 0.92 < inside / 400 < 0.98


def test_where_nothing_is_known_nothing_is_said() -> None:
    unseen = SAMPLE.copy()
    unseen[1] = 0
    assert estimate_areas(unseen, MAPPED) is None
    # A class that is not mapped need not be sampled.
    found = estimate_areas(unseen, MAPPED * [1, 0, 1, 1])
    assert found is not None
    assert np.isfinite(found.adjusted).all()
    # A sample of one tells a share, and nothing of its error.
    single = estimate_areas(np.array([[1, 0], [3, 7]]), np.array([10.0, 90]))
    assert single is not None
    assert np.isfinite(single.adjusted).all()
    assert np.isnan(single.error).all()
    assert estimate_areas(np.zeros((2, 2), int), np.zeros(2)) is None
