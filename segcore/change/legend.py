"""The classes of a change mask: `unchanged`, and one for each transition between two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import ClassTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNCHANGED = (225, 225, 225)
_MOST = 2**16 - 2
_OLD = 0.25
"""Share of the former class in the colour of a transition."""


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
        a little of the old one. Raises `RecipeError` if there are too many.
        """
        names, colours = self.classes.names, np.array(self.classes.colours, np.float64)
        if len(names) * (len(names) - 1) > _MOST:
            raise RecipeError(f"{len(names)} classes have more transitions than a mask has labels.")
        mixed = [
            np.rint((1 - _OLD) * colours[b] + _OLD * colours[a]).astype(int).tolist()
            for a, b in self.transitions
        ]
        return ClassTable(
            ("unchanged", *(f"{names[a]}_to_{names[b]}" for a, b in self.transitions)),
            (UNCHANGED, *((r, g, b) for r, g, b in mixed)),
        )

    def labels(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.integer]:
        """The change mask of pixels with these classes; negative ones are not known."""
        number, table = len(self.classes.names), self.mask
        label_of = np.full((number + 1, number + 1), table.nodata, table.dtype)
        label_of[np.arange(number), np.arange(number)] = 0
        for label, (a, b) in enumerate(self.transitions, 1):
            label_of[a, b] = label
        # -1 is the last row and column.
        found: NDArray[np.integer] = label_of[before, after]
        return found
