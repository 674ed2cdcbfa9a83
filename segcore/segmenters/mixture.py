"""Gaussian mixture by expectation maximisation: each pixel belongs to its most probable component,
and to the class of that component. With `smoothness`, neighbours count too
(`segcore.methods.smoothing`).

The mixture is fitted to all pixels where these have at most 24 bits, else to a uniform sample of
2**18 (`segcore.methods.samples`). The local optimum depends on `seed` only, not on the tiling, the
number of workers or the units of the bands: the fit uses standardised bands
(`segcore.methods.expectation`), and the result is in the units of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.methods.expectation import (
    Covariance,
    CovarianceModel,
    choose_mixture,
    fit_mixture,
    posteriors,
)
from maskloom.segcore.methods.naming import (
    MOST_CLASSES,
    class_names,
    class_order,
    merged_clusters,
    requested_clusters,
)
from maskloom.segcore.methods.notes import note_of_nodata
from maskloom.segcore.methods.pointwise import Scores, merged, select_fitted
from maskloom.segcore.methods.sampled_fitter import SampledFitter
from maskloom.segcore.methods.samples import Samples, State, Units
from maskloom.segcore.methods.shown import colours_of_means
from maskloom.segcore.methods.smoothing import HALF_ROUNDS, Scorer, SmoothClasses
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Requirements,
    Segmenter,
)
from maskloom.segcore.raster.colours import Colour
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import Block, RasterSpec

# The classes with their margin, and their copy without it.
_SMOOTHING_BYTES = 4
_SMOOTHING_COST = 10


@SEGMENTERS.register("mixture")
@dataclass(frozen=True, slots=True)
class MixtureOfGaussians(SampledFitter):
    """Clusters of pixels, each with its own size, shape and direction."""

    components: int | Literal["auto"] | None = None
    """Number of components, or `auto`: the best of 1 to `max_components` by BIC. None: as many as
    `classes`, or 5.
    """
    covariance: Covariance = "full"
    """Shape of the components: full, tied (full, one for all), diag (along the bands), spherical
    (in standardised units).
    """
    reg_covar: float = 1e-9
    """Added to each variance, so that no component shrinks to a point. As a fraction of the band's
    variance over all pixels.
    """
    classes: tuple[str, ...] | Mapping[str, tuple[float, ...] | str] | None = None
    """Names by ascending luminance, or names with one reference each: one number per band, or
    `#rrggbb`. A name given several times merges those components into one class.
    """
    bands: tuple[int, ...] | None = None
    """Bands to use, counted from 1. None: all."""
    seed: int = 0
    """Determines the starts and, if pixels are sampled, the sample."""
    max_components: int = 8
    """Largest number of components that `auto` tries."""
    smoothness: float = 0.0
    """What each neighbour of the same class adds to the log-probability of a pixel's class: 4
    neighbours in images, 6 in volumes. 0: each pixel alone; about 1 for noisy images.
    """

    units: ClassVar[str] = (
        "no factor or offset of any band changes a label: the fit is in standard deviations of each"
    )
    volumes: ClassVar[str] = "exact"
    gives_scores: ClassVar[bool] = True
    use_when: ClassVar[str] = (
        "as k-means, where classes differ in spread or their bands are correlated, such as "
        "brain tissue in MRI; `smoothness` against noise"
    )
    not_when: ClassVar[str] = (
        "classes are far from Gaussian, or there are too few pixels for a covariance of many "
        "bands (set `covariance: diag`)"
    )
    reference: ClassVar[str] = (
        "Dempster, Laird and Rubin 1977, doi:10.1111/j.2517-6161.1977.tb01600.x; `auto` by BIC,"
        " Schwarz 1978, doi:10.1214/aos/1176344136"
    )

    def __post_init__(self) -> None:
        requested_clusters(self.components, self.classes, "components")
        self.check_common()
        if self.covariance not in ("full", "tied", "diag", "spherical"):
            raise ValueError(
                f"covariance: expected full, tied, diag or spherical; got {self.covariance!r}"
            )
        if not 0 <= self.reg_covar < float("inf"):
            raise ValueError(f"reg_covar: expected a finite number from 0 on; got {self.reg_covar}")
        if not 1 <= self.max_components <= MOST_CLASSES:
            raise ValueError(
                f"max_components: expected 1 to {MOST_CLASSES}; got {self.max_components}"
            )
        if not 0 <= self.smoothness < float("inf"):
            raise ValueError(
                f"smoothness: expected a finite number from 0 on; got {self.smoothness}"
            )

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for `auto`."""
        count = requested_clusters(self.components, self.classes, "components")
        return () if count is None else class_names(count, self.classes)

    def finish(self, total: State) -> Segmenter:
        """The fitted model. Raises `FitError` if there are fewer distinct values than components,
        if a component degenerates, or if floats cannot represent the squares of the values.
        """
        dataset = Samples(self.seed).finish(total, self.bands)
        units = Units.of(dataset)
        shape = CovarianceModel(self.covariance, self.reg_covar)
        count = requested_clusters(self.components, self.classes, "components")
        if count is None:
            fitted = choose_mixture(dataset, units, self.max_components, shape, self.seed)
        else:
            fitted = fit_mixture(dataset, units, count, shape, self.seed)
        constants, means, factors = fitted.scorer()
        means = units.origin + means * units.spread
        order = class_order(means, self.classes, units.spread, rgb=dataset.rgb)
        # A density is inversely proportional to the unit of each band.
        widths = float(np.log(units.spread).sum())
        return MixtureModel(
            weights=tuple(fitted.weights[order].tolist()),
            means=tuple(map(tuple, means[order].tolist())),
            factors=tuple(
                tuple(map(tuple, factor)) for factor in (factors / units.spread)[order].tolist()
            ),
            constants=tuple((constants - widths)[order].tolist()),
            classes=class_names(len(order), self.classes),
            bands=self.bands,
            covariance=self.covariance,
            log_likelihood=fitted.log_likelihood - widths,
            steps=fitted.steps,
            converged=fitted.converged,
            pixels=dataset.pixels,
            values=int(dataset.weights.size),
            exact=dataset.exact,
            suspect=note_of_nodata(dataset, self.bands),
            class_of=merged_clusters(self.classes),
            smoothness=self.smoothness,
        )


