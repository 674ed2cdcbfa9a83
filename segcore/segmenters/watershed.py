"""Watershed: touching objects of a semantic mask, split at their necks, in images and volumes.

The landscape is the distance of each pixel to the nearest of another class (Euclidean, exact,
clipped at `distance`). Its peaks are the middles of objects, its passes the necks between them.
From the highest pixel down, each joins its steepest neighbour of the same class (corners included),
so the basin of a peak is the set of pixels that flow to it (watershed by topographic distance:
Meyer 1994). Where two basins meet, the lower peak stays an object only if it rises at least
`prominence` above the pass; otherwise it is merged into the higher. The remaining peaks are those
of the h-maxima transform (the dynamics of Grimaud 1992).

Distances are in pixels, whatever the spacing of a volume. They are compared as integer squares;
ties are decided by position in C order, never by the tiling. A connected region that is entirely
inside the read box of a tile is split the same in every such tile, and `stitch` joins the parts.
The halo is three times `distance`: an object of the largest radius (two times), and the
surroundings that determine its distances (once). Objects, or clumps of them, larger than the halo
are cut at the sides of a tile's read box; they are joined by the views of neighbouring tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import wider
from maskloom.segcore.models.composed import start_around
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Fitter,
    Model,
    Segmenter,
    SegmenterRecipe,
    caution_of,
    requirements_of,
)
from maskloom.segcore.objects.stitching import SeamRule, Stitched, rules_of
from maskloom.segcore.objects.tile_overlap import cut_by
from maskloom.segcore.raster.classes import BACKGROUND_NAMES
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.models.protocols import Requirements
    from maskloom.segcore.raster.spec import Block, RasterSpec

_RULE = SeamRule()
_GREATEST_DISTANCE = 1024
# Besides those of the inner segmenter: classes, columns, squares, order, basins, numbers and labels
# of four bytes each.
_BYTES_PER_PIXEL = 32


@SEGMENTERS.register("watershed")
@dataclass(frozen=True, slots=True)
class Watershed:
    """Objects of the classes of another segmenter, split where they touch."""

    of: SegmenterRecipe
    """The segmenter whose classes are split: threshold, kmeans, a network ..."""
    parts: tuple[str, ...] | None = None
    """Names of the classes that become objects. None: all but the background."""
    distance: int = 32
    """Largest radius considered, in pixels: necks twice as wide are not cut. The halo is three
    times this.
    """
    prominence: float = 1.0
    """By how much a neck must be narrower than the smaller object that it connects, in pixels of
    the radius. A larger value splits less.
    """
    min_size: int = 1
    """Objects with fewer pixels become background."""
    stitch: SeamRule | Mapping[str, SeamRule] = _RULE
    """How objects are joined over tiles: `{by: ownership}`, or `{by: overlap, iou: 0.5}`, or one
    such rule for each class by name.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT_IF_SMALLER_THAN_HALO
    units: ClassVar[str] = "as the segmenter inside; sizes and distances are in pixels of the image"
    volumes: ClassVar[str] = "as the segmenter inside; objects are split in three dimensions"
    use_when: ClassVar[str] = "round things that touch: nuclei, grains, pellets"
    not_when: ClassVar[str] = (
        "things are long, branched or without necks: splitting at necks then cuts them in pieces"
    )
    reference: ClassVar[str] = (
        "Meyer 1994, doi:10.1016/0165-1684(94)90060-4, on the distance to the background"
    )

    def __post_init__(self) -> None:
        if self.parts is not None and (not self.parts or len(set(self.parts)) < len(self.parts)):
            raise ValueError(
                f"parts: expected different class names, at least one; got {list(self.parts)}"
            )
        if not 1 <= self.distance <= _GREATEST_DISTANCE:
            raise ValueError(
                f"distance: expected 1 to {_GREATEST_DISTANCE} pixels; got {self.distance}"
            )
        if not 0 < self.prominence < math.inf:
            raise ValueError(
                f"prominence: expected a finite number of pixels above 0; got {self.prominence}"
            )
        if self.min_size < 1:
            raise ValueError(
                f"min_size: expected a number of pixels from 1 on; got {self.min_size}"
            )

    def start(self) -> Fitter | Model:
        """The watershed around the other segmenter, or the fitter of that one. Raises `RecipeError`
        if they do not match.
        """
        return start_around(self.of, self)

    def around(self, segmenter: Segmenter) -> Stitched:
        """The model around a fitted segmenter. Raises `RecipeError` if it lacks a class in
        `parts`.
        """
        classes, class_of = self._classes(segmenter.classes)
        try:
            rules = rules_of(self.stitch, classes)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        return Stitched(
            WatershedModel(
                segmenter, classes, class_of, self.distance, float(self.prominence), self.min_size
            ),
            rules,
        )

    def classes_around(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The background, then the classes that become objects. Raises `RecipeError` if a class in
        `parts` is missing.
        """
        return self._classes(classes)[0]

    def _classes(self, classes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The background and the classes that become objects, and the index among them for each
        inner class (0: background).
        """
        unknown = [name for name in self.parts or () if name not in classes]
        if unknown:
            raise RecipeError(
                f"parts: there is no class {unknown[0]!r} to split; the classes are "
                f"{', '.join(classes)}."
            )
        wanted = [
            name
            for name in classes
            if (name in self.parts if self.parts else name.lower() not in BACKGROUND_NAMES)
        ]
        if not wanted:
            raise RecipeError(
                f"parts: there is nothing to split; {', '.join(classes)} mean background. Name one "
                "in `parts`."
            )
        # The inner segmenter's name for background, unless that class becomes objects.
        names = (
            *(name for name in classes if name.lower() in BACKGROUND_NAMES),
            "background",
            "other",
            "void",
        )
        background = next(name for name in names if name not in wanted)
        return (background, *wanted), tuple(
            1 + wanted.index(name) if name in wanted else 0 for name in classes
        )


@MODELS.register("watershed")
@dataclass(frozen=True, slots=True)
class WatershedModel:
    """A segmenter of instances: the classes of another one, split."""

    segmenter: Segmenter
    classes: tuple[str, ...]
    """The background, then the classes that become objects, in the order of the inner segmenter."""
    class_of: tuple[int, ...]
    """The class that each class of the inner segmenter becomes. 0: background."""
    distance: int
    prominence: float
    min_size: int

    exactness: ClassVar[Exactness] = Exactness.EXACT_IF_SMALLER_THAN_HALO

    @property
    def requirements(self) -> Requirements:
        """Those of the inner segmenter, plus a halo of three times `distance`."""
        return self._around(self.segmenter.requirements)

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """As `requirements`, for such an image."""
        return self._around(requirements_of(self.segmenter, spec))

    def _around(self, inner: Requirements) -> Requirements:
        return replace(
            inner,
            halo=wider(inner.halo, 3 * self.distance),
            # In volumes the landscape extends across planes, even if the inner segmenter does not.
            planar=False,
            bytes_per_pixel=inner.bytes_per_pixel + _BYTES_PER_PIXEL,
            cost=inner.cost + 20,
        )

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the inner segmenter."""
        return self.segmenter.select(spec)

    def segment(self, block: Block) -> Labels:
        """The instances of the block, numbered from 1 in the order of their first pixels, each with
        its class.
        """
        # Basins need the classes around the core too. Classes close to the edge of the read box may
        # be inexact, because the inner segmenter's own halo is missing there; they are too far away
        # to affect an object smaller than the halo.
        inner = self.segmenter.segment(
            replace(block, tile=replace(block.tile, core=block.tile.read))
        ).values
        classes = np.array(self.class_of, np.int32)[np.where(block.valid, inner, 0)]
        classes[~block.valid] = 0
        values, class_of = split_touching(classes, self.distance, self.prominence)
        if self.min_size > 1:
            small = np.bincount(values.ravel(), minlength=len(class_of)) < self.min_size
            # Objects cut by the read box may be larger outside it.
            small[cut_by(values, block.tile.read, block.spec.shape)] = False
            values[small[values]] = 0
        return Labels(values, tuple(class_of.tolist()))

    def provenance(self) -> Mapping[str, Any]:
        """The inner segmenter's, and how its classes are split."""
        own = {"distance": self.distance, "prominence": self.prominence, "min_size": self.min_size}
        return {"watershed": own, "of": dict(self.segmenter.provenance())}

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The warning of the inner segmenter."""
        return caution_of([self.segmenter], spec, shares)


def split_touching(
    classes: NDArray[np.int32], distance: int, prominence: float
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Instances of a (y, x) or (z, y, x) array of classes, 0 for background: labels from 1 on, and
    the class of each label, 0 included.

    `distance` clips the landscape, in pixels; a peak must rise by `prominence` pixels above its
    passes.
    """
    from maskloom.segcore.kernels.watershed import descending, flood, squared_distances

    volume = np.ascontiguousarray(classes).reshape((1, *classes.shape)[-3:])
    squares = np.empty(volume.shape, np.int32)
    squared_distances(volume, distance, squares)
    values, count = flood(volume, squares, descending(squares, distance**2), prominence)
    class_of = np.zeros(count + 1, np.int64)
    class_of[values.ravel()] = volume.ravel()
    return values.reshape(classes.shape), class_of
