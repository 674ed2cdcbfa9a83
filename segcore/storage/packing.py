"""Packing: the bytes in which one job leaves typed values for the next.

    pack, unpack       one value: a frozen dataclass with arrays, compressed as a whole
    PackedFile         many such strings of bytes in one staged file, read back piece by piece
    pack_table, ...    rows, as Arrow has them

A class whose values are packed is marked with `packable`. Its fields hold arrays, other packable
values, strings, numbers, None, and lists, tuples and mappings of these. The head of a packed value
is JSON: the value itself, where each array is replaced by its type and shape, and each packable
value by its fields and the name of its class. The arrays follow in that order as one block.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Sink, Store

T = TypeVar("T")

_LEVEL = 1
_HEAD = "<IQ"
"""Bytes of the head, and of the arrays before compression."""
_ARRAY, _CLASS, _MAPPING, _TUPLE = "array", "class", "mapping", "tuple"
"""Keys of the head's JSON objects, each of which has one."""
_PACKABLE: dict[str, type[Any]] = {}


def packable(kind: type[T]) -> type[T]:
    """A decorator of dataclasses whose values `pack` takes; their names must be unique."""
    if kind.__name__ in _PACKABLE:
        raise ValueError(f"two packable classes are called {kind.__name__}")
    _PACKABLE[kind.__name__] = kind
    return kind


def pack(value: Any) -> bytes:
    """The bytes from which `unpack` makes an equal value. Raises `TypeError` for other values."""
    import imagecodecs

    arrays: list[NDArray[Any]] = []
    head = json.dumps(_without_arrays(value, arrays)).encode()
    content = b"".join(array.tobytes() for array in arrays)
    return (
        struct.pack(_HEAD, len(head), len(content))
        + head
        + bytes(imagecodecs.zstd_encode(content, level=_LEVEL))
    )


def unpack(kind: type[T], data: bytes) -> T:
    """The value of class `kind` that `pack` made into these bytes; its arrays are read-only.

    Raises `ValueError` or `struct.error` for other bytes.
    """
    import imagecodecs

    length, size = struct.unpack_from(_HEAD, data)
    start = struct.calcsize(_HEAD)
    head = json.loads(data[start : start + length])
    content = bytes(imagecodecs.zstd_decode(data[start + length :], out=size)) if size else b""
    value = _with_arrays(head, _Arrays(content))
    if not isinstance(value, kind):
        raise ValueError(f"expected a packed {kind.__name__}, got a {type(value).__name__}")
    return value


def unpacked_size(data: bytes) -> int:
    """Number of bytes of the arrays of a packed value."""
    return int(struct.unpack_from(_HEAD, data)[1])


def _without_arrays(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """The value as JSON, its arrays moved to the list."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {_ARRAY: [value.dtype.str, value.shape]}
    if is_dataclass(value):
        name = type(value).__name__
        if _PACKABLE.get(name) is not type(value):
            raise TypeError(f"expected packable values, got a {name}")
        members = (_without_arrays(getattr(value, each.name), arrays) for each in fields(value))
        return {_CLASS: [name, *members]}
    if isinstance(value, Mapping):
        return {_MAPPING: {name: _without_arrays(item, arrays) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        items = [_without_arrays(item, arrays) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return value


class _Arrays:
    """Arrays, read one after the other from a block of bytes."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def read(self, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
        """The next array of this type and shape."""
        kind, count = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self._content, kind, count, self._at).reshape(shape)
        self._at += array.nbytes
        return array


def _with_arrays(head: Any, arrays: _Arrays) -> Any:
    """The value of which `_without_arrays` made this JSON."""
    if isinstance(head, list):
        return [_with_arrays(item, arrays) for item in head]
    if not isinstance(head, dict):
        return head
    ((what, content),) = head.items()
    if what == _ARRAY:
        return arrays.read(*content)
    if what == _CLASS:
        name, *members = content
        if name not in _PACKABLE:
            raise ValueError(f"there is no packable class {name}")
        return _PACKABLE[name](*(_with_arrays(item, arrays) for item in members))
    if what == _TUPLE:
        return tuple(_with_arrays(item, arrays) for item in content)
    return {name: _with_arrays(item, arrays) for name, item in content.items()}


def pack_table(table: pa.Table) -> bytes:
    """A table as `unpack_table` reads it back."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def unpack_table(data: bytes) -> pa.Table:
    """The table that `pack_table` packed."""
    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


@dataclass(frozen=True, slots=True)
class PackedFile:
    """The front of a staged file that holds strings of bytes, numbered within named sections."""

    name: str
    edges: Mapping[str, NDArray[np.int64]]
    """Where each string of a section starts in the file, and where the last one stops."""

    @staticmethod
    def write(sections: Mapping[str, Sequence[bytes]], out: Sink) -> None:
        """Write the sections one after the other behind an index."""
        index = json.dumps(
            {name: [len(blob) for blob in blobs] for name, blobs in sections.items()}
        ).encode()
        out.write(struct.pack("<Q", len(index)) + index)
        for blobs in sections.values():
            for blob in blobs:
                out.write(blob)

    @classmethod
    def open(cls, store: Store, name: str) -> PackedFile:
        """Read the index of a file that `write` wrote. Raises `FileNotFoundError`."""
        (length,) = struct.unpack("<Q", store.read(name, 0, 8))
        at, edges = 8 + length, {}
        for section, sizes in json.loads(store.read(name, 8, at)).items():
            edges[section] = np.cumsum([at, *sizes], dtype=np.int64)
            at = int(edges[section][-1])
        return cls(name, edges)

    def _places(self, section: str) -> Iterator[tuple[int, int]]:
        """Start and stop of each string of a section."""
        return pairwise(self.edges[section].tolist())

    def one(self, store: Store, section: str, number: int) -> bytes:
        """One string."""
        return store.read(self.name, *self.edges[section][number : number + 2].tolist())

    def all(self, store: Store, section: str) -> list[bytes]:
        """All strings of a section, read at once."""
        start, stop = self.edges[section][[0, -1]].tolist()
        if len(self.edges[section]) == 1:
            return []
        content = store.read(self.name, start, stop)
        return [content[a - start : b - start] for a, b in self._places(section)]

    def each(self, store: Store, section: str) -> Iterator[bytes]:
        """The strings of a section one after the other, from one opening of the file."""
        if len(self.edges[section]) == 1:
            return
        with store.open(self.name) as file:
            file.seek(int(self.edges[section][0]))
            for start, stop in self._places(section):
                yield file.read(stop - start)