@MODELS.register("mixture")
@dataclass(frozen=True, slots=True)
class MixtureModel:
    """A fitted model: the components."""

    weights: tuple[float, ...]
    """Share of all pixels in each component."""
    means: tuple[tuple[float, ...], ...]
    factors: tuple[tuple[tuple[float, ...], ...], ...]
    """Lower triangular; factor.T @ factor is the inverse of the component's covariance."""
    constants: tuple[float, ...]
    """log(weight x density) of a component at its mean."""
    classes: tuple[str, ...]
    bands: tuple[int, ...] | None
    covariance: str
    log_likelihood: float
    """Mean over the fitted pixels; densities are in the units of the pixels."""
    steps: int
    """Number of EM steps on all values. If `converged`, the last one changed the mean
    log-likelihood by less than 1e-3.
    """
    converged: bool
    pixels: int
    """Number of valid pixels."""
    values: int
    """Number of distinct or sampled values that represent them."""
    exact: bool
    """Whether all pixels were used, with none left out by sampling."""
    suspect: str | None = None
    """A note if some fitted pixels look like undeclared nodata."""
    class_of: tuple[int, ...] | None = None
    """Class of each component, where some components are one class. None: component k is class
    k.
    """
    smoothness: float = 0.0
    """What a neighbour of the same class adds to the log-probability of a pixel's class."""

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """A halo for smoothing only. The table of colours adds 16 MiB per process."""
        alone = Requirements(bytes_per_pixel=8 * len(self.means[0]) + 8)
        if not self.smoothness:
            return alone
        return replace(
            alone,
            halo=HALF_ROUNDS,
            bytes_per_pixel=alone.bytes_per_pixel + _SMOOTHING_BYTES,
            cost=alone.cost + _SMOOTHING_COST,
        )

    @property
    def covariances(self) -> list[list[list[float]]]:
        """Covariance matrix of each component."""
        from maskloom.segcore.kernels.clustering import of_inverse_roots

        factors = np.array(self.factors)
        matrices = np.empty_like(factors)
        of_inverse_roots(factors, matrices)
        covariances: list[list[list[float]]] = matrices.tolist()
        return covariances

    def mean_colours(self, spec: RasterSpec) -> tuple[Colour, ...] | None:
        """The colours of the means. None: some components are one class."""
        if self.class_of is not None:
            return None
        return colours_of_means(self.means, self.weights, self._deviations, spec)

    @property
    def _deviations(self) -> list[float]:
        """Standard deviation of each band over all components."""
        means, share = np.array(self.means), np.array(self.weights)[:, None]
        within = np.diagonal(np.array(self.covariances), axis1=1, axis2=2)
        middle = (means * share).sum(axis=0)
        deviations: list[float] = np.sqrt(
            ((within + (means - middle) ** 2) * share).sum(axis=0)
        ).tolist()
        return deviations

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the selected bands. Raises `ModelMismatch` if their number differs from
        that of the means.
        """
        return select_fitted(spec, self.bands, len(self.means[0]))

    def segment(self, block: Block) -> Labels:
        """The class of the most probable component of each pixel, given its neighbours if
        smoothing is on.
        """
        classes = self._alone(block)
        return Labels(self._smooth.label(block, classes) if self.smoothness else classes)

    def scores(self, block: Block) -> NDArray[np.float32]:
        """Posterior probability of each class for each pixel, (y, x, class) or (z, y, x, class);
        given its neighbours if smoothing is on.
        """
        votes = self._smooth.votes(block, self._alone(block)) if self.smoothness else None
        found = posteriors(block.pixels, self._scorer, votes)
        if self.class_of is None:
            return found
        summed = np.zeros((*found.shape[:-1], len(self.classes)), np.float32)
        for component, of in enumerate(self.class_of):
            summed[..., of] += found[..., component]
        return summed

    def _alone(self, block: Block) -> NDArray[np.uint8]:
        """The class of each pixel by its values alone."""
        labels = Scores(self.constants, self.means, self.factors).label(block.pixels)
        return merged(labels, self.class_of)

    @property
    def _scorer(self) -> Scorer:
        return np.array(self.constants), np.array(self.means), np.array(self.factors)

    @property
    def _smooth(self) -> SmoothClasses:
        class_of = range(len(self.means)) if self.class_of is None else self.class_of
        return SmoothClasses(self._scorer, np.array(class_of, np.uint8), self.smoothness)

    def provenance(self) -> Mapping[str, Any]:
        """Components and the settings of the fit, with a note if values look like undeclared
        nodata.
        """
        return {
            "components": len(self.means),
            "means": [list(mean) for mean in self.means],
            "fractions": list(self.weights),
            "covariances": self.covariances,
            "covariance": self.covariance,
            "log_likelihood": self.log_likelihood,
            "steps": self.steps,
            "converged": self.converged,
            **({} if self.class_of is None else {"class_of": list(self.class_of)}),
            **({"smoothness": self.smoothness} if self.smoothness else {}),
            **({} if self.suspect is None else {"note": self.suspect}),
            "pixels": self.pixels,
            "values": self.values,
            "exact": self.exact,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """The note of `provenance`."""
        return self.suspect
