"""Content of compressed files, which has no random access.

Such content is unpacked once per process into a temporary file of the machine, which has no name
and so disappears with the process. The last few are kept for the next tiles and volumes of the same
file. Nothing is written beyond the size that the header of the image promises, so a small file
cannot fill the disk.
"""

from __future__ import annotations

import bz2
import os
import shutil
import tempfile
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from maskloom.segcore.errors import FormatError, ReadError, Unavailable
from maskloom.segcore.formats.source import store_failures

if TYPE_CHECKING:
    from maskloom.segcore.formats.source import StoredFile

Packing = Literal["", "deflate", "bzip2"]
"""How content is compressed: not at all, by gzip or zlib, or by bzip2."""

MOST_RATIO: dict[Packing, int] = {"": 1, "deflate": 1032, "bzip2": 2**21}
"""Largest ratio of unpacked to packed bytes: deflate's is known (zlib, Technical Details); a block
of bzip2 holds at most 46 MB of one repeated byte, in about 40 bytes.
"""
_EITHER = 47
"""zlib's number for content of gzip or zlib, told apart by its head."""
_GZIP = b"\x1f\x8b"
_CHUNK = 2**22
_HEAD = 2**16
"""Packed bytes that hold the header of any image."""
_SURPLUS = 2**20
"""Bytes that may follow those that the header promises."""
_KEPT = 2
"""Number of unpacked files that a process keeps."""


class _DamagedError(Exception):
    """Compressed content that cannot be unpacked; the reason."""


class ByteRanges(Protocol):
    """Random access to bytes."""

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Several ranges at once; those beyond the end are shorter."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LocalBytes:
    """The bytes of an open local file; threads may share it."""

    descriptor: int

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """See `ByteRanges`."""
        return [self._range(start, size) for start, size in zip(offsets, sizes, strict=True)]

    def _range(self, start: int, size: int) -> bytes:
        content = os.pread(self.descriptor, size, start)
        # The system may give less than asked for at a time.
        while 0 < len(content) < size:
            more = os.pread(self.descriptor, size - len(content), start + len(content))
            if not more:
                break
            content += more
        return content


@dataclass(frozen=True, slots=True)
class FileBytes:
    """The bytes of a local file, which is open during a read only."""

    path: str

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """See `ByteRanges`."""
        with Path(self.path).open("rb") as file:
            return LocalBytes(file.fileno()).get_byte_ranges(offsets, sizes)


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """The bytes of a file in a store."""

    source: StoredFile

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """See `ByteRanges`; object stores give the ranges at once. Raises `Unavailable`."""
        stops = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        with store_failures(self.source.location):
            paths = [self.source.path] * len(stops)
            found = self.source.store.cat_ranges(paths, list(offsets), stops, on_error="raise")
            return [bytes(each) for each in found]


def first_bytes(source: StoredFile, packing: Packing, size: int, start: int = 0) -> bytes:
    """The first bytes, at most `size`, of the unpacked content that begins at `start` in a file.
    Raises `FormatError` if it is damaged, and `Unavailable`.
    """
    stop = min(start + max(size, _HEAD), source.size())
    content = source.read(start, stop) if stop > start else b""
    if not packing:
        return content[:size]
    found = b""
    try:
        for part in _unpack([content], packing):
            found += part
            if len(found) >= size:
                break
    except _DamagedError as error:
        raise FormatError(
            f"{source.location} is damaged at its beginning: {error}. Copy it again."
        ) from error
    except EOFError:
        pass
    return found[:size]


_unpacked: OrderedDict[tuple[str, str, int, int], LocalBytes] = OrderedDict()
_one_at_a_time = threading.Lock()


