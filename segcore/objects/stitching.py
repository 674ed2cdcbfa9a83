"""Stitching: instances that were found tile by tile, with overlap, become the objects of the image.

`Stitched` makes an `ObjectSegmenter` of any segmenter of instances, in images and volumes. A tile
sees the instances of its read box but writes only its core. The pixels of an instance in the core
are a fragment; an instance without any is outside the core. Tiles whose read boxes overlap have
both seen the same pixels, so each tile sends what it saw up to a halo inside and outside the sides
of its core (as runs). `join` compares two tiles at a time:

    ownership   An instance that its read box does not cut has an anchor, its first pixel in C
                order. Where the anchor is in the core of another tile, that tile owns the object:
                the fragment goes with the instance that the owner sees at the anchor, if most of it
                (within the overlap) is in that instance. Exact where the segmenter finds an object
                the same in every tile that sees it whole. The rule of overlap is applied as well,
                for instances that their read box cuts (the object is larger than the halo) and for
                those on whose anchor two tiles do not agree; to exact instances it adds nothing, as
                different objects share no pixel.
    overlap     Instances are the same object where they are each other's best match within the
                overlap, by intersection over union of at least `iou`. Their connected pieces there
                are matched, so a bent object that shows as two arms in one tile is still joined to
                both. Pairs are chained by connected components. Touching alone never joins.

The two tiles saw the same pixels, so what matches so well is one object whatever its class in
either: matches do not compare classes. The class of an object is that of its fragment with most
pixels in a core, the lowest of equals.

Where tiles contradict each other:
- A tile sees an instance in another's core that the owner of this core does not see. Nothing is
  written there: a tile alone decides about its core.
- What then remains in the first tile's core may be a sliver: an object (all its fragments) of which
  less than half of what a tile saw would be written. If a neighbour sees mostly background in its
  place, it becomes background. If the neighbour sees objects there, the sliver goes to the one that
  shares most pixels with it. With half or more an object stays: its own tile has seen it best, and
  a true object at a seam is not lost because one tile missed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.models.planes import fragment_by_plane, join_by_plane
from maskloom.segcore.models.protocols import MODELS, Exactness, Segmenter, caution_of
from maskloom.segcore.objects.merging import Nodes, connected
from maskloom.segcore.objects.tile_overlap import OverlapMatches, cut_by, frame_runs, interior_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.models.protocols import Requirements
    from maskloom.segcore.raster.spec import Block, Labels, RasterSpec

# Runs, numbers and comparison of a tile's frame: the copy of the labels, their renumbering, and the
# marks where runs begin.
_BYTES_PER_PIXEL = 24


@dataclass(frozen=True, slots=True)
class SeamRule:
    """How instances of a class are joined over seams."""

    by: Literal["ownership", "overlap"] = "ownership"
    """`ownership` for objects smaller than the halo, `overlap` for larger ones."""
    iou: float = 0.5
    """Least intersection over union, within the overlap of two tiles, of what is one object. Above
    0, at most 1.
    """

    # Read by pydantic: without it a mapping of classes with rules would pass for a rule whose
    # unknown keys are ignored.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.by not in ("ownership", "overlap"):
            raise ValueError(f"stitch.by: expected ownership or overlap; got {self.by!r}")
        if not 0 < self.iou <= 1:
            raise ValueError(f"stitch.iou: expected a number above 0 and at most 1; got {self.iou}")


Stitch = SeamRule | Mapping[str, SeamRule]
"""One rule for all classes, or rules by the names of classes; classes that are not named go by
ownership.
"""


def rules_of(stitch: Stitch, classes: Sequence[str]) -> tuple[SeamRule, ...]:
    """The rule of each class, by class id. Raises `ValueError` where a rule is given for a class
    that does not exist.
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
    """A segmenter of instances, its instances joined over tiles. Its class 0 is the background, and
    `Labels.class_of` is never None.
    """

    segmenter: Segmenter
    rules: tuple[SeamRule, ...]
    """One a class, by class id."""

    def __post_init__(self) -> None:
        if len(self.rules) != len(self.segmenter.classes):
            raise ValueError(
                f"rules: {len(self.segmenter.classes)} classes need a rule each; got "
                f"{len(self.rules)}"
            )
        if self.segmenter.requirements.halo < 1:
            raise ValueError(
                f"stitching needs tiles that overlap; the halo of {type(self.segmenter).__name__} "
                f"is {self.requirements.halo}"
            )

    @property
    def requirements(self) -> Requirements:
        """The segmenter's, with what stitching adds."""
        inner = self.segmenter.requirements
        return replace(
            inner, bytes_per_pixel=inner.bytes_per_pixel + _BYTES_PER_PIXEL, cost=inner.cost + 1
        )

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
        """The image with the bands that the segmenter wants."""
        return self.segmenter.select(spec)

    def fragment(self, block: Block) -> Fragments:
        """The instances of the core, and what the tile saw near its sides."""
        return (_fragment_plane if self.requirements.planar else _fragment)(self, block)

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> Sequence[Equivalences]:
        """Which fragments are one object, and of which class."""
        return (_join_planes if self.requirements.planar else _join)(self, grid, boundaries)

    def provenance(self) -> Mapping[str, Any]:
        """The segmenter's, and the rule of each class."""
        rules = zip(self.classes[1:], self.rules[1:], strict=True)
        return {
            **self.segmenter.provenance(),
            "stitch": {name: {"by": rule.by, "iou": rule.iou} for name, rule in rules},
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """The segmenter's."""
        return caution_of([self.segmenter], spec, shares)


def _fragment(model: Stitched, block: Block) -> Fragments:
    return cut_fragments(model.segmenter.segment(block), block, model.segmenter.requirements.halo)


def _join(
    model: Stitched, grid: Grid, boundaries: Sequence[TileBoundary]
) -> Sequence[Equivalences]:
    return join_instances(grid, boundaries, model.rules)


# Instances of planes are stitched plane by plane.
_fragment_plane, _join_planes = fragment_by_plane(_fragment), join_by_plane(_join)


def cut_fragments(labels: Labels, block: Block, halo: int) -> Fragments:
    """The instances of one tile: its core's fragments, and a boundary with what it saw at most
    `halo` away from the sides of its core.

    Numbers 1 ... n are fragments, those above are instances outside the core. Raises `ValueError`
    for labels that are no instances.
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
    nodes = Nodes([boundary["fragments"] for boundary in boundaries])
    classes, owned, seen = (
        np.concatenate([boundary[name] for boundary in boundaries])
        for name in ("class_of", "owned", "seen")
    )
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
    # Of each group the node comes first that decides its class.
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
    """The groups from 1 on, slivers dissolved into neighbours' objects or the background, 0."""
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
    # The last to be written is the object that shares most with the sliver, of equals the one of
    # the first tile.
    order = np.lexsort((-other, shared))
    numbers[one[order]] = groups[other[order]] + 1
    return numbers
