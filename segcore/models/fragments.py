"""Objects over tiles: fragments, boundaries, equivalences.

A tile alone knows only fragments: the parts of objects that are in its core. A segmenter of objects
works in two steps so that the result does not depend on the tiling:

    fragment    one tile, on a worker: numbers the fragments of its core, and collects the input of
                joining (`TileBoundary`)
    join        one image: finds from the boundaries of all tiles which fragments are one object
                (`Equivalences`)

Only fragments that touch another tile are joined, so boundaries grow with the borders of tiles. A
decision made inside a tile must hold for any content of its neighbours. `segcore.objects.numbering`
then gives objects their ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TileBoundary = Mapping[str, Any]
"""Input of joining from one tile: arrays and faces (`segcore.objects.faces`) by name, of a size
that grows with the border of the tile, not with its area.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Fragments:
    """The objects of one tile's core, as far as the tile alone determines them."""

    values: NDArray[np.uint32]
    """Shape of the core. 0: background or no data; 1 ... n: fragments, in any order, each with at
    least one pixel.
    """
    class_of: NDArray[np.uint16]
    """(n + 1,) class id of each fragment; that of 0 is 0."""
    boundary: TileBoundary
    """Input of `join` from this tile."""
    score_of: NDArray[np.float32] | None = None
    """(n + 1,) confidence in each fragment's object; an object has the highest of its fragments.
    None if the segmenter gives none.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Equivalences:
    """Which fragments of one tile are joined to which objects. Fragments that are not listed are
    objects alone and keep their class.
    """

    fragments: NDArray[np.uint32]
    """Fragments of the tile, ascending, each once."""
    groups: NDArray[np.int64]
    """Fragments with equal numbers from 1 on, in any tile, are one object. 0: background."""
    class_of: NDArray[np.uint16]
    """Class id of the object of each fragment, 0 for background."""
    score_of: NDArray[np.float32] | None = None
    """Confidence in the object of each fragment, in place of those of its fragments. None: the
    highest of these.
    """

    @classmethod
    def none(cls) -> Equivalences:
        """The equivalences of a tile in which no fragment is joined with another."""
        return cls(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.uint16))
