"""Access to the bytes of a file in any store, for readers.

`StoredFile` is a file in a store. C libraries that need a file object get `Ranges`, which reads
only the requested parts, through a bounded cache. An exception cannot pass through a C library, so
`Ranges` stores it and returns no bytes; the caller of the library checks `failures` afterwards.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import FormatError, MaskloomError, Unavailable
from maskloom.segcore.storage.addresses import redacted, without_query
from maskloom.segcore.storage.filesystems import filesystem, info_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fsspec import AbstractFileSystem

HEAD_BYTES = 512
"""Number of bytes at the start of a file that identify its content."""
MAX_PICTURE_PIXELS = 2**28
"""Largest number of pixels that are decoded at once: of a picture, or of one block of a TIFF."""
MAX_PIXELS = 2**40
"""Largest number of pixels of one image; a header alone can claim any number."""
MAX_BANDS = 4096
_BLOCK_BYTES = 2**18
_CACHED_BLOCKS = 32


@dataclass(slots=True)
class StoredFile:
    """A file in a store."""

    location: str
    """fsspec URI or absolute local path."""
    store: AbstractFileSystem
    path: str
    """Path in the store."""
    blocks: dict[int, bytes] = field(default_factory=dict, repr=False)
    """Cached bytes, common to all `Ranges` of this file."""
    _size: int | None = field(default=None, repr=False)

    @classmethod
    def of(cls, location: str) -> StoredFile:
        """The file at a location. Raises `StoreError` for an unknown protocol."""
        return cls(location, *filesystem(location))

    @property
    def local_path(self) -> str | None:
        """The path for C libraries that open the file themselves; None if the bytes must come
        through fsspec.
        """
        # Names that are not UTF-8 have surrogates, which cannot be passed to GDAL.
        return self.path if self._is_local and self.path.isprintable() else None

    @property
    def _is_local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self.store, LocalFileSystem)

    def size(self) -> int:
        """Size in bytes; the store is asked once. Raises `FormatError` if it is not a file, and
        `Unavailable`.
        """
        if self._size is not None:
            return self._size
        with store_failures(self.location):
            info = info_of(self.store, self.path)
        if info.get("type", "file") != "file" or info.get("size") is None:
            raise FormatError(
                f"{self.location} is no regular file of known size but a {info.get('type')}. Leave "
                "it out of `inputs`."
            )
        self._size = int(info["size"])
        return self._size

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """A range of its bytes. Raises `Unavailable`."""
        with store_failures(self.location):
            if self._is_local:
                # A plan reads the heads of a million files; fsspec needs three times as long.
                with self._opened() as file:
                    file.seek(start)
                    return file.read(-1 if stop is None else stop - start)
            return _cut(bytes(self.store.cat_file(self.path, start=start, end=stop)), start, stop)

    def _opened(self) -> BufferedReader:
        """The local file."""
        return BufferedReader(FileIO(self.path))

    def read_ranges(self, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Several ranges of its bytes, which object stores give in parallel. Raises
        `Unavailable`.
        """
        stops = [start + size for start, size in zip(starts, sizes, strict=True)]
        with store_failures(self.location):
            paths = [self.path] * len(stops)
            parts = self.store.cat_ranges(paths, list(starts), stops, on_error="raise")
            return [
                _cut(bytes(part), start, stop)
                for part, start, stop in zip(parts, starts, stops, strict=True)
            ]

    def head(self) -> bytes:
        """Its first `HEAD_BYTES`. Raises `FormatError` if it is not a file, and `Unavailable`."""
        # Some stores reject a range of an empty file.
        size = min(self.size(), HEAD_BYTES)
        return self.read(0, size) if size else b""

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """Its bytes as a seekable file for libraries. Raises `Unavailable` at the end of the block
        if the store failed.
        """
        if self.local_path is not None:
            with self._opened() as file:
                yield file
            return
        ranges = Ranges(self)
        try:
            yield ranges
        finally:
            # To the library, a store's failure looks like a broken file.
            if ranges.failures:
                raise ranges.failures[0]

    def beside(self, path: str) -> StoredFile | None:
        """Another regular file of the same store, if it exists. Raises `Unavailable`."""
        if without_query(self.path) != self.path:
            # The query of a URL belongs to one file; a server that ignores it would return the
            # image itself.
            return None
        with store_failures(self.location):
            return StoredFile(path, self.store, path) if self.store.isfile(path) else None


def _cut(data: bytes, start: int, stop: int | None) -> bytes:
    """The bytes that were asked for, of an answer that may be the whole file: some web servers give
    no ranges. C libraries would write a longer answer beyond their memory.
    """
    return data if stop is None or len(data) <= stop - start else data[start:stop]


@contextlib.contextmanager
def store_failures(location: str) -> Iterator[None]:
    """Turn any error of a store for this location into `Unavailable`."""
    try:
        yield
    except MaskloomError:
        raise
    # The errors of client libraries (botocore, aiohttp, google ...) have no common base class.
    except Exception as error:
        raise Unavailable(
            f"{location} could not be read from its store: "
            f"{redacted(str(error)) or type(error).__name__}"
        ) from error


@dataclass(slots=True, eq=False)
class Ranges:
    """A stored file as a file object for C libraries. Memory is bounded; failures are stored, not
    raised.
    """

    source: StoredFile
    failures: list[Unavailable] = field(default_factory=list)
    size: int = field(init=False)
    _position: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.size = self.source.size()

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the cached bytes."""
        self.source.blocks.clear()

    def seekable(self) -> bool:
        """Any position can be read; `zipfile` asks."""
        return True

    def tell(self) -> int:
        """Position of the next byte that `read` returns."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position relative to the start (0), the current position (1) or the end (2)."""
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes; fewer at the end of the file, none after a failure."""
        start = min(self._position, self.size)
        stop = self.size if size < 0 else min(start + size, self.size)
        try:
            data = (
                self._cached(start, stop)
                if stop - start <= _BLOCK_BYTES
                else self.source.read(start, stop)
            )
        except Unavailable as error:
            self.failures.append(error)
            return b""
        self._position = start + len(data)
        return data

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Several ranges at once, which object stores fetch in parallel. GDAL calls this for the
        blocks of a window.
        """
        try:
            return self.source.read_ranges(offsets, sizes)
        except Unavailable as error:
            self.failures.append(error)
            return [b""] * len(offsets)

    def _cached(self, start: int, stop: int) -> bytes:
        first, last = start // _BLOCK_BYTES, max(start, stop - 1) // _BLOCK_BYTES
        joined = (
            b"".join(self._block(number) for number in range(first, last + 1))
            if stop > start
            else b""
        )
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        blocks = self.source.blocks
        block = blocks.pop(number, None)
        if block is None:
            block = self.source.read(
                number * _BLOCK_BYTES, min((number + 1) * _BLOCK_BYTES, self.size)
            )
        # The dictionary is in order of use: drop the oldest.
        blocks[number] = block
        if len(blocks) > _CACHED_BLOCKS:
            del blocks[next(iter(blocks))]
        return block


def silence(category: type[Warning], module: str = "") -> None:
    """Ignore a library's warnings about unusual files, whose faults we report ourselves.

    The filter is permanent and applies to the whole process: `warnings.catch_warnings` would race
    with other threads.
    """
    for action, _, known, known_module, _ in warnings.filters:
        if action != "ignore":
            break
        if known is category and getattr(known_module, "pattern", "") == module:
            return
    warnings.filterwarnings("ignore", category=category, module=module)
