"""Geometry: flips, turns, scales and elastic deformation of pixels and labels together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS, Augmentation
from maskloom.segcore.values import check_range

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.warping import Warp


@AUGMENTATIONS.register("flip")
@dataclass(frozen=True, slots=True)
class Flip:
    """Left and right, top and bottom exchanged, each half of the time."""

    horizontal: bool = True
    """Left and right."""
    vertical: bool = True
    """Top and bottom. Not for images with a fixed side up, as street scenes."""
    z: bool = False
    """Also the first and the last plane of volumes. Only if body or sample have no fixed side up.
    """

    def warp(self, warp: Warp, sides: Shape, random: np.random.Generator) -> Warp:  # noqa: ARG002
        """The warp, changed further."""
        y, x, z = (
            -1.0 if wanted and random.random() < 0.5 else 1.0
            for wanted in (self.vertical, self.horizontal, self.z)
        )
        return warp.then(((y, 0.0), (0.0, x)), z)


@AUGMENTATIONS.register("rotate90")
@dataclass(frozen=True, slots=True)
class Rotate90:
    """A turn by 0, 90, 180 or 270 degrees, of volumes around z; by 0 or 180 if patches are no
    squares.
    """

    def warp(self, warp: Warp, sides: Shape, random: np.random.Generator) -> Warp:
        """The warp, changed further."""
        turns = int(random.integers(4))
        if sides[-1] != sides[-2]:
            turns = turns // 2 * 2
        sine, cosine = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))[turns]
        return warp.then(((cosine, -sine), (sine, cosine)))


@AUGMENTATIONS.register("rotate")
@dataclass(frozen=True, slots=True)
class Rotate:
    """A turn by any angle from -by to by, of volumes around z."""

    by: float = 180.0
    """Degrees."""

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 180)

    def warp(self, warp: Warp, sides: Shape, random: np.random.Generator) -> Warp:  # noqa: ARG002
        """The warp, changed further."""
        angle = math.radians(random.uniform(-self.by, self.by))
        sine, cosine = math.sin(angle), math.cos(angle)
        return warp.then(((cosine, -sine), (sine, cosine)))


@AUGMENTATIONS.register("scale")
@dataclass(frozen=True, slots=True)
class Scale:
    """Larger or smaller: the window is 1 / (1 + by) to 1 + by times the patch, all ratios alike."""

    by: float = 0.25

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 3)

    def warp(self, warp: Warp, sides: Shape, random: np.random.Generator) -> Warp:  # noqa: ARG002
        """The warp, changed further."""
        factor = float((1 + self.by) ** random.uniform(-1, 1))
        return warp.then(((factor, 0.0), (0.0, factor)), factor)


@AUGMENTATIONS.register("elastic")
@dataclass(frozen=True, slots=True)
class Elastic:
    """Bent as tissue is (Ronneberger et al. 2015): the points of a coarse lattice are moved at
    random, the pixels between them along a smooth surface. All planes of a volume are bent alike.
    """

    by: float = 4.0
    """Largest standard deviation of the moves in pixels; that of a patch is from 0 to this."""
    spacing: float = 32.0
    """Distance of the points in pixels; at least eight times `by`, so that nothing folds over."""

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 1000)
        if self.spacing < 8 * self.by or self.spacing < 2:
            raise ValueError(
                f"spacing: expected at least 2 pixels, and eight times `by` ({8 * self.by:g}), or "
                f"the patch would be folded over; got {self.spacing:g}"
            )

    def warp(self, warp: Warp, sides: Shape, random: np.random.Generator) -> Warp:
        """The warp, changed further."""
        import cv2

        height, width = sides[-2:]
        points = [max(2, round(n / self.spacing)) for n in (height, width)]
        moves = random.standard_normal((2, *points), np.float32).clip(-2, 2)
        moves *= np.float32(random.uniform(0, self.by))
        smooth = (
            cv2.resize(along, (width, height), interpolation=cv2.INTER_CUBIC) for along in moves
        )
        return warp.shifted(np.stack(list(smooth)))


DEFAULT: tuple[Augmentation, ...] = (Flip(), Rotate90())
"""Default of recipes: changes that suit any image seen from above."""
