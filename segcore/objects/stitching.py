"""Stitching: instances that were found tile by tile, with overlap, become the objects of the image.

`Stitched` makes an `ObjectSegmenter` of any segmenter of instances. A tile sees the instances of
its read box but writes its core alone. What an instance has of the core is a fragment; one without
any is only a witness. Tiles whose read boxes overlap have both looked at the same pixels, so each
tile sends what it saw up to a halo inside and outside its core's edge (as runs). `join` compares
two tiles at a time:

    ownership   An instance that is not cut by its read box has an anchor, its first pixel in the
                order of rows. Where this lies in the core of another tile, that tile owns the
                object: the fragment goes with the instance that the owner sees at the anchor, if
                most of it (within the overlap) lies in that instance. Exact where the segmenter
                finds an object the same in every tile that sees it whole. The rule of overlap is
                applied as well, for instances that their read box cuts (the object is larger than
                the halo) and for those on whose anchor two tiles do not agree; to exact instances
                it adds nothing, as what is not the same object has no pixel in common.
    overlap     Instances are the same object where they are each other's best match within the
                overlap, by intersection over union of at least `iou`. What is matched are their
                connected pieces there, so a bent object that shows as two arms in one tile is still
                joined to both. Pairs are chained by connected components. Touching alone never
                joins.

The two tiles saw the same pixels, so what matches so well is one object whatever they call it:
matches do not ask for the class. The class of an object is that of its fragment with most pixels in
a core, the lowest of equals.

Where tiles contradict each other:
- A tile sees an instance in another's core that the owner of this core does not see. Nothing is
  written there: a core is its tile's.
- What then remains in the first tile's core may be a sliver: an object (all its fragments) of which
  less than half of what a tile saw would be written. If a neighbour sees mostly background in its
  place, so it becomes. If the neighbour sees objects there, the sliver goes to the one that shares
  most pixels with it. With half or more an object stays: its own tile is its best witness, and a
  true object at a seam is not lost because one tile missed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
from maskloom.segcore.models.protocols import MODELS, Exactness, Segmenter, caution_of
from maskloom.segcore.objects.seams import Nodes, connected
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
        if self.segmenter.footprint.halo < 1:
            raise ValueError(
                f"stitching needs tiles that overlap; the halo of {type(self.segmenter).__name__} "
                f"is {self.footprint.halo}"
            )

    @property
    def footprint(self) -> Requirements:
        """The segmenter's, with what stitching adds."""
        inner = self.segmenter.footprint
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
        """The instances of the core, and what the tile saw about its edge."""
        return cut_fragments(self.segmenter.segment(block), block, self.segmenter.footprint.halo)

    def join(self, grid: Grid, seams: Sequence[TileBoundary]) -> Sequence[Equivalences]:
        """Which fragments are one object, and of which class."""
        return join_instances(grid, seams, self.rules)

    def provenance(self) -> Mapping[str, Any]:
        """The segmenter's, and the rule of each class."""
        rules = zip(self.classes[1:], self.rules[1:], strict=True)
        return {
            **self.segmenter.provenance(),
            "stitch": {name: {"by": rule.by, "iou": rule.iou} for name, rule in rules},
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """What the segmenter knows."""
        return caution_of([self.segmenter], spec, shares)


def cut_fragments(labels: Labels, block: Block, halo: int) -> Fragments:
    """The instances of one tile: its core's fragments, and a seam with what it saw at most `halo`
    away from its core's edge.

    Numbers 1 ... n are fragments, those above are witnesses. Raises `ValueError` for labels that
    are no instances.
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
    row, column = np.divmod(first_positions(numbers, len(order) - 1)[: count + 1], numbers.shape[1])
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
            "anchor_row": row[chosen] + tile.read.start[0],
            "anchor_column": column[chosen] + tile.read.start[1],
        },
        None
        if labels.score_of is None
        else np.array(labels.score_of, np.float32)[order[: count + 1]],
    )


def join_instances(
    grid: Grid, seams: Sequence[TileBoundary], rules: Sequence[SeamRule]
) -> list[Equivalences]:
    """Join the fragments of all tiles (seams of `cut_fragments`, in the order of the grid) by the
    rules of their classes.
    """
    nodes = Nodes([seam["fragments"] for seam in seams])
    classes, owned, seen = (
        np.concatenate([seam[name] for seam in seams]) for name in ("class_of", "owned", "seen")
    )
    by_ownership = np.array([rule.by == "ownership" for rule in rules])[classes]
    least = np.array([rule.iou for rule in rules])[classes]
    evidence = OverlapMatches.gather(grid, seams, nodes, by_ownership)
    one, other = evidence.match_one, evidence.match_other
    good = evidence.match_iou >= np.maximum(least[one], least[other])
    groups = connected(
        len(classes),
        np.concatenate([evidence.link_one, one[good]]),
        np.concatenate([evidence.link_other, other[good]]),
    )
    groups = _without_slivers(groups, owned, seen, evidence)
    # Of each group the node comes first that decides its class.
    order = np.lexsort((classes, -owned, groups))
    present, firsts = np.unique(groups[order], return_index=True)
    class_of = np.where(
        groups > 0, classes[order][firsts][np.searchsorted(present, groups)], 0
    ).astype(np.uint16)
    return nodes.groupings(groups, class_of)


def _without_slivers(
    groups: NDArray[np.int64],
    owned: NDArray[np.int64],
    seen: NDArray[np.int64],
    evidence: OverlapMatches,
) -> NDArray[np.int64]:
    """The groups from 1 on, slivers dissolved into neighbours' objects or the background, 0."""
    count = int(groups.max(initial=-1)) + 1
    written, most = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(written, groups, owned)
    np.maximum.at(most, groups, seen)
    sliver = (2 * written < most)[groups]
    numbers = groups + 1
    numbers[evidence.denied[sliver[evidence.denied]]] = 0
    moving = (
        sliver[evidence.common_one]
        & (numbers[evidence.common_one] > 0)
        & ~sliver[evidence.common_other]
    )
    one, other, shared = (
        evidence.common_one[moving],
        evidence.common_other[moving],
        evidence.common_pixels[moving],
    )
    # The last to be written is the object that shares most with the sliver, of equals the one of
    # the first tile.
    order = np.lexsort((-other, shared))
    numbers[one[order]] = groups[other[order]] + 1
    return numbers