def unpacked(
    source: StoredFile, version: str, packing: Packing, size: int, start: int = 0
) -> LocalBytes:
    """The first `size` bytes of the unpacked content that begins at `start` in a file.

    Raises `ReadError` if the content is damaged, or is shorter or much longer, and `Unavailable` if
    the store fails or the disk has no room.
    """
    key = (source.location, version, start, size)
    with _one_at_a_time:
        if key not in _unpacked:
            with tempfile.TemporaryFile() as file:
                _write(file, source, packing, size, start)
                held = LocalBytes(os.dup(file.fileno()))
            weakref.finalize(held, os.close, held.descriptor)
            _unpacked[key] = held
        _unpacked.move_to_end(key)
        # Readers that still use one keep it open.
        while len(_unpacked) > _KEPT:
            _unpacked.popitem(last=False)
        return _unpacked[key]


def _write(file: IO[bytes], source: StoredFile, packing: Packing, size: int, start: int) -> None:
    """Write the unpacked content into a file. Raises as `unpacked`."""
    room = shutil.disk_usage(tempfile.gettempdir()).free
    if room < size:
        raise Unavailable(_no_room(source, size, f"only {room} are free"))
    held = 0
    with source.stream() as stream:
        stream.seek(start)
        try:
            for content in _unpack(iter(lambda: stream.read(_CHUNK), b""), packing):
                file.write(content[: max(0, size - held)])
                held += len(content)
                if held > size + _SURPLUS:
                    break
            file.flush()
        except (_DamagedError, EOFError) as error:
            raise ReadError(
                f"{source.location} is damaged or cut off: of the {size} bytes that its header "
                f"promises, {held} can be unpacked ({error}). Copy it again."
            ) from error
        except OSError as error:
            raise Unavailable(_no_room(source, size, str(error))) from error
    if held < size:
        raise ReadError(
            f"{source.location} ends early: its header promises {size} bytes, unpacked it has "
            f"{held}. Copy it again."
        )
    if held > size + _SURPLUS:
        raise ReadError(
            f"{source.location} contradicts itself: its header promises {size} bytes, unpacked it "
            "has many more. Save it again with the program that made it."
        )


def _no_room(source: StoredFile, size: int, why: str) -> str:
    return (
        f"{source.location} needs {size} bytes in {tempfile.gettempdir()} to be unpacked: {why}. "
        "Make room there, or name another folder by the variable TMPDIR, then run the same command."
    )


def _unpack(chunks: Iterable[bytes], packing: Packing) -> Iterator[bytes]:
    """The unpacked content in pieces of bounded size. A file may consist of several members one
    after the other; what follows them, such as zeros, is ignored.

    Raises `_DamagedError`, and `EOFError` if the content ends within a member.
    """
    try:
        yield from (_unpack_bzip2 if packing == "bzip2" else _inflate)(chunks)
    except (zlib.error, OSError, ValueError) as error:
        raise _DamagedError(str(error)) from error


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decoder: Any = zlib.decompressobj(_EITHER)
    for chunk in chunks:
        rest = chunk
        while rest:
            if decoder is None:
                if not rest.startswith(_GZIP[: len(rest)]):
                    return
                decoder = zlib.decompressobj(_EITHER)
            yield decoder.decompress(rest, _CHUNK)
            if decoder.eof:
                rest, decoder = decoder.unused_data, None
            else:
                rest = decoder.unconsumed_tail
    if decoder is not None:
        yield decoder.flush()
        if not decoder.eof:
            raise EOFError("its end is missing")


def _unpack_bzip2(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decoder: bz2.BZ2Decompressor | None = bz2.BZ2Decompressor()
    for chunk in chunks:
        rest = chunk
        while rest or (decoder is not None and not decoder.needs_input):
            if decoder is None:
                if not rest.startswith(b"BZh"[: len(rest)]):
                    return
                decoder = bz2.BZ2Decompressor()
            yield decoder.decompress(rest, _CHUNK)
            rest = b""
            if decoder.eof:
                rest, decoder = decoder.unused_data, None
    if decoder is not None:
        raise EOFError("its end is missing")
