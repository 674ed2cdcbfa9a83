"""Scale bars: a round length on the ground, in the instrument, or in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import INK, SMALL
from maskloom.segcore.ground.cells import nominal_area
from maskloom.segcore.ground.lengths import steps_at, unit_of_length

if TYPE_CHECKING:
    from maskloom.segcore.figures.drawing import Sheet
    from maskloom.segcore.raster.spec import RasterSpec

_LENGTHS = {
    "m": ((1e3, "km"), (1.0, "m"), (1e-2, "cm"), (1e-3, "mm")),
    "mm": ((1e6, "km"), (1e3, "m"), (10.0, "cm"), (1.0, "mm"), (1e-3, "µm"), (1e-6, "nm")),
    "px": ((1.0, "px"),),
}


@dataclass(frozen=True, slots=True)
class PixelLength:
    """Length of a pixel along x."""

    length: float
    unit: str
    """`m`, `mm` or `px`."""

    def times(self, factor: float) -> PixelLength:
        """The length of pixels that are larger by a factor."""
        return PixelLength(self.length * factor, self.unit)


def pixel_length(spec: RasterSpec) -> PixelLength:
    """The length of a pixel in the middle of an image along x."""
    space = spec.space
    middle = (np.array(spec.shape, float) - 1)[None] / 2
    steps = steps_at(space, middle)
    length = float(np.linalg.norm(steps.reshape(-1, *steps.shape[-2:])[0][-1]))
    if np.isnan(length) and space.affine is not None and space.crs is not None:
        # Coordinates of a place that is not on the planet, or not known there.
        a, b, _, d, e, _ = space.affine
        unit = math.sqrt(nominal_area(space.affine, space.crs) / abs(a * e - b * d))
        length = math.hypot(a, d) * unit
    known = np.isfinite(length) and length > 0
    return PixelLength(length, unit_of_length(space)) if known else PixelLength(1.0, "px")


def round_length(most: float) -> float:
    """The greatest of 1, 2 and 5 times a power of ten that is at most this.

    >>> [round_length(x) for x in (7, 0.3, 1, 49)]
    [5.0, 0.2, 1.0, 20.0]
    """
    power = 10.0 ** math.floor(math.log10(most) + 1e-9)
    return float(next(step * power for step in (5, 2, 1) if step * power <= most * (1 + 1e-9)))


def length_text(length: float, unit: str) -> str:
    """A length in the unit of its kind that suits it.

    >>> length_text(2000, "m"), length_text(0.05, "mm"), length_text(50, "px")
    ('2 km', '50 µm', '50 px')
    """
    units = _LENGTHS[unit]
    factor, name = next((each for each in units if length >= each[0] * (1 - 1e-9)), units[-1])
    return f"{length / factor:,.10g} {name}"


def draw_scale_bar(sheet: Sheet, at: tuple[int, int], room: int, pixel: PixelLength) -> None:
    """Draw a bar of a round length, of at most `room` pixels with its words, around the height `y`.
    `pixel`: that of the sheet.
    """
    x, y = at
    bar = max(8.0, min(0.45 * room, 180.0))
    length = round_length(bar * pixel.length)
    if pixel.unit == "px":
        length = max(1.0, length)
    wide = round(length / pixel.length)
    if wide > room:
        return
    sheet.box((x, y), (wide, 2), INK)
    for end in (x, x + wide - 2):
        sheet.box((end, y - 4), (2, 10), INK)
    sheet.text((x + wide + 8, y + 1), length_text(length, pixel.unit), size=SMALL)
