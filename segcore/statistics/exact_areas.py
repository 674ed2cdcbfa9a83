"""Areas as integers: the true area of the pixels of each label, in sums that do not depend on the
tiling.

If pixels differ in size, areas are integer multiples of a quantum: 2**-48 of a nominal pixel or
less, a power of two that depends on the raster alone. So any tiling gives the same total to the
last bit. If the area varies along a row, it is approximated by parabolas with integer coefficients
over up to 512 pixels; a label's sum then needs only the number of its pixels, the sum of their
positions and the sum of their squared positions. The relative error is below 3e-10. If all pixels
are equal, the area is their number times the area of one, and no quanta are added.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.ground.space import Space
    from maskloom.segcore.raster.spec import RasterSpec

_GREATEST = 2.0**62
"""Largest area of a pixel in quanta."""


def add_areas(
    values: NDArray[np.integer],
    place: NDArray[np.uint32],
    spec: RasterSpec,
    box: Box,
    sums: NDArray[np.int64],
) -> float | None:
    """Count the labels of the pixels of `box` and add up their areas in quanta.

    Label v counts in column `place[v]` of `sums`: its pixels in the first row, its quanta as
    `sums[2] * 2**32 + sums[1]`. Returns the greatest area of a pixel in quanta, for `check_areas`;
    None if all pixels are equally large, so that no quanta are added.
    """
    from maskloom.segcore.ground.cells import ground_cells
    from maskloom.segcore.kernels.areas import sum_cells, sum_rows

    space = spec.space
    if space.affine is not None and space.crs is not None:
        several = ground_cells(space.affine, space.crs, box, spec.shape)
        if several is not None:
            scale = quanta_in_unit(space)
            return max(
                float(sum_cells(values, place, box.start, cells, scale, sums)) for cells in several
            )
    areas = space.cell_size(box, spec.shape)
    if isinstance(areas, float):
        sum_rows(values.reshape(1, -1), place, np.zeros(1, np.int64), sums)
        return None
    quanta = areas[:, 0] * quanta_in_unit(space)
    sum_rows(values, place, (np.minimum(quanta, _GREATEST) + 0.5).astype(np.int64), sums)
    return float(quanta.max())


def check_areas(greatest: float | None, location: str) -> None:
    """Raise `FormatError` if the greatest area of a pixel may have overflowed the sums of
    `add_areas`.
    """
    if greatest is not None and greatest > _GREATEST:
        raise FormatError(
            f"The CRS and the transform of {location} make some pixels 2**13 times larger than the "
            "map does. "
            "Correct them, or remove the CRS to count in pixels."
        )


def quanta_in_unit(space: Space) -> float:
    """Quanta per unit of area: the power of two for which a nominal pixel has 2**48 to 2**49
    quanta.
    """
    from maskloom.segcore.ground.cells import nominal_area

    if space.affine is None or space.crs is None:
        return 2.0**48
    return math.ldexp(1.0, 49 - math.frexp(nominal_area(space.affine, space.crs))[1])
