"""What augmentations change, and what each kind of them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.warping import Warp

    Pixels = NDArray[np.float32]
    Classes = NDArray[np.uint8]

AUGMENTATIONS: Registry[type[Augmentation]] = Registry(
    "augmentation", "maskloom.segcore.training.augmentations"
)


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
