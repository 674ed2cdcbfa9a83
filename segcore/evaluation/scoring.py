"""The comparison of one image with its truth: a fold over the tiles of both, so images may be
larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.annotations.label_mapping import UNKNOWN
from maskloom.segcore.annotations.masks import MaskFile, open_mask
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.evaluation.boundary import Boundary, halo_of
from maskloom.segcore.evaluation.confusion import Confusion
from maskloom.segcore.evaluation.instances import Matching, ObjectCounts, Overlaps
from maskloom.segcore.evaluation.labelled_images import Instances, Predicted, Truth
from maskloom.segcore.geometry import Grid, Tile, Tiling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.label_mapping import LabelMapping
    from maskloom.segcore.evaluation.labelled_images import Layer
    from maskloom.segcore.raster.spec import RasterSpec

_TILE = 1024
_STRANGERS_SHOWN = 5
_MOST_APART = 0.1
"""Pixels between truth and mask on earth: more is no rounding."""


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """One image: its files, and what the run's tables say of its mask."""

    image_id: str
    image_uri: str
    mask: str
    truth: str
    table: NDArray[np.int64]
    """Class id of each value of the mask."""
    beyond: int
    """Class id of values beyond the table."""
    scores: NDArray[np.float64] | None = None
    """Score of each object by its id. None: the objects have none."""


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """On what terms masks and truths are compared."""

    key: LabelMapping
    tolerance: float
    """Pixels between boundaries that still agree."""
    foreground: tuple[int, ...]
    """Ids of the classes whose objects are compared; empty: objects are not."""
    numbered: bool
    """Whether the values of the run's masks are ids of objects."""
    tile: int = _TILE

    @property
    def classes(self) -> int:
        """Number of the classes."""
        return len(self.key.classes)

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """The tiles of an image."""
        return Tiling(self.tile).grid(shape, halo_of(self.tolerance))


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What the comparison of one image says."""

    subject: EvaluatedImage
    confusion: Confusion
    boundary: Boundary
    objects: ObjectCounts | None
    """None: they are not compared."""
    worst: int
    """Number of the tile with the most wrong pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Both sides of one tile, for pictures."""

    tile: Tile
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    """Class ids of the core; negative where there is none."""
    unmatched: NDArray[np.bool_]
    """Pixels of objects without a match, on either side; none where objects are not compared."""
    outlines: NDArray[np.bool_]
    """(2, ...): boundaries of the objects of truth and mask."""


def score(subject: EvaluatedImage, terms: EvaluationOptions) -> Score:
    """Compare an image with its truth.

    Raises `RecipeError` where the sizes or the places on earth differ, the mask is not of the kind
    that the terms say, or the truth has values that the key does not tell; and what reading raises.
    """
    with ExitStack() as stack:
        truth, predicted, grid = _sides(subject, terms, stack)
        confusion, boundary, strangers = (
            Confusion.none(terms.classes),
            Boundary.none(terms.classes),
            _Strangers(),
        )
        worst, most_wrong = 0, 0
        for number, tile in enumerate(grid):
            theirs, ours = truth.classes(tile.read), predicted.classes(tile.read)
            core = tile.trim(theirs)
            if (core == UNKNOWN).any():
                strangers.add(truth.values(tile.core)[core == UNKNOWN])
            seen = Confusion.of(core, tile.trim(ours), terms.classes)
            confusion += seen
            boundary += Boundary.of(theirs, ours, tile, terms.classes, terms.tolerance)
            if seen.wrong > most_wrong:
                worst, most_wrong = number, seen.wrong
        strangers.refuse(subject.truth, terms.key)
        objects = None
        if terms.foreground:
            sides = _instances(subject, terms, truth, predicted, grid)
            objects = _match(subject, sides, grid).counts(terms.classes)
    return Score(subject, confusion, boundary, objects, worst)


def view(subject: EvaluatedImage, terms: EvaluationOptions, number: int) -> View:
    """Both sides of a tile again. Raises as `score`."""
    with ExitStack() as stack:
        truth, predicted, grid = _sides(subject, terms, stack)
        tile = grid[number]
        unmatched, outlines = (
            np.zeros(tile.core.shape, np.bool_),
            np.zeros((2, *tile.core.shape), np.bool_),
        )
        if terms.foreground:
            ours, theirs = _instances(subject, terms, truth, predicted, grid)
            matching = _match(subject, (ours, theirs), grid)
            lonely = matching.predicted.ids[(matching.partner == 0) & ~matching.in_void]
            missed = np.setdiff1d(matching.truth.ids, matching.partner)
            own, true = ours.ids(number, tile), theirs.ids(number, tile)
            unmatched = np.isin(own, lonely) | np.isin(true, missed)
            outlines = np.stack([_outlines(true), _outlines(own)])
        return View(
            tile, truth.classes(tile.core), predicted.classes(tile.core), unmatched, outlines
        )


def _sides(
    subject: EvaluatedImage, terms: EvaluationOptions, stack: ExitStack
) -> tuple[Truth, Predicted, Grid]:
    theirs, ours = MaskFile.describe(subject.truth), MaskFile.describe(subject.mask)
    if theirs.spec.shape != ours.spec.shape:
        sizes = [" x ".join(str(n) for n in reversed(mask.spec.shape)) for mask in (theirs, ours)]
        raise RecipeError(
            f"{subject.truth} has {sizes[0]} pixels, the mask of {subject.image_id} "
            f"({subject.mask}) has {sizes[1]}. "
            "Truth and image must be of one size."
        )
    apart = _pixels_apart(theirs.spec, ours.spec)
    if not apart <= _MOST_APART:
        raise RecipeError(
            f"{subject.truth} lies elsewhere on earth than the mask of {subject.image_id}: their "
            f"corners are {apart:.3g} pixels apart. "
            f"Warp the truth to the grid of {subject.mask}."
        )
    if ours.numbers_objects != terms.numbered:
        kinds = (
            ("ids of objects", "classes") if ours.numbers_objects else ("classes", "ids of objects")
        )
        raise RecipeError(
            f"{subject.mask} holds {kinds[0]}, other masks of the run hold {kinds[1]}: they were "
            "made by different recipes. Give --truth for the "
            "images of one recipe only, or run one over all images."
        )
    truth = Truth(stack.enter_context(open_mask(theirs, terms.key.by)), terms.key)
    predicted = Predicted(
        stack.enter_context(open_mask(ours, "index")), subject.table, subject.beyond
    )
    return truth, predicted, terms.grid(ours.spec.shape)


def _pixels_apart(truth: RasterSpec, mask: RasterSpec) -> float:
    """How far the corners of two rasters of one size lie from each other, in pixels of the mask; 0
    where one does not say where it lies.
    """
    there, here = truth.space, mask.space
    if there.affine is None or here.affine is None:
        return 0.0
    rows, columns = mask.shape
    corners = np.array([[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]], np.float64)
    world, grid = (
        np.array([*affine, 0, 0, 1], np.float64).reshape(3, 3)
        for affine in (there.affine, here.affine)
    )
    places = world @ corners
    if there.crs is not None and here.crs is not None and there.crs != here.crs:
        places[:2] = _carried(places[:2], there.crs, here.crs)
    return float(
        np.nan_to_num(
            np.abs(np.linalg.solve(grid, places) - corners), nan=np.inf, posinf=np.inf
        ).max()
    )


def _carried(places: NDArray[np.float64], source: str, target: str) -> NDArray[np.float64]:
    """Places (x, y) of one reference system in another; infinite where there is no way from one to
    the other.
    """
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return np.array(Transformer.from_crs(source, target, always_xy=True).transform(*places))
    except ProjError:
        return np.full_like(places, np.inf)


def _instances(
    subject: EvaluatedImage, terms: EvaluationOptions, truth: Layer, predicted: Layer, grid: Grid
) -> tuple[Instances, Instances]:
    """The objects of the mask and of the truth."""
    ids = frozenset(terms.foreground) if terms.numbered else frozenset[int]()
    return (
        Instances.of(predicted, terms.foreground, ids, grid, subject.mask),
        Instances.of(truth, terms.foreground, terms.key.numbered, grid, subject.truth),
    )


def _match(subject: EvaluatedImage, sides: tuple[Instances, Instances], grid: Grid) -> Matching:
    ours, theirs = sides
    # A pixel without data in the mask is of no object, and void means something in the truth alone.
    overlaps = Overlaps.total(
        [
            Overlaps.of(np.maximum(ours.ids(number, tile), 0), theirs.ids(number, tile))
            for number, tile in enumerate(grid)
        ]
    )
    return Matching.of(
        overlaps,
        ours.objects(overlaps.predicted, subject.scores),
        theirs.objects(overlaps.truth, None),
    )


def _outlines(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels of objects with another id to the right or below."""
    edge = np.zeros(ids.shape, np.bool_)
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= ids[:-1] != ids[1:]
    return edge


