"""Connected components inside one tile: the parts that the tile decides, and what joining must
know of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.geometry import Tile
from maskloom.segcore.models.fragments import TileBoundary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

HOLE, NO_DATA, FIRST_CLASS = 1, 2, 3
"""Codes of `segcore.kernels.joining`."""
_OTHER_TILE, _BORDER = 1, 2
"""Flags for the two things that a side of a core may face."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Connected runs of equal code, of parts and of possible holes: labels 1 ... n in the order of
    their first pixels.
    """

    shape: tuple[int, int, int]
    """(layers, rows, columns)."""
    runs: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]
    """Starts, stops and codes of the runs, line after line."""
    first: NDArray[np.int64]
    """Index of the first run of each line, and the number of runs at the end."""
    labels: NDArray[np.int32]
    """Label of each run."""
    sizes: NDArray[np.int64]
    """(n + 1,) pixels of each label."""
    touched: NDArray[np.uint8]
    """(n + 1,) flags for what the sides touched by each label face."""
    codes: NDArray[np.uint16]
    """(n + 1,) code of each label."""


def label_runs(
    values: NDArray[Any],
    code_of: NDArray[np.uint16],
    reach: tuple[int, int],
    sides: NDArray[np.uint8],
) -> Runs:
    """The connected runs of a tile's core, from its class ids (y, x) or (z, y, x); `code_of` is the
    code of each class id, `reach` as `Components.reach`, and `sides` as `sides_of`.
    """
    from maskloom.segcore.kernels.connected import (
        count_changes,
        find_runs,
        measure_runs,
        number_sets,
        tie_runs,
    )

    shape = (1, *values.shape) if values.ndim == 2 else values.shape
    lines = np.ascontiguousarray(values).reshape(-1, shape[2])
    room = count_changes(lines) + len(lines) + 9
    arrays = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.uint16)
    first = find_runs(lines, code_of, *arrays)
    starts, stops, run_codes = (array[: first[-1]] for array in arrays)
    runs = starts, stops, run_codes
    mixed = code_of.max() > FIRST_CLASS or (code_of == HOLE).any()
    labels = tie_runs(runs, first, shape, reach, bool(mixed))
    n = number_sets(labels, run_codes) + 1
    sizes, touched, codes = np.zeros(n, np.int64), np.zeros(n, np.uint8), np.zeros(n, np.uint16)
    measure_runs(runs, labels, first, shape, sides, (sizes, touched, codes))
    sizes[0] = touched[0] = codes[0] = 0
    return Runs(shape, runs, first, labels, sizes, touched, codes)


def paint(found: Runs, number: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(line, pixel): the number of each pixel's label, for `number` (n + 1,) by label."""
    from maskloom.segcore.kernels.connected import paint_runs

    layers, rows, width = found.shape
    painted = np.empty((layers * rows, width), np.uint32)
    paint_runs(found.runs, found.labels, found.first, number, painted)
    return painted


def keep_parts(
    found: Runs, min_size: int, largest: int | None
) -> tuple[NDArray[np.int64], NDArray[np.uint32], TileBoundary]:
    """Labels by fragment, fragment (or 0) by label, and the boundary without its faces: parts at
    tile boundaries first, then those large enough.
    """
    at_seam = (found.touched & _OTHER_TILE) > 0
    alone = ~at_seam & (found.sizes >= min_size)
    at_seam[0] = alone[0] = False
    chosen, rest = _reported(np.flatnonzero(at_seam), alone, found.codes, found.sizes, largest)
    order = np.concatenate([chosen, rest])
    number = np.zeros(len(found.sizes), np.uint32)
    number[order] = np.arange(1, len(order) + 1)
    boundary: TileBoundary = {
        "codes": found.codes[chosen],
        "seen": np.zeros(len(chosen), np.uint16),
        "sizes": found.sizes[chosen],
    }
    return order, number, boundary


