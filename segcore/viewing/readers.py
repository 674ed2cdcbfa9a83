"""Open readers that threads share, and room for what they read."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import open_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import RasterSpec

MOST = 4
"""Most open readers of a level."""
_HELD = 2**28
"""Bytes from which on pixels are in a file."""

Kind = Literal["source", "mask"]
Pixels = tuple["NDArray[Any]", "NDArray[np.bool_]"]


@dataclass(slots=True)
class Readers:
    """Open readers of an image. A reader is for one thread at a time, so threads borrow one."""

    opened: Callable[[], Any]
    most: int = MOST
    _free: list[Any] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _places: threading.Semaphore = field(init=False)
    _closed: bool = False

    def __post_init__(self) -> None:
        self._places = threading.Semaphore(self.most)

    def read(self, box: Box) -> Pixels:
        """See `segcore.raster.spec.Reader.read`. A reader that fails is not used again."""
        with self._places:
            with self._lock:
                reader = self._free.pop() if self._free else None
            if reader is None:
                reader = self.opened()
                reader.__enter__()
            try:
                found: Pixels = reader.read(box)
            except BaseException:
                reader.__exit__(None, None, None)
                raise
            with self._lock:
                if not self._closed:
                    self._free.append(reader)
                    return found
            reader.__exit__(None, None, None)
            return found

    def close(self) -> None:
        """Close the readers; those that are lent are closed when they come back."""
        with self._lock:
            self._closed, free = True, self._free
            self._free = []
        for reader in free:
            reader.__exit__(None, None, None)


def open_layer(spec: RasterSpec, kind: Kind) -> Any:
    """The reader of a source or a mask. Raises `ReadError`."""
    return formats.open_image(spec) if kind == "source" else open_mask(spec, "index")


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in memory, or in a temporary file if it is large."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= _HELD:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="maskloom-view-") as file:
        # The map keeps the file, which has no name, until it is dropped.
        return np.memmap(file, dtype, "w+", shape=shape)
