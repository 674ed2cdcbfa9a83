"""Changes of pixels: their brightness and colours, noise, blur, and rectangles cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS, Patch
from maskloom.segcore.values import check_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

_NORMAL_NUMBERS, _PIECE = 2**20, 2**14


@AUGMENTATIONS.register("gain")
@dataclass(frozen=True, slots=True)
class Gain:
    """All bands times one factor from 1 - by to 1 + by."""

    by: float = 0.2

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 1)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        pixels = patch.pixels
        pixels *= np.float32(1 + random.uniform(-self.by, self.by))


@AUGMENTATIONS.register("brightness")
@dataclass(frozen=True, slots=True)
class Brightness:
    """One amount from -by to by added to all bands."""

    by: float = 0.1

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 1000)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        pixels = patch.pixels
        pixels += np.float32(random.uniform(-self.by, self.by))
        patch.blank()


@AUGMENTATIONS.register("colour")
@dataclass(frozen=True, slots=True)
class Colour:
    """Each band times a separate factor from 1 - by to 1 + by."""

    by: float = 0.1

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 1)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        *_, width, bands = patch.pixels.shape
        factors = np.asarray(1 + random.uniform(-self.by, self.by, bands), np.float32)
        rows = patch.rows
        rows *= np.tile(factors, width)


@AUGMENTATIONS.register("gamma")
@dataclass(frozen=True, slots=True)
class Gamma:
    """Values between the patch's least and greatest bent by a power from 1 / (1 + by) to 1 + by."""

    by: float = 0.3

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 10)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        power = np.float32((1 + self.by) ** random.uniform(-1, 1))
        least, greatest = patch.limits
        span = greatest - least
        if span <= 0:
            return
        pixels = patch.pixels
        pixels -= least
        pixels /= span
        # Pixels without data are 0, which may be outside the limits.
        np.clip(pixels, 0, 1, out=pixels)
        np.power(pixels, power, out=pixels)
        pixels *= span
        pixels += least
        patch.blank()


@AUGMENTATIONS.register("invert")
@dataclass(frozen=True, slots=True)
class Invert:
    """Bright becomes dark between the patch's least and greatest value, in a fraction of the
    patches: objects of either polarity are learned.
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, 0, 1)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        if random.random() >= self.fraction:
            return
        least, greatest = patch.limits
        np.subtract(least + greatest, patch.pixels, out=patch.pixels)
        patch.blank()


@AUGMENTATIONS.register("noise")
@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise of a standard deviation from 0 to `by` for each value."""

    by: float = 0.02

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 1000)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        deviation = np.float32(random.uniform(0, self.by))
        values, numbers = patch.pixels.reshape(-1), _normal_numbers()
        for start in range(0, values.size, _PIECE):
            piece = values[start : start + _PIECE]
            first = int(random.integers(_NORMAL_NUMBERS - _PIECE))
            piece += deviation * numbers[first : first + piece.size]
        patch.blank()


@cache
def _normal_numbers() -> NDArray[np.float32]:
    """Normal random numbers, pieces of which, from random places, make noise: new ones for each
    patch would take longer than all other changes.
    """
    return np.random.default_rng(0).standard_normal(_NORMAL_NUMBERS, np.float32)


@AUGMENTATIONS.register("blur")
@dataclass(frozen=True, slots=True)
class Blur:
    """A Gaussian blur of 0 to `by` pixels, in volumes along all axes."""

    by: float = 1.0

    def __post_init__(self) -> None:
        check_range("by", self.by, 0, 50)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        import cv2
        from scipy import ndimage

        sigma = random.uniform(0, self.by)
        if sigma < 0.2:
            return
        pixels = patch.pixels
        if patch.classes.ndim > 2:
            widths = (*[sigma] * patch.classes.ndim, 0)
            pixels[:] = ndimage.gaussian_filter(pixels, widths, mode="mirror")
        else:
            pixels[:] = cv2.GaussianBlur(pixels, (0, 0), sigma).reshape(pixels.shape)
        patch.blank()


@AUGMENTATIONS.register("cutout")
@dataclass(frozen=True, slots=True)
class Cutout:
    """Rectangles without pixels (DeVries and Taylor 2017); their labels stay, so that they are
    learned from what is around them. The planes of a volume lack the same ones.
    """

    count: int = 1
    """Most rectangles; a patch has 0 to this many."""
    side: float = 0.25
    """Longest side of one, as a fraction of the patch."""

    def __post_init__(self) -> None:
        check_range("count", self.count, 1, 100)
        check_range("side", self.side, 0, 1)

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        for _ in range(int(random.integers(self.count + 1))):
            rows, columns = rectangle(patch.classes.shape, random.uniform(0, self.side, 2), random)
            patch.pixels[..., rows, columns, :] = 0


def rectangle(
    shape: Shape, shares: Sequence[float] | NDArray[np.float64], random: np.random.Generator
) -> tuple[slice, slice]:
    """A random place (y, x) of a rectangle whose sides are these shares of a patch."""
    sides = [round(n * share) for n, share in zip(shape[-2:], shares, strict=True)]
    starts = [int(random.integers(n - m + 1)) for n, m in zip(shape[-2:], sides, strict=True)]
    rows, columns = (slice(a, a + n) for a, n in zip(starts, sides, strict=True))
    return rows, columns
