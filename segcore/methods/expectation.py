"""Expectation maximisation (EM): Gaussian mixtures of weighted values (Dempster, Laird and Rubin
1977).

All computations use standardised units (`segcore.methods.samples.Units`): each band minus its mean,
in standard deviations. So `reg_covar`, which keeps components from shrinking, means the same for
reflectances as for kelvins, and neither starts nor spheres depend on physical units.

One step costs a pass over all values, so most steps use few points (cells of colours, or part of a
sample, see `segcore.methods.clustering`) and only the last ones all values. Convergence is that of
scikit-learn: the mean log-likelihood of all values changes by less than 1e-3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.errors import FitError
from maskloom.segcore.methods.clustering import (
    ClusterPoints,
    cuts,
    different,
    points_for_start,
    search,
    threads,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.methods.clustering import Run
    from maskloom.segcore.methods.samples import Units, WeightedValues

    Floats = NDArray[np.float64]

Covariance = Literal["full", "tied", "diag", "spherical"]

TOLERANCE = 1e-3
_MOST_STEPS = 100
_MOST_COARSE_STEPS = 200
_COARSE_TOLERANCE = 1e-5
_STARTS = 4


@dataclass(frozen=True, slots=True)
class CovarianceModel:
    """Constraints on the covariances, in standardised units."""

    covariance: Covariance
    reg_covar: float

    def parameters(self, components: int, channels: int) -> int:
        """Number of free parameters of a mixture."""
        triangle = channels * (channels + 1) // 2
        covariances = {
            "full": components * triangle,
            "tied": triangle,
            "diag": components * channels,
            "spherical": components,
        }
        return covariances[self.covariance] + components * channels + components - 1


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Parameters of a Gaussian mixture, in standardised units."""

    weights: Floats
    means: Floats
    """Shape (component, channel)."""
    covariances: Floats
    """Shape (component, channel, channel)."""
    log_likelihood: float = -math.inf
    """Mean over all pixels, for the parameters of the previous step."""
    steps: int = 0
    """Number of steps on all values."""
    converged: bool = False

    def scorer(self) -> tuple[Floats, Floats, Floats]:
        """(constants, means, factors): log(weight x density) is constant - |factor (x - mean)|² /
        2.

        Raises `FitError` if a covariance cannot be inverted.
        """
        from maskloom.segcore.kernels import clustering as kernels

        channels = self.means.shape[1]
        factors = np.zeros_like(self.covariances)
        if not kernels.inverse_roots(self.covariances, factors):
            raise FitError(
                "mixture: a component has shrunk to a point or a plane. Raise `reg_covar`, ask for "
                "fewer `components`, or use "
                "`covariance: diag`."
            )
        determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        with np.errstate(divide="ignore"):
            constants = np.log(self.weights) + determinants - 0.5 * channels * math.log(2 * math.pi)
        return constants, self.means, factors


