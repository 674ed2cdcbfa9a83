"""Samples: the input of clustering for a collection, gathered by an exact fold.

Pixels of at most 24 bits (one to three channels of 8 bits, one of 16) are counted: the result is
every distinct value with its number of pixels, which contains all information that clustering
needs.

Other pixels are drawn: a uniform sample without replacement of `size` (2**18) valid, finite pixels.
Each pixel has a priority, 64 bits hashed from the seed, its image (file name and version, so that a
folder may be moved) and its position (plane, row, column); the pixels with the smallest priorities
are the sample. The smallest of two parts are among the smallest of each, so neither tiling nor
order nor the number of workers changes the sample. With at most `size` pixels, the sample is all of
them.

In both cases the result is every distinct value once, in an order determined by the values alone,
not by their type or position.

Images with different numbers of channels are kept apart, and the number of channels with the most
pixels is used; the model then refuses the other images one by one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FitError, NothingToFit
from maskloom.segcore.geometry import in_rows
from maskloom.segcore.methods.counting import Counted, count_values, decode, encoding_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import Block

SAMPLE_SIZE = 2**18
_LARGEST, _LEAST_RANGE = 1e100, 1e-100
"""For values between these, floats represent squares, and sums of squares over any number of
pixels, with full precision.
"""
_NEXT_TO_NOTHING = 1e-8
"""Range of values relative to their size. In float32, values this close are equal."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The pixels with the smallest priorities among `pixels`, in the order of their priorities."""

    pixels: int
    priorities: NDArray[np.uint64]
    values: NDArray[np.generic]
    """Shape (n, channel)."""

    def merge(self, other: Drawn, size: int) -> Drawn:
        """The `size` smallest of both."""
        values = np.concatenate([self.values, other.values])
        priorities = np.concatenate([self.priorities, other.priorities])
        return Drawn(self.pixels + other.pixels, *_smallest(priorities, values, size))


Content = Counted | Drawn
State = dict[tuple[int, str], tuple[bool, Content]]
"""By number of channels and encoding (the dtype of counted values, or `drawn`): whether all are
RGB, and the values.
"""


