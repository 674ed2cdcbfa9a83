"""Areas corrected for the errors of the map, with confidence intervals (Olofsson et al. 2014,
Remote Sensing of Environment 148).

The map's classes are the strata. A sample of pixels in each, whose true class is known, estimates
the share of each true class in the stratum; weighted by the mapped areas this gives the area of
each class without the map's bias, and its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True, eq=False)
class AreaEstimate:
    """Areas and accuracies by class, in the unit of the mapped areas. Standard errors are NaN if a
    stratum has a sample of one.
    """

    mapped: NDArray[np.float64]
    adjusted: NDArray[np.float64]
    """Error-adjusted area."""
    error: NDArray[np.float64]
    """Standard error of the adjusted area; half the 95 % interval is 1.96 times this."""
    users: NDArray[np.float64]
    """User's accuracy: share of the mapped class that is right."""
    users_error: NDArray[np.float64]
    producers: NDArray[np.float64]
    """Producer's accuracy: share of the true class that is mapped, weighted by areas."""
    producers_error: NDArray[np.float64]
    accuracy: float
    """Overall, weighted by areas."""
    accuracy_error: float


def estimate_areas(sample: NDArray[np.int64], mapped: NDArray[np.float64]) -> AreaEstimate | None:
    """The stratified estimate.

    Parameters
    ----------
    sample : (n, n) array
        Sampled pixels by class of the map (rows) and of the truth (columns).
    mapped : (n,) array
        Area of each class of the map, in any unit.

    Returns
    -------
    AreaEstimate or None
        None if a class has a mapped area but no sample, so that its true classes are unknown.
    """
    per_stratum = sample.sum(axis=1).astype(float)
    if ((mapped > 0) & (per_stratum == 0)).any() or mapped.sum() <= 0:
        return None
    used, total = mapped > 0, float(mapped.sum())
    weight = mapped / total
    n = np.where(used, per_stratum, 1)
    share = np.where(used[:, None], sample / n[:, None], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The variance of a sample of one is undefined: 0 / 0.
        variance = share * (1 - share) / np.where(used, n - 1, 1)[:, None]
    cells = weight[:, None] * share
    found, users = cells.sum(axis=0), np.where(used, np.diagonal(share), np.nan)
    right = np.diagonal(variance)
    producers = np.where(found > 0, np.diagonal(cells) / np.where(found > 0, found, 1), np.nan)
    return AreaEstimate(
        mapped,
        total * found,
        total * np.sqrt((weight[:, None] ** 2 * variance).sum(axis=0)),
        users,
        np.where(used, np.sqrt(right), np.nan),
        producers,
        _producers_error(weight * total, variance, producers, total * found),
        float(np.diagonal(cells).sum()),
        float(np.sqrt((weight**2 * right).sum())),
    )


def _producers_error(
    area: NDArray[np.float64],
    variance: NDArray[np.float64],
    producers: NDArray[np.float64],
    adjusted: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Standard errors of the producer's accuracies (equation 7)."""
    squared = area[:, None] ** 2 * variance
    own = np.diagonal(squared)
    others = squared.sum(axis=0) - own
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt((1 - producers) ** 2 * own + producers**2 * others)
        return np.asarray(spread / np.where(adjusted > 0, adjusted, np.nan))
