"""The classes of a change mask: `unchanged`, and one for each transition between two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.colours import Colour

UNCHANGED = (225, 225, 225)
_MOST = 2**16 - 2
_OLD = 0.25
"""Share of the former class in the colour of a transition."""
_PALE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Legend:
    """The classes of two outputs together, and of their change masks."""

    classes: ClassTable

    @property
    def transitions(self) -> tuple[tuple[int, int], ...]:
        """Class before and after, in the order of the change mask's labels from 1 on."""
        number = len(self.classes.names)
        return tuple((a, b) for a in range(number) for b in range(number) if a != b)

    @property
    def mask(self) -> ClassTable:
        """Names and colours of the change mask. A transition has the colour of the new class, with
        a little of the old one; that to background is a pale shade of the old one. Raises
        `RecipeError` if there are too many.
        """
        names = self.classes.names
        if len(names) * (len(names) - 1) > _MOST:
            raise RecipeError(f"{len(names)} classes have more transitions than a mask has labels.")
        return ClassTable(
            ("unchanged", *(f"{names[a]}_to_{names[b]}" for a, b in self.transitions)),
            (UNCHANGED, *(self._colour(a, b) for a, b in self.transitions)),
        )

    def _colour(self, before: int, after: int) -> Colour:
        colours = self.classes.colours
        if self.classes.names[after].lower() in BACKGROUND_NAMES:
            return _mixed(colours[before], _PALE, 0.5)
        return _mixed(colours[after], colours[before], _OLD)

    def labels(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.integer]:
        """The change mask of pixels with these class ids, of the same shape; negative ids are not
        known, and become nodata.
        """
        number, table = len(self.classes.names), self.mask
        label_of = np.full((number + 1, number + 1), table.nodata, table.dtype)
        label_of[np.arange(number), np.arange(number)] = 0
        for label, (a, b) in enumerate(self.transitions, 1):
            label_of[a, b] = label
        # -1 is the last row and column.
        found: NDArray[np.integer] = label_of[before, after]
        return found


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    """A colour with a share of another one."""
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
    return red, green, blue
