"""Counts of distinct pixel values: exact, for pixels of at most 24 bits (one to three channels of 8
bits, one of 16).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maskloom.segcore.geometry import in_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


_TABLE_ENTRIES = 2**24
_TABLE_PAYS_FROM = 2**15
"""Blocks with fewer pixels are sorted, which is faster than scanning the pages of the table."""


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Distinct values as sorted keys, with their numbers of pixels."""

    keys: NDArray[np.uint32]
    counts: NDArray[np.int64]

    @property
    def pixels(self) -> int:
        """Number of pixels that were counted."""
        return int(self.counts.sum())

    def merge(self, other: Counted) -> Counted:
        """The union of both."""
        from maskloom.segcore.kernels import pixels as kernels

        keys = np.empty(self.keys.size + other.keys.size, np.uint32)
        counts = np.empty(keys.size, np.int64)
        n = kernels.merge_counts(self.keys, self.counts, other.keys, other.counts, keys, counts)
        return Counted(keys[:n].copy(), counts[:n].copy())


def decode(keys: NDArray[np.uint32], encoding: str, channels: int) -> NDArray[np.generic]:
    """The values of counted keys, shape (channel, n)."""
    kind = np.dtype(encoding)
    lowest = np.iinfo(kind).min if kind.kind == "i" else 0
    if channels == 3:
        from maskloom.segcore.kernels import pixels as kernels

        colours = np.empty((3, keys.size), np.uint8)
        kernels.split_keys(keys, colours)
        return colours if lowest == 0 else colours.astype(np.float64) + lowest
    if channels == 2:
        return np.stack([keys >> np.uint32(8), keys & np.uint32(255)]).astype(np.float64) + lowest
    return keys[None].astype(np.float64) + lowest


def encoding_of(kind: np.dtype[np.generic], channels: int) -> str | None:
    """The dtype of counted values, for pixels of this type and number of channels. None: they have
    more than 24 bits.
    """
    if kind == np.bool_:
        return "uint8" if channels <= 3 else None
    small = kind.kind in "iu" and kind.itemsize * 8 * channels <= 24
    return kind.name if small else None


def count_values(pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> Counted:
    """Count the distinct values of the valid pixels; `pixels` are (y, x, band) or (z, y, x, band),
    `valid` has their shape without bands.
    """
    from maskloom.segcore.kernels import pixels as kernels

    unsigned, valid = in_rows(_unsigned(pixels), 3), in_rows(valid)
    if unsigned.shape[-1] == 3 and valid.size >= _TABLE_PAYS_FROM:
        with _CountingTable() as (table, touched):
            kernels.count_colours(unsigned, valid, table, touched)
            return _drain(table, touched, valid.size)
    if unsigned.shape[-1] == 3:
        keys = np.empty(valid.size + 1, np.uint32)
        keys = keys[: kernels.colour_keys(unsigned, valid, keys)]
    else:
        chosen = unsigned[valid].astype(np.uint32)
        keys = chosen[:, 0] if chosen.shape[1] == 1 else chosen[:, 0] << np.uint32(8) | chosen[:, 1]
        keys = np.ascontiguousarray(keys)
    if keys.size >= _TABLE_PAYS_FROM:
        with _CountingTable() as (table, touched):
            kernels.count_keys(keys, table, touched)
            return _drain(table, touched, keys.size)
    distinct, counts = np.empty(keys.size, np.uint32), np.empty(keys.size, np.int64)
    n = kernels.run_lengths(np.sort(keys), distinct, counts)
    return Counted(distinct[:n].copy(), counts[:n].copy())


def _drain(table: NDArray[np.uint32], touched: NDArray[np.uint8], pixels: int) -> Counted:
    from maskloom.segcore.kernels import pixels as kernels

    # Room for the largest possible number; unused parts are never touched, so they take no memory.
    most = min(pixels, int(np.count_nonzero(touched)) << kernels.PAGE_BITS)
    keys, counts = np.empty(most, np.uint32), np.empty(most, np.int64)
    n = kernels.drain(table, touched, keys, counts)
    return Counted(keys[:n].copy(), counts[:n].copy())


class _CountingTable:
    """A pool of counting tables, all zero, each used by one thread at a time: allocating one costs
    more than counting.
    """

    _free: ClassVar[list[tuple[NDArray[np.uint32], NDArray[np.uint8]]]] = []
    _lock = threading.Lock()

    def __enter__(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        with self._lock:
            lent = self._free.pop() if self._free else None
        self._lent = lent or (
            np.zeros(_TABLE_ENTRIES, np.uint32),
            np.zeros(_TABLE_ENTRIES >> 12, np.uint8),
        )
        return self._lent

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A table with incomplete counts is dropped.
        if kind is None:
            with self._lock:
                self._free.append(self._lent)


def _unsigned(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Integers as unsigned ones in the same order, with the lowest as 0."""
    if pixels.dtype == np.bool_:
        return pixels.view(np.uint8)
    if pixels.dtype.kind == "u":
        return pixels
    unsigned = np.dtype(f"u{pixels.dtype.itemsize}")
    return np.asarray(
        np.bitwise_xor(pixels.view(unsigned), unsigned.type(1 << (8 * unsigned.itemsize - 1)))
    )
