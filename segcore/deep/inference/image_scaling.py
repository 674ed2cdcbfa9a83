"""Numbers by which the pixels of an image scale it, found in all of its pixels by exact folds.

- Mean and deviation: values are taken as float32, as the network gets them, and their sums and the
  sums of their squares are kept as whole numbers. So they are exact, and the same under any tiling.
- Percentiles, interpolated as by `numpy.percentile`: bands of up to 16 bits are counted value by
  value. Other values are taken as float32; one round counts them by the first 16 of their 32 bits,
  a second one by the last 16 where the percentiles are. Both are exact.

`ScalingFitter` finds them in as many rounds as they need, in the pixels of each image by itself, or
in those that the `fit` of the recipe says. Infinite values and NaN are passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.errors import FitError, NothingToFit
from maskloom.segcore.models.protocols import finds_objects, gives_scores
from maskloom.segcore.models.selection import replaced_inside
from maskloom.segcore.values import CheckedOnce

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.scaling import ImageScaling
    from maskloom.segcore.models.protocols import Fitter, Model, Requirements
    from maskloom.segcore.raster.spec import Block, RasterSpec

_CODES = 2**16
_UNIT = 150
"""Whole numbers of float32s count units of 2**-150, shifted by their exponents."""


@runtime_checkable
class Finder(Protocol, metaclass=CheckedOnce):
    """A fold over blocks that ends with the next round, or with the scaling."""

    def observe(self, block: Block) -> Any:
        """What the core of a block adds."""
        ...

    def merge(self, a: Any, b: Any) -> Any:
        """The sum of two observations."""
        ...

    def finish(self, total: Any) -> Finder | Scaling:
        """The next round, or the scaling. Raises `NothingToFit` if there is no valid pixel, and
        `FitError` for values that float32 cannot scale.
        """
        ...


@runtime_checkable
class ScaledByImage(Protocol, metaclass=CheckedOnce):
    """A model that waits for the scaling of its image."""

    def with_image_scaling(self, found: Scaling) -> Self:
        """Return the model with the scaling."""
        ...


@dataclass(frozen=True, slots=True)
class ScalingFitter:
    """The fitter of a model around a network whose scaling is found in the pixels."""

    model: Model
    """With a `ScaledByImage` inside."""
    how: ImageScaling
    finder: Finder

    @classmethod
    def of(cls, model: Model, how: ImageScaling) -> ScalingFitter:
        """The first round."""
        return cls(model, how, finder_of(how))

    @property
    def of_each_image(self) -> bool:
        """Whether each image has a scaling of its own, whatever the recipe's `fit` says."""
        return self.how.of == "image"

    @property
    def finds_objects(self) -> bool:
        """Whether the model finds objects."""
        return finds_objects(self.model)

    @property
    def gives_scores(self) -> bool:
        """Whether the model gives probabilities."""
        return gives_scores(self.model)

    @property
    def requirements(self) -> Requirements:
        """Those of the model."""
        return self.model.requirements

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Those of the model."""
        return self.model.classes

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the model. Raises `ModelMismatch` if it does not suit."""
        return self.model.select(spec)

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """Bands and type of the pixels: values of several types have nothing in common."""
        return f"{spec.channels} {spec.dtype}"

    def observe(self, block: Block, /) -> Any:
        """What the core of a block adds."""
        return self.finder.observe(block)

    def merge(self, a: Any, b: Any, /) -> Any:
        """The sum of two observations."""
        return self.finder.merge(a, b)

    def finish(self, total: Any, /) -> Fitter | Model:
        """The next round, or the model with its scaling."""
        found = self.finder.finish(total)
        if isinstance(found, Finder):
            return replace(self, finder=found)
        return replaced_inside(
            self.model, ScaledByImage, lambda inner: inner.with_image_scaling(found)
        )


def finder_of(how: ImageScaling) -> Finder:
    """The first round of a scaling."""
    return Moments(how) if how.by == "deviation" else Codes(how)


