"""Histograms of parts add up to NumPy's histogram of the whole."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from maskloom.segcore.methods.histogram import COUNTED_RANGE, Bins, ValueCounts


def everywhere(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape, bool)


@given(
    st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "int64", "uint64"]).flatmap(
        lambda kind: stn.arrays(
            kind, st.integers(1, 60), elements=st.integers(0 if kind[0] == "u" else -99, 99)
        )
    ),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_parts_make_the_whole(values: np.ndarray, cuts: list[int]) -> None:
    parts = [ValueCounts.of(part, everywhere(part)) for part in np.split(values, sorted(cuts))]
    for order in (parts, parts[::-1]):
        total = reduce(ValueCounts.merge, order)
        assert (total.pixels, total.low, total.high) == (values.size, values.min(), values.max())
        if values.dtype != np.uint64:
            distinct, counts = np.unique(values, return_counts=True)
            assert total.counts is not None
            assert np.array_equal(np.flatnonzero(total.counts) + total.low, distinct)
            assert np.array_equal(total.counts[total.counts > 0], counts)


def test_wide_ranges_and_floats_are_not_counted_in_any_order() -> None:
    near, far = np.array([0, 5], "int32"), np.array([COUNTED_RANGE], "int32")
    real = np.array([1.5], "float32")
    for other in (far, real):
        a, b, c = (ValueCounts.of(part, everywhere(part)) for part in (near, other, near))
        assert a.merge(b).merge(c).counts is None
        assert a.merge(c).merge(b).counts is None
        assert a.merge(c).counts is not None
    assert (
        ValueCounts.of(near, everywhere(near)).merge(ValueCounts.of(real, everywhere(real))).dtype
        == "float64"
    )


def test_masked_and_infinite_values_do_not_count() -> None:
    values = np.array([1.0, np.inf, -np.inf, 3.0, 99.0])
    seen = ValueCounts.of(values, np.array([True, True, True, True, False]))
    assert (seen.pixels, seen.low, seen.high) == (2, 1.0, 3.0)
    assert ValueCounts.of(values, np.zeros(5, bool)).pixels == 0


@given(
    st.sampled_from(["float32", "float64"]).flatmap(
        lambda kind: stn.arrays(
            kind,
            st.integers(2, 80),
            elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
        )
    ),
    st.sampled_from([5, 256]),
)
def test_bins_are_numpys(values: np.ndarray, number: int) -> None:
    if np.ptp(values) < 1e-3:
        return
    bins = Bins(values.min().item(), values.max().item(), number, values.dtype.name)
    counts, edges = np.histogram(values, number)
    assert np.array_equal(bins.edges, edges)
    assert np.array_equal(bins.count(values, everywhere(values)), counts)


def test_values_on_edges_fall_where_numpy_puts_them() -> None:
    edges = Bins(-0.3, 0.7, 256, "float32").edges
    values = np.concatenate(
        [edges, np.nextafter(edges[1:], np.float32(-9)), np.nextafter(edges[:-1], np.float32(9))]
    )
    bins = Bins(values.min().item(), values.max().item(), 256, "float32")
    assert np.array_equal(bins.count(values, everywhere(values)), np.histogram(values, 256)[0])
    assert bins.count(values, everywhere(values)).sum() == values.size


@pytest.mark.parametrize("kind", ["bool", "float16"])
def test_values_of_other_types_are_counted(kind: str) -> None:
    values = np.array([0, 1, 1], kind)
    assert ValueCounts.of(values, everywhere(values)).pixels == 3
