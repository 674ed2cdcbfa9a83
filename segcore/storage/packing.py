"""Packing: what one job leaves to the next. Named arrays as one compressed string of bytes, and
many such strings in one staged file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Sink, Store

_LEVEL = 1


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as `unpack` reads them back."""
    import imagecodecs

    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sizes = [array.nbytes for array in plain.values()]
    head = json.dumps(
        [(name, array.dtype.str, array.shape) for name, array in plain.items()]
    ).encode()
    content = b"".join(array.tobytes() for array in plain.values())
    return (
        struct.pack("<IQ", len(head), sum(sizes))
        + head
        + bytes(imagecodecs.zstd_encode(content, level=_LEVEL))
    )


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays that `pack` packed; they cannot be written to."""
    import imagecodecs

    length, size = struct.unpack_from("<IQ", data)
    start = struct.calcsize("<IQ")
    head = json.loads(data[start : start + length])
    content = imagecodecs.zstd_decode(data[start + length :], out=size) if size else b""
    arrays, at = {}, 0
    for name, dtype, shape in head:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(content, kind, count, at).reshape(shape)
        at += count * kind.itemsize
    return arrays


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
class Blobs:
    """The front of a staged file that holds strings of bytes, numbered within groups."""

    name: str
    places: Mapping[str, Sequence[tuple[int, int]]]
    """Start and stop of each string in the file."""

    @staticmethod
    def dump(groups: Mapping[str, Sequence[bytes]], out: Sink) -> None:
        """Write groups of strings, one group after the other, behind an index."""
        index = json.dumps(
            {group: [len(blob) for blob in blobs] for group, blobs in groups.items()}
        ).encode()
        out.write(struct.pack("<Q", len(index)) + index)
        for blobs in groups.values():
            for blob in blobs:
                out.write(blob)

    @classmethod
    def load(cls, store: Store, name: str) -> Blobs:
        """Read the index of a file that `dump` wrote. Raises `FileNotFoundError`."""
        (length,) = struct.unpack("<Q", store.read(name, 0, 8))
        at, places = 8 + length, {}
        for group, sizes in json.loads(store.read(name, 8, at)).items():
            stops = np.cumsum([at, *sizes]).tolist()
            places[group] = list(pairwise(stops))
            at = stops[-1]
        return cls(name, places)

    def get(self, store: Store, group: str, number: int) -> bytes:
        """One string."""
        return store.read(self.name, *self.places[group][number])

    def group(self, store: Store, group: str) -> list[bytes]:
        """All strings of a group, read at once."""
        places = self.places[group]
        if not places:
            return []
        start = places[0][0]
        content = store.read(self.name, start, places[-1][1])
        return [content[a - start : b - start] for a, b in places]
