"""Legends: the colour, the name and the numbers of each class, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.figures.drawing import (
    FAINT,
    GAP,
    SMALL,
    SWATCH,
    fitting,
    line_height,
    width_of,
)

if TYPE_CHECKING:
    from maskloom.segcore.figures.drawing import Sheet
    from maskloom.segcore.raster.colours import Colour

_LINE = line_height(SMALL) + 2
_WIDEST_NAME = 220


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a legend."""

    name: str
    colours: tuple[Colour, ...] = ()
    """Of its swatch, in stripes. Empty: none."""
    numbers: tuple[str, ...] = ()
    """Texts that stand below those of the other entries, aligned at the right."""
    hatched: bool = False
    """Whether the swatch is hatched instead."""


@dataclass(frozen=True, slots=True)
class Legend:
    """Entries in columns of equal width that fill a given width, row by row."""

    entries: tuple[Entry, ...]
    columns: int
    wide: int
    """Width of a column with the space after it."""
    names: int
    """Room for a name."""
    numbers: tuple[int, ...]
    """Room for each number."""

    @classmethod
    def of(cls, entries: Sequence[Entry], width: int) -> Legend:
        """The legend with names as long as they need, cut where there is no room."""
        most = max((len(each.numbers) for each in entries), default=0)
        numbers = tuple(
            max(width_of(each.numbers[i], size=SMALL) for each in entries if len(each.numbers) > i)
            for i in range(most)
        )
        beside = SWATCH + 8 + sum(n + GAP for n in numbers)
        names = max((width_of(each.name, size=SMALL) for each in entries), default=0)
        names = min(names, max(width - beside, 20), _WIDEST_NAME)
        wide = beside + names + 2 * GAP
        columns = max(1, min(len(entries), (width + 2 * GAP) // wide))
        return cls(tuple(entries), columns, wide, names, numbers)

    @property
    def height(self) -> int:
        """Height in pixels."""
        return -(-len(self.entries) // self.columns) * _LINE

    def draw(self, sheet: Sheet, at: tuple[int, int]) -> None:
        """Draw it below and right of this place; columns are read downwards."""
        rows = -(-len(self.entries) // self.columns)
        for i, entry in enumerate(self.entries):
            x = at[0] + i // rows * self.wide
            y = at[1] + i % rows * _LINE + _LINE // 2
            corner, size = (x, y - SWATCH // 2), (SWATCH, SWATCH)
            if entry.hatched:
                sheet.hatch(corner, size)
            for number, colour in enumerate(entry.colours):
                stripe = SWATCH / len(entry.colours)
                sheet.box((x + number * stripe, corner[1]), (stripe + 0.5, SWATCH), colour)
            if entry.hatched or entry.colours:
                sheet.box(corner, size, outline=FAINT)
            x += SWATCH + 8
            sheet.text((x, y), fitting(entry.name, self.names, size=SMALL), size=SMALL)
            x += self.names
            for number, room in zip(entry.numbers, self.numbers, strict=False):
                x += GAP + room
                sheet.text((x, y), number, size=SMALL, ink=FAINT, anchor="right")