def scaling_of(block: Block, how: ImageScaling) -> Scaling:
    """The scaling by the core of a block alone. Raises as `Finder.finish`."""
    found: Finder | Scaling = finder_of(how)
    while isinstance(found, Finder):
        found = found.finish(found.observe(block))
    return found


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation."""

    how: ImageScaling

    def observe(self, block: Block) -> NDArray[np.int64]:
        """The sums of `kernels.distributions.sum_exactly`."""
        from maskloom.segcore.kernels.distributions import sum_exactly

        pixels, valid = _pixels_of(block)
        sums = np.zeros((_rows(self.how, pixels), 256, 4), np.int64)
        sum_exactly(_bits(pixels), valid, sums)
        return sums

    def merge(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sums of both."""
        return a + b

    def finish(self, total: NDArray[np.int64]) -> Scaling:
        """The scaling."""
        return _scaling(self.how, [_mean_and_deviation(sums) for sums in total])


@dataclass(frozen=True, slots=True)
class Codes:
    """Percentiles: the values of integers of up to 16 bits, or the first 16 bits of others."""

    how: ImageScaling

    def observe(self, block: Block) -> tuple[str, NDArray[np.int64]]:
        """The type of the pixels, and the count of each code."""
        from maskloom.segcore.kernels.distributions import count_codes, count_first_bits

        pixels, valid = _pixels_of(block)
        tables = np.zeros((_rows(self.how, pixels), _CODES), np.int64)
        if _is_counted(pixels.dtype):
            count_codes(_codes(pixels), valid, tables)
        else:
            count_first_bits(_bits(pixels), valid, tables)
        return pixels.dtype.name, tables

    def merge(
        self, a: tuple[str, NDArray[np.int64]], b: tuple[str, NDArray[np.int64]]
    ) -> tuple[str, NDArray[np.int64]]:
        """The counts of both."""
        return a[0], a[1] + b[1]

    def finish(self, total: tuple[str, NDArray[np.int64]]) -> Finder | Scaling:
        """The scaling, or the round that counts the last bits."""
        dtype, tables = np.dtype(total[0]), total[1]
        ranks = tuple(_ranks(self.how, int(table.sum())) for table in tables)
        places = [
            [_place(table, rank) for rank in of_row.wanted]
            for table, of_row in zip(tables, ranks, strict=True)
        ]
        if not _is_counted(dtype):
            return LastBits(
                self.how,
                ranks,
                tuple(tuple(first for first, _ in row) for row in places),
                tuple(tuple(inside for _, inside in row) for row in places),
            )
        lowest = _lowest(dtype)
        return _scaling(
            self.how,
            [
                of_row.ends([float(code + lowest) for code, _ in row])
                for of_row, row in zip(ranks, places, strict=True)
            ],
        )


