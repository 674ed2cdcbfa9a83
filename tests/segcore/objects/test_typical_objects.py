"""Typical sizes and scores of objects, from any parts of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.objects.typical_objects import TypicalCounts

SCORES = st.none() | st.floats(0, 1, width=32)
OBJECTS = st.tuples(st.sampled_from("ab"), st.integers(1, 9), SCORES)


@given(st.lists(st.lists(OBJECTS, max_size=6)))
def test_medians_of_parts_are_those_of_all(parts):
    counts = TypicalCounts()
    for part in parts:
        names, pixels, scores = zip(*part, strict=True) if part else ((), (), ())
        columns = [
            pa.array(names, pa.string()),
            pa.array(pixels, pa.int64()),
            pa.array(scores, pa.float32()),
        ]
        counts.add_rows(pa.table(columns, ["class_name", "pixel_count", "score"]))
    objects = [each for part in parts for each in part]
    sizes = {name: [n for each, n, _ in objects if each == name] for name in "ab"}
    assert counts.medians.sizes == {name: np.median(all_) for name, all_ in sizes.items() if all_}
    scores = {
        name: [s for each, _, s in objects if each == name and s is not None] for name in "ab"
    }
    known = {name: np.median(all_) for name, all_ in scores.items() if all_}
    assert counts.medians.scores == pytest.approx(known, abs=1e-4)
