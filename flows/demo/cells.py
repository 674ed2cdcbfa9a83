"""A fluorescence picture of cell nuclei whose number is known, as a simulated microscope sees it.

Nuclei are ellipses of different size, brightness and chromatin texture, a third of them beside a
neighbour that they touch. The light fades towards the corners, the optics blur, and the camera adds
photon noise, read noise and an offset. The picture is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.float64]

COUNT = 250
"""Nuclei in the picture."""
SIDE = 1024
"""Side of the picture in pixels."""
PIXEL_SIZE = "0.325 um"
"""Side of a pixel: a camera of 6.5 um pixels behind an objective of 20x."""
_SEED = 20_261_127
_TOUCHING = 1 / 3
_RADIUS = (10.0, 15.0)
_OFFSET, _READ_NOISE, _HAZE = 100.0, 4.0, 18.0
"""Camera offset, its noise and the light between the nuclei, in photons."""
_BLUR = 1.3
"""Standard deviation of the point spread function in pixels."""


@dataclass(frozen=True, slots=True)
class Nucleus:
    """Centre and radii in pixels, direction of the long axis in radians, photons of a pixel."""

    y: float
    x: float
    long: float
    short: float
    turn: float
    photons: float

    def gap(self, other: Nucleus) -> float:
        """Distance of the outlines in pixels, at most; negative where they may overlap."""
        distance = math.hypot(self.y - other.y, self.x - other.x)
        towards = math.atan2(other.y - self.y, other.x - self.x)
        return distance - self.reach(towards) - other.reach(towards)

    def reach(self, direction: float) -> float:
        """Distance from the centre to the outline."""
        angle = direction - self.turn
        across = math.hypot(self.short * math.cos(angle), self.long * math.sin(angle))
        return self.long * self.short / across


def write(path: Path) -> None:
    """Write the picture as a TIFF of 16 bits."""
    import tifffile

    part = path.with_suffix(".part")
    tifffile.imwrite(part, picture(), compression="zlib", photometric="minisblack")
    part.replace(path)


def picture() -> NDArray[np.uint16]:
    """The picture (y, x)."""
    from scipy import ndimage

    random = np.random.default_rng(_SEED + 1)
    photons = np.zeros((SIDE, SIDE))
    texture = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), 2.2)
    texture /= texture.std()
    for nucleus in nuclei():
        _draw(nucleus, texture, photons)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = 1 - 0.2 * (x * x + y * y)
    seen = ndimage.gaussian_filter((photons + _HAZE) * light, _BLUR)
    counted = random.poisson(seen) + random.normal(_OFFSET, _READ_NOISE, seen.shape)
    found: NDArray[np.uint16] = np.clip(np.rint(counted), 0, 65_535).astype(np.uint16)
    return found


def nuclei() -> list[Nucleus]:
    """The nuclei in the picture, none cut by its edge."""
    random = np.random.default_rng(_SEED)
    placed: list[Nucleus] = []
    while len(placed) < COUNT:
        new = _any(random)
        beside = bool(placed) and random.random() < _TOUCHING
        if beside:
            neighbour = placed[random.integers(len(placed))]
            new = _moved_to(new, neighbour, random.uniform(0, 2 * math.pi))
        edge = min(new.y, new.x, SIDE - 1 - new.y, SIDE - 1 - new.x)
        nearest = min((new.gap(other) for other in placed), default=math.inf)
        if edge > new.long + 3 and (-1.5 < nearest < 0.5 if beside else nearest > 5):
            placed.append(new)
    return placed


def _any(random: np.random.Generator) -> Nucleus:
    y, x = random.uniform(0, SIDE, 2)
    long = random.uniform(*_RADIUS)
    return Nucleus(
        y,
        x,
        long,
        long * random.uniform(0.7, 0.95),
        random.uniform(0, math.pi),
        random.uniform(70, 260),
    )


def _moved_to(new: Nucleus, neighbour: Nucleus, towards: float) -> Nucleus:
    """The nucleus moved beside its neighbour, so that they just touch."""
    distance = neighbour.reach(towards) + new.reach(towards) - 0.5
    y = neighbour.y + distance * math.sin(towards)
    x = neighbour.x + distance * math.cos(towards)
    return Nucleus(y, x, new.long, new.short, new.turn, new.photons)


def _draw(nucleus: Nucleus, texture: Pixels, photons: Pixels) -> None:
    """Add the light of a nucleus: brighter in its middle, where it is thicker."""
    reach = math.ceil(nucleus.long) + 2
    top, left = round(nucleus.y) - reach, round(nucleus.x) - reach
    window = np.s_[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
    y, x = np.mgrid[window]
    y, x = y - nucleus.y, x - nucleus.x
    cos, sin = math.cos(nucleus.turn), math.sin(nucleus.turn)
    along, across = x * cos + y * sin, y * cos - x * sin
    place = (along / nucleus.long) ** 2 + (across / nucleus.short) ** 2
    thickness = np.sqrt(np.clip(1 - place, 0, None))
    light = nucleus.photons * (0.55 + 0.45 * thickness) * (1 + 0.16 * texture[window])
    photons[window] += np.where(place < 1, np.clip(light, 0, None), 0)
