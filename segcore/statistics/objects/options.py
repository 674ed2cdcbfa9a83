"""Options of the `objects` table: which connected parts of a semantic mask get a row, and whether
with outlines. `segcore.statistics.objects.table` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from maskloom.segcore.statistics.protocol import STATISTICS

Connectivity = Literal[4, 6, 8, 18, 26]


@STATISTICS.register("objects")
@dataclass(frozen=True, slots=True)
class Objects:
    """Size, position, shape, band values and outline of every object, one row per object."""

    classes: tuple[str, ...] | None = None
    """Classes whose connected parts are objects. None: all but one named background. Masks of
    objects already define their objects.
    """
    connectivity: Connectivity | None = None
    """4: pixels that share a side are connected. 8: also those that share a corner. In volumes 6
    (voxels that share a face), 18 (an edge) or 26 (a corner). None: all neighbours, 8 in images and
    26 in volumes.
    """
    min_size: int = 1
    """Smallest size of an object in the table, in pixels."""
    geometry: bool = True
    """Whether rows include the outline as a polygon. Objects in volumes have none."""

    table: ClassVar[str] = "objects"
    """Name of its table."""

    def __post_init__(self) -> None:
        if self.classes is not None and (
            not self.classes or len(set(self.classes)) < len(self.classes)
        ):
            raise ValueError(
                f"classes: expected at least one name and none twice; got {list(self.classes)}"
            )
        if self.connectivity not in (None, *get_args(Connectivity)):
            raise ValueError(
                f"connectivity: expected 4 or 8 (volumes: 6, 18 or 26); got {self.connectivity}"
            )
        if self.min_size < 1:
            raise ValueError(
                f"min_size: expected a number of pixels from 1 on; got {self.min_size}"
            )
