"""The patches of a step.

They are drawn by (seed, epoch, step) alone, so that an interrupted training continues with the same
patches. A fraction of the patches is drawn around a pixel of a class, all present classes with
equal probability, so that rare ones are seen; the others around any labelled pixel.
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
    """Input and output of a network for a patch."""

    patch: int
    """Side of its input in pixels."""
    margin: int = 0
    """Pixels by which its output is smaller at each side."""
    stride: int = 1
    """The output follows shifts of the input by multiples of this many pixels."""

    @property
    def target(self) -> int:
        """Side of its output in pixels."""
        return self.patch - 2 * self.margin


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches with their labels."""

    pixels: NDArray[np.float32]
    """(patch, y, x, band), scaled; 0 without data."""
    classes: NDArray[np.uint8]
    """(patch, y, x) of the network's output: class ids, or `VOID`."""
    ids: NDArray[np.integer] | None = None
    """(patch, y, x): ids of objects. None if the labels have none."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How patches are drawn."""

    patch_shape: PatchShape
    batch: int
    balance: float
    seed: int
    augmentation: tuple[Augmentation, ...] = ()


class Sampler:
    """Draws the batches of a training."""

    def __init__(
        self,
        dataset: Dataset,
        class_counts: ClassCounts,
        numbers: Sequence[int],
        scaling: Scaling,
        options: SamplingOptions,
    ) -> None:
        self._dataset, self._scaling, self._options = dataset, scaling, options
        places, counts = [], []
        for number in numbers:
            cells = class_counts.cells[number]
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
        """The patches of a step. Raises `ReadError` if an image has become unreadable."""
        random = np.random.default_rng([self._options.seed, epoch, step])
        drawn = [self._patch(random) for _ in range(self._options.batch)]
        numbered = [patch.ids for patch in drawn if patch.ids is not None]
        return Batch(
            np.stack([patch.pixels for patch in drawn]),
            np.stack([patch.classes for patch in drawn]),
            np.stack(numbered) if numbered else None,
        )

    def _patch(self, random: np.random.Generator) -> Patch:
        options, patch_shape = self._options, self._options.patch_shape
        number, middle = self._place(random)
        zooms = [each.factor(random) for each in options.augmentation if isinstance(each, Zoom)]
        side = max(8, round(patch_shape.patch * float(np.prod(zooms))))
        margin = round(patch_shape.margin * side / patch_shape.patch)
        box = _around(middle, side, margin, self._dataset.shape(number))
        patch = scaled(self._dataset.window(number, box), self._scaling)
        if side != patch_shape.patch:
            patch = resized(patch, patch_shape.patch)
        for each in options.augmentation:
            patch = each.apply(patch, random)
        inner = slice(patch_shape.margin, patch_shape.patch - patch_shape.margin)
        return Patch(
            patch.pixels,
            patch.classes[inner, inner],
            None if patch.ids is None else patch.ids[inner, inner],
        )

    def _place(self, random: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """An image and a pixel of it as the middle of a patch."""
        sums = self._anywhere
        if random.random() < self._options.balance:
            sums = self._by_class[int(random.integers(len(self._by_class)))]
        cell = int(np.searchsorted(sums, random.integers(int(sums[-1])), side="right"))
        number, top, left = (int(value) for value in self._places[cell])
        height, width = self._dataset.shape(number)
        # The middle is anywhere within half a patch of the cell: the wanted pixel is in the patch,
        # but not always at its centre.
        spread = max(CELL, self._options.patch_shape.target // 2)
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
    """A square patch resized: pixels interpolated (averaged if it shrinks), labels by the nearest
    pixel.
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
    """A square window whose output is centred on a pixel, and shifted into the image if that is
    large enough.
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


def sliding_windows(
    shape: tuple[int, int], patch_shape: PatchShape, context: int
) -> list[tuple[Box, Box]]:
    """Windows that together cover each pixel of an image once: (box that the network sees, box of
    its output that counts).

    The latter keeps `context` pixels away from the window's edge, except at the border of the
    image. Outputs start at multiples of the stride, as in inference.
    """
    rows, columns = (_steps(size, patch_shape, context) for size in shape)
    margin, windows = patch_shape.margin, []
    for (y, top, bottom), (x, left, right) in product(rows, columns):
        seen = Box(
            (y - margin, x - margin),
            (y - margin + patch_shape.patch, x - margin + patch_shape.patch),
        )
        windows.append((seen, Box((top, left), (bottom, right))))
    return windows


def _steps(size: int, patch_shape: PatchShape, context: int) -> list[tuple[int, int, int]]:
    """(start of the output, first and one past the last pixel of it that counts) along an axis."""
    target, stride = patch_shape.target, patch_shape.stride
    last = max(0, -(-(size - target) // stride) * stride)
    step = max(stride, (target - 2 * context) // stride * stride)
    starts = [*range(0, last, step), last]
    cuts = [0, *((first + target + second) // 2 for first, second in pairwise(starts)), size]
    return [(start, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]
