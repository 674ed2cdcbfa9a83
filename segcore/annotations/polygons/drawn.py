"""Cells of polygons that were drawn, for readers that open the same image again: training reads an
image in each epoch, and drawing its polygons takes as long as decoding its pixels.

Cells are kept compressed, some thousand bytes each, in the memory of the process; those that were
used last stay.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

_OVERHEAD = 500
"""Bytes that an entry takes beside its cell, about."""


@dataclass(frozen=True, slots=True)
class _Compressed:
    """The values of a cell, compressed."""

    content: bytes
    dtype: str
    shape: Shape


class DrawnCells:
    """Cells by key, up to a number of bytes. Safe for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._cells: OrderedDict[Hashable, _Compressed] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> NDArray[np.int64] | None:
        """The labels of a cell. None: it is not there."""
        with self._lock:
            found = self._cells.get(key)
            if found is None:
                return None
            self._cells.move_to_end(key)
        flat = np.frombuffer(zlib.decompress(found.content), found.dtype)
        return flat.astype(np.int64).reshape(found.shape)

    def put(self, key: Hashable, labels: NDArray[np.int64]) -> None:
        """Keep the labels of a cell (y, x)."""
        # The smallest type with a sign that holds all of them.
        dtype = np.min_scalar_type(min(int(labels.min()), -int(labels.max()) - 1))
        content = zlib.compress(labels.astype(dtype).tobytes(), 1)
        with self._lock:
            if key in self._cells:
                return
            self._cells[key] = _Compressed(content, dtype.str, labels.shape)
            self._bytes += len(content) + _OVERHEAD
            while self._bytes > self._most_bytes:
                _, oldest = self._cells.popitem(last=False)
                self._bytes -= len(oldest.content) + _OVERHEAD
