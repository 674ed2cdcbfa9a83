"""Statistics: tables about the masks.

A `Statistic` is a fold over labelled blocks that ends as rows of a table. It observes the classes
of a tile's core while they are in memory. Its state must be exact and independent of order
(integers), so the table is the same for any tiling. The table of objects
(`segcore.statistics.objects`) needs two passes over the tiles; the pipeline makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec


@dataclass(frozen=True, slots=True)
class LabelledTile:
    """The classes of one tile and its position."""

    values: NDArray[np.integer]
    """Classes of the tile's core, and the nodata label where there is no data."""
    tile: Tile
    spec: RasterSpec
    """The image that the tile is cut from."""
    class_table: ClassTable


class Table(Protocol):
    """The parameters of a table, as users set them: a frozen dataclass."""

    @property
    def table(self) -> str:
        """Name of the table, the folder below `tables/`."""
        ...


class Statistic(Table, Protocol):
    """A table that is filled one tile at a time."""

    @property
    def schema(self) -> pa.Schema:
        """Columns that it adds after `run_id` and `image_id`."""
        ...

    def observe(self, labelled: LabelledTile, /) -> Any:
        """The observation of one tile: exact, order-independent state of JSON values."""
        ...

    def merge(self, a: Any, b: Any, /) -> Any:
        """Merge two observations."""
        ...

    def finish(
        self, total: Any, /, spec: RasterSpec, class_table: ClassTable
    ) -> list[dict[str, Any]]:
        """The rows of one image. `total` is None for an image that failed: its pixels count as
        unprocessed.
        """
        ...


STATISTICS: Registry[type[Table]] = Registry("statistic", __package__)
"""Statistics by the name of their table's kind: frozen dataclasses whose fields are the parameters
that users set.
"""
