"""The comparison of one image with its truth: a fold over the tiles of both, so that images may be
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

from maskloom.segcore import formats
from maskloom.segcore.annotations.label_mapping import UNKNOWN
from maskloom.segcore.annotations.masks import holds_object_ids, open_mask
from maskloom.segcore.annotations.metrics import Confusion
from maskloom.segcore.annotations.object_metrics import Matching, ObjectCounts, Overlaps
from maskloom.segcore.annotations.places import Fit, Turn, fit
from maskloom.segcore.errors import FormatError, ImageError, RecipeError, StoreError
from maskloom.segcore.evaluation.boundary import Boundary, halo_of
from maskloom.segcore.evaluation.labelled_images import ImageInstances, PredictedImage, TruthImage
from maskloom.segcore.figures.drawing import outlines, photo_of
from maskloom.segcore.geometry import Grid, Tile, Tiling
from maskloom.segcore.ground.shifts import largest_shift
from maskloom.segcore.masks.quantised import MOST, NODATA
from maskloom.segcore.models.calibration import Reliability
from maskloom.segcore.processes import limits
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.stored import split_part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.label_mapping import LabelMapping
    from maskloom.segcore.annotations.polygons.masks import PolygonMask
    from maskloom.segcore.evaluation.labelled_images import LabelledImage
    from maskloom.segcore.raster.source import Member
    from maskloom.segcore.raster.spec import RasterSpec, Reader

_TILE = 1024
_VALUES_SHOWN = 5
_LARGEST_SHIFT = 0.1
"""Largest distance of truth and mask on earth that may be rounding, in pixels."""


class TruthMismatch(RecipeError):
    """The truth of one image does not fit its mask; other images may be compared."""


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """One image: its files, and the meaning of its mask's values."""

    image_id: str
    image_uri: str
    mask: str
    truth: str
    table: NDArray[np.int64]
    """Class id of each value of the mask."""
    beyond: int
    """Class id of values beyond the table."""
    scores: NDArray[np.float64] | None = None
    """Score of each object by its id. None if not available."""
    members: tuple[Member, ...] = ()
    """The files of the image if it is a series, for pictures."""
    polygons: PolygonMask | None = None
    """Its truth, if that is polygons; `truth` then is the file's name."""
    probabilities: str | None = None
    """URI of the scores of its classes. None: not kept."""


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How masks and truths are compared."""

    mapping: LabelMapping
    tolerance: float
    """Largest distance between boundaries that agree, in pixels."""
    foreground: tuple[int, ...]
    """Ids of the classes whose objects are compared; empty: objects are not compared."""
    numbered: bool
    """Whether the values of the run's masks are ids of objects."""
    tile: int = _TILE

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.mapping.classes)

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """The tiles of an image or volume. They see nothing of planes beyond their core: boundaries
        are compared plane by plane.
        """
        tile = Tiling(self.tile).tile(shape)
        return Grid(shape, tile, halo_of(self.tolerance), planar=True)


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The result of one image."""

    image_id: str
    truth: str
    confusion: Confusion
    boundary: Boundary
    objects: ObjectCounts | None
    """None if objects are not compared."""
    worst: int
    """Number of the tile with the most wrong pixels."""
    one_place: bool = False
    """Whether only one of truth and mask states where its voxels are, so that they are compared in
    the order of the files.
    """
    reliability: Reliability | None = None
    """Of the scores. None: the run did not keep them."""


@dataclass(frozen=True, slots=True, eq=False)
class TileView:
    """Image, truth and mask of one tile's core, for pictures; of a volume the plane of it with the
    most errors.
    """

    tile: Tile
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    """Class ids (y, x); negative without a class."""
    unmatched: NDArray[np.bool_]
    """(y, x): pixels of objects without a match, on either side; none if objects are not compared.
    """
    outlines: NDArray[np.bool_]
    """(2, y, x): outlines of the objects of truth and mask."""
    photo: NDArray[np.uint8] | None
    """(y, x, 3). None if the image is gone, has changed or cannot be read."""


def score(image: EvaluatedImage, options: EvaluationOptions) -> Score:
    """Compare the mask of an image with its truth.

    Raises `TruthMismatch` if their sizes or places differ, `RecipeError` if the mask is not of the
    kind given by the options, or the truth has values without a meaning, and the errors of reading.
    """
    with ExitStack() as stack:
        truth, predicted, grid, fits = _open_both(image, options, stack)
        confusion, boundary, unknown = (
            Confusion.none(options.classes),
            Boundary.none(options.classes),
            _UnknownValues(),
        )
        worst, most_wrong = 0, 0
        probabilities = _Probabilities.opened(image, stack)
        reliability = None if probabilities is None else Reliability.none()
        for number, tile in enumerate(grid):
            limits.begin_work(tile.read.size)
            theirs, ours = truth.classes(tile.read), predicted.classes(tile.read)
            core = tile.trim(theirs)
            if (core == UNKNOWN).any():
                unknown.add(truth.values(tile.core)[core == UNKNOWN])
            seen = Confusion.of(core, tile.trim(ours), options.classes)
            confusion += seen
            boundary += Boundary.of(theirs, ours, tile, options.classes, options.tolerance)
            if probabilities is not None and reliability is not None:
                reliability += probabilities.reliability(tile, core, tile.trim(ours))
            if seen.wrong > most_wrong:
                worst, most_wrong = number, seen.wrong
        unknown.refuse(image.truth, options.mapping)
        objects = None
        if options.foreground:
            sides = _instances(image, options, truth, predicted, grid)
            objects = _match(image, sides, grid).counts(options.classes)
    one_place = fits.placing == "by index of one"
    return Score(
        image.image_id, image.truth, confusion, boundary, objects, worst, one_place, reliability
    )


def view(image: EvaluatedImage, options: EvaluationOptions, number: int) -> TileView:
    """Image, truth and mask of a tile. Raises as `score`."""
    with ExitStack() as stack:
        truth, predicted, grid, _ = _open_both(image, options, stack)
        tile = grid[number]
        own = true = np.zeros(tile.core.shape, np.int64)
        unmatched = np.zeros(tile.core.shape, np.bool_)
        if options.foreground:
            ours, theirs = _instances(image, options, truth, predicted, grid)
            matching = _match(image, (ours, theirs), grid)
            alone = matching.predicted.ids[(matching.partner == 0) & ~matching.in_void]
            missed = np.setdiff1d(matching.truth.ids, matching.partner)
            own, true = ours.ids(number, tile), theirs.ids(number, tile)
            unmatched = np.isin(own, alone) | np.isin(true, missed)
        wanted, found = truth.classes(tile.core), predicted.classes(tile.core)
        compared = (wanted >= 0) & (found >= 0)
        plane = _plane_with_most(compared & ((wanted != found) | unmatched))
        return TileView(
            tile,
            wanted[plane],
            found[plane],
            unmatched[plane],
            np.stack([outlines(true[plane]), outlines(own[plane])]),
            _photo(image.image_uri, grid, tile, plane, image.members),
        )


@dataclass(frozen=True, slots=True)
class _Probabilities:
    """The scores of an image, as a run keeps them."""

    reader: Reader
    class_of: NDArray[np.int64]
    """Class id of each band; classes of a run may have one name."""

    @classmethod
    def opened(cls, image: EvaluatedImage, stack: ExitStack) -> _Probabilities | None:
        """Open the scores of an image. None: the run did not keep them."""
        if image.probabilities is None:
            return None
        spec = formats.describe(image.probabilities)
        reader = stack.enter_context(formats.open_image(spec))
        return cls(reader, image.table[: spec.channels])

    def reliability(
        self, tile: Tile, truth: NDArray[np.int64], predicted: NDArray[np.int64]
    ) -> Reliability:
        """Of the pixels of a tile's core that have a class in both truth and mask."""
        values, _ = self.reader.read(tile.core)
        known = (truth >= 0) & (predicted >= 0) & (values[..., 0] != NODATA)
        truth, predicted, values = truth[known], predicted[known], values[known]
        own = self.class_of == predicted[:, np.newaxis]
        confidence = np.where(own, values, 0).sum(axis=-1) / MOST
        return Reliability.of(np.minimum(confidence, 1.0), truth == predicted)


