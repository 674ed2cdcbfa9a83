"""Test-time augmentation by flips: a network sees each patch in several orientations, and the
answers are averaged.

Patches and windows of flipped pixels are the flipped patches and windows of the image: both ends of
a patch lie on the network's lattice, so all flipped patches of an image share one lattice too, and
a receptive field reaches equally far to both sides. So flips need no larger halo, and the means are
as independent of the tiling as single answers (`segcore.deep.inference.patches`).

Averaged are probabilities, not logits: a flip of which the network is sure weighs no more than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Output
    from maskloom.segcore.deep.inference.engines.protocol import Engine

Flips = Literal["none", "horizontal", "both", "all"]
"""horizontal: left and right. both: also top and bottom. all: of a volume also along z."""
_AXES: dict[Flips, tuple[int, ...]] = {
    "none": (),
    "horizontal": (-2,),
    "both": (-2, -3),
    "all": (-2, -3, -4),
}
"""Axes of (y, x, k) or (z, y, x, k) from the end: x, y, z."""


def orientations(flips: Flips, dimensions: int) -> list[tuple[int, ...]]:
    """The sets of axes that are flipped, one for each time that a network runs, counted from the
    end of (y, x, k); the first is empty.

    >>> orientations("both", 2)
    [(), (-2,), (-3,), (-2, -3)]
    """
    axes = _AXES[flips][:dimensions]
    sets = (combinations(axes, count) for count in range(len(axes) + 1))
    return list(chain.from_iterable(sets))


@dataclass(frozen=True, slots=True)
class FlippedEngine:
    """An engine that gives the mean answer to all orientations of a patch.

    Logits come out as probabilities.
    """

    engine: Engine
    output: Output
    """Of the engine."""
    flips: Flips
    dimensions: int = 2
    """2 for images, 3 for volumes."""
    vectors: int = 0
    """Last channels that are parts of a vector along x, y (and z): each changes its sign when its
    axis is flipped.
    """

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run scaled patches (patch, y, x, band) to the output (patch, y, x, k)."""
        sets = orientations(self.flips, self.dimensions)
        total: NDArray[np.float32] | None = None
        # One after another, always in this order: float32 sums depend on it.
        for axes in sets:
            answer = np.flip(self._probable(self.engine(np.flip(batch, axes))), axes)
            if self.vectors:
                answer = answer * self._signs(axes, answer.shape[-1])
            # A copy, since an answer is valid until the next one.
            total = np.array(answer) if total is None else np.add(total, answer, out=total)
        assert total is not None
        # A power of two, so this rounds nothing.
        total *= np.float32(1 / len(sets))
        return total

    def _probable(self, answer: NDArray[np.float32]) -> NDArray[np.float32]:
        """The answer with probabilities in place of logits."""
        if self.output != "logits":
            return answer
        classes = answer.shape[-1] - self.vectors
        return np.concatenate([probabilities(answer[..., :classes]), answer[..., classes:]], -1)

    def _signs(self, axes: tuple[int, ...], channels: int) -> NDArray[np.float32]:
        signs = np.ones(channels, np.float32)
        for axis in axes:
            signs[channels - self.vectors + _AXES["all"].index(axis)] = -1
        return signs


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probabilities (..., class) of logits; of a single one, that of the second class."""
    if logits.shape[-1] == 1:
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
