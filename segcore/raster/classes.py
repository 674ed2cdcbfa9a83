"""Class tables: the names and colours of classes, and the label that means "not processed or no
data".
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

Colour = tuple[int, int, int]

BACKGROUND_NAMES = frozenset({"background", "unlabelled", "unlabeled", "other", "void"})

# Twelve hues that are distinct on screen and in print, also for most colour-blind readers (after
# Okabe and Ito, extended).
_HUES: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    (120, 94, 60),
    (148, 103, 189),
    (188, 189, 34),
    (127, 127, 127),
    (227, 119, 194),
)


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Names and colours of the classes of a mask, by class id."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    @classmethod
    def of(cls, names: tuple[str, ...]) -> ClassTable:
        """A class table with a different colour for each name; a class named background is dark
        grey.
        """
        hues = iter(range(len(names)))
        return cls(
            names,
            tuple(
                (40, 40, 40) if name.lower() in BACKGROUND_NAMES else _hue(next(hues))
                for name in names
            ),
        )

    @property
    def dtype(self) -> str:
        """NumPy name of the smallest type that holds the classes and the nodata label."""
        return "uint8" if len(self.names) <= 255 else "uint16"

    @property
    def nodata(self) -> int:
        """Label of pixels without data and of pixels that were not processed."""
        return 255 if self.dtype == "uint8" else 65535


def _hue(i: int) -> Colour:
    if i < len(_HUES):
        return _HUES[i]
    # The golden ratio spreads any number of further hues evenly.
    red, green, blue = colorsys.hsv_to_rgb(
        (i * 0.618033988749895) % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.1 * (i % 4)
    )
    return round(red * 255), round(green * 255), round(blue * 255)
