"""Where the pixels of a raster are, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.ground.cells import ground_area

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Affine, Box


@dataclass(frozen=True, slots=True)
class Space:
    """Where the pixels of a raster lie in the world, and how large they are."""

    affine: Affine | None = None
    """(a, b, c, d, e, f) with x = a·column + b·row + c and y = d·column + e·row + f at pixel
    corners. None: unknown.
    """
    crs: str | None = None
    """Coordinate reference system as WKT. None: unknown."""
    gcps: tuple[tuple[float, ...], ...] = ()
    """Ground control points, where there is no `affine`: (column, row, x, y, z) each, columns and
    rows counted from the corner of the first pixel.
    """
    gcp_crs: str | None = None
    """Coordinate reference system of their x and y as WKT. None: unknown."""
    rpcs: tuple[tuple[str, str], ...] = ()
    """Rational polynomials of the camera, as GDAL names and writes them."""

    @property
    def placed(self) -> bool:
        """Whether anything says where the pixels lie."""
        return self.affine is not None or bool(self.gcps or self.rpcs)

    @property
    def area_unit(self) -> str:
        """Unit of `cell_area`: `m2` where the ground is known, else `px`."""
        return "px" if self.affine is None or self.crs is None else "m2"

    def cell_area(self, box: Box) -> float | NDArray[np.float64]:
        """True area of the pixels of `box` in `area_unit`.

        A number where all pixels of the raster are equally large, an array of shape (rows, 1) where
        the area depends on the row alone, else of shape (rows, columns). The value of a pixel
        depends on its place in the raster only, never on the box that asks.
        """
        if self.affine is None or self.crs is None:
            return 1.0
        return ground_area(self.affine, self.crs, box)
