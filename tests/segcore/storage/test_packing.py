"""What one job leaves to the next comes back as it was."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskloom.segcore.storage.packing import PackedFile, pack, pack_table, unpack, unpack_table
from maskloom.segcore.storage.store import Store

arrays = hnp.arrays(
    st.sampled_from(["uint8", "uint16", "uint32", "int64", "float32", "bool"]),
    hnp.array_shapes(max_dims=3, min_side=0, max_side=9),
)


@given(st.dictionaries(st.text(max_size=9), arrays, max_size=4))
def test_arrays_come_back_with_their_names_types_and_shapes(given):
    found = unpack(dict, pack(given))

    assert list(found) == list(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert not found[name].flags.writeable


def test_arrays_that_are_views_come_back_too():
    whole = np.arange(60).reshape(6, 10)
    view = whole[::2, ::-3].T
    np.testing.assert_array_equal(unpack(dict, pack({"a": view}))["a"], view)


def test_labels_take_little_room():
    labels = np.repeat(np.arange(50, dtype=np.uint32), 2000)
    assert len(pack({"labels": labels})) < labels.nbytes / 100


def test_tables_come_back():
    table = pa.table({"id": [1, 2], "outline": pa.array([b"\x01", None], pa.binary())})
    for each in (table, table.slice(0, 0)):
        assert unpack_table(pack_table(each)).equals(each)


@pytest.fixture
def store():
    return Store(f"memory://packing-{uuid.uuid4().hex}")


def test_strings_of_a_staged_file_are_read_alone_or_by_group(store):
    groups = {"seam": [b"one", b"", b"three"], "none": [], "body": [b"x" * 1000, b"y"]}
    with store.writing("a.blobs") as out:
        PackedFile.write(groups, out)

    loaded = PackedFile.open(store, "a.blobs")

    for name, blobs in groups.items():
        assert loaded.all(store, name) == list(loaded.each(store, name)) == blobs
        assert [loaded.one(store, name, i) for i in range(len(blobs))] == blobs


def test_a_staged_file_that_is_gone_is_a_missing_file(store):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PackedFile.open(store, "nowhere")
