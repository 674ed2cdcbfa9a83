"""Blended windows, for networks with an unbounded or very large receptive field.

An output pixel of such a network may depend on the whole image (global pooling, spatial norms).

Windows of one size form a lattice that starts at the origin of the image, each shifted by half a
window; the last one is moved back to end with the image. The scores of a pixel are the weighted
mean of the windows that contain it; weights fade smoothly from one window to the next (a squared
sine).

Class ids cannot be averaged. For networks that output nothing else, a pixel takes the id of the
window in which it is farthest from the edge (`seams`).

Along each axis, weights are integer multiples of 2**-12 (2**-8 in volumes), so their products are
exact in float32 and add up to exactly 1 at every pixel, without normalisation. Windows, weights and
the order of summation depend on the image alone, so every tiling gives bit-identical results. The
result does not equal a run on the whole image, for which memory may not suffice: it is defined by
these windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Literal

import numpy as np

from maskloom.segcore.deep.inference.patches import round_up, scores_of, sides_of
from maskloom.segcore.geometry import Box, by_axis, per_axis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.engines.protocol import Engine
    from maskloom.segcore.deep.inference.patches import Prepare, ScoredRegion
    from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Block

Seams = Literal["blended", "cut"]
_IMAGE = 2
_BITS = 24
"""Bits of the product of the weights along all axes, as many as float32 has."""


@dataclass(frozen=True, slots=True)
class BlendedWindow:
    """A window along one axis, in pixels of the image."""

    start: int
    stop: int
    first: int
    """First pixel of the input: `start` minus the margin."""
    length: int
    """Pixels of the input."""
    weights: NDArray[np.float32]
    """One weight per pixel from `start`."""


@dataclass(frozen=True, slots=True)
class Windowing:
    """Placement of a network's windows on any image."""

    receptive_field: ReceptiveField
    side: int | Shape = 512
    """Side of a window in pixels, rounded up to a multiple of twice the stride; see
    `Patching.side`. Ignored by networks of a fixed size.
    """
    seams: Seams = "blended"
    """Transition between windows: weighted, or a hard cut. Class ids must be cut, since their mean
    is a different class.
    """
    dimensions: int = 2
    """Of the network: 2 for images, 3 for volumes."""

    def __post_init__(self) -> None:
        if min(per_axis(self.side, self.dimensions)) < 1:
            raise ValueError(f"side: expected at least one pixel; got {self.side}")
        if min(self.sides) < 1:
            field = self.receptive_field
            raise ValueError(
                f"A network that takes {field.fixed} pixels and cuts off {field.margin} at each "
                "side gives none."
            )

    @property
    def sides(self) -> Shape:
        """(height, width), or (depth, height, width), of a window's output on a larger image."""
        field = self.receptive_field
        if field.fixed is not None:
            return field.output_sizes(field.fixed)
        return tuple(
            round_up(side, 2 * reach.stride)
            for side, reach in zip(
                sides_of(self.side, self.dimensions), field.axes(self.dimensions), strict=True
            )
        )

    @property
    def halo(self) -> int | Shape:
        """Pixels that a tile needs around its core so that all windows of its pixels are complete.

        It does not depend on the size of the tile.
        """
        axes = self.receptive_field.axes(self.dimensions)
        halos = [
            side - 1 + reach.margin + (reach.stride - 1 if reach.fixed is None else 0)
            for side, reach in zip(self.sides, axes, strict=True)
        ]
        return max(halos) if self.dimensions == _IMAGE else by_axis(halos)

    def windows(self, axis: int, size: int) -> list[BlendedWindow]:
        """Return all windows along an axis of an image of `size` pixels.

        Their weights add up to 1 at each pixel.
        """
        reach, unit = self.receptive_field.along(axis), 1 << _BITS // self.dimensions
        end = round_up(size, reach.stride)
        side = self.sides[axis] if reach.fixed is not None else min(self.sides[axis], end)
        step = max(1, side // 2 // reach.stride) * reach.stride
        starts = [*range(0, end - side, step), max(0, end - side)]
        length = reach.fitting(side + 2 * reach.margin)
        rises = [
            _rise(before + side - start, step, self.seams, unit)
            for before, start in pairwise(starts)
        ]
        windows = []
        for i, start in enumerate(starts):
            weights = np.full(side, unit, np.int32)
            if i > 0:
                weights[: len(rises[i - 1])] = rises[i - 1]
            if i < len(rises):
                # This window gives up exactly what the next one takes, so that rounding does not
                # change the sum.
                weights[starts[i + 1] - start :] -= rises[i]
            windows.append(
                BlendedWindow(
                    start,
                    start + side,
                    start - reach.margin,
                    length,
                    (weights / unit).astype(np.float32),
                )
            )
        return windows


def core_scores(
    block: Block, windowing: Windowing, prepare: Prepare, engine: Engine
) -> Iterator[ScoredRegion]:
    """Yield the blended scores of a tile's core in horizontal strips, from the top; those of a
    volume in slabs, from its first plane.

    Each item holds slices in the core and scores (y, x, k), or (z, y, x, k), which are valid until
    the next item. Strips without valid pixels may be left out; scores of invalid pixels are
    meaningless. Raises `WeightsError` like `patches.core_scores`.
    """
    core, shape = block.tile.core, block.spec.shape
    rows, *across = (
        [
            window
            for window in windowing.windows(axis, shape[axis])
            if window.start < core.stop[axis] and window.stop > core.start[axis]
        ]
        for axis in range(len(shape))
    )
    valid = block.tile.trim(block.valid)
    band = np.zeros((0, *core.shape[1:], 0), np.float32)
    for i, row in enumerate(rows):
        top, bottom = max(row.start, core.start[0]), min(row.stop, core.stop[0])
        for columns in product(*across):
            window = (row, *columns)
            whole = Box(tuple(w.start for w in window), tuple(w.stop for w in window))
            place = (whole & core).relative_to(core).slices
            if not valid[place].any():
                continue
            first, lengths = tuple(w.first for w in window), tuple(w.length for w in window)
            scores = scores_of(block, first, lengths, windowing.receptive_field, prepare, engine)
            band = _extended(band, bottom - top, scores.shape[-1])
            inner = (whole & core).relative_to(whole).slices
            weights = [w.weights[part] for w, part in zip(window, inner, strict=True)]
            _add(scores[inner], weights, band[:, *place[1:]])
        band = _extended(band, bottom - top, band.shape[-1])
        done = max(top, min(rows[i + 1].start, bottom)) if i + 1 < len(rows) else bottom
        if band.shape[-1] and done > top:
            rest = (slice(0, length) for length in core.shape[1:])
            yield (
                (slice(top - core.start[0], done - core.start[0]), *rest),
                band[: done - top],
            )
        band = band[done - top :]


def _add(
    scores: NDArray[np.float32], weights: list[NDArray[np.float32]], total: NDArray[np.float32]
) -> None:
    """Add scores (y, x, k), or (z, y, x, k), times the weights along each axis to `total`."""
    from maskloom.segcore.kernels.scores import add_weighted

    *planes, rows, columns = weights
    if not planes:
        add_weighted(scores, rows, columns, total)
        return
    for weight, plane, sums in zip(planes[0], scores, total, strict=True):
        # Exact: the product of two weights has two thirds of the bits.
        add_weighted(plane, weight * rows, columns, sums)


def _rise(overlap: int, step: int, seams: Seams, unit: int) -> NDArray[np.int32]:
    """Integer weights of a window in its overlap with the previous one.

    They are 0, then rise as a squared sine over at most `step` pixels or in one step, then are
    full.
    """
    length = min(step, overlap)
    before = (overlap - length) // 2
    places = np.clip((np.arange(overlap) - before + 0.5) / length, 0, 1)
    if seams == "cut":
        places = np.rint(places)
    return np.asarray(np.rint(unit * np.sin(np.pi / 2 * places) ** 2), np.int32)


def _extended(band: NDArray[np.float32], height: int, classes: int) -> NDArray[np.float32]:
    """Extend a strip with rows of zeros to `height`.

    A strip without classes is replaced by zeros.
    """
    shape = (height, *band.shape[1:-1], classes)
    if band.shape == shape:
        return band
    grown = np.zeros(shape, np.float32)
    if band.shape[-1]:
        grown[: len(band)] = band
    return grown
