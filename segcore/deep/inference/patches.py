"""Exact patches: a network runs over an image square by square, and nobody can tell from the scores
where it was cut.

An image is partitioned into squares on a lattice that starts at the image's origin. A square is
scored from a patch: the square grown by the network's reach, rounded up to its stride. Where a
patch lies and how large it is depends on the image alone, never on a tile, so the arithmetic of a
pixel is the same, bit by bit, in every tiling. Three kinds of networks:

- Same padding, any size: patches are cut at the image's border, so that zeros are padded there and
  nowhere else. Heights and widths that are no multiple of the stride are completed below and to the
  right by mirroring the image.
- A margin (convolutions without padding, Ronneberger et al. 2015): the image is mirrored beyond its
  border, as in the paper, and patches have the sizes that the network takes. Their origins are one
  margin before a point of the lattice.
- A file of one fixed size: patches of that size, mirrored beyond the border; of their output only
  what lies a reach away from the edge is used.

A tile computes each square that meets its core. It need not see the whole patch: what lies beyond
the reach of its core cannot change the core's scores, so any pixels may stand there, and the halo
is the reach alone, whatever the tile's size. Squares that a tile's edge cuts are computed once in
each of the tiles; tiles that are multiples of the side waste nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import ReceptiveField
    from maskloom.segcore.deep.inference.engines.protocol import Engine
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Block

    Prepare = Callable[[NDArray[np.generic]], NDArray[np.float32]]
    Piece = tuple[tuple[slice, slice], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Span:
    """A patch along one axis, in pixels of the image; parts of it may lie beyond the border."""

    start: int
    """First pixel of the square that lies in the core."""
    stop: int
    """One past the last."""
    first: int
    """First pixel of the patch."""
    length: int
    """Pixels of the patch."""
    output: int
    """The pixel that the first output belongs to."""


@dataclass(frozen=True, slots=True)
class Patching:
    """How the patches of a network lie over any image."""

    reach: ReceptiveField
    """With a finite halo; see `suits`."""
    side: int = 512
    """Side of a square; rounded up to the stride. A network of one fixed size has its own."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side: expected at least one pixel; got {self.side}")
        if not self.suits(self.reach):
            raise ValueError(
                "Exact patches need a network of finite reach, and patches larger than it; got "
                f"{self.reach}. Use blended windows (Windowing)."
            )

    @staticmethod
    def suits(reach: ReceptiveField) -> bool:
        """Whether a network can be run in exact patches: its reach is finite, and smaller than the
        one size that it takes, if so.
        """
        return reach.halo is not None and (
            reach.fixed is None or all(_fixed_side(reach, size) > 0 for size in reach.fixed)
        )

    @property
    def halo(self) -> int:
        """Pixels that a tile must see around its core, whatever the tile's size."""
        return self.reach.halo or 0

    @property
    def sides(self) -> Shape:
        """(height, width) of a whole square."""
        if self.reach.fixed is not None:
            return tuple(_fixed_side(self.reach, size) for size in self.reach.fixed)
        side = round_up(self.side, self.reach.stride)
        return side, side

    def spans(self, axis: int, size: int, core: tuple[int, int]) -> list[Span]:
        """The patches along an axis of an image of `size` pixels whose squares meet the core from
        the first to before the second.
        """
        side = self.sides[axis]
        return [
            self._span(axis, size, square, core)
            for square in range(core[0] // side * side, core[1], side)
        ]

    def _span(self, axis: int, size: int, square: int, core: tuple[int, int]) -> Span:
        reach, side, end = self.reach, self.sides[axis], round_up(size, self.reach.stride)
        start, stop = max(square, core[0]), min(square + side, core[1])
        lead = _lead(reach)
        if reach.fixed is None and not reach.margin:
            first = max(0, square - lead)
            return Span(start, stop, first, min(end, square + side + lead) - first, first)
        if reach.fixed is not None:
            length = reach.fixed[axis]
        else:
            whole = min(side, end - square) + 2 * lead
            length = whole + (reach.residue - whole) % reach.stride
        return Span(start, stop, square - lead, length, square - lead + reach.margin)


def core_scores(
    block: Block, patching: Patching, prepare: Prepare, engine: Engine
) -> Iterator[Piece]:
    """Scores of a tile's core, square by square in row order: where in the core, and scores (y, x,
    k) that are valid until the next.

    `prepare` turns pixels (y, x, bands) into the network's input. Pieces without any valid pixel
    are left out. Raises `WeightsError` where the network's output has another size than its reach
    says.
    """
    core, shape = block.tile.core, block.spec.shape
    spans = [
        patching.spans(axis, shape[axis], (core.start[axis], core.stop[axis])) for axis in (0, 1)
    ]
    margin = patching.reach.margin
    valid = block.tile.trim(block.valid)
    for rows, columns in product(*spans):
        place = _slices((rows, columns), core.start)
        if valid[place].any():
            scores = scores_of(
                block,
                (rows.first, columns.first),
                (rows.length, columns.length),
                margin,
                prepare,
                engine,
            )
            yield place, scores[_slices((rows, columns), (rows.output, columns.output))]


def scores_of(
    block: Block, first: Shape, lengths: Shape, margin: int, prepare: Prepare, engine: Engine
) -> NDArray[np.float32]:
    """The engine's output (y, x, k) for a patch of these lengths that starts at the pixel `first`
    of the image.
    """
    output = engine(prepare(cut(block, first, lengths))[None])
    expected = tuple(length - 2 * margin for length in lengths)
    if output.ndim != 4 or output.shape[1:3] != expected:
        raise WeightsError(
            f"The network was expected to give {expected[0]} x {expected[1]} pixels for a patch of "
            f"{lengths[0]} x {lengths[1]}; its output has the "
            f"shape {output.shape[1:]}. Its card does not fit it: remove the card, so that the "
            "network is measured anew."
        )
    scores: NDArray[np.float32] = output[0]
    return scores


def cut(block: Block, first: Shape, lengths: Shape) -> NDArray[np.generic]:
    """The pixels (y, x, bands) of a patch, the image mirrored beyond its border. Read-only where it
    is a view.

    Where the block does not reach, its nearest pixels stand in: such pixels must not matter to the
    caller.
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
    rows, columns = (
        np.clip(mirrored(np.arange(f, f + n), size) - a, 0, b - a - 1)
        for a, b, f, n, size in zip(read.start, read.stop, first, lengths, shape, strict=True)
    )
    left, right = int(columns.min()), int(columns.max()) + 1
    # Whole rows first: that is much cheaper than gathering pixels by pairs of indices.
    return block.pixels[:, left:right][rows].take(columns - left, axis=1)


def mirrored(places: NDArray[np.int_], size: int) -> NDArray[np.int_]:
    """The pixels of an axis that stand at these places when it is mirrored at its first and its
    last pixel, time and again.

    >>> mirrored(np.arange(-3, 7), 4).tolist()
    [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    """
    if size == 1:
        return np.zeros_like(places)
    folded = np.abs(places) % (2 * (size - 1))
    return np.asarray(np.minimum(folded, 2 * (size - 1) - folded))


def round_up(pixels: int, stride: int) -> int:
    """The smallest multiple of the stride that is not less.

    >>> round_up(17, 16)
    32
    """
    return -(-pixels // stride) * stride


def _lead(reach: ReceptiveField) -> int:
    """Pixels of a patch before its square: a reach, on the lattice that the network's output starts
    on.
    """
    halo = reach.halo or 0
    # Without any padding inside, all that a network gives is whole: the reach exceeds the margin by
    # the phases of the stride only.
    if reach.margin and halo < reach.margin + reach.stride:
        return reach.margin
    return reach.margin + round_up(halo - reach.margin, reach.stride)


def _fixed_side(reach: ReceptiveField, size: int) -> int:
    return (size - 2 * _lead(reach)) // reach.stride * reach.stride


def _slices(spans: tuple[Span, Span], origin: Shape) -> tuple[slice, slice]:
    (y, x), (oy, ox) = spans, origin
    return slice(y.start - oy, y.stop - oy), slice(x.start - ox, x.stop - ox)
