"""Scaling of pixels to the input of a network: by stated numbers, or by numbers that are found in
the pixels of each image.

Numbers are never those of a tile, because the result would depend on the tiling: what is found is
found in all pixels of an image before the first tile is segmented
(`segcore.deep.inference.image_scaling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GREATEST = 1e30
"""Beyond this value, the product with a pixel may be infinite in float32."""
_LEAST = 1e-20
_CHOICES = {"by": ("deviation", "range"), "bands": ("each", "together"), "of": ("image", "fit")}


@dataclass(frozen=True, slots=True)
class Scaling:
    """Scaling of pixels to network input: (value - offset) * factor."""

    offset: tuple[float, ...] = (0.0,)
    """One number per band, or one for all bands."""
    factor: tuple[float, ...] = (1 / 255,)
    """One number per band, or one for all bands."""

    # Read by pydantic, which otherwise ignores unknown keys of a dataclass inside a section.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, values in (("offset", self.offset), ("factor", self.factor)):
            if not values or not all(abs(value) < GREATEST for value in values):
                raise ValueError(
                    f"scaling.{name}: expected finite numbers, one for all bands or one a band; "
                    f"got {list(values)}"
                )
        if not all(self.factor):
            raise ValueError(
                "scaling.factor: expected numbers other than 0, which would hide the image; got "
                f"{list(self.factor)}"
            )

    def apply(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return scaled pixels (..., band) as a new float32 array."""
        scaled = pixels.astype(np.float32, order="C")
        # Row by row of pixels: numpy is ten times slower on rows of three numbers.
        *others, width, bands = (1, *scaled.shape) if scaled.ndim == 1 else scaled.shape
        rows = scaled.reshape(*others, width * bands)
        if any(self.offset):
            rows -= _along(self.offset, width)
        if any(factor != 1 for factor in self.factor):
            rows *= _along(self.factor, width)
        return scaled


def _along(values: Sequence[float], pixels: int) -> NDArray[np.float32]:
    """Numbers of bands for a row of pixels; one number for all bands stays one."""
    numbers = np.array(values, np.float32)
    return numbers if len(numbers) == 1 else np.tile(numbers, pixels)


AS_THEY_ARE = Scaling((0.0,), (1.0,))
"""Pixels that are the input of the network."""


@dataclass(frozen=True, slots=True)
class ImageScaling:
    """Scaling of the pixels of an image by what is found in all of them: (value - offset) * factor,
    then `clip`.
    """

    by: Literal["deviation", "range"]
    """deviation: the mean becomes 0, the standard deviation 1. range: the lower of the
    `percentiles` becomes 0, the upper 1.
    """
    percentiles: tuple[float, float] = (0.0, 100.0)
    """For range. The default is the least and the greatest value."""
    bands: Literal["each", "together"] = "each"
    """Whether each band has numbers of its own, or all have those of all values together."""
    of: Literal["image", "fit"] = "image"
    """image: of each image alone. fit: of what the recipe's `fit` says, the collection by
    default.
    """
    eps: float = 1e-6
    """Added to the deviation, or to the range, before dividing by it."""
    clip: tuple[float, float] | None = None
    """The least and the greatest input; scaled values beyond become these."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"scaling.{name}: expected {' or '.join(choices)}; got {getattr(self, name)!r}"
                )
        if not _ascending(self.percentiles, 0, 100):
            raise ValueError(
                "scaling.percentiles: expected two ascending numbers from 0 to 100; got "
                f"{self.percentiles!r}"
            )
        if self.by == "deviation" and tuple(self.percentiles) != (0, 100):
            raise ValueError("scaling.percentiles: belongs to `by: range`; leave it out")
        if not (isinstance(self.eps, int | float) and _LEAST <= self.eps < GREATEST):
            raise ValueError(
                f"scaling.eps: expected a number of at least {_LEAST:g}; got {self.eps!r}"
            )
        if self.clip is not None and not _ascending(self.clip, -GREATEST, GREATEST):
            raise ValueError(f"scaling.clip: expected two ascending numbers; got {self.clip!r}")

    def found(self, lows: Sequence[float], spreads: Sequence[float]) -> Scaling:
        """The scaling for these means, or lower ends, and these deviations, or ranges: one for each
        band, or one for all. Raises `ValueError` if float32 cannot hold the result.
        """
        factors = tuple(1 / (float(spread) + self.eps) for spread in spreads)
        return Scaling(tuple(map(float, lows)), factors)

    def apply(self, found: Scaling, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return pixels (..., band), scaled by what was found in them, as a new float32 array."""
        scaled = found.apply(pixels)
        return scaled if self.clip is None else np.clip(scaled, *self.clip, out=scaled)


def _ascending(values: object, least: float, greatest: float) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 2
        and all(isinstance(value, int | float) for value in values)
        and least <= values[0] < values[1] <= greatest
    )
