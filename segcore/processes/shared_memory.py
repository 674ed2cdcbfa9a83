"""Memory that several processes share."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


class SharedMemory:
    """Bytes that this process and its helpers (`segcore.processes.helpers`) see alike.

    It has no name that could be left behind: it lives as long as a process has it open. Memory is
    taken only for what has been written to. A pickled one opens the same bytes in a helper that was
    given its `descriptor`.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        # Not /dev/shm, which containers limit to 64 MB.
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("maskloom")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, size)
        self._bytes = mmap.mmap(self.descriptor, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.descriptor, self.size)

    def array(self, start: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array whose values are here."""
        return np.ndarray(shape, dtype, self._bytes, start)

    def view(self, start: int, size: int) -> memoryview:
        """Some of the bytes."""
        return memoryview(self._bytes)[start : start + size]

    def flag(self, place: int) -> bool:
        """Whether the byte at a place has been set by a process, which had written all that belongs
        to it before. By calls of the system, which keep that order.
        """
        return os.pread(self.descriptor, 1, place) == b"\1"

    def set_flag(self, place: int) -> None:
        """Set the byte at a place."""
        os.pwrite(self.descriptor, b"\1", place)

    def __del__(self) -> None:
        # Arrays keep the mapping, but need no descriptor.
        os.close(self.descriptor)


def _opened(descriptor: int, size: int) -> SharedMemory:
    opened = object.__new__(SharedMemory)
    opened.size, opened.descriptor = size, os.dup(descriptor)
    opened._bytes = mmap.mmap(descriptor, size)
    return opened
