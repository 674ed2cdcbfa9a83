"""Typical sizes of objects, from any parts of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.objects.typical_sizes import TypicalSizes


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=6)))
def test_medians_of_parts_are_those_of_all(parts):
    sizes = TypicalSizes()
    for part in parts:
        names, pixels = zip(*part, strict=True) if part else ((), ())
        columns = [pa.array(names, pa.string()), pa.array(pixels, pa.int64())]
        sizes.add_rows(pa.table(columns, ["class_name", "pixel_count"]))
    of = {name: [n for part in parts for each, n in part if each == name] for name in "ab"}
    assert sizes.medians == {name: np.median(all_) for name, all_ in of.items() if all_}
