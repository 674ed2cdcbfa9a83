"""The picture of what changed: before, after and change of the pairs that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import (
    FAINT,
    INK,
    canvas,
    draw_legend,
    fitting,
    font,
    lines_of,
    paste,
    png,
)
from maskloom.segcore.raster.colours import colours_of_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.classes import ClassTable

_GAP, _SIDE, _TEXT_AT = 16, 360, 20
_TITLE, _TEXT, _LINE = 18, 13, 24
_NO_DATA = (150, 150, 150)
_NAMES = ("before", "after", "change")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A pair of masks."""

    title: str
    text: str
    cells: tuple[NDArray[np.uint8], ...]
    """Before, after and change, each (y, x, 3)."""


def class_colours(labels: NDArray[np.integer], table: ClassTable) -> NDArray[np.uint8]:
    """Labels (y, x) in the colours of their classes; grey without data."""
    colours = np.array([*table.colours, _NO_DATA], np.uint8)
    last = len(table.colours)
    known = (labels >= 0) & (labels < last)
    return colours[np.where(known, labels, last)]


def object_colours(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Ids of objects (y, x) in their colours; grey without data."""
    found = colours_of_objects(np.maximum(ids, 0))
    found[ids < 0] = _NO_DATA
    return found


def draw(heading: str, rows: Sequence[Row], classes: ClassTable, changes: ClassTable) -> bytes:
    """The PNG. `classes` are those of the masks, `changes` those of the changes that occur."""
    width = 3 * (_SIDE + _GAP) + _GAP
    small = font(_TEXT)
    legends = [list(zip(table.names, table.colours, strict=True)) for table in (classes, changes)]
    placed = [
        lines_of(
            [round(small.getlength(name)) + _TEXT_AT + _GAP for name, _ in entries],
            width,
            _GAP,
            _LINE,
        )
        for entries in legends
    ]
    heights = [66 + max(_fitted(cell).shape[0] for cell in row.cells) for row in rows]
    top = 48
    below = top + sum(height for _, height in placed)
    picture, pen = canvas(width, below + sum(heights) + _GAP)
    title = font(_TITLE)
    pen.text((_GAP, _GAP), fitting(heading, title, width - 2 * _GAP), INK, title)
    y = top
    for entries, (places, height) in zip(legends, placed, strict=True):
        moved = [(x, y + line - _GAP // 2) for x, line in places]
        draw_legend(pen, moved, entries, font=small, ink=INK, text_at=_TEXT_AT)
        y += height
    for row, height in zip(rows, heights, strict=True):
        pen.text((_GAP, y), fitting(row.title, small, width // 2), INK, small)
        left = _GAP + small.getlength(fitting(row.title, small, width // 2)) + _GAP
        pen.text((left, y), fitting(row.text, small, round(width - left - _GAP)), FAINT, small)
        for i, (name, cell) in enumerate(zip(_NAMES, row.cells, strict=True)):
            x = _GAP + i * (_SIDE + _GAP)
            pen.text((x, y + 22), name, FAINT, small)
            paste(picture, _fitted(cell), (x, y + 42))
        y += height
    return png(picture)


def _fitted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture, enlarged by repeating pixels or thinned, with a longest side near `_SIDE`."""
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    rows, columns = (
        ((np.arange(max(1, round(n * scale))) + 0.5) / scale).astype(int).clip(0, n - 1)
        for n in (height, width)
    )
    return picture[np.ix_(rows, columns)]
