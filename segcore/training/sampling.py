"""Samples: the patches of a step.

What a step sees is drawn by (seed, epoch, step) alone, so an interrupted training goes on with the
same patches. A fraction of the patches lies around a pixel of a class, all present classes alike,
so that rare ones are found; the others lie around any labelled pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.training.augment import Patch, Zoom
from maskloom.segcore.training.class_counts import CELL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Scaling
    from maskloom.segcore.training.augment import Augmentation
    from maskloom.segcore.training.class_counts import ClassCounts
    from maskloom.segcore.training.dataset import Dataset, DatasetWindow


@dataclass(frozen=True, slots=True)
class PatchShape:
    """What a network sees and what of it it answers."""

    patch: int
    """Side of its input in pixels."""
    margin: int = 0
    """Pixels that its output lacks at each side."""
    stride: int = 1
    """The output moves with the input only by multiples of this many pixels."""

    @property
    def target(self) -> int:
        """Side of its output in pixels."""
        return self.patch - 2 * self.margin


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches and what is true of them."""

    pixels: NDArray[np.float32]
    """(patch, y, x, band), scaled; 0 where there is no data."""
    classes: NDArray[np.uint8]
    """(patch, y, x) of the network's output: class ids, or `VOID`."""
    ids: NDArray[np.integer] | None = None
    """(patch, y, x): numbers of objects, where the labels have such."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How patches are drawn."""

    frame: PatchShape
    batch: int
    balance: float
    seed: int
    augmentation: tuple[Augmentation, ...] = ()


class Sampler:
    """Draws the batches of a training."""

    def __init__(
        self,
        collection: Dataset,
        found: ClassCounts,
        numbers: Sequence[int],
        scaling: Scaling,
        drawing: SamplingOptions,
    ) -> None:
        self._collection, self._scaling, self._drawing = collection, scaling, drawing
        places, counts = [], []
        for number in numbers:
            cells = found.cells[number]
            rows, columns = np.nonzero(cells.any(axis=2))
            places.append(
                np.stack([np.full(len(rows), number), rows * CELL, columns * CELL], axis=1)
            )
            counts.append(cells[rows, columns])
        self._places = np.concatenate(places)
        by_cell = np.concatenate(counts)
        self._anywhere = np.cumsum(by_cell.sum(axis=1))
        self._by_class = [np.cumsum(column) for column in by_cell.T if column.any()]

    def batch(self, epoch: int, step: int) -> Batch:
        """The patches of a step. Raises `ReadError` where an image has become unreadable."""
        random = np.random.default_rng([self._drawing.seed, epoch, step])
        drawn = [self._patch(random) for _ in range(self._drawing.batch)]
        numbered = [patch.ids for patch in drawn if patch.ids is not None]
        return Batch(
            np.stack([patch.pixels for patch in drawn]),
            np.stack([patch.classes for patch in drawn]),
            np.stack(numbered) if numbered else None,
        )

    def _patch(self, random: np.random.Generator) -> Patch:
        drawing, frame = self._drawing, self._drawing.frame
        number, middle = self._place(random)
        zooms = [each.factor(random) for each in drawing.augmentation if isinstance(each, Zoom)]
        side = max(8, round(frame.patch * float(np.prod(zooms))))
        margin = round(frame.margin * side / frame.patch)
        box = _around(middle, side, margin, self._collection.shape(number))
        patch = scaled(self._collection.window(number, box), self._scaling)
        if side != frame.patch:
            patch = resized(patch, frame.patch)
        for each in drawing.augmentation:
            patch = each.apply(patch, random)
        inner = slice(frame.margin, frame.patch - frame.margin)
        return Patch(
            patch.pixels,
            patch.classes[inner, inner],
            None if patch.ids is None else patch.ids[inner, inner],
        )

    def _place(self, random: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """An image, and a pixel of it to draw a patch around."""
        sums = self._anywhere
        if random.random() < self._drawing.balance:
            sums = self._by_class[int(random.integers(len(self._by_class)))]
        cell = int(np.searchsorted(sums, random.integers(int(sums[-1])), side="right"))
        number, top, left = (int(value) for value in self._places[cell])
        height, width = self._collection.shape(number)
        # The middle lies anywhere in half a patch about the cell: what is wanted is in the patch,
        # but not always at its centre.
        spread = max(CELL, self._drawing.frame.target // 2)
        y, x = (
            int(start + CELL // 2 + random.integers(-spread // 2, spread // 2 + 1))
            for start in (top, left)
        )
        return number, (min(max(y, 0), height - 1), min(max(x, 0), width - 1))


def scaled(window: DatasetWindow, scaling: Scaling) -> Patch:
    """A window as the network sees it: pixels without data are 0, and `VOID`."""
    pixels = scaling.apply(window.pixels)
    if window.valid.all():
        return Patch(pixels, window.classes, window.ids)
    pixels[~window.valid] = 0
    return Patch(pixels, window.classes, window.ids, window.valid)


def resized(patch: Patch, side: int) -> Patch:
    """A square patch in another size: pixels interpolated (averaged where it shrinks), labels by
    the nearest.
    """
    import cv2

    shrinks = patch.pixels.shape[0] > side
    pixels = cv2.resize(
        np.ascontiguousarray(patch.pixels),
        (side, side),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    rows = (np.arange(side) * 2 + 1) * patch.pixels.shape[0] // (2 * side)
    nearest = np.ix_(rows, rows)
    labels = patch.turned(lambda array: array[nearest])
    return labels.coloured(pixels.reshape(side, side, -1))


def _around(middle: tuple[int, int], side: int, margin: int, shape: tuple[int, int]) -> Box:
    """A square window whose part that is answered lies around a pixel, and inside the image where
    that is large enough.
    """
    target = side - 2 * margin
    start = []
    for centre, size in zip(middle, shape, strict=True):
        first = (
            min(max(centre - target // 2, 0), size - target)
            if size >= target
            else (size - target) // 2
        )
        start.append(first - margin)
    return Box((start[0], start[1]), (start[0] + side, start[1] + side))


def lattice(shape: tuple[int, int], frame: PatchShape, context: int) -> list[tuple[Box, Box]]:
    """Windows that together answer each pixel of an image once: (what the network sees, what of its
    answer counts).

    What counts keeps `context` pixels away from the window's edge, except at the border of the
    image. Answers start at multiples of the stride, as they do when the network is used.
    """
    rows, columns = (_steps(size, frame, context) for size in shape)
    margin, found = frame.margin, []
    for (y, top, bottom), (x, left, right) in product(rows, columns):
        seen = Box((y - margin, x - margin), (y - margin + frame.patch, x - margin + frame.patch))
        found.append((seen, Box((top, left), (bottom, right))))
    return found


def _steps(size: int, frame: PatchShape, context: int) -> list[tuple[int, int, int]]:
    """(start of the answer, first and one past the last pixel of it that counts) along an axis."""
    target, stride = frame.target, frame.stride
    last = max(0, -(-(size - target) // stride) * stride)
    step = max(stride, (target - 2 * context) // stride * stride)
    starts = [*range(0, last, step), last]
    cuts = [0, *((first + target + second) // 2 for first, second in pairwise(starts)), size]
    return [(start, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]
