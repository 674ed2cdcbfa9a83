"""The patches of a step.

They are drawn by (seed, epoch, step) alone, so that an interrupted training continues with the same
patches. A fraction of the patches is drawn around a pixel of a class, all present classes with
equal probability, so that rare ones are seen; the others around any labelled pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box, per_axis
from maskloom.segcore.training.augmentations.protocols import Geometry, Mixture, Patch, PixelChange
from maskloom.segcore.training.balance import chosen
from maskloom.segcore.training.class_counts import cell_of
from maskloom.segcore.training.warping import Warp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.processes.shared_memory import SharedMemory
    from maskloom.segcore.training.augmentations.protocols import Augmentation
    from maskloom.segcore.training.class_counts import ClassCounts
    from maskloom.segcore.training.dataset import Dataset
    from maskloom.segcore.training.scalings import Scalings


@dataclass(frozen=True, slots=True)
class PatchShape:
    """Input and output of a network for a patch, along each axis of the training images.

    A network of images that is trained on volumes takes patches one plane deep, without their axis
    z: each slice is a sample, and volumes still are on one side of the split.
    """

    patch: Shape
    """Sides of its input in pixels."""
    margin: Shape
    """Pixels by which its output is smaller at each side."""
    stride: Shape
    """The output follows shifts of the input by multiples of this many pixels."""
    planar: bool = False
    """Whether the network takes single planes of volumes."""

    @classmethod
    def square(cls, side: int, margin: int = 0, stride: int = 1) -> PatchShape:
        """A patch of an image."""
        return cls((side, side), (margin, margin), (stride, stride))

    @property
    def target(self) -> Shape:
        """Sides of its output in pixels."""
        return tuple(n - 2 * m for n, m in zip(self.patch, self.margin, strict=True))

    @property
    def cell(self) -> Shape:
        """Sides of the cells in which classes are counted; see `class_counts`."""
        return cell_of(len(self.patch), self.planar)

    @property
    def inner(self) -> tuple[slice, ...]:
        """The output in an input as the network takes it."""
        sides = zip(self.patch, self.margin, strict=True)
        return tuple(slice(margin, side - margin) for side, margin in sides)[self.planar :]

    def taken(self, patch: Patch) -> Patch:
        """A patch as the network takes it: without its axis z if that is one plane."""
        return patch.turned(lambda array: array[0]) if self.planar else patch

    def output(self, box: Box) -> Box:
        """The box of the output for that of the input."""
        return box.grow(tuple(-margin for margin in self.margin))


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches with their labels; those of volumes have an axis z before y."""

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
    class_rates: tuple[float, ...] = ()
    """How often to draw around each class, relative to each other. Empty: all alike."""


