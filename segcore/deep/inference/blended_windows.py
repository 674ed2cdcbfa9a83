"""Blended windows, for networks with an unbounded or very large receptive field.

An output pixel of such a network may depend on the whole image (global pooling, spatial norms).

Windows of one size form a lattice that starts at the origin of the image, each shifted by half a
window; the last one is moved back to end with the image. The scores of a pixel are the weighted
mean of the windows that contain it; weights fade smoothly from one window to the next (a squared
sine).

Class ids cannot be averaged. For networks that output nothing else, a pixel takes the id of the
window in which it is farthest from the edge (`seams`).

Along each axis, weights are integer multiples of 2**-12, so their products are exact in float32 and
add up to exactly 1 at every pixel, without normalisation. Windows, weights and the order of
summation depend on the image alone, so every tiling gives bit-identical results. The result does
not equal a run on the whole image, for which memory may not suffice: it is defined by these
windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from maskloom.segcore.deep.inference.patches import round_up, scores_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import ReceptiveField
    from maskloom.segcore.deep.inference.engines.protocol import Engine
    from maskloom.segcore.deep.inference.patches import Prepare, ScoredRegion
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Block

Seams = Literal["blended", "cut"]
_UNIT = 1 << 12
"""Steps per unit weight. The product of two weights has 24 bits, as many as float32."""


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
    side: int = 512
    """Side of a window in pixels, rounded up to a multiple of twice the stride. Ignored by networks
    of a fixed size.
    """
    seams: Seams = "blended"
    """Transition between windows: weighted, or a hard cut. Class ids must be cut, since their mean
    is a different class.
    """

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side: expected at least one pixel; got {self.side}")
        if min(self.sides) < 1:
            field = self.receptive_field
            raise ValueError(
                f"A network that takes {field.fixed} pixels and cuts off {field.margin} at each "
                "side gives none."
            )

    @property
    def sides(self) -> Shape:
        """(height, width) of a window's output on a larger image."""
        if self.receptive_field.fixed is not None:
            return tuple(
                size - 2 * self.receptive_field.margin for size in self.receptive_field.fixed
            )
        side = round_up(self.side, 2 * self.receptive_field.stride)
        return side, side

    @property
    def halo(self) -> int:
        """Pixels that a tile needs around its core so that all windows of its pixels are complete.

        It does not depend on the size of the tile.
        """
        slack = 0 if self.receptive_field.fixed is not None else self.receptive_field.stride - 1
        return max(self.sides) - 1 + self.receptive_field.margin + slack

    def windows(self, axis: int, size: int) -> list[BlendedWindow]:
        """Return all windows along an axis of an image of `size` pixels.

        Their weights add up to 1 at each pixel.
        """
        field = self.receptive_field
        end = round_up(size, field.stride)
        side = self.sides[axis] if field.fixed is not None else min(self.sides[axis], end)
        step = max(1, side // 2 // field.stride) * field.stride
        starts = [*range(0, end - side, step), max(0, end - side)]
        length = side + 2 * field.margin
        if field.fixed is None:
            length += (field.residue - length) % field.stride
        rises = [
            _rise(before + side - start, step, self.seams) for before, start in pairwise(starts)
        ]
        windows = []
        for i, start in enumerate(starts):
            weights = np.full(side, _UNIT, np.int32)
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
                    start - field.margin,
                    length,
                    (weights / _UNIT).astype(np.float32),
                )
            )
        return windows


def core_scores(
    block: Block, windowing: Windowing, prepare: Prepare, engine: Engine
) -> Iterator[ScoredRegion]:
    """Yield the blended scores of a tile's core in horizontal strips, from the top.

    Each item is a pair of slices in the core and scores (y, x, k), which are valid until the next
    item. Strips without valid pixels may be left out; scores of invalid pixels are meaningless.
    Raises `WeightsError` like `patches.core_scores`.
    """
    from maskloom.segcore.kernels.scores import add_weighted

    core, shape = block.tile.core, block.spec.shape
    rows, columns = (
        [
            window
            for window in windowing.windows(axis, shape[axis])
            if window.start < core.stop[axis] and window.stop > core.start[axis]
        ]
        for axis in (0, 1)
    )
    width = core.stop[1] - core.start[1]
    valid = block.tile.trim(block.valid)
    band = np.zeros((0, width, 0), np.float32)
    for i, row in enumerate(rows):
        top, bottom = max(row.start, core.start[0]), min(row.stop, core.stop[0])
        for column in columns:
            left, right = max(column.start, core.start[1]), min(column.stop, core.stop[1])
            if not valid[
                top - core.start[0] : bottom - core.start[0],
                left - core.start[1] : right - core.start[1],
            ].any():
                continue
            scores = scores_of(
                block,
                (row.first, column.first),
                (row.length, column.length),
                windowing.receptive_field.margin,
                prepare,
                engine,
            )
            band = _extended(band, bottom - top, scores.shape[-1])
            inner = (
                slice(top - row.start, bottom - row.start),
                slice(left - column.start, right - column.start),
            )
            part = band[:, left - core.start[1] : right - core.start[1]]
            add_weighted(scores[inner], row.weights[inner[0]], column.weights[inner[1]], part)
        band = _extended(band, bottom - top, band.shape[-1])
        done = max(top, min(rows[i + 1].start, bottom)) if i + 1 < len(rows) else bottom
        if band.shape[-1] and done > top:
            yield (
                (slice(top - core.start[0], done - core.start[0]), slice(0, width)),
                band[: done - top],
            )
        band = band[done - top :]


def _rise(overlap: int, step: int, seams: Seams) -> NDArray[np.int32]:
    """Integer weights of a window in its overlap with the previous one.

    They are 0, then rise as a squared sine over at most `step` pixels or in one step, then are
    full.
    """
    length = min(step, overlap)
    before = (overlap - length) // 2
    places = np.clip((np.arange(overlap) - before + 0.5) / length, 0, 1)
    if seams == "cut":
        places = np.rint(places)
    return np.asarray(np.rint(_UNIT * np.sin(np.pi / 2 * places) ** 2), np.int32)


def _extended(band: NDArray[np.float32], height: int, classes: int) -> NDArray[np.float32]:
    """Extend a strip with rows of zeros to `height`.

    A strip without classes is replaced by zeros.
    """
    if band.shape == (height, band.shape[1], classes):
        return band
    grown = np.zeros((height, band.shape[1], classes), np.float32)
    if band.shape[-1]:
        grown[: len(band)] = band
    return grown