@dataclass(frozen=True, slots=True, eq=False)
class WeightedValues:
    """Distinct values with weights, in the order of `codes`, or else by the first channel, then the
    second and so on.
    """

    values: NDArray[np.generic]
    """Shape (channel, n): uint8 for counted 3 x 8 bit colours, otherwise float64."""
    weights: NDArray[np.float64]
    """Number of pixels that each value represents."""
    pixels: int
    """Number of observed pixels."""
    rgb: bool
    """Whether the channels are red, green and blue in every image."""
    exact: bool
    """Whether the values are those of all pixels, with none left out."""
    codes: NDArray[np.uint32] | None = None
    """Morton codes of the colours, ascending. None: the values are not 8-bit colours."""

    def ascending(self) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
        """The values (channel, value) by the first channel, then the second and so on, and their
        weights (value,): the order does not depend on the type of the values.
        """
        if self.codes is None:
            return self.values, self.weights
        red, green, blue = self.values.astype(np.uint32)
        order = np.argsort(red << 16 | green << 8 | blue, kind="stable")
        return np.ascontiguousarray(self.values[:, order]), self.weights[order]

    def centred(self) -> tuple[WeightedValues, NDArray[np.float64]]:
        """The same values relative to an origin (channel,), and that origin: 0 except in channels
        whose values differ very little relative to their size (such as a band of only nodata).
        There, sums would lose the differences to rounding.
        """
        origin = np.zeros(len(self.values))
        if self.codes is not None:
            return self, origin
        low, high = (
            self.values.min(axis=1).astype(np.float64),
            self.values.max(axis=1).astype(np.float64),
        )
        origin = np.where(np.abs(low) * _NEXT_TO_NOTHING > high - low, low, 0.0)
        return (
            replace(self, values=self.values.astype(np.float64) - origin[:, None])
            if origin.any()
            else self
        ), origin


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Standardised units: each channel relative to its mean, in standard deviations of all
    pixels.
    """

    origin: NDArray[np.float64]
    """Mean of each channel."""
    deviation: NDArray[np.float64]
    """Standard deviation of each channel."""

    @property
    def spread(self) -> NDArray[np.float64]:
        """(channel,): the unit of each, its standard deviation, or 1 if all values are equal."""
        return spread_of(self.deviation)

    @classmethod
    def of(cls, dataset: WeightedValues) -> Units:
        """The units in which the values of the dataset have mean 0 and standard deviation 1."""
        moments = [_moments(row, dataset.weights) for row in dataset.values]
        origin, deviation = (np.array(numbers) for numbers in zip(*moments, strict=True))
        return cls(origin, deviation)

    def standardised(self, values: NDArray[np.generic]) -> NDArray[np.float64]:
        """These values (channel, n) in standardised units."""
        floats = values.astype(np.float64) - self.origin[:, None]
        floats *= (1 / self.spread)[:, None]
        return floats


@dataclass(frozen=True, slots=True)
class Samples:
    """The fold over blocks that gathers weighted values. Its state is exact, independent of order,
    and pickles.
    """

    seed: int = 0
    size: int = SAMPLE_SIZE

    def observe(self, block: Block) -> State:
        """The values of the valid pixels of the block's core."""
        pixels, valid = block.tile.trim(block.pixels), block.tile.trim(block.valid)
        channels, kind = pixels.shape[-1], pixels.dtype
        encoding = encoding_of(kind, channels)
        rgb = block.spec.interpretation == "rgb" and channels >= 3
        if encoding is None:
            content: Content = self._draw(block, pixels, valid)
            return {(channels, "drawn"): (rgb, content)} if content.pixels else {}
        content = count_values(pixels, np.ascontiguousarray(valid))
        return {(channels, encoding): (rgb, content)} if content.keys.size else {}

    def merge(self, a: State, b: State) -> State:
        """Merge two states."""
        merged = dict(a)
        for place, (rgb, content) in b.items():
            if place not in merged:
                merged[place] = (rgb, content)
                continue
            also_rgb, mine = merged[place]
            if isinstance(content, Drawn) and isinstance(mine, Drawn):
                merged[place] = (rgb and also_rgb, mine.merge(content, self.size))
            elif isinstance(content, Counted) and isinstance(mine, Counted):
                merged[place] = (rgb and also_rgb, mine.merge(content))
        return merged

    def finish(self, total: State, bands: Sequence[int] | None = None) -> WeightedValues:
        """The weighted values; `bands` are the band numbers for messages (None: all).

        Raises `NothingToFit` if there is no valid pixel, `FitError` if floats cannot represent the
        squares of the values.
        """
        pixels: dict[int, int] = {}
        for (channels, _), (_, content) in total.items():
            pixels[channels] = pixels.get(channels, 0) + content.pixels
        if not pixels:
            raise NothingToFit(
                "Clustering needs valid pixels; the images have none. Check nodata and masks, or "
                "leave the images out."
            )
        channels = max(pixels, key=lambda number: (pixels[number], number))
        parts = [
            (encoding, *total[count, encoding])
            for count, encoding in sorted(total)
            if count == channels
        ]
        rgb = all(is_rgb for _, is_rgb, _ in parts)
        exact = all(
            isinstance(content, Counted) or content.priorities.size == content.pixels
            for _, _, content in parts
        )
        if (
            len(parts) == 1
            and (channels, parts[0][0]) == (3, "uint8")
            and isinstance(parts[0][2], Counted)
        ):
            counted = parts[0][2]
            colours = decode(counted.keys, "uint8", 3)
            return WeightedValues(
                colours,
                counted.counts.astype(np.float64),
                pixels[channels],
                rgb,
                exact,
                counted.keys,
            )
        values = np.concatenate(
            [_values(content, encoding, channels) for encoding, _, content in parts], axis=1
        )
        weights = np.concatenate([_weights(content) for _, _, content in parts])
        _require_squares(values, bands)
        return WeightedValues(*_distinct(values, weights), pixels[channels], rgb, exact)

    def _draw(self, block: Block, pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> Drawn:
        from maskloom.segcore.kernels import pixels as kernels

        usable = np.ascontiguousarray(valid)
        if pixels.dtype.kind == "f":
            usable = usable & np.isfinite(pixels).all(axis=-1)
        n = int(np.count_nonzero(usable))
        wanted = min(n, self.size)
        # Priorities are uniform: a limit 8 standard deviations above the expected one almost always
        # includes the `wanted` pixels.
        share = (
            1.0 if n <= self.size else min(1.0, self.size / n * (1 + 8 / self.size**0.5) + 64 / n)
        )
        rows = _row_hashes(block.tile.core, _image_salt(block, self.seed))
        first = block.tile.core.start[-1]
        found = -1
        while found < wanted:
            room = min(n, int(n * share * 1.1) + 1024)
            priorities, places = np.empty(room, np.uint64), np.empty(room, np.int64)
            limit = np.uint64(2**64 - 1) if share >= 1 else np.uint64(int(share * 2**64))
            found = kernels.draw(in_rows(usable), rows, first, limit, (priorities, places))
            share = min(1.0, share * 2)
        order = np.argsort(priorities[:found], kind="stable")[: self.size]
        chosen = _gather(pixels, places[:found][order])
        exact = np.float32 if np.can_cast(pixels.dtype, np.float32) else np.float64
        return Drawn(n, priorities[:found][order], chosen.astype(exact, copy=False))


def spread_of(deviation: NDArray[np.float64] | Sequence[float]) -> NDArray[np.float64]:
    """The unit of channels with these standard deviations: the deviation, or 1 if it is 0."""
    deviations = np.array(deviation, np.float64)
    return np.where(deviations > 0, deviations, 1.0)


def _require_squares(values: NDArray[np.float64], bands: Sequence[int] | None) -> None:
    """Raise `FitError` if squares of these values (channel, n), or of their differences, would
    overflow or underflow.
    """
    for number, row in zip(bands or range(1, len(values) + 1), values, strict=True):
        low, high = float(row.min()), float(row.max())
        if low >= -_LARGEST and high <= _LARGEST and (low == high or high - low >= _LEAST_RANGE):
            continue
        raise FitError(
            f"Clusters cannot be found in values from {low:g} to {high:g} (band {number}): squares "
            f"need values within {_LARGEST:g} of 0 "
            f"that are all equal or spread over {_LEAST_RANGE:g} or more. Check nodata, or bring "
            "the values into another unit."
        )


def _values(content: Content, encoding: str, channels: int) -> NDArray[np.float64]:
    if isinstance(content, Counted):
        return decode(content.keys, encoding, channels).astype(np.float64)
    return np.ascontiguousarray(content.values.T, dtype=np.float64)


def _weights(content: Content) -> NDArray[np.float64]:
    if isinstance(content, Counted):
        return content.counts.astype(np.float64)
    return np.full(content.priorities.size, content.pixels / content.priorities.size)


def _distinct(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distinct ones of these values (channel, n) in ascending order, and the total weight of
    each.
    """
    order = np.lexsort(values[::-1])
    values = values[:, order]
    first = np.flatnonzero(np.concatenate([[True], (values[:, 1:] != values[:, :-1]).any(axis=0)]))
    return np.ascontiguousarray(values[:, first]), np.add.reduceat(weights[order], first)


def _smallest(
    priorities: NDArray[np.uint64], values: NDArray[np.generic], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.generic]]:
    """The `size` smallest priorities and their values, in order; equal priorities (one picture
    listed twice) in the order of values.
    """
    if priorities.size > size:
        # All priorities up to the last one are kept, so that ties are broken by values below, not
        # by position.
        kept = priorities <= np.partition(priorities, size - 1)[size - 1]
        priorities, values = priorities[kept], values[kept]
    order = np.argsort(priorities, kind="stable")
    ordered = priorities[order]
    if np.any(ordered[1:] == ordered[:-1]):
        order = np.lexsort((*values.T[::-1], priorities))
    order = order[:size]
    return priorities[order], values[order]


def _gather(pixels: NDArray[np.generic], places: NDArray[np.int64]) -> NDArray[np.generic]:
    if pixels.flags.c_contiguous:
        return pixels.reshape(-1, pixels.shape[-1])[places]
    return pixels[np.unravel_index(places, pixels.shape[:-1])]


def _moments(values: NDArray[np.generic], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of weighted values."""
    floats = values.astype(np.float64)
    if values.dtype == np.uint8:
        # Many colours have few levels, and their counts are exact.
        weights = np.asarray(np.bincount(values, weights), np.float64)
        floats, weights = np.flatnonzero(weights).astype(np.float64), weights[weights > 0]
    low, total = float(floats.min()), float(weights.sum())
    # Relative to the lowest, equal values have mean and deviation 0 without rounding.
    shifted = floats - low
    mean = float((shifted * weights).sum()) / total
    variance = float((weights * (shifted - mean) ** 2).sum()) / total
    return low + mean, variance**0.5


def _row_hashes(core: Box, salt: int) -> NDArray[np.uint64]:
    """A hash for each row of the box, the planes of a volume one below the other."""
    from maskloom.segcore.kernels import pixels as kernels

    hashes = np.array([salt], np.uint64)
    for start, count in zip(core.start[:-1], core.shape[:-1], strict=True):
        below = np.empty((hashes.size, count), np.uint64)
        kernels.hash_places(hashes, start, below)
        hashes = below.ravel()
    return hashes


def _image_salt(block: Block, seed: int) -> int:
    name = block.spec.location.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    text = f"{seed}\0{name}\0{block.spec.version}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
