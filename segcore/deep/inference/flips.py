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

from maskloom.segcore.deep.inference.engines.protocol import Key, PatchesOfImage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Output
    from maskloom.segcore.deep.inference.engines.protocol import Run

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
class Flipped:
    """A `Run` that gives the mean answer to all orientations of a patch.

    Logits come out as probabilities.
    """

    run: Run
    """Gives the answer to one."""
    output: Output
    """Of `run`."""
    flips: Flips
    dimensions: int = 2
    """2 for images, 3 for volumes."""
    vectors: int = 0
    """Last channels that are parts of a vector along x, y (and z): each changes its sign when its
    axis is flipped.
    """

    def __call__(
        self, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[np.float32]]]:
        """The output (y, x, k) of each patch with its key."""
        sets = orientations(self.flips, self.dimensions)
        keys: dict[int, Key] = {}

        def turned() -> Iterator[tuple[tuple[int, int], NDArray[np.generic]]]:
            for number, (key, patch) in enumerate(patches):
                keys[number] = key
                for orientation, axes in enumerate(sets):
                    yield (number, orientation), np.flip(patch, axes)

        answers: dict[int, dict[int, NDArray[np.float32]]] = {}
        every = PatchesOfImage(of.sizes, of.count * len(sets))
        for (number, orientation), answer in self.run(turned(), every):
            known = answers.setdefault(number, {})
            known[orientation] = self._turned_back(answer, sets[orientation])
            if len(known) == len(sets):
                yield keys.pop(number), _mean(answers.pop(number))

    def _turned_back(
        self, answer: NDArray[np.float32], axes: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """A copy of an answer, since it is valid until the next one, as one to the patch itself."""
        found = np.flip(self._probable(answer), axes)
        if self.vectors:
            return found * self._signs(axes, found.shape[-1])
        return np.array(found)

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


def _mean(answers: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of answers, always summed in one order: float32 sums depend on it."""
    total = answers[0]
    for number in range(1, len(answers)):
        total += answers[number]
    # A power of two, so this rounds nothing.
    total *= np.float32(1 / len(answers))
    return total


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probabilities (..., class) of logits; of a single one, that of the second class."""
    if logits.shape[-1] == 1:
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
