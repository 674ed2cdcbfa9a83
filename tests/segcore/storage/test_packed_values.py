"""What is packed comes back as it was, value by value and piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskloom.segcore.storage.packing import PackedFile, pack, packable, unpack
from maskloom.segcore.storage.store import Store


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Inner:
    values: np.ndarray
    name: str | None


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    content: Any


@dataclass(frozen=True)
class Stranger:
    value: int


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
array = arrays.arrays(
    st.sampled_from(["u1", "u2", "u4", "i8", "f4", "f8", "?"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
values = st.recursive(
    plain | array | st.builds(Inner, array, st.none() | st.text(max_size=3)),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=6), inside, max_size=3)
    ),
    max_leaves=8,
)


def equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and one.tobytes() == other.tobytes()
    if isinstance(one, Inner):
        return equal(one.values, other.values) and one.name == other.name
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(equal, one.values(), other.values()))
    return bool(one == other)


@settings(deadline=None)
@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert equal(unpack(Outer, pack(Outer(value))).content, value)


def test_layout_in_memory_does_not_matter() -> None:
    numbers = np.arange(24).reshape(4, 6)
    for each in (numbers.T, numbers[::2, 1::3], np.asfortranarray(numbers)):
        assert np.array_equal(unpack(Inner, pack(Inner(each, None))).values, each)


def test_what_is_read_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unpack(Inner, pack(Inner(np.zeros(3), None))).values[0] = 1


def test_only_packable_classes_are_packed_and_only_the_expected_one_is_read() -> None:
    with pytest.raises(TypeError, match="expected packable values, got a Stranger"):
        pack(Outer([Stranger(1)]))
    with pytest.raises(ValueError, match="expected a packed Inner, got a Outer"):
        unpack(Inner, pack(Outer(None)))
    unknown = pack(Outer(None)).replace(b"Outer", b"Other")
    with pytest.raises(ValueError, match="no packable class Other"):
        unpack(Outer, unknown)
    with pytest.raises(ValueError, match="two packable classes are called Inner"):
        packable(type("Inner", (), {}))


@given(sections=st.dictionaries(st.text(max_size=5), st.lists(st.binary(max_size=9), max_size=4)))
def test_files_are_read_piece_by_piece(
    sections: dict[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(str(tmp_path_factory.getbasetemp() / "packed"))
    with store.writing("staging/file") as out:
        PackedFile.write(sections, out)
    file = PackedFile.open(store, "staging/file")
    for name, blobs in sections.items():
        assert file.all(store, name) == list(file.each(store, name)) == blobs
        assert [file.one(store, name, i) for i in range(len(blobs))] == blobs


def test_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PackedFile.open(Store(str(tmp_path)), "staging/file")
