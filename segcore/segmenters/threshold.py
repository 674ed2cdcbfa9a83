"""Thresholds: a pixel is in class 1 if its value exceeds the threshold.

A threshold is given, or found by Otsu's method, Otsu's method for several classes, Li's minimum
cross entropy or the triangle method. These methods need only the histogram, and histograms of tiles
add up exactly. So the threshold is the one that scikit-image finds on all valid pixels at once.

- Integers: the count of every value (if the range is below 2**20, otherwise as floats).
- Floats: one round for the range, one for 256 equal bins over it, as in scikit-image. Li's method,
  which scikit-image runs on every pixel, uses 65,536 bins: its threshold is accurate to about one
  bin width.
- multi-otsu on integers with more than 256 levels groups them into 256 equal bins, because its cost
  grows with a power of the number of bins.
Collections that mix integers and floats are treated as floats. Infinite values are ignored when
fitting.

The method `local` needs no histogram: each pixel is compared with the Gaussian mean, mean or median
of the window around it, as by `skimage.filters.threshold_local` (`segcore.methods.windows`), but
rounding never makes a pixel exceed a local value that it equals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.errors import FitError, NothingToFit
from maskloom.segcore.methods.histogram import Bins, ValueCounts
from maskloom.segcore.methods.intensity import (
    Band,
    Source,
    core_intensity,
    exceeds,
    intensity,
    select_source,
)
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.methods.notes import UNLIKELY, note_of_extremes
from maskloom.segcore.methods.thresholds import Histogram, find_thresholds
from maskloom.segcore.methods.windows import LARGEST_WINDOW, LocalWindow, WindowStatistic
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Fitter,
    Requirements,
    Segmenter,
)
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import Block, RasterSpec

Method = Literal["otsu", "multi-otsu", "li", "triangle", "local"]
_FEW_BINS, _MANY_BINS = 256, 65_536
# Worst case, colours in float64: 3 x 8 bytes read, 12 as float32, two float32 products, validity
# and labels.
_BYTES_PER_PIXEL, _LOCAL_BYTES_PER_PIXEL = 48, 88


@SEGMENTERS.register("threshold")
@dataclass(frozen=True, slots=True)
class Threshold:
    """Two classes (or several, by multi-otsu) by the value of one band or of the luminance."""

    value: float | None = None
    """The threshold. None: it is found by `method`."""
    method: Method | None = None
    """How to find the threshold: otsu (the default), multi-otsu, li, triangle, or local (for each
    pixel). Not together with `value`.
    """
    band: Band = None
    """Band, counted from 1, or `luminance`. None: luminance for RGB pictures, the first band
    otherwise.
    """
    bands: tuple[int, ...] | None = None
    """The same as a list: one band, or the three bands of the luminance. Not together with
    `band`.
    """
    above: bool = True
    """True: class 1 where the value is greater than the threshold. False: class 1 where it is
    not.
    """
    levels: int = 3
    """Number of classes for multi-otsu, 2 to 5."""
    window: int = 51
    """Side of the square around each pixel for local: an odd number of pixels from 3 on."""
    window_statistic: WindowStatistic = "gaussian"
    """For local, the statistic of the window: gaussian (mean with sigma (window - 1) / 6), mean,
    median.
    """
    offset: float = 0.0
    """Subtracted from the local value: above 0, pixels a little darker than their surroundings are
    class 1 too.
    """
    classes: tuple[str, ...] | None = None
    """Names by class id. None: background, foreground; for multi-otsu class_0, class_1 …"""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = (
        "a found threshold moves along, and no label changes (triangle and multi-otsu on whole "
        "numbers: unless gaps arise between these); "
        "`value` and `offset` are in the units of the pixels"
    )
    volumes: ClassVar[str] = "exact; the window of local is a cube"
    use_when: ClassVar[str] = (
        "one kind of thing is brighter or darker than everything else: cells in fluorescence, "
        "bone in CT, water in near infrared"
    )
    not_when: ClassVar[str] = (
        "brightness of thing and surroundings overlap. Where the light is uneven: `method: local`"
    )
    reference: ClassVar[str] = (
        "Otsu 1979, doi:10.1109/TSMC.1979.4310076; Li and Tam 1998, "
        "doi:10.1016/S0167-8655(98)00057-9; triangle: Zack, Rogers and Latt 1977, "
        "doi:10.1177/25.7.70454; local: as skimage.filters.threshold_local"
    )

    def __post_init__(self) -> None:
        if self.value is not None and self.method is not None:
            raise ValueError(
                f"value and method: a threshold is given or found, not both; got {self.value} and "
                f"{self.method!r}"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"value: expected a finite number; got {self.value}")
        if self.method not in (None, "otsu", "multi-otsu", "li", "triangle", "local"):
            raise ValueError(
                f"method: expected otsu, multi-otsu, li, triangle or local; got {self.method!r}"
            )
        if self.band not in (None, "luminance") and (
            not isinstance(self.band, int) or self.band < 1
        ):
            raise ValueError(
                f"band: expected a number from 1 on, or 'luminance'; got {self.band!r}"
            )
        if self.bands is not None and (
            self.band is not None or len(self.bands) not in (1, 3) or min(self.bands) < 1
        ):
            raise ValueError(
                "bands: expected one band or three, from 1 on, and no `band` beside them; got "
                f"{list(self.bands)}"
            )
        if not 2 <= self.levels <= 5:
            raise ValueError(f"levels: expected 2 to 5 classes; got {self.levels}")
        if self.method == "multi-otsu" and not self.above:
            raise ValueError("above: multi-otsu numbers its classes upwards; leave `above` out")
        self._check_window()
        if self.classes is not None:
            check_names(self.classes)
            if len(self.classes) != self._count:
                raise ValueError(
                    f"classes: {self._count} classes need {self._count} names; got "
                    f"{list(self.classes)}"
                )

    def _check_window(self) -> None:
        if not 3 <= self.window <= LARGEST_WINDOW or self.window % 2 == 0:
            raise ValueError(
                f"window: expected an odd number of pixels from 3 to {LARGEST_WINDOW:,}; got "
                f"{self.window}"
            )
        if self.window_statistic not in ("gaussian", "mean", "median"):
            raise ValueError(
                "window_statistic: expected gaussian, mean or median; got "
                f"{self.window_statistic!r}"
            )
        if not math.isfinite(self.offset):
            raise ValueError(f"offset: expected a finite number; got {self.offset}")
        others = ("levels",) if self.method == "local" else ("window", "window_statistic", "offset")
        for field in fields(self):
            if field.name in others and getattr(self, field.name) != field.default:
                owner = "multi-otsu" if field.name == "levels" else "local"
                raise ValueError(
                    f"{field.name}: belongs to `method: {owner}`; leave it out, or choose that "
                    "method"
                )

    @property
    def _count(self) -> int:
        return self.levels if self.method == "multi-otsu" else 2

    @property
    def source(self) -> Source:
        """The band or bands to threshold."""
        return self.bands or self.band

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Class names by class id."""
        if self.classes is not None:
            return self.classes
        return (
            tuple(f"class_{i}" for i in range(self.levels))
            if self.method == "multi-otsu"
            else ("background", "foreground")
        )

    @property
    def requirements(self) -> Requirements:
        """A halo for local only."""
        if self.method == "local":
            return self.start().requirements
        return Requirements(bytes_per_pixel=_BYTES_PER_PIXEL)

    def start(self) -> Fitter | Segmenter:
        """The segmenter if the threshold is given or local, otherwise this fitter."""
        if self.method == "local":
            return LocalThresholdModel(
                self.window,
                self.window_statistic,
                self.offset,
                self.expected_classes,
                self.source,
                self.above,
            )
        return (
            self
            if self.value is None
            else ThresholdModel((self.value,), self.expected_classes, self.source, self.above)
        )

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the band, or the bands of the luminance."""
        return select_source(spec, self.source)

    def kind_of(self, spec: RasterSpec) -> Hashable:  # noqa: ARG002
        """Values of all images go into one histogram."""
        return ()

    def observe(self, block: Block) -> ValueCounts:
        """Extremes and counts of the block's values."""
        return ValueCounts.of(*core_intensity(block))

    def merge(self, a: ValueCounts, b: ValueCounts) -> ValueCounts:
        """Extremes and counts of both."""
        return a.merge(b)

    def finish(self, total: ValueCounts) -> Fitter | Segmenter:
        """The model, or the fitter of the second round, with equal bins. Raises `NothingToFit` if
        there is no valid pixel.
        """
        if self.value is not None or self.method == "local":
            return self.start()
        if total.pixels == 0:
            raise NothingToFit(
                "A threshold can only be found in valid, finite pixels; the images have none. "
                "Check nodata and masks, or leave these images out."
            )
        if total.counts is None and total.low < total.high:
            number = _MANY_BINS if self.method == "li" else _FEW_BINS
            _require_bins(float(total.low), float(total.high), number)
            return BinnedThreshold(
                self, Bins(float(total.low), float(total.high), number, total.dtype)
            )
        if total.counts is not None:
            return self.model_of(Histogram.of_values(total.counts, int(total.low)))
        return self.model_of(Histogram(np.array([total.pixels]), np.array([total.low])))

    def model_of(self, histogram: Histogram, suspect: str | None = None) -> ThresholdModel:
        """The model for a histogram; `suspect` is the note on values that look like nodata. Raises
        `FitError` if there are too few distinct values.
        """
        method = self.method or "otsu"
        thresholds = find_thresholds(histogram, method, self.levels)
        pixels = int(histogram.counts.sum())
        return ThresholdModel(
            thresholds, self.expected_classes, self.source, self.above, method, pixels, suspect
        )


