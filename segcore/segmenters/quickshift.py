"""Quick shift: every pixel is linked to the nearest denser one, and the resulting trees are the
regions.

After Vedaldi and Soatto, "Quick shift and kernel methods for mode seeking" (ECCV 2008), as
`skimage.segmentation.quickshift` defines it:

1. A pixel is a point: its colour times `ratio`, and its position in pixels. Its density is the sum
   of exp(-d² / (2 kernel_size²)) over all pixels within ceil(3 · kernel_size) rows and columns,
   where d is the distance between the points.
2. Noise of standard deviation 1e-5 is added, so that uniform areas have slopes too.
3. Its parent is the nearest denser pixel of that window, unless farther than `max_dist`; then it is
   the root of a tree.

Two things differ from scikit-image. The noise of a pixel depends on its row, its column and `seed`,
not on the shape of the array, and all arithmetic is in double precision.

A tile needs the densities of all pixels within `max_dist` of its core, and their windows. A chain
of parents that leaves the core ends, for this tile, in a pixel of another tile; joining continues
it there. Pixels without data have no density, no parent and no children.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.methods.naming import check_bands, check_names
from maskloom.segcore.models.fragments import Fragments
from maskloom.segcore.models.planes import PLANAR, fragment_by_plane, join_by_plane
from maskloom.segcore.models.protocols import MODELS, SEGMENTERS, Exactness, Requirements
from maskloom.segcore.objects.faces import Faces
from maskloom.segcore.objects.merging import join_links

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Grid, Shape
    from maskloom.segcore.models.fragments import Equivalences, TileBoundary
    from maskloom.segcore.raster.spec import Block, RasterSpec

_WIDEST = 1000.0
"""Largest `kernel_size` and `sigma`: windows of 6001 pixels."""
_TRUNCATE = 4.0
"""Radius at which smoothing truncates its Gaussian, in standard deviations."""


@SEGMENTERS.register("quickshift")
@dataclass(frozen=True, slots=True)
class Quickshift:
    """Regions of similar colour around the densest points of colour and space."""

    kernel_size: float = 5.0
    """Standard deviation of the Gaussian for densities, from 1 on; a larger one gives fewer
    regions. Time grows with its square.
    """
    max_dist: float = 10.0
    """Largest distance to a parent, in colour and space; a larger one gives fewer regions."""
    ratio: float = 1.0
    """Weight of colour relative to position, 0 to 1."""
    sigma: float = 0.0
    """Standard deviation in pixels of a Gaussian that first smooths the image. 0: no smoothing."""
    convert_to_lab: bool | None = None
    """Whether to convert colours to CIE Lab, which needs three bands. None: only for RGB images of
    8 or 16 bits.
    """
    scale: float | None = None
    """Factor for the bands. None: floats are unchanged; the largest integer of the type becomes 1
    for Lab, otherwise 100, the range of lightness (scikit-image uses 1, so that positions alone
    decide).
    """
    bands: tuple[int, ...] | None = None
    """Bands to use, counted from 1. None: all."""
    classes: tuple[str, ...] | None = None
    """One name, the class of all regions. None: region."""
    seed: int = 0
    """Determines the noise."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = (
        "colour is weighed against place: `scale` must change along with the units"
    )
    volumes: ClassVar[str] = PLANAR
    use_when: ClassVar[str] = (
        "superpixels: small regions of even colour that later steps merge or classify"
    )
    not_when: ClassVar[str] = (
        "regions must be few and meaningful: use mean_shift with `space: joint`"
    )
    reference: ClassVar[str] = "Vedaldi and Soatto 2008, doi:10.1007/978-3-540-88693-8_52"

    def __post_init__(self) -> None:
        _check("kernel_size", self.kernel_size, 1.0, _WIDEST)
        _check("max_dist", self.max_dist, 0.0, math.inf)
        _check("ratio", self.ratio, 0.0, 1.0)
        _check("sigma", self.sigma, 0.0, _WIDEST)
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale: expected a finite number above 0; got {self.scale}")
        check_bands(self.bands)
        if self.convert_to_lab and self.bands is not None and len(self.bands) != 3:
            raise ValueError(
                "convert_to_lab: Lab takes three bands, red, green and blue; got bands "
                f"{list(self.bands)}"
            )
        if self.classes is not None and len(self.classes) != 1:
            raise ValueError(
                f"classes: all regions are of one class, so give one name; got {list(self.classes)}"
            )
        check_names(self.class_names)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a number from 0 on and below 2**63; got {self.seed}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id, that of the background first."""
        return ("background", *(self.classes or ("region",)))

    def start(self) -> QuickshiftModel:
        """The model; nothing needs fitting."""
        return QuickshiftModel(
            kernel_size=float(self.kernel_size),
            max_dist=float(self.max_dist),
            ratio=float(self.ratio),
            sigma=float(self.sigma),
            convert_to_lab=self.convert_to_lab,
            scale=self.scale,
            bands=self.bands,
            classes=self.class_names,
            seed=self.seed,
        )


@MODELS.register("quickshift")
@dataclass(frozen=True, slots=True)
class QuickshiftModel:
    """Quick shift, ready to run. Its fields are those of `Quickshift`."""

    kernel_size: float
    max_dist: float
    ratio: float
    sigma: float
    convert_to_lab: bool | None
    scale: float | None
    bands: tuple[int, ...] | None
    classes: tuple[str, ...]
    seed: int

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def width(self) -> int:
        """Radius in pixels of the window that a density is summed over."""
        return math.ceil(3 * self.kernel_size)

    @property
    def reach(self) -> int:
        """Largest distance of a parent along an axis, in pixels."""
        return int(min(self.width, self.max_dist))

    @property
    def requirements(self) -> Requirements:
        """A halo for parents, their densities and smoothing. Memory is for four bands of doubles,
        or the number in `bands`.
        """
        margin = self.width + self.reach + int(_TRUNCATE * self.sigma + 0.5)
        numbers = (4 if self.bands is None else len(self.bands)) * (3 if self.sigma > 0 else 2)
        return Requirements(
            halo=margin,
            bytes_per_pixel=8 * numbers + 32,
            cost=1 + (2 * self.width + 1) ** 2 // 3,
            planar=True,
        )

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the selected bands. Raises `ModelMismatch` if Lab is requested for other
        than three bands.
        """
        selected = spec.select(self.bands)
        if self.convert_to_lab and selected.channels != 3:
            raise ModelMismatch(
                f"{spec.location}: Lab takes three bands, red, green and blue; it got "
                f"{selected.channels}. "
                "Choose three `bands`, or leave `convert_to_lab` out."
            )
        return selected

    @fragment_by_plane
    def fragment(self, block: Block) -> Fragments:
        """The trees of the core's pixels, cut where they leave the core, and the pixels outside
        that they lead to.
        """
        core, read = block.tile.core, block.tile.read
        inner = core.grow((self.reach,) * 2) & read
        seen = inner.grow((self.width,) * 2) & read
        parents = self._parents(self._colours(block, seen), seen, inner, core)
        from maskloom.segcore.kernels.quickshift import number_trees

        values = np.zeros(seen.shape, np.uint32)
        number_trees(parents, values)
        own = core.relative_to(seen).slices
        fragments = values[own]
        count = int(fragments.max(initial=0))
        fragments, values[own] = fragments.copy(), 0
        rows, columns = np.nonzero(values)
        class_of = np.ones(count + 1, np.uint16)
        class_of[0] = 0
        faces = Faces.of(fragments, max(self.reach, 1))
        leading = values[rows, columns]
        meeting = np.unique(np.concatenate([leading, *(slab.ravel() for slab in faces.slabs)]))
        meeting = meeting[meeting > 0]
        places = rows + seen.start[0], columns + seen.start[1]
        boundary = {
            "faces": faces,
            "fragments": meeting,
            "class_of": class_of[meeting],
            "link_fragment": leading,
            "link_place": np.ravel_multi_index(places, block.spec.shape),
        }
        return Fragments(fragments, class_of, boundary)

    @join_by_plane
    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Fragments are one object if one leads to a pixel of the other."""
        return join_links(grid, boundaries)

    def provenance(self) -> Mapping[str, Any]:
        """Return the parameters."""
        return {
            "kernel_size": self.kernel_size,
            "max_dist": self.max_dist,
            "ratio": self.ratio,
            "sigma": self.sigma,
            "convert_to_lab": self.convert_to_lab,
            "scale": self.scale,
            "seed": self.seed,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """A warning if unscaled floats are compared with distances in pixels."""
        if self.scale is not None or self.convert_to_lab or np.dtype(spec.dtype).kind != "f":
            return None
        return (
            f"these pixels are {spec.dtype}, and a difference of 1 counts as one pixel of place: "
            "set `scale` (100 for values from 0 to 1)"
        )

    def _colours(self, block: Block, seen: Box) -> NDArray[np.float64]:
        """Scaled colours (band, y, x) of the pixels of `seen`; infinite where there is no data."""
        margin = int(_TRUNCATE * self.sigma + 0.5)
        wide = seen.grow((margin,) * 2) & block.tile.read
        part = wide.relative_to(block.tile.read).slices
        lab = _becomes_lab(block.spec) if self.convert_to_lab is None else self.convert_to_lab
        scale = _default_scale(block.pixels.dtype, lab) if self.scale is None else self.scale
        planes = scaled_planes(block.pixels[part], scale, lab)
        valid = block.valid[part] & np.isfinite(planes).all(axis=0)
        if self.sigma > 0:
            smooth(planes, valid, self.sigma)
        if self.ratio != 1:
            planes *= self.ratio
        planes[:, ~valid] = np.inf
        return np.ascontiguousarray(planes[:, *seen.relative_to(wide).slices])

    def _parents(
        self, planes: NDArray[np.float64], seen: Box, inner: Box, core: Box
    ) -> NDArray[np.int64]:
        """Flat position in `seen` of the parent of each pixel of `core`; -1 for all other pixels
        and those without data.
        """
        from maskloom.segcore.kernels.quickshift import fill_noise

        noise = np.empty(seen.shape)
        fill_noise(seen.start, self.seed, noise)
        return self.parents_of(planes, noise, inner.relative_to(seen), core.relative_to(seen))

    def parents_of(
        self, planes: NDArray[np.float64], noise: NDArray[np.float64], inner: Box, core: Box
    ) -> NDArray[np.int64]:
        """Flat position of the parent of each pixel of `core`; roots are their own parents. -1 for
        all other pixels and those without data.

        `planes` (band, y, x) and `noise` (y, x) cover both boxes. `inner` is `core` and all pixels
        within `reach`; `noise` there is overwritten by densities.
        """
        from maskloom.segcore.kernels.quickshift import add_densities, find_parents

        add_densities(
            planes, noise, (*inner.start, *inner.stop), self.width, -0.5 / self.kernel_size**2
        )
        noise[np.isinf(planes[0])] = -np.inf
        parents = np.full(noise.shape, -1, np.int64)
        offsets = _offsets(self.reach, self.max_dist, noise.shape)
        find_parents(planes, noise, (*core.start, *core.stop), offsets, self.max_dist, parents)
        return parents


def scaled_planes(pixels: NDArray[np.generic], scale: float, lab: bool) -> NDArray[np.float64]:
    """The bands of (y, x, band) pixels times `scale`, as (band, y, x); with `lab`, converted to CIE
    Lab.
    """
    planes = np.empty((pixels.shape[-1], *pixels.shape[:-1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for band, plane in enumerate(planes):
            np.multiply(pixels[..., band], scale, out=plane, dtype=np.float64)
    if lab:
        from maskloom.segcore.kernels.quickshift import convert_to_lab

        convert_to_lab(planes)
    return planes


def smooth(planes: NDArray[np.float64], valid: NDArray[np.bool_], sigma: float) -> None:
    """Smooth the planes (band, y, x) in place by a Gaussian over the valid pixels (y, x), mirrored
    at the edges of the array as in scikit-image.

    Weights are normalised over the valid pixels.
    """
    from scipy.ndimage import gaussian_filter

    planes[:, ~valid] = 0.0
    for plane in planes:
        gaussian_filter(plane, sigma, output=plane, mode="reflect", truncate=_TRUNCATE)
    if not valid.all():
        weight = gaussian_filter(
            valid.astype(np.float64), sigma, mode="reflect", truncate=_TRUNCATE
        )
        # The total weight of a window without holes differs from 1 by rounding. Dividing by that
        # total makes it 1, so that holes elsewhere in the tile do not change a bit of these pixels.
        weight /= gaussian_filter(np.ones((1, 1)), sigma, mode="reflect", truncate=_TRUNCATE)
        np.divide(planes, weight, out=planes, where=valid)


def _becomes_lab(spec: RasterSpec) -> bool:
    return spec.interpretation == "rgb" and spec.channels == 3 and spec.dtype in ("uint8", "uint16")


def _default_scale(dtype: np.dtype[Any], lab: bool) -> float:
    return 1.0 if dtype.kind not in "iu" else (1.0 if lab else 100.0) / np.iinfo(dtype).max


def _offsets(reach: int, max_dist: float, shape: Shape) -> NDArray[np.int64]:
    """Rows (dy² + dx², dy, dx) of the possible offsets of a parent in an array of this shape, by
    ascending distance.
    """
    down, across = (min(reach, side - 1) for side in shape)
    dy, dx = (each.ravel() for each in np.mgrid[-down : down + 1, -across : across + 1])
    space = dy**2 + dx**2
    chosen = np.flatnonzero((space > 0) & (np.sqrt(space) <= max_dist))
    return np.stack([space, dy, dx], axis=1)[
        chosen[np.argsort(space[chosen], kind="stable")]
    ].astype(np.int64)


def _check(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on"
        raise ValueError(f"{field}: expected a finite number {limits}; got {value}")
