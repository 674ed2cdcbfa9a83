"""Augmentation: changes of patches that leave their labels true.

Geometric ones turn pixels and labels together, the others change pixels only. Volumes are turned in
their planes, and along z only if asked for: slices often have another spacing. Pixels are float32
after scaling, so amounts are in the network's units: with values from 0 to 1, a brightness of 0.1
is a tenth of the range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]
    Classes = NDArray[np.uint8]

AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation")


@dataclass(frozen=True, slots=True)
class Patch:
    """Pixels of a patch with their labels; that of a volume has an axis z before y."""

    pixels: Pixels
    """(y, x, band), scaled."""
    classes: Classes
    """(y, x)."""
    ids: NDArray[np.integer] | None = None
    """(y, x): ids of objects. None if the labels have none."""
    valid: NDArray[np.bool_] | None = None
    """(y, x): whether a pixel has data. None: all have."""

    def turned(self, turn: Callable[[NDArray[Any]], NDArray[Any]]) -> Patch:
        """All arrays moved in the same way."""
        ids, valid = (None if array is None else turn(array) for array in (self.ids, self.valid))
        return replace(
            self, pixels=turn(self.pixels), classes=turn(self.classes), ids=ids, valid=valid
        )

    def coloured(self, pixels: Pixels) -> Patch:
        """The same labels with other pixels. Takes the array and sets pixels without data to 0, as
        in inference.
        """
        if self.valid is not None:
            pixels[~self.valid] = 0
        return replace(self, pixels=pixels)

    @property
    def limits(self) -> tuple[np.float32, np.float32]:
        """Smallest and largest value of pixels with data."""
        there = (
            self.pixels if self.valid is None or not self.valid.any() else self.pixels[self.valid]
        )
        return there.min(), there.max()


class Augmentation(Protocol):
    """A random change of a patch."""

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch of the same size. Its pixels may be changed in place."""
        ...


@runtime_checkable
class Zoom(Protocol):
    """An augmentation that needs a larger or smaller window, which is then resized to the patch."""

    def factor(self, random: np.random.Generator) -> float:
        """Side of the window, relative to the patch."""
        ...


@AUGMENTATIONS.register("flip")
@dataclass(frozen=True, slots=True)
class Flip:
    """Left and right, top and bottom exchanged, each half of the time."""

    z: bool = False
    """Also the first and the last plane of volumes. Only if body or sample have no fixed side up.
    """

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        rows, columns = (slice(None, None, -1 if random.random() < 0.5 else 1) for _ in range(2))
        if patch.classes.ndim == 2:
            return patch.turned(lambda array: array[rows, columns])
        planes = slice(None, None, -1 if self.z and random.random() < 0.5 else 1)
        return patch.turned(lambda array: array[planes, rows, columns])


@AUGMENTATIONS.register("rotate90")
@dataclass(frozen=True, slots=True)
class Rotate90:
    """A turn by 0, 90, 180 or 270 degrees, of volumes around z; by 0 or 180 if patches are no
    squares.
    """

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        turns = int(random.integers(4))
        *_, height, width = patch.classes.shape
        if height != width:
            turns = turns // 2 * 2
        plane = (patch.classes.ndim - 2, patch.classes.ndim - 1)
        return patch.turned(lambda array: np.rot90(array, turns, plane))


@AUGMENTATIONS.register("scale")
@dataclass(frozen=True, slots=True)
class Scale:
    """Larger or smaller: the window is 1 / (1 + by) to 1 + by times the patch, all ratios alike."""

    by: float = 0.25

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 3)

    def factor(self, random: np.random.Generator) -> float:
        """Side of the window, relative to the patch."""
        return float((1 + self.by) ** random.uniform(-1, 1))

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:  # noqa: ARG002
        """The patch unchanged."""
        return patch


@AUGMENTATIONS.register("gain")
@dataclass(frozen=True, slots=True)
class Gain:
    """All bands times one factor from 1 - by to 1 + by."""

    by: float = 0.2

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 1)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        return patch.coloured(patch.pixels * np.float32(1 + random.uniform(-self.by, self.by)))


@AUGMENTATIONS.register("brightness")
@dataclass(frozen=True, slots=True)
class Brightness:
    """One amount from -by to by added to all bands."""

    by: float = 0.1

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 1000)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        return patch.coloured(patch.pixels + np.float32(random.uniform(-self.by, self.by)))


@AUGMENTATIONS.register("colour")
@dataclass(frozen=True, slots=True)
class Colour:
    """Each band times a separate factor from 1 - by to 1 + by."""

    by: float = 0.1

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 1)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        factors = 1 + random.uniform(-self.by, self.by, patch.pixels.shape[-1])
        return patch.coloured(patch.pixels * np.asarray(factors, np.float32))


@AUGMENTATIONS.register("gamma")
@dataclass(frozen=True, slots=True)
class Gamma:
    """Values between the patch's least and greatest bent by a power from 1 / (1 + by) to 1 + by."""

    by: float = 0.3

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 10)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        power = np.float32((1 + self.by) ** random.uniform(-1, 1))
        least, greatest = patch.limits
        span = greatest - least
        if span <= 0:
            return patch
        # Pixels without data are 0, which may be outside the limits.
        return patch.coloured(np.clip((patch.pixels - least) / span, 0, 1) ** power * span + least)


@AUGMENTATIONS.register("invert")
@dataclass(frozen=True, slots=True)
class Invert:
    """Bright becomes dark between the patch's least and greatest value, in a fraction of the
    patches: objects of either polarity are learned.
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check("fraction", self.fraction, 0, 1)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        if random.random() >= self.fraction:
            return patch
        least, greatest = patch.limits
        return patch.coloured(least + greatest - patch.pixels)


@AUGMENTATIONS.register("noise")
@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise of a standard deviation from 0 to `by` for each value."""

    by: float = 0.02

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 1000)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        deviation = np.float32(random.uniform(0, self.by))
        return patch.coloured(
            patch.pixels + deviation * random.standard_normal(patch.pixels.shape, np.float32)
        )


@AUGMENTATIONS.register("blur")
@dataclass(frozen=True, slots=True)
class Blur:
    """A Gaussian blur of 0 to `by` pixels, in volumes along all axes."""

    by: float = 1.0

    def __post_init__(self) -> None:
        _check("by", self.by, 0, 50)

    def apply(self, patch: Patch, random: np.random.Generator) -> Patch:
        """A changed patch."""
        import cv2
        from scipy import ndimage

        sigma = random.uniform(0, self.by)
        if sigma < 0.2:
            return patch
        if patch.classes.ndim > 2:
            widths = (*[sigma] * patch.classes.ndim, 0)
            return patch.coloured(ndimage.gaussian_filter(patch.pixels, widths, mode="mirror"))
        blurred = cv2.GaussianBlur(np.ascontiguousarray(patch.pixels), (0, 0), sigma)
        return patch.coloured(blurred.reshape(patch.pixels.shape))


DEFAULT: tuple[Augmentation, ...] = (Flip(), Rotate90())
"""Default of recipes: changes that suit any image seen from above."""


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}; got {value}")
