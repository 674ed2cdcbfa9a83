"""Augmentation: changes of patches that leave their labels true.

There are three kinds. A `Geometry` moves pixels and labels together: all of a patch make one warp,
by which its window is read (`segcore.training.warping`). A `PixelChange` changes pixels only, after
that and in the order of the recipe. A `Mixture` joins the patches of a step at the end. Volumes are
mirrored and turned in their planes, and along z only if asked for: slices often have another
spacing. Pixels are float32 after scaling, so amounts are in the network's units: with values from 0
to 1, a brightness of 0.1 is a tenth of the range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from maskloom.segcore.registry import Registry
from maskloom.segcore.values import check_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.warping import Warp

    Pixels = NDArray[np.float32]
    Classes = NDArray[np.uint8]

AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation")
_NORMAL_NUMBERS, _PIECE = 2**20, 2**14


@dataclass(frozen=True, slots=True)
class Patch:
    """Pixels of a patch with their labels; that of a volume has an axis z before y."""

    pixels: Pixels
    """(y, x, band), scaled; contiguous."""
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

    @property
    def rows(self) -> Pixels:
        """The pixels as rows of numbers (row, column and band), a view. NumPy is many times faster
        along its long axis than along the few bands of a pixel.
        """
        *_, width, bands = self.pixels.shape
        return self.pixels.reshape(-1, width * bands)

    def blank(self) -> None:
        """Set pixels without data to 0, as in inference."""
        if self.valid is not None:
            self.pixels[~self.valid] = 0

    @property
    def limits(self) -> tuple[np.float32, np.float32]:
        """Smallest and largest value of pixels with data."""
        there = (
            self.pixels if self.valid is None or not self.valid.any() else self.pixels[self.valid]
        )
        return there.min(), there.max()


@runtime_checkable
class Geometry(Protocol):
    """A random change of the places that pixels show."""

    def warp(self, warp: Warp, sides: Shape, random: np.random.Generator) -> Warp:
        """The warp of a patch with these sides, changed further."""
        ...


@runtime_checkable
class PixelChange(Protocol):
    """A random change of the pixels of a patch."""

    def change(self, patch: Patch, random: np.random.Generator) -> None:
        """Change the pixels in place."""
        ...


@runtime_checkable
class Mixture(Protocol):
    """A random exchange between the patches of a step."""

    def mix(self, patches: Sequence[Patch], random: np.random.Generator) -> list[Patch]:
        """As many patches of the same sizes."""
        ...


Augmentation = Geometry | PixelChange | Mixture


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
            rows, columns = _rectangle(patch.classes.shape, random.uniform(0, self.side, 2), random)
            patch.pixels[..., rows, columns, :] = 0


@AUGMENTATIONS.register("cutmix")
@dataclass(frozen=True, slots=True)
class CutMix:
    """A rectangle from the next patch of the step, with its labels, in place of what was there (Yun
    et al. 2019; French et al. 2020 for segmentation). Its share of the patch is from 0 to 1, all
    alike.
    """

    fraction: float = 0.5
    """Of the patches that are changed. The only patch of a step never is."""

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, 0, 1)

    def mix(self, patches: Sequence[Patch], random: np.random.Generator) -> list[Patch]:
        """As many patches of the same sizes."""
        mixed = []
        for patch, other in zip(patches, [*patches[1:], patches[0]], strict=True):
            if random.random() >= self.fraction or other is patch:
                mixed.append(patch)
                continue
            share = math.sqrt(random.random())
            place = (..., *_rectangle(patch.classes.shape, (share, share), random))
            mixed.append(_with_part(patch, other, place))
        return mixed


def _with_part(patch: Patch, other: Patch, place: tuple[Any, ...]) -> Patch:
    """A patch with the pixels and labels that another has at this place (.., y, x)."""
    pixels, classes, ids = patch.pixels.copy(), patch.classes.copy(), patch.ids
    pixels[*place, :] = other.pixels[*place, :]
    classes[place] = other.classes[place]
    if ids is not None and other.ids is not None:
        # In 64 bits, and above those of this patch: objects of two patches may have one number.
        ids, added = ids.astype(np.int64), other.ids[place].astype(np.int64)
        ids[place] = np.where(added > 0, added + ids.max(), 0)
    valid = None
    if patch.valid is not None or other.valid is not None:
        valid = _all_valid(patch).copy()
        valid[place] = _all_valid(other)[place]
    return Patch(pixels, classes, ids, valid)


def _all_valid(patch: Patch) -> NDArray[np.bool_]:
    return np.ones(patch.classes.shape, np.bool_) if patch.valid is None else patch.valid


def _rectangle(
    shape: Shape, shares: Sequence[float] | NDArray[np.float64], random: np.random.Generator
) -> tuple[slice, slice]:
    """A random place (y, x) of a rectangle whose sides are these shares of a patch."""
    sides = [round(n * share) for n, share in zip(shape[-2:], shares, strict=True)]
    starts = [int(random.integers(n - m + 1)) for n, m in zip(shape[-2:], sides, strict=True)]
    rows, columns = (slice(a, a + n) for a, n in zip(starts, sides, strict=True))
    return rows, columns


DEFAULT: tuple[Augmentation, ...] = (Flip(), Rotate90())
"""Default of recipes: changes that suit any image seen from above."""
