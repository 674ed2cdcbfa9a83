"""Smooth classes: a Markov random field on top of a pointwise classification.

The labelling has a high sum of scores (logarithms of weight x density) and few neighbours of
different classes (Potts model): each pair of neighbours with one class adds `smoothness`, times its
weight. Neighbours share a side: four in images, six in volumes. Where the size of a voxel is known,
a neighbour's weight is inversely proportional to its distance, and that of the nearest is 1. Pixels
without data have no vote.

Iterated conditional modes (Besag 1986) by coding sets: the pixels of one colour of a chequerboard
are updated at once, then those of the other. No update lowers the sum, so nothing oscillates, as it
can if all pixels are updated at once. The number of half rounds is fixed, not decided by
convergence: each looks one pixel further, so a halo of that many pixels makes tiles exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import Block

HALF_ROUNDS = 6
"""Updates of one colour of the chequerboard, and the halo that they need. On images of brains the
last one changes less than 0.1 % of the pixels.
"""
_VOLUME_AXES = 3

Scorer = tuple["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[np.float64]"]


@dataclass(frozen=True, slots=True, eq=False)
class SmoothClasses:
    """A pointwise classification with votes of neighbours."""

    scorer: Scorer
    """Constants, means and factors of the components; see `segcore.methods.pointwise.Scores`."""
    class_of: NDArray[np.uint8]
    """Class of each component; below 255."""
    smoothness: float

    def label(
        self, block: Block, classes: NDArray[np.uint8], half_rounds: int = HALF_ROUNDS
    ) -> NDArray[np.uint8]:
        """The smoothed classes of a block, from those of its pixels alone; (y, x) or (z, y, x)."""
        padded = self._updated(block, classes, half_rounds)
        inside = padded[1:-1, 1:-1, 1:-1]
        return np.where(block.valid, inside.reshape(classes.shape), 0).astype(np.uint8, copy=False)

    def votes(self, block: Block, classes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What neighbours add to the score of each component, (y, x, component) or (z, y, x,
        component), before the last half round.

        With it the highest score is that of the class that `label` gives: the pixels of the other
        colour have seen the same votes in the half round before.
        """
        from maskloom.segcore.kernels.smoothing import count_votes

        padded = self._updated(block, classes, HALF_ROUNDS - 1)
        found = np.empty((*(n - 2 for n in padded.shape), self.class_of.size), np.float32)
        count_votes(padded, self.class_of, self._weights(block), found)
        return found.reshape(*classes.shape, -1)

    def _updated(
        self, block: Block, classes: NDArray[np.uint8], half_rounds: int
    ) -> NDArray[np.uint8]:
        """The classes after some half rounds as a volume with a margin."""
        from maskloom.segcore.kernels.smoothing import NO_VOTE, smooth_colour

        shape = (1, *classes.shape)[-_VOLUME_AXES:]
        padded = np.full(tuple(n + 2 for n in shape), NO_VOTE, np.uint8)
        np.copyto(
            padded[1:-1, 1:-1, 1:-1], classes.reshape(shape), where=block.valid.reshape(shape)
        )
        pixels = block.pixels
        if pixels.dtype in (np.bool_, np.float16):
            pixels = pixels.astype(np.float32)
        pixels = pixels.reshape(*shape, pixels.shape[-1])
        # The colour of a pixel depends on its position in the image, not in the block.
        first = sum(block.tile.read.start)
        weights = self._weights(block)
        for number in range(half_rounds):
            colour = (number + first) % 2
            smooth_colour(padded, pixels, self.scorer, self.class_of, weights, colour)
        return padded

    def _weights(self, block: Block) -> NDArray[np.float64]:
        """The vote of a neighbour along z, y and x."""
        metric, axes = block.spec.space.metric, len(block.spec.shape)
        spacing = np.ones(axes) if metric is None else np.array(metric.spacing)
        weights: NDArray[Any] = np.zeros(_VOLUME_AXES)
        weights[-axes:] = self.smoothness * spacing.min() / spacing
        return weights