def _require_bins(low: float, high: float, number: int) -> None:
    """Raise `FitError` if floats cannot represent this number of equal bins from `low` to
    `high`.
    """
    if not 1e-290 < (high - low) / number < math.inf:
        raise FitError(
            f"A threshold cannot be found between values from {low:g} to {high:g}: floats cannot "
            f"hold {number} steps of that range. "
            "Check nodata, give the threshold as `value`, or bring the values into another unit."
        )


@dataclass(frozen=True, slots=True)
class BinnedThreshold:
    """The fitter of the second round, for floats: a histogram of equal bins."""

    recipe: Threshold
    bins: Bins

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """No halo."""
        return self.recipe.requirements

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Class names by class id."""
        return self.recipe.expected_classes

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the band, or the bands of the luminance."""
        return self.recipe.select(spec)

    def kind_of(self, spec: RasterSpec) -> Hashable:  # noqa: ARG002
        """Values of all images go into one histogram."""
        return ()

    def observe(self, block: Block) -> NDArray[np.int64]:
        """Counts of the block's values in each bin."""
        return self.bins.count(*core_intensity(block))

    def merge(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of both."""
        return a + b

    def finish(self, total: NDArray[np.int64]) -> Segmenter:
        """The model."""
        return self.recipe.model_of(Histogram(total, self.bins.centres), self._suspect(total))

    def _suspect(self, total: NDArray[np.int64]) -> str | None:
        """A note if there are values of 1e30 or more and all others are far smaller, so within one
        bin width of 0.
        """
        low, high = self.bins.low, self.bins.high
        largest = max(abs(low), abs(high))
        places = np.abs(self.bins.centres[total > 0].astype(np.float64))
        near = places <= (high / self.bins.number - low / self.bins.number)
        if largest < UNLIKELY or not near.any() or not (near | (places > largest / 2)).all():
            return None
        bands = self.recipe.bands if self.recipe.band is None else (self.recipe.band,)
        named = bands is not None and len(bands) == 1 and bands[0] != "luminance"
        return note_of_extremes(f"band {bands[0]}" if bands and named else "the image", low, high)


@MODELS.register("threshold")
@dataclass(frozen=True, slots=True)
class ThresholdModel:
    """A fitted model: one threshold, or several in ascending order."""

    thresholds: tuple[float, ...]
    classes: tuple[str, ...]
    band: Source = None
    above: bool = True
    method: str = "value"
    """`value` if the threshold was given, otherwise the method that found it."""
    pixels: int = 0
    """Number of pixels that it was found in."""
    suspect: str | None = None
    """A note if some of them look like undeclared nodata."""

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """No halo."""
        return Requirements(bytes_per_pixel=_BYTES_PER_PIXEL)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the band, or the bands of the luminance."""
        return select_source(spec, self.band)

    def segment(self, block: Block) -> Labels:
        """The number of thresholds that each value exceeds (if `above` is False: 1 where it does
        not exceed the threshold).
        """
        values = intensity(block.pixels, block.spec.location)
        first = exceeds(values, self.thresholds[0])
        if not self.above:
            first = ~first
        labels = first.view(np.uint8)
        for threshold in self.thresholds[1:]:
            labels += exceeds(values, threshold)
        return Labels(labels)

    def provenance(self) -> Mapping[str, Any]:
        """Thresholds, method and number of pixels, with a note if values look like undeclared
        nodata.
        """
        note = {} if self.suspect is None else {"note": self.suspect}
        return {
            "thresholds": list(self.thresholds),
            "method": self.method,
            **note,
            "pixels": self.pixels,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """The note of `provenance`."""
        return self.suspect


@MODELS.register("threshold_local")
@dataclass(frozen=True, slots=True)
class LocalThresholdModel:
    """A local threshold for each pixel, from the window around it."""

    window: int
    window_statistic: WindowStatistic
    offset: float
    classes: tuple[str, ...]
    band: Source = None
    above: bool = True

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """The halo is the radius of the window; for the Gaussian 2/3 of its side."""
        radius = LocalWindow(self.window, self.window_statistic).radius
        return Requirements(radius, _LOCAL_BYTES_PER_PIXEL, 4)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the band, or the bands of the luminance."""
        return select_source(spec, self.band)

    def segment(self, block: Block) -> Labels:
        """1 where a pixel of the core exceeds its local value minus the offset (if `above` is
        False: where it does not).
        """
        values = intensity(block.pixels, block.spec.location)
        usable = block.valid & np.isfinite(values) if values.dtype.kind == "f" else block.valid
        core = block.tile.core.relative_to(block.tile.read)
        labels = np.zeros(block.valid.shape, np.uint8)
        exceeded = LocalWindow(self.window, self.window_statistic).exceeded(
            values, usable, core, self.offset
        )
        labels[core.slices] = exceeded if self.above else ~exceeded
        return Labels(labels)

    def provenance(self) -> Mapping[str, Any]:
        """Return the window and the offset."""
        return {
            "method": "local",
            "window": self.window,
            "window_statistic": self.window_statistic,
            "offset": self.offset,
        }
