"""One pass over all images and masks before training starts.

It decodes every pixel once, so that broken files are found before training starts, refuses values
that the recipe does not name, and counts the classes in small cells, by which
`segcore.training.sampling` finds rare ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np

from maskloom.segcore.errors import ImageError, RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.processes.helpers import spread
from maskloom.segcore.storage.filesystems import configure
from maskloom.segcore.training.labels import UNKNOWN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.dataset import Dataset, DatasetWindow
    from maskloom.segcore.training.setup import OnProgress

    _Counted = tuple["ImageCounts", Counter[int]]

CELL = 64
"""Side of a cell of an image in pixels."""
_CUBE = 16
"""Side of a cell of a volume in voxels: about as many as a cell of an image has pixels."""
_MOST_LISTED = 2**20
"""Greatest id of an object up to which objects are looked up in a list."""
_FILES_SHOWN = 5
_VALUES_SHOWN = 6


@dataclass(frozen=True, slots=True, eq=False)
class ImageCounts:
    """What is counted in an image."""

    cells: NDArray[np.int64]
    """(row of cells, column of cells, class), of volumes with planes of cells first."""
    sizes: NDArray[np.float64]
    """Median size of the objects of each class in pixels; NaN without objects."""
    largest: int = 0
    """Longest side of the box around an object, in pixels; 0 without objects."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassCounts:
    """Labelled pixels of each class by image and cell."""

    cells: tuple[NDArray[np.int64], ...]
    """One array (row of cells, column of cells, class) per image; of volumes with planes of cells
    first.
    """
    sizes: NDArray[np.float64] | None = None
    """(image, class): median size of the objects in pixels; NaN without objects. None: the masks do
    not number objects.
    """
    largest: tuple[int, ...] | None = None
    """Longest side of the box around an object of each image, in pixels; 0 without objects. None:
    the masks do not number objects.
    """

    @property
    def images(self) -> list[ImageCounts]:
        """The counts of each image."""
        sizes = self.sizes
        if sizes is None:
            sizes = np.array([np.full(cells.shape[-1], np.nan) for cells in self.cells])
        return list(map(ImageCounts, self.cells, sizes, self.largest or [0] * len(self.cells)))

    def largest_side(self, numbers: Sequence[int]) -> int:
        """Longest side of the box around an object of these images, in pixels; 0 without objects.
        Raises `ValueError` if the masks do not number objects.
        """
        if self.largest is None:
            raise ValueError("the dataset of a training of objects must have their ids")
        return max((self.largest[number] for number in numbers), default=0)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(image, class)."""
        return np.array([cells.sum(axis=tuple(range(cells.ndim - 1))) for cells in self.cells])

    def shares(self, numbers: Sequence[int]) -> NDArray[np.float64]:
        """The smallest and the largest share of each class in the labelled pixels of these images:
        (class, 2). Images without a label are left out.
        """
        counts = self.classes[list(numbers)]
        totals = counts.sum(axis=1, keepdims=True)
        found = counts[totals[:, 0] > 0] / totals[totals[:, 0] > 0]
        return np.stack([found.min(axis=0), found.max(axis=0)], axis=1)

    def typical_sizes(self, numbers: Sequence[int]) -> dict[int, tuple[float, float]]:
        """The smallest and the largest median size of the objects of a class in these images, by
        class id; empty if masks do not number objects.
        """
        if self.sizes is None:
            return {}
        found = self.sizes[list(numbers)]
        return {
            i: (float(np.nanmin(of)), float(np.nanmax(of)))
            for i, of in enumerate(found.T)
            if not np.isnan(of).all()
        }


def cell_of(axes: int, planar: bool = False) -> Shape:
    """The sides of a cell: a square of an image or, if `planar`, of a plane of a volume; else a
    cube.
    """
    if axes == 2:
        return CELL, CELL
    return (1, CELL, CELL) if planar else (_CUBE, _CUBE, _CUBE)


def count_classes(
    dataset: Dataset,
    classes: Sequence[str],
    on_progress: OnProgress,
    cell: Shape = (CELL, CELL),
    known: Mapping[int, ImageCounts] | None = None,
    processes: int = 1,
) -> ClassCounts:
    """Count the classes of all pixels, in cells of these sides, but for images whose counts are
    `known`, by number; `on_progress` is called for each image, and for each strip of one that this
    process reads. At most so many `processes` share the work. Raises `RecipeError` if a file is
    broken or a value is unknown.
    """
    images, faults = dict(known or {}), []
    wanted = [number for number in range(len(dataset.pairs)) if number not in images]

    def here(number: int) -> _Counted:
        return _count_image(
            dataset, len(classes), cell, number, lambda: on_progress(number, len(dataset.pairs))
        )

    prepare = partial(_counter, dict(fsspec.config.conf), dataset, len(classes), cell)
    counted = spread(here, prepare, wanted, processes, [dataset.memory])
    for number, (counts, unknown) in zip(wanted, counted, strict=True):
        on_progress(number, len(dataset.pairs))
        images[number] = counts
        if unknown:
            shown = ", ".join(
                f"{dataset.decoder.name(value)} ({count} pixels)"
                for value, count in unknown.most_common(_VALUES_SHOWN)
            )
            more = (
                f" and {len(unknown) - _VALUES_SHOWN} more values"
                if len(unknown) > _VALUES_SHOWN
                else ""
            )
            faults.append(f"{dataset.pairs[number].mask.location}: unknown values {shown}{more}.")
    if faults:
        more = (
            f"\n... and {len(faults) - _FILES_SHOWN} more masks."
            if len(faults) > _FILES_SHOWN
            else ""
        )
        raise RecipeError(
            "\n".join(faults[:_FILES_SHOWN])
            + f"{more}\nName them under `labels` as a class or as `void`, or set `labels.void: "
            "rest` to ignore all values that are not named."
        )
    ordered = [images[number] for number in range(len(dataset.pairs))]
    cells = tuple(each.cells for each in ordered)
    if not dataset.decoder.numbered:
        return ClassCounts(cells)
    sizes = np.array([each.sizes for each in ordered])
    return ClassCounts(cells, sizes, tuple(each.largest for each in ordered))


def _counter(
    stores: Mapping[str, Mapping[str, Any]], dataset: Dataset, classes: int, cell: Shape
) -> Callable[[int], _Counted]:
    """The work of a process that counts."""
    configure(stores)
    return partial(_count_image, dataset, classes, cell)


def _count_image(
    dataset: Dataset,
    classes: int,
    cell: Shape,
    number: int,
    on_strip: Callable[[], None] = lambda: None,
) -> _Counted:
    """Counts of an image, and how often its mask has which unknown values."""
    unknown: Counter[int] = Counter()
    objects: Counter[int] = Counter()
    boxes: dict[int, Box] = {}
    counts = np.zeros((*_cells(dataset.shape(number), cell), classes), np.int64)
    try:
        for box, window, values in dataset.strips(number, cell[0]):
            on_strip()
            strange = window.classes == UNKNOWN
            if strange.any():
                found, pixels = np.unique(values[strange], return_counts=True)
                unknown.update(dict(zip(found.tolist(), pixels.tolist(), strict=True)))
                continue
            top = box.start[0] // cell[0]
            strip = _count(window.classes, cell, classes)
            counts[top : top + len(strip)] = strip
            objects += _objects(window, dataset.decoder.mapping.numbered)
            _add_boxes(boxes, window.ids, box)
    except ImageError as error:
        raise RecipeError(f"{error} Fix the file, or add it to `split.leave_out`.") from error
    largest = max((side for each in boxes.values() for side in each.shape), default=0)
    return ImageCounts(counts, _medians(objects, classes), largest), unknown


def require_labelled(
    counts: ClassCounts, training: Sequence[int], validation: Sequence[int], classes: Sequence[str]
) -> list[str]:
    """Warnings about classes without training pixels, and of a score on training images.

    Raises `RecipeError` if the training images have no labelled pixel, or only one class, or the
    validation images have no labelled pixel.
    """
    totals = counts.classes[list(training)].sum(axis=0)
    present = np.flatnonzero(totals)
    if len(present) == 0:
        raise RecipeError(
            "labels: no pixel of the training images is labelled; all are void or without data. "
            "Check `labels`, `void` and the images' nodata value."
        )
    if len(present) == 1:
        raise RecipeError(
            f"labels: all labelled pixels of the training images are {classes[present[0]]!r}; "
            "there is nothing to tell apart. Check `labels`."
        )
    if not counts.classes[list(validation)].any():
        raise RecipeError(
            "labels: no pixel of the validation images is labelled, so no epoch would be the best. "
            "Name others under `split.validation`."
        )
    warnings = [
        f"No training image has the class {classes[i]!r}; the network will not learn it."
        for i in np.flatnonzero(totals == 0).tolist()
    ]
    if set(validation) <= set(training):
        warnings.append(
            "The network is measured on the images that it learns from: its score says nothing of "
            "others. Set `split.validation` above 0 to keep some apart."
        )
    return warnings


def _objects(window: DatasetWindow, numbered: Collection[int]) -> Counter[int]:
    """Pixels of each object of a numbered class: its number times 256, plus its class."""
    if window.ids is None:
        return Counter()
    own = np.isin(window.classes, list(numbered))
    keys = window.ids[own].astype(np.int64) * 256 + window.classes[own]
    found, pixels = np.unique(keys, return_counts=True)
    return Counter(dict(zip(found.tolist(), pixels.tolist(), strict=True)))


def _add_boxes(boxes: dict[int, Box], ids: NDArray[np.integer] | None, place: Box) -> None:
    """Let the boxes of objects, by their ids, enclose what a strip at this place shows of them."""
    from scipy import ndimage

    if ids is None or not ids.any():
        return
    # Ids may be any numbers, and `find_objects` makes a list up to the greatest.
    found = None if ids.min() >= 0 and ids.max() <= _MOST_LISTED else np.unique(ids)
    ranks = ids.astype(np.int32) if found is None else np.searchsorted(found, ids) + 1
    for rank, seen in enumerate(ndimage.find_objects(ranks), 1):
        number = rank if found is None else int(found[rank - 1])
        if seen is None or number == 0:
            continue
        start = tuple(first + part.start for first, part in zip(place.start, seen, strict=True))
        stop = tuple(first + part.stop for first, part in zip(place.start, seen, strict=True))
        known = boxes.get(number)
        if known is not None:
            start, stop = tuple(map(min, start, known.start)), tuple(map(max, stop, known.stop))
        boxes[number] = Box(start, stop)


def _medians(objects: Mapping[int, int], classes: int) -> NDArray[np.float64]:
    """The median size of the objects of each class; NaN without objects."""
    of: dict[int, list[int]] = {}
    for key, pixels in objects.items():
        of.setdefault(key % 256, []).append(pixels)
    return np.array([np.median(of[i]) if i in of else np.nan for i in range(classes)])


def _cells(shape: Shape, cell: Shape) -> Shape:
    """Number of cells along each axis."""
    return tuple(-(-n // side) for n, side in zip(shape, cell, strict=True))


def _count(labels: NDArray[np.uint8], cell: Shape, classes: int) -> NDArray[np.int64]:
    """Pixels by cell and class: (row of cells, column of cells, class)."""
    cells = _cells(labels.shape, cell)
    counts = []
    # Row by row of cells, so that the numbers of pixels take little memory.
    for row in range(cells[0]):
        band = labels[row * cell[0] : (row + 1) * cell[0]]
        place = np.zeros((1,) * labels.ndim, np.int32)
        for axis in range(1, labels.ndim):
            along = np.arange(labels.shape[axis], dtype=np.int32) // cell[axis]
            spread = along.reshape(-1, *[1] * (labels.ndim - 1 - axis))
            place = place * np.int32(cells[axis]) + spread
        # One number per pixel for its cell and its class; void takes the last slot of a cell.
        keys = np.minimum(band, classes).astype(np.int32) + place * np.int32(classes + 1)
        size = math.prod(cells[1:]) * (classes + 1)
        found = np.bincount(keys.ravel(), minlength=size).reshape(*cells[1:], classes + 1)
        counts.append(found[..., :classes])
    return np.stack(counts)