def posteriors(
    pixels: NDArray[Any],
    scorer: tuple[Floats, Floats, Floats],
    priors: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Probability of each component for the pixels of a (..., band) array, shape (..., component).

    `scorer` is that of `Mixture.scorer`. `priors` are added to the log-probabilities, and
    overwritten with the result. Without them, the most probable component is the one that
    `pointwise.Scores` labels, up to float32 rounding.
    """
    from maskloom.segcore.kernels import clustering as kernels

    if pixels.dtype in (np.bool_, np.float16):
        pixels = pixels.astype(np.float32)
    rows = pixels.reshape(-1, pixels.shape[-1])
    components = len(scorer[0])
    found = (
        np.zeros((len(rows), components), np.float32)
        if priors is None
        else priors.reshape(-1, components)
    )
    kernels.posteriors(rows, scorer, not np.any(np.tril(scorer[2], -1)), found)
    return found.reshape(*pixels.shape[:-1], -1)


def fit_mixture(
    dataset: WeightedValues, units: Units, components: int, model: CovarianceModel, seed: int
) -> Mixture:
    """The mixture fitted by EM from a k-means start, in these units of the dataset.

    Raises `FitError` if there are fewer distinct values than components, or a covariance cannot be
    inverted.
    """
    points = _standardised(points_for_start(dataset, components), units)
    return _finish(dataset, units, _coarse(points, components, model, seed), model)


def choose_mixture(
    dataset: WeightedValues, units: Units, most: int, model: CovarianceModel, seed: int
) -> Mixture:
    """The mixture of 1 to `most` components with the lowest Bayesian information criterion (Schwarz
    1978), in these units.

    The criterion is evaluated on few points. Raises `FitError` as `fit_mixture`.
    """
    points = _standardised(points_for_start(dataset, 1), units)
    channels = points.values.shape[0]
    best: tuple[float, Mixture] | None = None
    for components in range(1, min(most, different(points)) + 1):
        try:
            mixture = _coarse(points, components, model, seed)
        except FitError:
            # With this many components, one shrinks to a point or a plane; with fewer, none did.
            if best is None:
                raise
            break
        penalty = model.parameters(components, channels) * math.log(dataset.pixels)
        criterion = penalty - 2 * dataset.pixels * mixture.log_likelihood
        if best is None or criterion < best[0]:
            best = criterion, mixture
    if best is None:
        raise RuntimeError("no number of components was tried")
    return _finish(dataset, units, best[1], model)


def _finish(
    dataset: WeightedValues, units: Units, start: Mixture, model: CovarianceModel
) -> Mixture:
    """EM on all values."""
    data = _Data(
        dataset.values,
        dataset.weights,
        np.zeros(len(dataset.values)),
        (units.origin, 1 / units.spread),
    )
    with threads() as run:
        return _iterate(data, start, model, run)


def _standardised(points: ClusterPoints, units: Units) -> ClusterPoints:
    return replace(
        points,
        values=units.standardised(points.values),
        within_variance=points.within_variance / units.spread**2,
    )


def _coarse(points: ClusterPoints, components: int, model: CovarianceModel, seed: int) -> Mixture:
    """The most likely result of EM on few points in standardised units, started from the best few
    results of k-means.
    """
    channels = len(points.values)
    data = _Data(
        points.values,
        points.weights,
        points.within_variance,
        (np.zeros(channels), np.ones(channels)),
    )
    tolerance = TOLERANCE if points.whole else _COARSE_TOLERANCE
    ends = []
    with threads() as run:
        for centres, _ in search(points, components, seed)[:_STARTS]:
            labels = np.argmin(
                [((points.values - centre[:, None]) ** 2).sum(axis=0) for centre in centres], axis=0
            )
            started = _maximise(
                _sums_by_label(data, labels, components), model, data.within_variance
            )
            ends.append(_iterate(data, started, model, run, _MOST_COARSE_STEPS, tolerance))
    return max(ends, key=lambda mixture: mixture.log_likelihood)


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """The values to which a mixture is fitted, with their weights."""

    values: NDArray[Any]
    weights: Floats
    within_variance: Floats
    """In standardised units."""
    units: tuple[Floats, Floats]
    """Offset to subtract from the values and scale to multiply them by, to standardise them."""


def _iterate(
    data: _Data,
    mixture: Mixture,
    model: CovarianceModel,
    run: Run,
    most: int = _MOST_STEPS,
    tolerance: float = TOLERANCE,
) -> Mixture:
    previous = -math.inf
    for number in range(1, most + 1):
        sums, likelihood = _expect(data, mixture, run)
        mixture = _maximise(sums, model, data.within_variance)
        converged = abs(likelihood - previous) < tolerance
        mixture = Mixture(
            mixture.weights, mixture.means, mixture.covariances, likelihood, number, converged
        )
        if converged:
            return mixture
        previous = likelihood
    return mixture


def _expect(data: _Data, mixture: Mixture, run: Run) -> tuple[Floats, float]:
    """Sums by component (weight, values, products), and the mean log-likelihood."""
    from maskloom.segcore.kernels import clustering as kernels

    scorer = mixture.scorer()
    chunks = list(cuts(data.weights.size))
    channels = data.values.shape[0]
    sums = np.zeros(
        (len(chunks), len(mixture.weights), 1 + channels + channels * (channels + 1) // 2)
    )
    likelihoods = run(
        lambda i: kernels.expect(
            chunks[i], (data.values, data.weights), data.units, scorer, sums[i]
        ),
        len(chunks),
    )
    return np.asarray(sums.sum(axis=0)), math.fsum(likelihoods) / float(data.weights.sum())


def _sums_by_label(data: _Data, labels: NDArray[np.int64], components: int) -> Floats:
    rows = [data.weights, *(data.weights * data.values)]
    for j in range(data.values.shape[0]):
        rows += [data.weights * data.values[i] * data.values[j] for i in range(j + 1)]
    return np.stack([np.bincount(labels, row, components) for row in rows], axis=1)


def _maximise(sums: Floats, model: CovarianceModel, within_variance: Floats) -> Mixture:
    """The maximum-likelihood mixture for these sums, its variances increased by `within_variance`
    and `reg_covar`.
    """
    components, channels = sums.shape[0], within_variance.size
    # As in scikit-learn: a component without values stays finite.
    weight = sums[:, 0] + 10 * np.finfo(float).eps
    means = sums[:, 1 : 1 + channels] / weight[:, None]
    covariances = np.empty((components, channels, channels))
    at = 1 + channels
    for j in range(channels):
        for i in range(j + 1):
            covariances[:, i, j] = covariances[:, j, i] = (
                sums[:, at] / weight - means[:, i] * means[:, j]
            )
            at += 1
    widened = np.einsum("kii->ki", covariances)
    widened += within_variance
    if model.covariance == "tied":
        covariances[:] = np.einsum("k,kij->ij", weight, covariances) / weight.sum()
    elif model.covariance != "full":
        variances = np.einsum("kii->ki", covariances).copy()
        if model.covariance == "spherical":
            variances[:] = variances.mean(axis=1, keepdims=True)
        covariances = np.einsum("ki,ij->kij", variances, np.eye(channels))
    squares = [1 + channels + j * (j + 1) // 2 + j for j in range(channels)]
    # The difference of squares is accurate to a few units in the last place of its terms; variances
    # must stay positive beyond that error.
    rounding_error = 64 * np.finfo(float).eps * np.abs(sums[:, squares] / weight[:, None]).max()
    covariances += (max(model.reg_covar, rounding_error) if model.reg_covar else 0.0) * np.eye(
        channels
    )
    return Mixture(weight / weight.sum(), means, covariances)