class Sampler:
    """Draws the batches of a training."""

    def __init__(
        self,
        dataset: Dataset,
        class_counts: ClassCounts,
        numbers: Sequence[int],
        scalings: Scalings,
        options: SamplingOptions,
    ) -> None:
        self._dataset, self._scalings, self._options = dataset, scalings, options
        wanted = options.augmentation
        self._geometries = [each for each in wanted if isinstance(each, Geometry)]
        self._changes = [each for each in wanted if isinstance(each, PixelChange)]
        self._mixtures = [each for each in wanted if isinstance(each, Mixture)]
        places, counts = [], []
        for number in numbers:
            cells = class_counts.cells[number]
            found = np.nonzero(cells.any(axis=-1))
            corners = np.stack(found, axis=1) * np.array(options.patch_shape.cell)
            places.append(np.insert(corners, 0, number, axis=1))
            counts.append(cells[found])
        self._places = np.concatenate(places)
        by_cell = np.concatenate(counts)
        self._anywhere = np.cumsum(by_cell.sum(axis=1))
        rates = options.class_rates or (1.0,) * by_cell.shape[1]
        drawable = [i for i, rate in enumerate(rates) if rate and by_cell[:, i].any()]
        self._by_class = [np.cumsum(by_cell[:, i]) for i in drawable]
        self._shares = np.cumsum([rates[i] for i in drawable])

    @property
    def pixels(self) -> int:
        """Pixels of all patches of a step."""
        return self._options.batch * math.prod(self._options.patch_shape.patch)

    @property
    def channels(self) -> int:
        """Number of bands."""
        return self._dataset.pairs[0].image.channels

    @property
    def memory(self) -> SharedMemory:
        """The memory that a pickled one refers to."""
        return self._dataset.memory

    def batch(self, epoch: int, step: int) -> Batch:
        """The patches of a step. Raises `ReadError` if an image has become unreadable."""
        random = np.random.default_rng([self._options.seed, epoch, step])
        drawn = [self._patch(random) for _ in range(self._options.batch)]
        for mixture in self._mixtures:
            drawn = mixture.mix(drawn, random)
        inner = self._options.patch_shape.inner
        numbered = [patch.ids[inner] for patch in drawn if patch.ids is not None]
        return Batch(
            np.stack([patch.pixels for patch in drawn]),
            np.stack([patch.classes[inner] for patch in drawn]),
            np.stack(numbered) if numbered else None,
        )

    def _patch(self, random: np.random.Generator) -> Patch:
        patch_shape = self._options.patch_shape
        number, middle = self._place(random)
        warp = Warp()
        for geometry in self._geometries:
            warp = geometry.warp(warp, patch_shape.patch, random)
        sides = warp.window(patch_shape.patch)
        margins = tuple(
            round(margin * side / whole)
            for margin, side, whole in zip(
                patch_shape.margin, sides, patch_shape.patch, strict=True
            )
        )
        box = _around(middle, sides, margins, self._dataset.shape(number))
        window = patch_shape.taken(scaled(self._dataset, number, box, self._scalings))
        patch = warp.apply(window, patch_shape.patch[patch_shape.planar :])
        patch.blank()
        for change in self._changes:
            change.change(patch, random)
        return patch

    def _place(self, random: np.random.Generator) -> tuple[int, Shape]:
        """An image and a pixel of it as the middle of a patch."""
        sums = self._anywhere
        if random.random() < self._options.balance:
            sums = self._by_class[chosen(self._shares, random)]
        cell = int(np.searchsorted(sums, random.integers(int(sums[-1])), side="right"))
        number, *corner = (int(value) for value in self._places[cell])
        patch_shape, middle = self._options.patch_shape, []
        for start, side, target, size in zip(
            corner, patch_shape.cell, patch_shape.target, self._dataset.shape(number), strict=True
        ):
            # The middle is anywhere within half a patch of the cell: the wanted pixel is in the
            # patch, but not always at its centre. A patch of one plane is that of its cell.
            spread = max(side, target // 2)
            drawn = int(random.integers(-spread // 2, spread // 2 + 1)) if side > 1 else 0
            middle.append(min(max(start + side // 2 + drawn, 0), size - 1))
        return number, tuple(middle)


def scaled(dataset: Dataset, number: int, box: Box, scalings: Scalings) -> Patch:
    """A box of an image as the network sees it: pixels without data are 0, and `VOID`."""
    window = dataset.window(number, box)
    pixels = scalings.apply(number, window.pixels)
    if window.valid.all():
        return Patch(pixels, window.classes, window.ids)
    pixels[~window.valid] = 0
    return Patch(pixels, window.classes, window.ids, window.valid)


def _around(middle: Shape, sides: Shape, margins: Shape, shape: Shape) -> Box:
    """A window whose output is centred on a pixel, and shifted into the image if that is large
    enough.
    """
    start = []
    for centre, side, margin, size in zip(middle, sides, margins, shape, strict=True):
        target = side - 2 * margin
        first = (
            min(max(centre - target // 2, 0), size - target)
            if size >= target
            else (size - target) // 2
        )
        start.append(first - margin)
    return Box(tuple(start), tuple(a + side for a, side in zip(start, sides, strict=True)))


def sliding_windows(
    shape: Shape, patch_shape: PatchShape, context: int | Shape
) -> list[tuple[Box, Box]]:
    """Windows that together cover each pixel of an image once: (box that the network sees, box of
    its output that counts).

    The latter keeps `context` pixels away from the window's edge, except at the border of the
    image. Outputs start at multiples of the stride, as in inference.
    """
    steps = [
        _steps(size, target, stride, around)
        for size, target, stride, around in zip(
            shape,
            patch_shape.target,
            patch_shape.stride,
            per_axis(context, len(shape)),
            strict=True,
        )
    ]
    windows = []
    for window in product(*steps):
        outputs, first, stop = zip(*window, strict=True)
        start = tuple(a - margin for a, margin in zip(outputs, patch_shape.margin, strict=True))
        end = tuple(a + side for a, side in zip(start, patch_shape.patch, strict=True))
        windows.append((Box(start, end), Box(first, stop)))
    return windows


def _steps(size: int, target: int, stride: int, context: int) -> list[tuple[int, int, int]]:
    """(start of the output, first and one past the last pixel of it that counts) along an axis."""
    last = max(0, -(-(size - target) // stride) * stride)
    step = max(stride, (target - 2 * context) // stride * stride)
    starts = [*range(0, last, step), last]
    cuts = [0, *((first + target + second) // 2 for first, second in pairwise(starts)), size]
    return [(start, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]
