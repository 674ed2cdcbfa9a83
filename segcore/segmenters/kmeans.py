"""K-means: classes are the regions nearest to centres that minimise the squared distance of all
pixels to their centre.

The centres are fitted to all pixels where these have at most 24 bits, else to a uniform sample of
2**18 (`segcore.methods.samples`). The local optimum depends on `seed` only, not on the tiling or
the number of workers.

Distances are in the units of the pixels, as in scikit-learn and most image software: bands in one
unit (colours, reflectances) count in proportion to their variation. Bands in different units need
`standardise`; without it, a note names the bands that have almost no influence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.methods.clustering import (
    Clustering,
    different,
    fit_kmeans,
    points_for_start,
    refine,
    search,
)
from maskloom.segcore.methods.naming import (
    MOST_CLASSES,
    class_names,
    class_order,
    merged_clusters,
    requested_clusters,
)
from maskloom.segcore.methods.notes import note_of_nodata, note_of_units
from maskloom.segcore.methods.pointwise import Scores, merged, select_fitted
from maskloom.segcore.methods.sampled_fitter import SampledFitter
from maskloom.segcore.methods.samples import Samples, State, Units, WeightedValues, spread_of
from maskloom.segcore.methods.shown import colours_of_means
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

    Floats = NDArray[np.float64]


@SEGMENTERS.register("kmeans")
@dataclass(frozen=True, slots=True)
class KMeans(SampledFitter):
    """Clusters of similar pixels, each around its mean."""

    clusters: int | Literal["auto"] | None = None
    """Number of clusters, or `auto`: the best of 2 to `max_clusters` (Calinski-Harabasz), or 1 if
    all pixels have one value. None: as many as `classes`, or 5.
    """
    classes: tuple[str, ...] | Mapping[str, tuple[float, ...] | str] | None = None
    """Names by ascending luminance, or names with one reference each: one number per band, or
    `#rrggbb`. A name given several times merges those clusters into one class.
    """
    bands: tuple[int, ...] | None = None
    """Bands to use, counted from 1. None: all."""
    standardise: bool = False
    """Whether each band is in units of its standard deviation over all pixels, so that bands in
    different units have equal influence.
    """
    seed: int = 0
    """Determines the starts and, if pixels are sampled, the sample."""
    max_clusters: int = 8
    """Largest number of clusters that `auto` tries."""

    units: ClassVar[str] = (
        "one factor for all bands, and an offset of each, changes no label; with `standardise` no "
        "factors at all do"
    )
    volumes: ClassVar[str] = "exact"
    use_when: ClassVar[str] = (
        "classes differ in colour or reflectance, and there are no labels to learn from: land "
        "cover, tissue, photographs. A first look at any collection"
    )
    not_when: ClassVar[str] = (
        "classes differ in texture or shape rather than in colour; one class is rare (it gets "
        "no cluster of its own); bands have different units (set `standardise`); clusters are "
        "elongated or of very different size (use mixture)"
    )
    reference: ClassVar[str] = (
        "Lloyd 1982, doi:10.1109/TIT.1982.1056489; starts by k-means++, Arthur and "
        "Vassilvitskii 2007; `auto` by Calinski and Harabasz 1974, "
        "doi:10.1080/03610927408827101"
    )

    def __post_init__(self) -> None:
        requested_clusters(self.clusters, self.classes, "clusters")
        self.check_common()
        if not 2 <= self.max_clusters <= MOST_CLASSES:
            raise ValueError(f"max_clusters: expected 2 to {MOST_CLASSES}; got {self.max_clusters}")

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for `auto`."""
        count = requested_clusters(self.clusters, self.classes, "clusters")
        return () if count is None else class_names(count, self.classes)

    def finish(self, total: State) -> Segmenter:
        """The fitted model. Raises `FitError` if there are fewer distinct values than clusters, or
        if floats cannot represent their squares.
        """
        dataset = Samples(self.seed).finish(total, self.bands)
        units = Units.of(dataset)
        spread = units.spread if self.standardise else np.ones_like(units.spread)
        count = requested_clusters(self.clusters, self.classes, "clusters")
        centred, origin = dataset.centred()
        fitted = (
            fit_kmeans(centred, count, spread, self.seed)
            if count is not None
            else self._best(centred, spread)
        )
        centres = fitted.centres + origin
        order = class_order(centres, self.classes, units.spread, rgb=dataset.rgb)
        return KMeansModel(
            centres=tuple(tuple(row) for row in centres[order].tolist()),
            classes=class_names(len(order), self.classes),
            bands=self.bands,
            fractions=tuple((fitted.weights[order] / fitted.weights.sum()).tolist()),
            inertia=fitted.inertia,
            steps=fitted.steps,
            pixels=dataset.pixels,
            values=int(dataset.weights.size),
            exact=dataset.exact,
            deviations=tuple(units.deviation.tolist()),
            standardised=self.standardise,
            suspect=note_of_nodata(dataset, self.bands),
            class_of=merged_clusters(self.classes),
        )

    def _best(self, dataset: WeightedValues, spread: Floats) -> Clustering:
        """The clustering with the greatest index of Calinski and Harabasz (1974), computed on few
        points.
        """
        if (dataset.values == dataset.values[:, :1]).all():
            return fit_kmeans(dataset, 1, spread, self.seed)
        points = points_for_start(dataset, 2).scaled(1 / spread)
        total = points.weights.sum()
        mean = (points.values * points.weights).sum(axis=1) / total
        within = total * points.within_variance.sum()
        around = within + float((((points.values - mean[:, None]) ** 2) * points.weights).sum())
        best: tuple[float, NDArray[np.float64]] | None = None
        for clusters in range(2, min(self.max_clusters, different(points)) + 1):
            centres, inertia = search(points, clusters, self.seed)[0]
            scatter = inertia + within
            index = (
                (around - scatter)
                / (clusters - 1)
                / max(scatter, 1e-300)
                * max(total - clusters, 1)
            )
            if best is None or index > best[0]:
                best = index, centres
        if best is None:
            raise RuntimeError("no number of clusters was tried")
        return refine(dataset, best[1] * spread, spread)


