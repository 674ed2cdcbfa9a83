"""The picture of what changed: before, after and change of the pairs that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.figures.drawing import (
    FAINT,
    GAP,
    MARGIN,
    SMALL,
    TOP,
    Sheet,
    fitted_shape,
    fitting,
    hatched,
    line_height,
    png,
    sampled,
)
from maskloom.segcore.figures.legends import Entry, Legend
from maskloom.segcore.raster.colours import colours_of_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.classes import ClassTable

    Pixels = NDArray[np.uint8]

_SIDE, _LEAST = 360, 360
_NAMES = ("before", "after", "change")
_WIDTH = 2 * MARGIN + 3 * _SIDE + 2 * GAP
_ABOVE = 2 * line_height(SMALL) + 4


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A pair of masks."""

    title: str
    text: str
    cells: tuple[Pixels, ...]
    """Before, after and change, each (y, x, 3)."""


def class_colours(labels: NDArray[np.integer], table: ClassTable) -> Pixels:
    """Labels (y, x) in the colours of their classes; hatched without data."""
    colours = np.array(table.colours, np.uint8)
    known = (labels >= 0) & (labels < len(colours))
    return np.where(known[..., None], colours[np.where(known, labels, 0)], hatched(labels.shape))


def object_colours(ids: NDArray[np.integer]) -> Pixels:
    """Ids of objects (y, x) in their colours; hatched without data."""
    shown = colours_of_objects(np.maximum(ids, 0))
    return np.where((ids >= 0)[..., None], shown, hatched(ids.shape))


def draw(heading: tuple[str, str], rows: Sequence[Row], tables: Sequence[ClassTable]) -> bytes:
    """The PNG. `tables`: the classes that the legends name, those of masks and those of changes."""
    legends = [
        Legend.of(
            [
                Entry(name, (colour,))
                for name, colour in zip(table.names, table.colours, strict=True)
            ],
            _WIDTH - 2 * MARGIN,
        )
        for table in tables
    ]
    first = TOP + GAP + sum(legend.height + GAP for legend in legends)
    shapes = [
        [fitted_shape(each.shape[:2], _SIDE, least=_LEAST) for each in row.cells] for row in rows
    ]
    heights = [_ABOVE + max(height for height, _ in each) + GAP for each in shapes]
    sheet = Sheet.blank(_WIDTH, first + sum(heights) + MARGIN)
    sheet.heading(*heading)
    y = TOP + GAP
    for legend in legends:
        legend.draw(sheet, (MARGIN, y))
        y += legend.height + GAP
    for row, sizes, height in zip(rows, shapes, heights, strict=True):
        line = y + line_height(SMALL) // 2
        title = fitting(row.title, _WIDTH // 2, size=SMALL, middle=True)
        end = sheet.text((MARGIN, line), title, size=SMALL)
        sheet.text((end + GAP, line), row.text, size=SMALL, ink=FAINT)
        for i, (name, cell, shape) in enumerate(zip(_NAMES, row.cells, sizes, strict=True)):
            x = MARGIN + i * (_SIDE + GAP)
            sheet.text((x, line + line_height(SMALL)), name, size=SMALL, ink=FAINT)
            sheet.paste(sampled(cell, shape), (x, y + _ABOVE), framed=True)
        y += height
    return png(sheet.pixels, effort=6)