def _reported(
    at_seam: NDArray[np.int64],
    alone: NDArray[np.bool_],
    codes: NDArray[np.uint16],
    sizes: NDArray[np.int64],
    largest: int | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels that joining must know of, and other parts. Where only the largest parts count,
    those alone in their tile are known to joining, and all but the largest are dropped.
    """
    inside = np.flatnonzero(alone)
    if largest is None:
        return at_seam, inside
    # Labels are in the order of their first pixels.
    leading = inside[are_largest(codes[inside], sizes[inside], inside, largest)]
    return np.concatenate([at_seam, leading]), leading[:0]


def are_largest(
    codes: NDArray[Any], sizes: NDArray[np.int64], first: NDArray[np.int64], count: int
) -> NDArray[np.bool_]:
    """(part,): whether it is among the `count` largest of its code; of equal ones, those count
    whose first pixels come first.
    """
    order = np.lexsort((first, -sizes, codes))
    ranked = codes[order]
    rank = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    leading = np.zeros(len(order), np.bool_)
    leading[order] = rank < count
    return leading


def first_pixels(found: Runs, tile: Tile, shape: Shape) -> NDArray[np.int64]:
    """(n + 1,) place of the first pixel of each label in the flattened raster."""
    count = len(found.labels)
    run = np.zeros(len(found.sizes), np.int64)
    # Of equal labels, the last value that is assigned remains: that of the first run.
    run[found.labels[::-1]] = np.arange(count)[::-1]
    line = np.searchsorted(found.first, run, side="right") - 1
    *above, rows, columns = tile.core.start
    starts = found.runs[0][run] if count else np.zeros(len(run), np.int64)
    layer, row = np.divmod(line, found.shape[1])
    places = (layer + sum(above)) * shape[-2] + row + rows
    return np.asarray(places * shape[-1] + starts + columns, np.int64)


def fill_holes(
    found: Runs, reach: int, min_size: int, largest: int | None
) -> tuple[NDArray[np.int64], NDArray[np.uint32], TileBoundary]:
    """As `keep_parts`, after filling the holes inside the core. `reach` is that of holes."""
    from maskloom.segcore.kernels.connected import meet_runs
    from maskloom.segcore.kernels.disjoint import flatten
    from maskloom.segcore.kernels.joining import tie_pairs

    n = len(found.sizes)
    seen = np.zeros(n, np.uint16)
    starts, stops, run_codes = found.runs
    pairs = meet_runs(
        (starts, stops, (run_codes, found.labels)), found.first, found.shape, reach, seen
    )
    at_seam = (found.touched & _OTHER_TILE) > 0
    hole = found.codes == HOLE
    seen[hole & ((found.touched & _BORDER) > 0)] = HOLE
    filled = hole & ~at_seam & (seen > HOLE)
    undecided = hole & at_seam & (seen != HOLE)

    # A filled hole and everything inside it join the part around it, which has the first pixel and
    # is the only one that may touch another tile.
    root = np.arange(n)
    tie_pairs(root, pairs[filled[pairs[:, 0]]])
    flatten(root)
    moved = np.flatnonzero(root != np.arange(n))
    sizes, codes = found.sizes.copy(), np.where(filled, seen, found.codes)
    np.add.at(sizes, root[moved], found.sizes[moved])

    around = pairs[undecided[pairs[:, 0]]]
    around[:, 1] = root[around[:, 1]]
    # Pairs as single numbers sort ten times as fast.
    links = np.unique(around[at_seam[around[:, 1]]].astype(np.int64) @ np.array([n, 1]))
    # A part that touches no other tile is within at most one hole: any other set around it would
    # already have decided that hole.
    host = np.zeros(n, np.int64)
    host[around[:, 1]] = around[:, 0]

    part = (root == np.arange(n)) & (codes >= FIRST_CLASS)
    inside, small = part & ~at_seam, sizes < min_size
    pieces = np.flatnonzero(inside & small & (host > 0))
    islands = np.flatnonzero(inside & ~small & (host > 0))
    islands = islands[np.argsort(host[islands], kind="stable")]
    for within in (pieces, islands):
        np.add.at(sizes, host[within], sizes[within])
    at_seams, alone = np.flatnonzero((part & at_seam) | undecided), inside & ~small & (host == 0)
    chosen, rest = _reported(at_seams, alone, codes, sizes, largest)
    order = np.concatenate([chosen, islands, rest])
    number = np.zeros(n, np.uint32)
    number[order] = np.arange(1, len(order) + 1)
    number[pieces] = number[host[pieces]]
    boundary: TileBoundary = {
        "codes": codes[chosen],
        "seen": np.where(undecided, seen, 0).astype(np.uint16)[chosen],
        "sizes": sizes[chosen],
        "links": number[np.stack(np.divmod(links, n), axis=1)],
        "islands": np.bincount(number[host[islands]].astype(np.int64) - 1, minlength=len(chosen)),
    }
    if largest is not None:
        boundary = {**boundary, "island_codes": codes[islands], "island_sizes": sizes[islands]}
    return order, number[root], boundary


def sides_of(tile: Tile, shape: Shape) -> NDArray[np.uint8]:
    """(3, 2) `_BORDER` or `_OTHER_TILE` for both ends of the core along (layers, rows, columns).
    Images have no layers.
    """
    sides = np.zeros((3, 2), np.uint8)
    for axis, (start, stop, length) in enumerate(
        zip(tile.core.start, tile.core.stop, shape, strict=True), 3 - len(shape)
    ):
        sides[axis] = (
            _OTHER_TILE if start > 0 else _BORDER,
            _OTHER_TILE if stop < length else _BORDER,
        )
    return sides
