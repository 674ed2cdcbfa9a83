"""Connected parts: the objects of another segmenter's classes, in images and volumes.

The inner segmenter is fitted and run as usual; each connected component of one of the selected
classes is an object (`segcore.objects.components` defines this across tiles and with holes). The
mask holds object ids; class 0 is background and includes all classes that were not selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.methods.naming import check_names
from maskloom.segcore.models.composed import start_around
from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Exactness,
    Fitter,
    Model,
    Requirements,
    Segmenter,
    SegmenterRecipe,
    caution_of,
    requirements_of,
)
from maskloom.segcore.objects.components import Components, require_connectivity
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.raster.spec import Block, RasterSpec

# Ids, class ids, and the worst case of runs and labels, in which every pixel is an object: 48 bytes
# measured, 76 with holes (4 on smooth masks, 8 and 12 on noise).
_BYTES_PER_PIXEL, _BYTES_FOR_HOLES = 52, 36


@SEGMENTERS.register("connected_parts")
@dataclass(frozen=True, slots=True)
class ConnectedParts:
    """Connected parts of the classes of another segmenter, each one object."""

    of: SegmenterRecipe
    """The segmenter whose classes are separated. It must give classes, not objects."""
    parts: tuple[str, ...] | None = None
    """Names of the classes whose parts are objects. None: every class but one named background."""
    connectivity: int | None = None
    """4: pixels that share a side are connected. 8: also those that share a corner. In volumes 6
    (voxels that share a face), 18 (an edge) or 26 (a corner). None: all neighbours, 8 in images and
    26 in volumes.
    """
    min_size: int = 1
    """Smallest size of an object in pixels; smaller ones become background."""
    fill_holes: bool = False
    """Whether a hole surrounded by one class belongs to it, unless the hole touches nodata or the
    border of the image.
    """
    largest: int | None = None
    """Number of objects of each class, the largest; all others become background. None: all."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = "as the segmenter inside; sizes are in pixels of the image"
    volumes: ClassVar[str] = "as the segmenter inside; parts reach over planes"
    use_when: ClassVar[str] = (
        "cells, grains, fields or lesions that do not touch one another: each connected part of"
        " a class becomes an object with a row of its own"
    )
    not_when: ClassVar[str] = (
        "objects touch: use watershed. Or only areas by class matter: the segmenter inside "
        "alone is faster"
    )
    reference: ClassVar[str] = "Rosenfeld and Pfaltz 1966, doi:10.1145/321356.321357"

    def __post_init__(self) -> None:
        _rule((0,), self)
        if self.parts is not None:
            if not self.parts:
                raise ValueError(
                    "parts: expected at least one class name; leave `parts` out for every class "
                    "but background"
                )
            check_names(self.parts)

    def start(self) -> Fitter | Model:
        """The fitter of the inner segmenter, or the model if it needs none. Raises `RecipeError` if
        `of` gives objects.
        """
        return start_around(self.of, self)

    def around(self, segmenter: Segmenter) -> Model:
        """The model around a fitted segmenter. Raises `RecipeError` if it lacks a class in
        `parts`.
        """
        return ConnectedPartsModel(
            segmenter,
            self._chosen(segmenter.classes),
            self.connectivity,
            self.min_size,
            fill_holes=self.fill_holes,
            largest=self.largest,
        )

    def classes_around(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The background and the selected classes."""
        return _names(classes, self._chosen(classes))

    def _chosen(self, classes: tuple[str, ...]) -> tuple[int, ...]:
        if self.parts is None:
            chosen = tuple(
                i for i, name in enumerate(classes) if name.lower() not in BACKGROUND_NAMES
            )
            if not chosen:
                raise RecipeError(
                    f"parts: the segmenter has no class but {list(classes)}, which mean "
                    "background. Name one in `parts`."
                )
            return chosen
        absent = [name for name in self.parts if name not in classes]
        if absent:
            raise RecipeError(
                f"parts: the segmenter has no class {absent[0]!r}. Its classes: "
                f"{', '.join(classes)}."
            )
        return tuple(sorted(classes.index(name) for name in self.parts))


@MODELS.register("connected_parts")
@dataclass(frozen=True, slots=True)
class ConnectedPartsModel:
    """A segmenter and the rule that separates its classes into objects."""

    inner: Segmenter
    part_classes: tuple[int, ...]
    """Class ids of the inner segmenter whose parts are objects, ascending."""
    connectivity: int | None
    min_size: int
    fill_holes: bool
    largest: int | None = None

    @property
    def rule(self) -> Components:
        """The rule that separates classes into objects."""
        return _rule(self.part_classes, self)

    @property
    def classes(self) -> tuple[str, ...]:
        """The background, then the classes that have objects, in the order of the inner
        segmenter.
        """
        return _names(self.inner.classes, self.part_classes)

    @property
    def exactness(self) -> Exactness:
        """That of the inner segmenter: separating adds no error."""
        return self.inner.exactness

    @property
    def requirements(self) -> Requirements:
        """Those of the inner segmenter, plus memory for the worst case, in which every pixel is an
        object.
        """
        return self._around(self.inner.requirements)

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """As `requirements`, for such an image."""
        return self._around(requirements_of(self.inner, spec))

    def _around(self, inner: Requirements) -> Requirements:
        more = _BYTES_PER_PIXEL + (_BYTES_FOR_HOLES if self.fill_holes else 0)
        return replace(inner, bytes_per_pixel=inner.bytes_per_pixel + more, cost=inner.cost + 1)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the inner segmenter. Raises `ModelMismatch` if the
        connectivity does not suit the number of axes.
        """
        require_connectivity(self.connectivity, spec)
        return self.inner.select(spec)

    def fragment(self, block: Block) -> Fragments:
        """The parts in the block's core."""
        class_table = ClassTable.of(self.inner.classes)
        values = block.tile.trim(self.inner.segment(block).values)
        core = np.where(block.tile.trim(block.valid), values, class_table.nodata).astype(
            class_table.dtype, copy=False
        )
        fragments = self.rule.fragment(core, block.tile, block.spec.shape)
        class_of = self._ids[fragments.class_of]
        class_of[0] = 0
        return replace(fragments, class_of=class_of)

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Parts that touch across a tile boundary are one object."""
        groupings = self.rule.join(grid, boundaries)
        return [
            replace(
                each,
                class_of=np.where(each.groups > 0, self._ids[each.class_of], 0).astype(np.uint16),
            )
            for each in groupings
        ]

    def provenance(self) -> Mapping[str, Any]:
        """The inner segmenter's, and which of its classes became objects."""
        rule: dict[str, Any] = {
            "connectivity": self.connectivity,
            "min_size": self.min_size,
            "fill_holes": self.fill_holes,
        }
        if self.largest is not None:
            rule["largest"] = self.largest
        return {"of": dict(self.inner.provenance()), "parts": list(self.classes[1:]), **rule}

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The warning of the inner segmenter."""
        return caution_of([self.inner], spec, shares)

    @property
    def _ids(self) -> NDArray[np.uint16]:
        """The class id in the mask for each class of the inner segmenter."""
        ids = np.zeros(len(self.inner.classes), np.uint16)
        ids[list(self.part_classes)] = np.arange(1, len(self.part_classes) + 1)
        return ids


def _rule(classes: tuple[int, ...], of: ConnectedParts | ConnectedPartsModel) -> Components:
    return Components(classes, of.connectivity, of.min_size, of.fill_holes, of.largest)


def _names(classes: tuple[str, ...], chosen: tuple[int, ...]) -> tuple[str, ...]:
    """A name for the background (the inner segmenter's, unless that class was selected), then the
    names of the selected classes.
    """
    names = tuple(classes[i] for i in chosen)
    own = [name for name in classes if name.lower() in BACKGROUND_NAMES and name not in names]
    taken = {name.lower() for name in names}
    return (*own, *(name for name in ("background", "other", "void") if name not in taken))[
        :1
    ] + names