@MODELS.register("kmeans")
@dataclass(frozen=True, slots=True)
class KMeansModel:
    """A fitted model: the centres."""

    centres: tuple[tuple[float, ...], ...]
    """One per cluster, each with one number per band."""
    classes: tuple[str, ...]
    bands: tuple[int, ...] | None
    fractions: tuple[float, ...]
    """Share of the fitted pixels in each cluster."""
    inertia: float
    """Sum of squared distances of the fitted values to their centres, weighted by the pixels that
    each value represents. In squared `deviations` if `standardised`.
    """
    steps: int
    """Number of k-means steps on all values until no centre moved."""
    pixels: int
    """Number of valid pixels."""
    values: int
    """Number of distinct or sampled values that represent them."""
    exact: bool
    """Whether all pixels were used, with none left out by sampling."""
    deviations: tuple[float, ...]
    """Standard deviation of each band over the fitted pixels."""
    standardised: bool = False
    """Whether distances are in units of `deviations`, otherwise in units of the pixels."""
    suspect: str | None = None
    """A note if some fitted pixels look like undeclared nodata."""
    class_of: tuple[int, ...] | None = None
    """Class of each cluster, where some clusters are one class. None: cluster k is class k."""

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """No halo. The table of colours adds 16 MiB per process."""
        return Requirements(bytes_per_pixel=8 * len(self.centres[0]) + 8)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the selected bands. Raises `ModelMismatch` if their number differs from
        that of the centres.
        """
        return select_fitted(spec, self.bands, len(self.centres[0]))

    def segment(self, block: Block) -> Labels:
        """The class of the nearest centre of each pixel."""
        return Labels(merged(self._scores.label(block.pixels), self.class_of))

    def mean_colours(self, spec: RasterSpec) -> tuple[Colour, ...] | None:
        """The colours of the centres. None: some clusters are one class."""
        if self.class_of is not None:
            return None
        return colours_of_means(self.centres, self.fractions, self.deviations, spec)

    @property
    def _scores(self) -> Scores:
        factors = None
        if self.standardised:
            factors = (tuple(map(tuple, np.diag(1 / spread_of(self.deviations)).tolist())),) * len(
                self.centres
            )
        return Scores((0.0,) * len(self.centres), self.centres, factors)

    def provenance(self) -> Mapping[str, Any]:
        """Centres, shares and the settings of the fit, with a note if a band had almost no
        influence or if values look like undeclared nodata.
        """
        note = self._note
        return {
            "clusters": len(self.centres),
            "centres": [list(centre) for centre in self.centres],
            "fractions": list(self.fractions),
            "inertia": self.inertia,
            "steps": self.steps,
            "standardised": self.standardised,
            "deviations": list(self.deviations),
            **({} if self.class_of is None else {"class_of": list(self.class_of)}),
            **({} if note is None else {"note": note}),
            "pixels": self.pixels,
            "values": self.values,
            "exact": self.exact,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """The note of `provenance`."""
        return self._note

    @property
    def _note(self) -> str | None:
        units = None if self.standardised else note_of_units(self.deviations, self.bands)
        return "; ".join(filter(None, [self.suspect, units])) or None
