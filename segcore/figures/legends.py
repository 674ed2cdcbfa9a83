"""Legends: the colour, the name and the numbers of each class, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
_SPACE, _BETWEEN = 8, 2 * GAP


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
class _Column:
    """Some entries below one another."""

    entries: tuple[Entry, ...]
    names: int
    """Room for a name."""
    numbers: tuple[int, ...]
    """Room for each number."""

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> _Column:
        """The column with names and numbers as wide as they need, and no wider than may be."""
        most = max(len(each.numbers) for each in entries)
        numbers = tuple(
            max(width_of(each.numbers[i], size=SMALL) for each in entries if len(each.numbers) > i)
            for i in range(most)
        )
        names = max(width_of(each.name, size=SMALL) for each in entries)
        return cls(tuple(entries), min(names, _WIDEST_NAME), numbers)

    @property
    def width(self) -> int:
        """Width in pixels."""
        return SWATCH + _SPACE + self.names + sum(n + GAP for n in self.numbers)

    def narrowed(self, width: int) -> _Column:
        """The column with names cut so that it is no wider."""
        return replace(self, names=max(20, self.names - max(0, self.width - width)))

    def draw(self, sheet: Sheet, at: tuple[int, int]) -> None:
        """Draw it below and right of this place."""
        for i, entry in enumerate(self.entries):
            x, y = at[0], at[1] + i * _LINE + _LINE // 2
            _draw_swatch(sheet, entry, (x, y - SWATCH // 2))
            x += SWATCH + _SPACE
            sheet.text((x, y), fitting(entry.name, self.names, size=SMALL), size=SMALL)
            x += self.names
            for number, room in zip(entry.numbers, self.numbers, strict=False):
                x += GAP + room
                sheet.text((x, y), number, size=SMALL, ink=FAINT, anchor="right")


@dataclass(frozen=True, slots=True)
class Legend:
    """Entries in as many columns as there is room for, read downwards."""

    columns: tuple[_Column, ...]

    @classmethod
    def of(cls, entries: Sequence[Entry], width: int) -> Legend:
        """The legend of at most this width in pixels."""
        for rows in range(1, len(entries) + 1):
            columns = [
                _Column.of(entries[first : first + rows]) for first in range(0, len(entries), rows)
            ]
            needed = sum(each.width for each in columns) + _BETWEEN * (len(columns) - 1)
            if needed <= width:
                return cls(tuple(columns))
        return cls((_Column.of(entries).narrowed(width),) if entries else ())

    @property
    def height(self) -> int:
        """Height in pixels."""
        return max((len(each.entries) for each in self.columns), default=0) * _LINE

    def draw(self, sheet: Sheet, at: tuple[int, int]) -> None:
        """Draw it below and right of this place."""
        x, y = at
        for column in self.columns:
            column.draw(sheet, (x, y))
            x += column.width + _BETWEEN


def _draw_swatch(sheet: Sheet, entry: Entry, at: tuple[int, int]) -> None:
    if entry.hatched:
        sheet.hatch(at, (SWATCH, SWATCH))
    stripe = SWATCH / max(1, len(entry.colours))
    for i, colour in enumerate(entry.colours):
        sheet.box((at[0] + i * stripe, at[1]), (stripe + 0.5, SWATCH), colour)
    if entry.hatched or entry.colours:
        sheet.box(at, (SWATCH, SWATCH), outline=FAINT)