@dataclass(frozen=True, slots=True)
class LastBits:
    """The second round of percentiles: the last 16 bits of values whose first are given."""

    how: ImageScaling
    ranks: tuple[Ranks, ...]
    """Of each row."""
    firsts: tuple[tuple[int, ...], ...]
    """The first 16 bits of the keys of the wanted values, by row."""
    insides: tuple[tuple[int, ...], ...]
    """The ranks of these values among those with the same first bits."""

    def observe(self, block: Block) -> NDArray[np.int64]:
        """The count of the last 16 bits, for each wanted value."""
        from maskloom.segcore.kernels.distributions import count_last_bits

        pixels, valid = _pixels_of(block)
        firsts = np.array(self.firsts, np.int64)
        tables = np.zeros((*firsts.shape, _CODES), np.int64)
        count_last_bits(_bits(pixels), valid, firsts, tables)
        return tables

    def merge(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """The counts of both."""
        return a + b

    def finish(self, total: NDArray[np.int64]) -> Scaling:
        """The scaling."""
        ends = []
        for tables, ranks, firsts, insides in zip(
            total, self.ranks, self.firsts, self.insides, strict=True
        ):
            lasts = [_place(table, rank)[0] for table, rank in zip(tables, insides, strict=True)]
            keys = np.array(firsts, np.uint32) << np.uint32(16) | np.array(lasts, np.uint32)
            ends.append(ranks.ends(_values(keys).tolist()))
        return _scaling(self.how, ends)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where the two percentiles of a row are, counted from the least value."""

    pixels: int
    wanted: tuple[int, int, int, int]
    """The ranks of the values on both sides of each percentile."""
    shares: tuple[float, float]
    """How far each percentile is from the lower to the upper of its two values."""

    def ends(self, values: Sequence[float]) -> tuple[float, float] | None:
        """The lower percentile, and the range up to the upper one, from the values of the wanted
        ranks. None: there are no pixels.
        """
        if not self.pixels:
            return None
        low, high = (
            _between(values[2 * i], values[2 * i + 1], share) for i, share in enumerate(self.shares)
        )
        return low, high - low


def _ranks(how: ImageScaling, pixels: int) -> Ranks:
    last = max(pixels - 1, 0)
    places = [last * (percentile / 100) for percentile in how.percentiles]
    lower = [min(math.floor(place), last) for place in places]
    (a, b), (c, d) = ((rank, min(rank + 1, last)) for rank in lower)
    return Ranks(pixels, (a, b, c, d), (places[0] - lower[0], places[1] - lower[1]))


def _between(low: float, high: float, share: float) -> float:
    # From the nearer end, as NumPy does.
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def _place(table: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The code of the value of this rank in a table of counts, and the rank among the equals."""
    total = np.cumsum(table)
    code = min(int(np.searchsorted(total, rank, side="right")), table.size - 1)
    return code, rank - int(total[code] - table[code])


def _mean_and_deviation(sums: NDArray[np.int64]) -> tuple[float, float] | None:
    """The mean and the standard deviation, rounded once, from sums (256, 4). None: no values."""
    pixels = int(sums[:, 0].sum())
    if not pixels:
        return None
    total = squares = 0
    for exponent in np.flatnonzero(sums[:, 0]).tolist():
        _, of_values, lower, upper = sums[exponent].tolist()
        total += of_values << exponent
        squares += (lower + (upper << 24)) << 2 * exponent
    mean = Fraction(total, pixels << _UNIT)
    variance = Fraction(pixels * squares - total * total, (pixels * pixels) << 2 * _UNIT)
    return float(mean), math.sqrt(variance)


def _scaling(how: ImageScaling, found: Sequence[tuple[float, float] | None]) -> Scaling:
    """The scaling by an offset and a spread for each row; a row without values is left as it is."""
    if not any(found):
        raise NothingToFit(
            "The scaling of an image is found in its valid, finite pixels; there are none. Check "
            "nodata and masks, or leave these images out."
        )
    known = [each or (0.0, 1.0) for each in found]
    try:
        return how.found([low for low, _ in known], [spread for _, spread in known])
    except ValueError as error:
        raise FitError(
            f"The scaling of an image cannot be found in its values: {error}. Check nodata, or "
            "bring the values into another unit."
        ) from error


def _pixels_of(block: Block) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """The pixels (pixel, band) of a block's core, and which are valid."""
    pixels, valid = block.tile.trim(block.pixels), block.tile.trim(block.valid)
    if pixels.dtype == np.bool_:
        pixels = pixels.view(np.uint8)
    return pixels.reshape(-1, pixels.shape[-1]), np.ascontiguousarray(valid).ravel()


def _rows(how: ImageScaling, pixels: NDArray[np.generic]) -> int:
    return pixels.shape[-1] if how.bands == "each" else 1


def _is_counted(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and dtype.itemsize <= 2


def _lowest(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).min)


def _codes(pixels: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Integers of up to 16 bits, counted from the lowest of their type."""
    lowest = _lowest(pixels.dtype)
    return (pixels.astype(np.int32) - lowest if lowest else pixels).astype(np.uint16, copy=False)


def _bits(pixels: NDArray[np.generic]) -> NDArray[np.uint32]:
    """The bits of values as float32."""
    # Values beyond float32 are infinite in it, as they are for the network.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(pixels, np.float32).view(np.uint32)


def _values(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The float32s of keys."""
    sign = np.uint32(1 << 31)
    return np.where(keys & sign, keys ^ sign, ~keys).view(np.float32)
