"""Accuracy and areas from a stratified random sample, with standard errors.

A map's own pixel counts are biased by its errors. From reference labels of a random sample within
strata of known size, the accuracies and the true area of each class are estimated without that
bias. The strata need not be the classes of the map.

All figures are ratios of two sums over the strata, estimated as Stehman (2014), "Estimating area
and map accuracy for stratified random sampling when the strata are different from the map classes",
International Journal of Remote Sensing 35(13). Where the strata are the classes they are those of
Olofsson et al. (2014), "Good practices for estimating area and assessing accuracy of land change",
Remote Sensing of Environment 148. The share of a stratum that was sampled is taken as negligible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.evaluation.areas import NORMAL_95

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated figure."""

    value: float
    """NaN: the sample says nothing about it."""
    standard_error: float
    """NaN: unknown."""

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval."""
        return NORMAL_95 * self.standard_error

    def times(self, factor: float) -> Estimate:
        """The figure in other units."""
        return Estimate(self.value * factor, self.standard_error * factor)


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """What is estimated about one class."""

    name: str
    samples: int
    """Samples with this reference label."""
    mapped: int
    """Samples that the map gives this class."""
    users: Estimate
    """Share of what the map gives this class that is of it."""
    producers: Estimate
    """Share of what is of this class that the map gives it."""
    area: Estimate
    """In the unit of the samples' areas."""


@dataclass(frozen=True, slots=True)
class AccuracyEstimate:
    """What a sample says about a map."""

    overall: Estimate
    classes: tuple[ClassEstimate, ...]
    matrix: tuple[tuple[float, ...], ...]
    """Estimated share of all pixels by class of the map (rows) and reference (columns)."""
    counts: tuple[tuple[int, ...], ...]
    """Samples by class of the map (rows) and reference (columns)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One unit of a sample: a pixel, or a polygon."""

    stratum: str
    mapped: str
    """Class of the map."""
    reference: str
    area: float = 1.0
    """Area of a pixel there."""


def estimate(
    sizes: Mapping[str, int], samples: Sequence[Sample], classes: Sequence[str]
) -> AccuracyEstimate:
    """The estimates for `classes`, from samples in strata with `sizes` pixels.

    Raises `RecipeError` if a stratum has no sample, or a sample no known stratum.
    """
    strata = _Strata.of(sizes, samples)
    mapped = np.array([sample.mapped for sample in samples])
    reference = np.array([sample.reference for sample in samples])
    area = np.array([sample.area for sample in samples])
    everything = np.ones(len(samples))
    found = []
    for name in classes:
        is_mapped, is_true = (mapped == name) * 1.0, (reference == name) * 1.0
        right = is_mapped * is_true
        found.append(
            ClassEstimate(
                name,
                int(is_true.sum()),
                int(is_mapped.sum()),
                strata.ratio(right, is_mapped),
                strata.ratio(right, is_true),
                strata.total(is_true * area),
            )
        )
    pairs = [[(mapped == row) & (reference == column) for column in classes] for row in classes]
    return AccuracyEstimate(
        strata.ratio((mapped == reference) * 1.0, everything),
        tuple(found),
        tuple(tuple(strata.ratio(each * 1.0, everything).value for each in row) for row in pairs),
        tuple(tuple(int(each.sum()) for each in row) for row in pairs),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Strata:
    """The strata of a sample."""

    sizes: Floats
    """(stratum,) pixels."""
    members: tuple[NDArray[np.bool_], ...]
    """Which samples are in each."""

    @classmethod
    def of(cls, sizes: Mapping[str, int], samples: Sequence[Sample]) -> _Strata:
        """The strata that have pixels (`sizes`, by name), with their samples. Raises `RecipeError`
        for a sample of another stratum, or a stratum without samples.
        """
        of_sample = np.array([sample.stratum for sample in samples])
        strangers = sorted(set(of_sample.tolist()) - {name for name, size in sizes.items() if size})
        if strangers:
            raise RecipeError(
                f"samples: a sample is in stratum {strangers[0]!r}, which has no pixels. The "
                f"strata are {', '.join(name for name, size in sizes.items() if size)}."
            )
        wanted = [name for name, size in sizes.items() if size]
        members = tuple(of_sample == name for name in wanted)
        for name, each in zip(wanted, members, strict=True):
            if not each.any():
                raise RecipeError(
                    f"samples: stratum {name!r} has {sizes[name]:,} pixels and no labelled sample, "
                    "so nothing can be said of the whole. Label some of it."
                )
        return cls(np.array([sizes[name] for name in wanted], float), members)

    def total(self, values: Floats) -> Estimate:
        """The sum of a value over all pixels, from its samples."""
        means = np.array([values[each].mean() for each in self.members])
        return Estimate(float(self.sizes @ means), math.sqrt(self._variance(values)))

    def ratio(self, part: Floats, whole: Floats) -> Estimate:
        """The sum of `part` over all pixels divided by that of `whole`."""
        below = self.total(whole).value
        if not below:
            return Estimate(math.nan, math.nan)
        value = self.total(part).value / below
        # Linearised: Stehman 2014, equations 27 and 28.
        return Estimate(value, math.sqrt(self._variance(part - value * whole)) / below)

    def _variance(self, values: Floats) -> float:
        """The variance of an estimated sum; NaN if a stratum has one sample whose value counts."""
        total = 0.0
        for size, each in zip(self.sizes, self.members, strict=True):
            inside = values[each]
            if len(inside) > 1:
                total += size**2 * float(inside.var(ddof=1)) / len(inside)
            else:
                total += math.nan
        return total


def planned_size(sizes: Mapping[str, int], accuracies: Mapping[str, float], half: float) -> int:
    """The number of samples for an overall accuracy with a 95 % interval of this half-width, where
    the map's user's accuracies are about `accuracies` (Cochran 1977, equation 5.25; Olofsson et al.
    2014, equation 13).

    >>> planned_size({"a": 2, "b": 98}, {"a": 0.7, "b": 0.95}, 0.02)
    477
    """
    pixels = sum(sizes.values())
    spread = sum(
        size / pixels * math.sqrt(accuracies[name] * (1 - accuracies[name]))
        for name, size in sizes.items()
    )
    return math.ceil((spread / (half / NORMAL_95)) ** 2)


def allocated(sizes: Mapping[str, int], number: int, least: int) -> dict[str, int]:
    """`number` samples over the strata: in proportion to their sizes, but at least `least` in each
    (Olofsson et al. 2014, section 5.1.2), and never more than a stratum has pixels.

    >>> allocated({"rare": 100, "common": 9900}, 200, 50)
    {'rare': 50, 'common': 150}
    """
    held = {name: size for name, size in sizes.items() if size}
    pixels = sum(held.values())
    rare = {name for name, size in held.items() if number * size / pixels < least}
    rest = max(0, number - least * len(rare))
    common = sum(size for name, size in held.items() if name not in rare)
    return {
        name: min(size, least if name in rare else max(least, round(rest * size / common)))
        for name, size in held.items()
    }