class _Strangers:
    """Values of a truth that nobody explains."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, values: NDArray[np.int64]) -> None:
        """Count values."""
        found, counts = np.unique(values, return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._counts[value] = self._counts.get(value, 0) + count

    def _example(self, names: Sequence[str], key: LabelMapping) -> str:
        """How such values might be named."""
        first, last = key.classes[0], key.classes[-1]
        if key.by == "index" and set(self._counts) == {0}:
            return f"0={first}"
        if key.by == "index" and len(self._counts) > _STRANGERS_SHOWN:
            # Numbers of objects, it seems.
            return f"0={first},1..={last}"
        return f"{names[0]}=CLASS"

    def refuse(self, location: str, key: LabelMapping) -> None:
        """Raise `RecipeError` where there are any."""
        if not self._counts:
            return
        most = sorted(self._counts.items(), key=lambda item: -item[1])
        names = [f"#{value:06X}" if key.by == "colour" else str(value) for value, _ in most]
        told = ", ".join(
            f"{name} ({count} pixels)"
            for name, (_, count) in zip(names[:_STRANGERS_SHOWN], most, strict=False)
        )
        more = f" and {len(most) - _STRANGERS_SHOWN} more" if len(most) > _STRANGERS_SHOWN else ""
        raise RecipeError(
            f"{location} has values that mean no class: {told}{more}. Say what they mean too, such "
            f"as --values '{self._example(names, key)}', "
            f"or leave them out by --void '{names[0]}'. Classes: {', '.join(key.classes)}."
        )


def total(scores: Sequence[Score], classes: int) -> tuple[Confusion, Boundary, ObjectCounts | None]:
    """What all images say together."""
    counted = [each.objects for each in scores if each.objects is not None]
    return (
        reduce(add, (each.confusion for each in scores), Confusion.none(classes)),
        reduce(add, (each.boundary for each in scores), Boundary.none(classes)),
        reduce(add, counted, ObjectCounts.none(classes)) if counted else None,
    )