def _plane_with_most(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the plane with the most wrong pixels; empty for images, which are one plane."""
    counts = np.count_nonzero(wrong, axis=(-2, -1))
    return tuple(int(i) for i in np.unravel_index(np.argmax(counts), counts.shape))


def _photo(
    uri: str,
    grid: Grid,
    tile: Tile,
    plane: tuple[int, ...] = (),
    members: tuple[Member, ...] = (),
) -> NDArray[np.uint8] | None:
    """The pixels of a tile's core, or of a plane of it, as a picture (y, x, 3); None if the image
    is gone, has changed or cannot be read. `members`: the files of a series.
    """
    source = Source(uri, "", "", 0, members=members, part=split_part(uri)[1])
    try:
        if members:
            [(_, spec)] = formats.describe_images(source, "")
        else:
            spec = formats.describe(uri)
        if isinstance(spec, FormatError) or spec.shape != grid.shape:
            return None
        with formats.open_image(spec) as reader:
            pixels, valid = reader.read(tile.core)
    except (ImageError, StoreError):
        return None
    return photo_of(pixels[plane], valid[plane])


def _open_both(
    image: EvaluatedImage, options: EvaluationOptions, stack: ExitStack
) -> tuple[TruthImage, PredictedImage, Grid, Fit]:
    ours = formats.describe(image.mask)
    if image.polygons is None:
        stored = formats.describe(image.truth)
        theirs: RasterSpec | PolygonMask = stored
        fits = _checked_fit(image, stored, ours)
    else:
        # They are drawn on the grid of the mask.
        theirs, fits = image.polygons, Fit(Turn.none(len(ours.shape)), "by position", True)
    if holds_object_ids(ours) != options.numbered:
        kinds = ("classes", "ids of objects") if options.numbered else ("ids of objects", "classes")
        raise RecipeError(
            f"{image.mask} holds {kinds[0]}, other masks of the run hold {kinds[1]}: they were "
            "made by different recipes. Give --truth only for the images of one recipe, or run one "
            "over all images."
        )
    truth = TruthImage(
        stack.enter_context(open_mask(theirs, options.mapping.by, fits.turn)), options.mapping
    )
    predicted = PredictedImage(
        stack.enter_context(open_mask(ours, "index")), image.table, image.beyond
    )
    return truth, predicted, options.grid(ours.shape), fits


def _checked_fit(image: EvaluatedImage, theirs: RasterSpec, ours: RasterSpec) -> Fit:
    """How a truth mask fits the mask of the run. Raises `TruthMismatch` if it does not."""
    fits = fit(theirs, ours)
    if not fits.same_shape:
        sizes = [" x ".join(str(n) for n in reversed(spec.shape)) for spec in (theirs, ours)]
        raise TruthMismatch(
            f"{image.truth} has {sizes[0]} pixels, the mask of {image.image_id} ({image.mask}) has "
            f"{sizes[1]}. Truth and image must have the same size."
        )
    if fits.elsewhere:
        raise TruthMismatch(
            f"{image.truth} lies elsewhere in the scanner than the mask of {image.image_id}: "
            f"{fits.elsewhere}. Resample the truth to the grid of {image.mask}; if only its header "
            "is wrong, give it the header of that file."
        )
    shift = largest_shift(theirs.space, ours.space, ours.shape)
    if not shift <= _LARGEST_SHIFT:
        raise TruthMismatch(
            f"{image.truth} lies elsewhere on earth than the mask of {image.image_id}: their "
            f"corners are {shift:.3g} pixels apart. Warp the truth to the grid of {image.mask}."
        )
    return fits


def _instances(
    image: EvaluatedImage,
    options: EvaluationOptions,
    truth: LabelledImage,
    predicted: LabelledImage,
    grid: Grid,
) -> tuple[ImageInstances, ImageInstances]:
    """The objects of the mask and of the truth."""
    classes = options.foreground
    ids = frozenset(classes) if options.numbered else frozenset[int]()
    return (
        ImageInstances.of(predicted, classes, ids, grid, image.mask),
        ImageInstances.of(truth, classes, options.mapping.numbered, grid, image.truth),
    )


def _match(
    image: EvaluatedImage, sides: tuple[ImageInstances, ImageInstances], grid: Grid
) -> Matching:
    ours, theirs = sides
    # Pixels without data in the mask belong to no object; only the truth has void.
    parts = []
    for number, tile in enumerate(grid):
        limits.begin_work(tile.core.size)
        own, true = ours.ids(number, tile), theirs.ids(number, tile)
        parts.append(Overlaps.of(np.maximum(own, 0), true))
    overlaps = Overlaps.total(parts)
    return Matching.of(
        overlaps,
        ours.objects(overlaps.predicted, image.scores),
        theirs.objects(overlaps.truth, None),
    )


class _UnknownValues:
    """Counts the values of a truth that have no meaning."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, values: NDArray[np.int64]) -> None:
        """Count values."""
        found, counts = np.unique(values, return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._counts[value] = self._counts.get(value, 0) + count

    def _example(self, names: Sequence[str], mapping: LabelMapping) -> str:
        """An example of --values for these values."""
        first, last = mapping.classes[0], mapping.classes[-1]
        if mapping.by == "index" and set(self._counts) == {0}:
            return f"0={first}"
        if mapping.by == "index" and len(self._counts) > _VALUES_SHOWN:
            # Probably ids of objects.
            return f"0={first},1..={last}"
        return f"{names[0]}=CLASS"

    def refuse(self, location: str, mapping: LabelMapping) -> None:
        """Raise `RecipeError` if any were counted."""
        if not self._counts:
            return
        most = sorted(self._counts.items(), key=lambda item: -item[1])
        names = [f"#{value:06X}" if mapping.by == "colour" else str(value) for value, _ in most]
        listed = ", ".join(
            f"{name} ({count} pixels)"
            for name, (_, count) in zip(names[:_VALUES_SHOWN], most, strict=False)
        )
        more = f" and {len(most) - _VALUES_SHOWN} more" if len(most) > _VALUES_SHOWN else ""
        raise RecipeError(
            f"{location} has values that mean no class: {listed}{more}. Give their meaning, for "
            f"example --values '{self._example(names, mapping)}', or leave them out with --void "
            f"'{names[0]}'. Classes: {', '.join(mapping.classes)}."
        )


def total(scores: Sequence[Score], classes: int) -> tuple[Confusion, Boundary, ObjectCounts | None]:
    """The sums over all images."""
    counted = [each.objects for each in scores if each.objects is not None]
    return (
        reduce(add, (each.confusion for each in scores), Confusion.none(classes)),
        reduce(add, (each.boundary for each in scores), Boundary.none(classes)),
        reduce(add, counted, ObjectCounts.none(classes)) if counted else None,
    )
