"""The classes of an image: their colours, and the rows of the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.colours import hexadecimal

if TYPE_CHECKING:
    from maskloom.segcore.raster.colours import Colour

_UNKNOWN: Colour = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of an image: colours by class id, and rows for the legend."""

    colours: tuple[Colour, ...]
    rows: tuple[dict[str, Any], ...]


def classes_of(rows: Sequence[Mapping[str, Any]]) -> Classes:
    """The classes from the rows of the table `areas` with an image."""
    ordered = sorted(rows, key=lambda row: row["class_id"])
    names = tuple(row["class_name"] for row in ordered)
    colours = ClassTable.recorded(names, [row.get("colour") for row in ordered]).colours
    count = max((row["class_id"] for row in ordered), default=-1) + 1
    table = [_UNKNOWN] * count
    for row, colour in zip(ordered, colours, strict=True):
        table[row["class_id"]] = colour
    return Classes(
        tuple(table),
        tuple(
            {
                "id": row["class_id"],
                "name": row["class_name"],
                "colour": hexadecimal(colour),
                "pixels": row["pixel_count"],
                "fraction": row["fraction"],
                "area": row["area"],
                "unit": row["area_unit"],
                "background": row["class_name"].lower() in BACKGROUND_NAMES,
            }
            for row, colour in zip(ordered, colours, strict=True)
        ),
    )
