"""Mean shift (Comaniciu and Meer, 2002): every pixel moves to a local maximum of the density of
pixels, in one of two spaces.

`feature`: the values alone. Modes of their density are classes, the same in all images
(`segcore.methods.modes`).

`joint`: place and value together. The regions of an image are the same for any tiling, after
Michel, Youssefi and Grizonnet, "Stable mean-shift algorithm and its application to the segmentation
of arbitrarily large remote sensing images" (2015):

1. Every pixel starts at its own place and value and moves to the mean of all pixels within
   `spatial_radius` (a disc) of the place and within `range_radius` (a ball) of the value, until it
   shifts by at most a hundredth of either radius or `max_iterations` are done. It depends on no
   pixel farther away than `max_iterations` x `spatial_radius`, which is the halo.
2. Neighbours join if their modes are closer than both radii. The weight of the edge between two
   pixels is the larger of the squared distances of their modes in place and in value, each in
   squared radii, so 1 is the limit.
3. Regions smaller than `min_size` are merged along the lightest edges (`segcore.objects.regions`,
   which also joins the tiles).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.methods.modes import FeatureMeanShift
from maskloom.segcore.methods.naming import check_bands, check_names
from maskloom.segcore.models.planes import PLANAR, fragment_by_plane, join_by_plane
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Fitter,
    Model,
    Requirements,
)
from maskloom.segcore.objects.regions import Edges, find_regions, join_regions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
    from maskloom.segcore.raster.spec import Block, RasterSpec

_LARGEST_RADIUS = 100
"""In pixels. Up to this radius no sum over a window of 16-bit numbers is rounded; a wider filter
would take hours.
"""
_MOST_ITERATIONS = 200
_LARGEST_VALUE = 1e15
"""Pixels with larger values are ignored: squared distances would exceed the range of float32."""
_OF_FEATURE = {"bandwidth": "auto", "kernel": "gaussian", "standardise": False, "seed": 0}
_OF_JOINT: Mapping[str, float] = {
    "spatial_radius": 5,
    "range_radius": 15.0,
    "min_size": 50,
    "max_iterations": 20,
}


@SEGMENTERS.register("mean_shift")
@dataclass(frozen=True, slots=True)
class MeanShift:
    """Modes of the density of values as classes (space: feature), or of places and values as
    regions (space: joint).
    """

    space: Literal["feature", "joint"] = "feature"
    """feature: classes of similar values, the same in all images. joint: connected regions of
    similar values, one object each.
    """
    spatial_radius: int = 5
    """joint: radius of the disc around a place, in pixels, 1 to 100."""
    range_radius: float = 15.0
    """joint: radius of the ball around a value, in units of the pixels' values."""
    min_size: int = 50
    """joint: regions of fewer pixels are merged with the most similar neighbour."""
    max_iterations: int = 20
    """joint: largest number of shifts of a pixel. Determines the halo: max_iterations x
    spatial_radius + 1 pixels.
    """
    bandwidth: float | Literal["auto"] = "auto"
    """feature: radius of the kernel (gaussian: its standard deviation), in units of the pixels'
    values, or in standard deviations of each band with `standardise`. auto: derived from the spread
    of the values. If that gives one class or more than 50, provenance reports it with the bandwidth
    used: set a lower or higher `bandwidth`.
    """
    kernel: Literal["flat", "epanechnikov", "gaussian"] = "gaussian"
    """feature: the kernel of the density. The flat one cuts smooth ramps of grey into slices."""
    standardise: bool = False
    """feature: whether each band is in units of its standard deviation over all pixels, so that
    bands in different units have equal influence.
    """
    bands: tuple[int, ...] | None = None
    """Bands to use, counted from 1. None: all."""
    classes: tuple[str, ...] | Mapping[str, tuple[float, ...] | str] | None = None
    """feature: names by class id, or names with one reference each, as for kmeans. joint: one name
    for the regions (None: region).
    """
    seed: int = 0
    """feature: determines the sample, if pixels are sampled."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = (
        "feature with `bandwidth: auto`: as kmeans; a given `bandwidth` and `range_radius` are in "
        "the units of the pixels, a bandwidth with "
        "`standardise` in standard deviations"
    )
    volumes: ClassVar[str] = f"feature: exact; joint: {PLANAR}"
    use_when: ClassVar[str] = (
        "`space: feature`: colour classes whose number is unknown. `space: joint`: regions of "
        "even colour with true outlines, such as fields and roofs"
    )
    not_when: ClassVar[str] = (
        "many bands (density is thin there), or very large images with `joint` and a large "
        "radius, since time grows with its square"
    )
    reference: ClassVar[str] = "Comaniciu and Meer 2002, doi:10.1109/34.1000236"

    def __post_init__(self) -> None:
        if self.space not in ("feature", "joint"):
            raise ValueError(f"space: expected feature or joint; got {self.space!r}")
        foreign: Mapping[str, Any] = _OF_FEATURE if self.space == "joint" else _OF_JOINT
        for name, default in foreign.items():
            if getattr(self, name) != default:
                other = "feature" if self.space == "joint" else "joint"
                raise ValueError(
                    f"{name}: only space {other} has it; leave it out, or set space: {other}"
                )
        check_bands(self.bands)
        if self.space == "joint":
            self._check_joint()
        else:
            self._fitter()

    def _check_joint(self) -> None:
        _check_whole("spatial_radius", self.spatial_radius, _LARGEST_RADIUS, "pixels")
        _check_whole("min_size", self.min_size, 2**31 - 1, "pixels")
        _check_whole("max_iterations", self.max_iterations, _MOST_ITERATIONS, "shifts")
        if not 1 / _LARGEST_VALUE <= self.range_radius <= _LARGEST_VALUE:
            raise ValueError(
                "range_radius: expected a positive, finite number in units of the pixels' values; "
                f"got {self.range_radius}"
            )
        if self.classes is not None:
            check_names(tuple(self.classes))
            if (
                isinstance(self.classes, Mapping)
                or len(self.classes) != 1
                or self.classes[0] == "background"
            ):
                raise ValueError(
                    "classes: space joint takes one name, that of its regions; got "
                    f"{list(self.classes)}"
                )

    def start(self) -> Fitter | Model:
        """The fitter of modes, or the segmenter of regions, which needs no fitting."""
        if self.space == "joint":
            region = "region" if self.classes is None else next(iter(self.classes))
            sizes = (
                self.spatial_radius,
                float(self.range_radius),
                self.min_size,
                self.max_iterations,
            )
            return JointMeanShift(*sizes, self.bands, ("background", region))
        return self._fitter()

    def _fitter(self) -> FeatureMeanShift:
        """The fitter of modes. Raises `ValueError` for wrong parameters."""
        if isinstance(self.bandwidth, str) and self.bandwidth != "auto":
            raise ValueError(
                f"bandwidth: expected 'auto' or a positive, finite number; got {self.bandwidth!r}"
            )
        bandwidth = None if self.bandwidth == "auto" else float(self.bandwidth)
        return FeatureMeanShift(
            self.kernel, bandwidth, self.bands, self.classes, self.standardise, self.seed
        )


def _check_whole(field: str, value: int, most: int, unit: str) -> None:
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{field}: expected 1 to {most:,} {unit}; got {value!r}")


@MODELS.register("mean_shift_joint")
@dataclass(frozen=True, slots=True)
class JointMeanShift:
    """Regions of similar values, with the parameters of `MeanShift`."""

    spatial_radius: int
    range_radius: float
    min_size: int
    max_iterations: int
    bands: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ("background", "region")

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """The halo is the largest distance that a pixel can move. Pixels of the halo are read, not
        filtered.
        """
        halo = self.max_iterations * self.spatial_radius + 1
        channels = 4 if self.bands is None else len(self.bands)
        return Requirements(halo, bytes_per_pixel=16 * channels + 64, cost=200, planar=True)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the selected bands."""
        return spec.select(self.bands)

    @fragment_by_plane
    def fragment(self, block: Block) -> Fragments:
        """The regions of the core, as far as this tile decides them. Pixels without data or with
        values beyond 1e15 are background.
        """
        from maskloom.segcore.kernels.mean_shift import weigh_edges

        core = block.tile.core
        # Edges across the boundaries below and to the right belong to this tile, so it needs the
        # modes on the other side.
        beyond = Box(core.start, tuple(stop + 1 for stop in core.stop)) & block.tile.read
        modes = self.modes(block, beyond)
        right, down = np.empty(core.shape, np.float32), np.empty(core.shape, np.float32)
        weigh_edges(modes, self._radii, right, down)
        valid = ~np.isnan(modes[2, : core.shape[0], : core.shape[1]])
        del modes
        return find_regions(Edges(right, down), valid, core, block.spec.shape, self.min_size)

    def modes(self, block: Block, part: Box) -> NDArray[np.float32]:
        """Where the pixels of `part` end, shape (2 + band, y, x): y and x relative to the pixel,
        then the values. NaN for ignored pixels.

        `part` is inside `block.tile.read`, at least the halo away from each side where the image
        continues.
        """
        from maskloom.segcore.kernels.mean_shift import shift_pixels
        from maskloom.segcore.kernels.simd import LANES

        margin, (rows, columns) = self.spatial_radius, block.valid.shape
        channels = block.pixels.shape[2]
        last = -(-(2 * margin + 1) // LANES) * LANES
        planes = np.full((channels, rows + 2 * margin, columns + margin + last), np.nan, np.float32)
        inside = planes[:, margin : margin + rows, margin : margin + columns]
        with np.errstate(over="ignore"):
            inside[...] = np.moveaxis(block.pixels, 2, 0)
        inside[:, ~block.valid] = np.nan
        if block.pixels.dtype.kind == "f":
            # Also true for NaN.
            inside[:, ~(np.abs(inside) <= _LARGEST_VALUE).all(axis=0)] = np.nan
        modes = np.empty((2 + channels, *part.shape), np.float32)
        first = part.relative_to(block.tile.read).start
        stride = planes.shape[2]
        layout = (first[0] + margin) * stride + first[1] + margin, planes.shape[1] * stride, stride
        like = (np.float32(0),) * channels
        shift_pixels(planes.ravel(), layout, self._radii, self.max_iterations, like, modes)
        return modes

    @property
    def _radii(self) -> tuple[np.float32, np.float32, np.float32]:
        """Squared spatial radius, squared range radius, spatial radius."""
        return (
            np.float32(self.spatial_radius**2),
            np.float32(self.range_radius**2),
            np.float32(self.spatial_radius),
        )

    @join_by_plane
    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> Sequence[Equivalences]:
        """Return which fragments are one region."""
        return join_regions(grid, boundaries, self.min_size)

    def provenance(self) -> Mapping[str, Any]:
        """Return the parameters."""
        return {
            "space": "joint",
            "spatial_radius": self.spatial_radius,
            "range_radius": self.range_radius,
            "min_size": self.min_size,
            "max_iterations": self.max_iterations,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """A warning if the default radius is used on pixels that are not 8-bit."""
        if self.range_radius != _OF_JOINT["range_radius"] or np.dtype(spec.dtype).itemsize == 1:
            return None
        return (
            f"`range_radius` is {self.range_radius:g}, which suits 8-bit pictures; these pixels "
            f"are {spec.dtype}: set it in their units"
        )
