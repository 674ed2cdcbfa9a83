"""Exact patches: a network runs on squares of an image without visible seams.

An image is partitioned into squares on a lattice that starts at the origin of the image; a volume
is partitioned into boxes, which are called squares too. A square is computed from a patch: the
square extended by the receptive field, rounded up to the stride, along each axis. The
position and size of a patch depend on the image alone, never on a tile, so the arithmetic of a
pixel is bit-identical in every tiling. There are three kinds of networks:

- Same padding, any size: patches are clipped at the border of the image, so zeros are padded there
  and nowhere else. If height or width is not a multiple of the stride, the image is extended at the
  bottom and right by mirroring.
- With a margin (convolutions without padding, Ronneberger et al. 2015): the image is mirrored
  beyond its border, as in the paper, and patches have sizes that the network accepts. Their origins
  are one margin before a point of the lattice.
- A file of one fixed size: patches have that size and are mirrored beyond the border; only output
  at least a receptive field away from the edge is used.

A tile computes each square that intersects its core. It need not read the whole patch: pixels
outside the receptive field of the core cannot change its scores and may have any value, so the halo
is the receptive field alone, whatever the size of the tile. Squares cut by a tile's edge are
computed once in each tile; tiles whose sides are multiples of the square's waste nothing. A model
that also labels a margin around tiles would compute two squares across each seam for it; for such
models the squares of large images lie over the seams (`shifted_beyond`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.deep.inference.engines.protocol import PatchesOfImage
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.geometry import Tiling, per_axis, sizes_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.engines.protocol import BatchEngine, Engine
    from maskloom.segcore.deep.inference.receptive_field.field import AxisReach, ReceptiveField
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Block

    Prepare = Callable[[NDArray[np.generic]], NDArray[np.float32]]
    ScoredRegion = tuple[tuple[slice, ...], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Span:
    """A patch along one axis, in pixels of the image; it may extend beyond the border."""

    start: int
    """First pixel of the square inside the core."""
    stop: int
    """End of the square inside the core (exclusive)."""
    first: int
    """First pixel of the patch."""
    length: int
    """Pixels of the patch."""
    output: int
    """Pixel of the first output."""


@dataclass(frozen=True, slots=True)
class Patching:
    """Placement of a network's patches on any image."""

    receptive_field: ReceptiveField
    """Must have a finite halo; see `suits`."""
    side: int | Shape = 512
    """Side of a square in pixels, rounded up to a multiple of the stride, as `Tiling.side`: one
    number makes cubes of about as many voxels. Ignored by networks of a fixed size.
    """
    dimensions: int = 2
    """Of the network: 2 for images, 3 for volumes."""
    shifted_beyond: int | None = None
    """Size of an image in pixels beyond which the lattice starts half a square before it, so that
    the seams of tiles are in the middle of squares. None: it never does.
    """

    def __post_init__(self) -> None:
        if min(per_axis(self.side, self.dimensions)) < 1:
            raise ValueError(f"side: expected at least one pixel; got {self.side}")
        if not self.suits(self.receptive_field):
            raise ValueError(
                "Exact patches need a network of finite reach, and patches larger than it; got "
                f"{self.receptive_field}. Use blended windows (Windowing)."
            )

    @staticmethod
    def suits(field: ReceptiveField) -> bool:
        """Whether a network can run on exact patches.

        Its receptive field must be finite and, for a fixed input size, fit inside it.
        """
        return field.halo is not None and (
            field.fixed is None
            or all(_fixed_side(reach) > 0 for reach in field.axes(len(field.fixed)))
        )

    @property
    def halo(self) -> int | Shape:
        """Pixels that a tile needs around its core, whatever the size of the tile."""
        return self.receptive_field.halo or 0

    @property
    def sides(self) -> Shape:
        """(height, width), or (depth, height, width), of a full square."""
        axes = self.receptive_field.axes(self.dimensions)
        if self.receptive_field.fixed is not None:
            return tuple(map(_fixed_side, axes))
        return tuple(
            round_up(side, reach.stride)
            for side, reach in zip(sides_of(self.side, self.dimensions), axes, strict=True)
        )

    def spans(self, axis: int, size: int, core: tuple[int, int]) -> list[Span]:
        """Return the patches along an axis whose squares intersect the core.

        `size` is the length of the image in pixels; the core is (start, stop).
        """
        side = self.sides[axis]
        before = self._before(axis, size)
        return [
            self._span(axis, size, square, core)
            for square in range((core[0] + before) // side * side - before, core[1], side)
        ]

    def of_image(self, shape: Shape) -> PatchesOfImage:
        """The patches of a whole image."""
        spans = [self.spans(axis, size, (0, size)) for axis, size in enumerate(shape)]
        sizes = tuple(max(span.length for span in along) for along in spans)
        return PatchesOfImage(sizes, prod(map(len, spans)))

    def _before(self, axis: int, size: int) -> int:
        """Pixels between the start of the lattice and that of an image."""
        if self.shifted_beyond is None or size <= self.shifted_beyond:
            return 0
        stride = self.receptive_field.along(axis).stride
        return self.sides[axis] // 2 // stride * stride

    def _span(self, axis: int, size: int, square: int, core: tuple[int, int]) -> Span:
        reach, side = self.receptive_field.along(axis), self.sides[axis]
        end = round_up(size, reach.stride)
        start, stop = max(square, core[0]), min(square + side, core[1])
        lead = _lead(reach)
        if reach.fixed is None and not reach.margin:
            first = max(0, square - lead)
            return Span(start, stop, first, min(end, square + side + lead) - first, first)
        length = reach.fitting(min(side, end - square) + 2 * lead)
        return Span(start, stop, square - lead, length, square - lead + reach.margin)


def core_scores(
    block: Block, patching: Patching, prepare: Prepare, engine: Engine
) -> Iterator[ScoredRegion]:
    """Yield the scores of a tile's core, square by square in row order.

    Each item holds slices in the core and scores (y, x, k), or (z, y, x, k) of volumes, which are
    valid until the next item. `prepare` turns pixels (y, x, band) into network input. Squares
    without valid pixels are left out. Raises `WeightsError` if the size of the output does not
    match the card.
    """
    for place, square, first, lengths in _squares(block, patching):
        scores = scores_of(block, first, lengths, patching.receptive_field, prepare, engine)
        yield place, scores[_slices(square, tuple(span.output for span in square))]


def core_batches(
    block: Block, patching: Patching, engine: BatchEngine, gives: Literal["labels", "scores"]
) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Yield the labels (y, x) or scores (y, x, k) of a tile's core, square by square in any order,
    by an engine that runs patches in batches and scales their pixels itself.

    As `core_scores` otherwise.
    """
    field = patching.receptive_field

    def patches() -> Iterator[tuple[tuple[Any, Any, Shape], NDArray[np.generic]]]:
        for place, square, first, lengths in _squares(block, patching):
            inner = _slices(square, tuple(span.output for span in square))
            yield (place, inner, lengths), cut(block, first, lengths)

    run = engine.labels if gives == "labels" else engine.scores
    axes = len(block.spec.shape)
    for (place, inner, lengths), found in run(patches(), patching.of_image(block.spec.shape)):
        _require_sizes(found.shape[:axes], field, lengths)
        yield place, found[inner]


def _squares(
    block: Block, patching: Patching
) -> Iterator[tuple[tuple[slice, ...], tuple[Span, ...], Shape, Shape]]:
    """The squares of a tile's core with valid pixels: slices in the core, spans, and the first
    pixel and the lengths of the patch.
    """
    core, shape = block.tile.core, block.spec.shape
    spans = [
        patching.spans(axis, shape[axis], (core.start[axis], core.stop[axis]))
        for axis in range(len(shape))
    ]
    valid = block.tile.trim(block.valid)
    for square in product(*spans):
        place = _slices(square, core.start)
        if valid[place].any():
            first, lengths = (
                tuple(getattr(span, name) for span in square) for name in ("first", "length")
            )
            yield place, square, first, lengths


def scores_of(
    block: Block,
    first: Shape,
    lengths: Shape,
    field: ReceptiveField,
    prepare: Prepare,
    engine: Engine,
) -> NDArray[np.float32]:
    """Run the engine on one patch and return its output (y, x, k), or (z, y, x, k).

    The patch starts at the pixel `first` of the image and has these lengths.
    """
    output = engine(prepare(cut(block, first, lengths))[None])
    _require_sizes(output.shape[1:-1], field, lengths)
    scores: NDArray[np.float32] = output[0]
    return scores


def _require_sizes(sizes: Shape, field: ReceptiveField, lengths: Shape) -> None:
    """Raise `WeightsError` unless an output of these sizes is that of a patch of these lengths."""
    expected = field.output_sizes(lengths)
    if sizes != expected:
        raise WeightsError(
            f"The network was expected to give {sizes_text(expected)} pixels for a patch of "
            f"{sizes_text(lengths)}; its output has {sizes_text(sizes)}. Its card "
            "does not fit it: remove the card, so that the network is measured again."
        )


def cut(block: Block, first: Shape, lengths: Shape) -> NDArray[np.generic]:
    """Return the pixels (y, x, band), or (z, y, x, band), of a patch, mirrored beyond the border of
    the image.

    May be a read-only view. Pixels outside the block are replaced by the nearest ones in it; the
    caller must not depend on them.
    """
    read, shape = block.tile.read, block.spec.shape
    if all(
        a <= f and f + n <= b
        for a, b, f, n in zip(read.start, read.stop, first, lengths, strict=True)
    ):
        return block.pixels[
            tuple(
                slice(f - a, f - a + n) for a, f, n in zip(read.start, first, lengths, strict=True)
            )
        ]
    places = [
        np.clip(mirrored(np.arange(f, f + n), size) - a, 0, b - a - 1)
        for a, b, f, n, size in zip(read.start, read.stop, first, lengths, shape, strict=True)
    ]
    lowest = [int(each.min()) for each in places]
    needed = tuple(
        slice(low, int(each.max()) + 1) for low, each in zip(lowest, places, strict=True)
    )
    pixels = block.pixels[needed]
    # Axis by axis: much cheaper than gathering pixels by pairs of indices.
    for axis, (low, each) in enumerate(zip(lowest, places, strict=True)):
        pixels = pixels.take(each - low, axis=axis)
    return pixels


def mirrored(places: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """Map positions to the pixels of an axis mirrored repeatedly at its first and last pixel.

    >>> mirrored(np.arange(-3, 7), 4).tolist()
    [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    """
    if size == 1:
        return np.zeros_like(places)
    folded = np.abs(places) % (2 * (size - 1))
    return np.asarray(np.minimum(folded, 2 * (size - 1) - folded))


def round_up(pixels: int, stride: int) -> int:
    """Round up to a multiple of the stride.

    >>> round_up(17, 16)
    32
    """
    return -(-pixels // stride) * stride


def sides_of(side: int | Shape, dimensions: int) -> Shape:
    """The side along each axis: one number makes squares, and cubes of about as many voxels.

    >>> sides_of(512, 2), sides_of(512, 3)
    ((512, 512), (64, 64, 64))
    """
    return Tiling(side).tile((1,) * dimensions)


def _lead(reach: AxisReach) -> int:
    """Pixels of a patch before its square: the receptive field, aligned to the output's lattice."""
    halo = reach.halo or 0
    # Without any padding inside, all output is complete: the receptive field exceeds the margin
    # only by the phases of the stride.
    if reach.margin and halo < reach.margin + reach.stride:
        return reach.margin
    return reach.margin + round_up(halo - reach.margin, reach.stride)


def _fixed_side(reach: AxisReach) -> int:
    return ((reach.fixed or 0) - 2 * _lead(reach)) // reach.stride * reach.stride


def _slices(spans: Sequence[Span], origin: Shape) -> tuple[slice, ...]:
    return tuple(
        slice(span.start - first, span.stop - first)
        for span, first in zip(spans, origin, strict=True)
    )
