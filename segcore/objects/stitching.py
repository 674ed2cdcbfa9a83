"""Stitching: instances found in overlapping tiles become the objects of the image.

`Stitched` makes an `ObjectSegmenter` of any segmenter of instances, in images and volumes. A tile
finds the instances of its read box but writes only its core. The pixels of an instance in the core
are a fragment; an instance without any is outside the core. Tiles with overlapping read boxes have
both segmented the same pixels, so each tile sends its labels within a halo inside and outside the
sides of its core (as runs). `join` compares two tiles at a time:

    ownership   An instance that is not cut by its read box has an anchor, its first pixel in C
                order. If the anchor is in the core of another tile, that tile owns the object: the
                fragment joins the owner's instance at the anchor, if most of the fragment (within
                the overlap) is in that instance. Exact if the segmenter finds the same object in
                every tile whose read box contains it. The rule of overlap also applies, for
                instances cut by their read box (the object is larger than the halo) and for those
                whose anchor differs between two tiles; it does not change exact instances, because
                different objects share no pixel.
    overlap     Instances are the same object if they are each other's best match within the
                overlap, by intersection over union of at least `iou`. Their connected pieces there
                are matched, so a bent object that appears as two arms in one tile is still joined
                to both. Pairs are chained by connected components. Contact alone never joins.

Both tiles have segmented the same pixels, so instances that match this well are one object whatever
their classes: matching ignores classes. The class of an object is that of its fragment with the
most pixels in a core, the lowest of equals.

If tiles contradict each other:
- A tile finds an instance in the core of another tile that the owner of that core does not find.
  Nothing is written there: each tile alone decides its core.
- The rest in the first tile's core may be a sliver: an object (all its fragments) of which less
  than half of the pixels found by a tile would be written. If a neighbour has mostly background
  there, it becomes background. If the neighbour has objects there, the sliver joins the one that
  shares the most pixels with it. An object with half or more of its pixels remains, so a true
  object at a tile boundary is not lost because one tile missed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.models.planes import fragment_by_plane, join_by_plane
from maskloom.segcore.models.protocols import (
    MODELS,
    Exactness,
    Segmenter,
    caution_of,
    requirements_of,
)
from maskloom.segcore.objects.merging import Nodes, connected
from maskloom.segcore.objects.tile_overlap import OverlapMatches, cut_by, frame_runs, interior_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape
    from maskloom.segcore.models.protocols import Requirements
    from maskloom.segcore.raster.spec import Block, Labels, RasterSpec

# For the runs of a tile's frame: the copy of the labels, their renumbering, and the marks where
# runs begin.
_BYTES_PER_PIXEL = 24


@dataclass(frozen=True, slots=True)
class SeamRule:
    """The rule that joins instances of a class across tiles."""

    by: Literal["ownership", "overlap"] = "ownership"
    """`ownership` for objects smaller than the halo, `overlap` for larger ones."""
    iou: float = 0.5
    """Smallest intersection over union, within the overlap of two tiles, for instances of one
    object. Above 0, at most 1.
    """

    # For pydantic: otherwise a mapping from classes to rules would be accepted as a rule, its
    # unknown keys ignored.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.by not in ("ownership", "overlap"):
            raise ValueError(f"stitch.by: expected ownership or overlap; got {self.by!r}")
        if not 0 < self.iou <= 1:
            raise ValueError(f"stitch.iou: expected a number above 0 and at most 1; got {self.iou}")


Stitch = SeamRule | Mapping[str, SeamRule]
"""One rule for all classes, or rules by class name; other classes use ownership."""


def rules_of(stitch: Stitch, classes: Sequence[str]) -> tuple[SeamRule, ...]:
    """The rule of each class, by class id. Raises `ValueError` if a rule is given for a class that
    does not exist.
    """
    if isinstance(stitch, SeamRule):
        return (stitch,) * len(classes)
    unknown = [name for name in stitch if name not in classes]
    if unknown:
        raise ValueError(
            f"stitch: there is no class {unknown[0]!r}; the classes are {', '.join(classes)}"
        )
    return tuple(stitch.get(name, SeamRule()) for name in classes)


@MODELS.register("stitched")
@dataclass(frozen=True, slots=True)
class Stitched:
    """A segmenter of instances that are joined across tiles. The segmenter's class 0 is background,
    and its `Labels.class_of` is never None.
    """

    segmenter: Segmenter
    rules: tuple[SeamRule, ...]
    """One per class, by class id."""

    def __post_init__(self) -> None:
        if len(self.rules) != len(self.segmenter.classes):
            raise ValueError(
                f"rules: {len(self.segmenter.classes)} classes need a rule each; got "
                f"{len(self.rules)}"
            )
        halo = self.segmenter.requirements.halo
        if (halo if isinstance(halo, int) else min(halo)) < 1:
            raise ValueError(
                f"stitching needs tiles that overlap; the halo of {type(self.segmenter).__name__} "
                f"is {halo}"
            )

    @property
    def requirements(self) -> Requirements:
        """Those of the segmenter, plus the memory of stitching."""
        return _with_stitching(self.segmenter.requirements)

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """As `requirements`, for such an image."""
        return _with_stitching(requirements_of(self.segmenter, spec))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by class id."""
        return self.segmenter.classes

    @property
    def exactness(self) -> Exactness:
        """Exact for objects smaller than the halo, unless the segmenter itself is approximate."""
        approximate = self.segmenter.exactness is Exactness.APPROXIMATE
        return Exactness.APPROXIMATE if approximate else Exactness.EXACT_IF_SMALLER_THAN_HALO

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the segmenter."""
        return self.segmenter.select(spec)

    def fragment(self, block: Block) -> Fragments:
        """The instances of the core, and the tile's labels near its sides."""
        return (_fragment_plane if self.requirements.planar else _fragment)(self, block)

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> Sequence[Equivalences]:
        """Return which fragments are one object, and its class."""
        return (_join_planes if self.requirements.planar else _join)(self, grid, boundaries)

    def provenance(self) -> Mapping[str, Any]:
        """The segmenter's, and the rule of each class."""
        rules = zip(self.classes[1:], self.rules[1:], strict=True)
        return {
            **self.segmenter.provenance(),
            "stitch": {name: {"by": rule.by, "iou": rule.iou} for name, rule in rules},
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The warning of the segmenter."""
        return caution_of([self.segmenter], spec, shares)


def _with_stitching(inner: Requirements) -> Requirements:
    return replace(
        inner, bytes_per_pixel=inner.bytes_per_pixel + _BYTES_PER_PIXEL, cost=inner.cost + 1
    )


def _fragment(model: Stitched, block: Block) -> Fragments:
    halo = requirements_of(model.segmenter, block.spec).halo
    return cut_fragments(model.segmenter.segment(block), block, halo)


def _join(
    model: Stitched, grid: Grid, boundaries: Sequence[TileBoundary]
) -> Sequence[Equivalences]:
    return join_instances(grid, boundaries, model.rules)


# Instances of planes are stitched plane by plane.
_fragment_plane, _join_planes = fragment_by_plane(_fragment), join_by_plane(_join)


def cut_fragments(labels: Labels, block: Block, halo: int | Shape) -> Fragments:
    """The instances of one tile: the fragments of its core, and a boundary with its labels at most
    `halo` pixels away from the sides of its core.

    Numbers 1 ... n are fragments, higher numbers are instances outside the core. Raises
    `ValueError` for labels that are not instances.
    """
    from maskloom.segcore.kernels.fragments import first_positions

    if labels.class_of is None:
        raise ValueError(
            "stitching needs instances with their classes; the segmenter gave classes only"
        )
    tile, classes = block.tile, np.array(labels.class_of, np.uint16)
    values = np.where(block.valid & (classes[labels.values] > 0), labels.values, 0)
    seen, owned = (
        np.bincount(part.ravel(), minlength=len(classes)) for part in (values, tile.trim(values))
    )
    seen[0] = owned[0] = 0
    order = np.concatenate([[0], np.flatnonzero(owned), np.flatnonzero((seen > 0) & (owned == 0))])
    number_of = np.zeros(len(classes), np.uint32)
    number_of[order] = np.arange(len(order))
    numbers = number_of[values]
    count = int(np.count_nonzero(owned))
    core = np.ascontiguousarray(tile.trim(numbers))
    firsts = first_positions(numbers, len(order) - 1)[: count + 1]
    anchor = np.stack(np.unravel_index(firsts, numbers.shape), axis=1) + tile.read.start
    complete = ~np.isin(np.arange(count + 1), cut_by(numbers, tile.read, block.spec.shape))
    run_length, run_value = frame_runs(numbers, interior_of(tile, halo, block.spec.shape))
    chosen = np.unique(run_value)
    chosen = chosen[(chosen > 0) & (chosen <= count)]
    return Fragments(
        core,
        classes[order[: count + 1]],
        {
            "run_length": run_length,
            "run_value": run_value,
            "count": np.array([count], np.int64),
            "fragments": chosen,
            "class_of": classes[order[chosen]],
            "owned": owned[order[chosen]],
            "seen": seen[order[chosen]],
            "complete": complete[chosen],
            "anchor": anchor[chosen],
        },
        None
        if labels.score_of is None
        else np.array(labels.score_of, np.float32)[order[: count + 1]],
    )


def join_instances(
    grid: Grid, boundaries: Sequence[TileBoundary], rules: Sequence[SeamRule]
) -> list[Equivalences]:
    """Join the fragments of all tiles by the rules of their classes. `boundaries` are those of
    `cut_fragments`, in the order of the grid.
    """
    # Copies, because the arrays of a boundary may share their memory.
    fragments, *known = zip(
        *(
            [boundary[name].copy() for name in ("fragments", "class_of", "owned", "seen")]
            for boundary in boundaries
        ),
        strict=True,
    )
    nodes = Nodes(list(fragments))
    classes, owned, seen = map(np.concatenate, known)
    by_ownership = np.array([rule.by == "ownership" for rule in rules])[classes]
    least = np.array([rule.iou for rule in rules])[classes]
    matches = OverlapMatches.gather(grid, boundaries, nodes, by_ownership)
    one, other = matches.match_one, matches.match_other
    good = matches.match_iou >= np.maximum(least[one], least[other])
    groups = connected(
        len(classes),
        np.concatenate([matches.link_one, one[good]]),
        np.concatenate([matches.link_other, other[good]]),
    )
    groups = _without_slivers(groups, owned, seen, matches)
    # The first node of each group determines its class.
    order = np.lexsort((classes, -owned, groups))
    present, firsts = np.unique(groups[order], return_index=True)
    class_of = np.where(
        groups > 0, classes[order][firsts][np.searchsorted(present, groups)], 0
    ).astype(np.uint16)
    return nodes.equivalences(groups, class_of)


def _without_slivers(
    groups: NDArray[np.int64],
    owned: NDArray[np.int64],
    seen: NDArray[np.int64],
    matches: OverlapMatches,
) -> NDArray[np.int64]:
    """The groups from 1 on, with slivers merged into neighbouring objects or the background, 0."""
    count = int(groups.max(initial=-1)) + 1
    written, most = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(written, groups, owned)
    np.maximum.at(most, groups, seen)
    sliver = (2 * written < most)[groups]
    numbers = groups + 1
    numbers[matches.rejected[sliver[matches.rejected]]] = 0
    moving = (
        sliver[matches.common_one]
        & (numbers[matches.common_one] > 0)
        & ~sliver[matches.common_other]
    )
    one, other, shared = (
        matches.common_one[moving],
        matches.common_other[moving],
        matches.common_pixels[moving],
    )
    # The object written last shares the most pixels with the sliver; of equals, it is that of the
    # first tile.
    order = np.lexsort((-other, shared))
    numbers[one[order]] = groups[other[order]] + 1
    return numbers
