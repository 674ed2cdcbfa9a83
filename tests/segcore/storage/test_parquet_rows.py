"""Rows of a Parquet file by conditions: those of a filter of the whole table."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskloom.segcore.storage.parquet import matching_rows


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    "conditions",
    [
        [("image_id", "==", "b"), ("object_id", "==", 3)],
        [("image_id", "==", "b"), ("x0", "<=", 5), ("x1", ">", 5)],
        [("image_id", "==", "nowhere")],
    ],
)
def test_rows_are_those_of_the_filtered_table(conditions, statistics) -> None:
    draw = np.random.default_rng(0)
    x0 = draw.integers(0, 20, 300)
    table = pa.table(
        {
            "image_id": np.repeat(["a", "b", "c"], 100),
            "object_id": np.tile(np.arange(100), 3),
            "x0": pa.array(x0, mask=draw.random(300) < 0.1),
            "x1": x0 + draw.integers(1, 9, 300),
            "geometry": [b"x" * 50] * 300,
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=30, write_statistics=statistics)
    expected = table.filter(pq.filters_to_expression(conditions))
    groups: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def recorded(self, number, columns=None, **more):
        if "geometry" in columns:
            groups.append(number)
        return whole(self, number, columns, **more)

    with mock.patch.object(pq.ParquetFile, "read_row_group", recorded):
        found = matching_rows(file, conditions)
    assert found.equals(expected)
    numbered = table.append_column("row", pa.array(range(300)))
    rows = numbered.filter(pq.filters_to_expression(conditions))["row"].to_pylist()
    assert set(groups) == {row // 30 for row in rows}
    few = matching_rows(file, conditions, ("x1", "unknown"))
    assert few.equals(expected.select(["x1"]))
    assert not len(matching_rows(file, [("unknown", "==", 1)]))
