"""The comparison of two masks of one place: a fold over the tiles of both, which writes the change
mask on its way, so that masks may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import LabelReader, holds_object_ids, open_mask
from maskloom.segcore.annotations.places import fit
from maskloom.segcore.change.joint import UNKNOWN, Joint, JointSum
from maskloom.segcore.change.objects import object_changes
from maskloom.segcore.change.spread import Spread, spread_of
from maskloom.segcore.change.warped import WarpedMask, can_be_warped
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box, Grid, Tiling
from maskloom.segcore.ground.shifts import largest_shift
from maskloom.segcore.masks import mask_writer, name_of
from maskloom.segcore.processes import limits
from maskloom.segcore.raster.spec import FORMATS

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from maskloom.segcore.change.legend import Legend
    from maskloom.segcore.masks import EncodedBlock
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store

    Ints = NDArray[np.int64]

_TILE = 1024
_LARGEST_SHIFT = 0.1
"""Largest distance of two grids that may be rounding, in pixels."""
_SIDE = 360
"""Longest side of the pictures."""


class GridMismatch(RecipeError):
    """Two masks do not lie on one grid."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One of two masks, and the meaning of its values."""

    mask: str
    """URI of the mask."""
    class_of: Ints
    """Class of each value, in the classes of both outputs; `UNKNOWN`: none."""
    others: int = UNKNOWN
    """Class of the values beyond."""

    def classes(self, values: Ints) -> Ints:
        """The class of each value; of `UNKNOWN` none."""
        inside = (values >= 0) & (values < len(self.class_of))
        found = np.where(inside, self.class_of[np.where(inside, values, 0)], self.others)
        return np.where(values < 0, UNKNOWN, found)


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """How two masks are compared."""

    legend: Legend
    warp: bool = False
    """Whether the second mask is resampled to the grid of the first one if it has another."""
    spread: int = UNKNOWN
    """The class whose spread is measured; `UNKNOWN`: none."""
    tile: int = _TILE


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What changed between two masks."""

    before: Ints
    after: Ints
    """Class on each side, by transition; `UNKNOWN`: no data. Pairs without a pixel are left out."""
    pixels: Ints
    areas: NDArray[np.float64]
    unit: str
    warped: bool
    mask: str
    """Name of the change mask."""
    objects: pa.Table | None
    """None if the masks do not hold objects."""
    spread: tuple[Spread, ...] = ()

    @property
    def changed(self) -> float:
        """The area of all pixels that have another class than before."""
        moved = (self.before != self.after) & (self.before >= 0) & (self.after >= 0)
        return float(self.areas[moved].sum())


@dataclass(frozen=True, slots=True, eq=False)
class ChangeView:
    """A pair of masks and their change, reduced for pictures: classes or ids (y, x), `UNKNOWN`
    without data, and labels of the change mask.
    """

    before: Ints
    after: Ints
    labels: NDArray[np.integer]
    numbered: bool


@dataclass(frozen=True, slots=True)
class _Both:
    """Two open masks on one grid."""

    spec: RasterSpec
    before: LabelReader
    after: LabelReader
    sides: tuple[Side, Side]
    numbered: bool
    warped: bool
    grid: Grid

    def values(self, box: Box) -> tuple[Ints, Ints]:
        """The values of a box on both sides: ids of objects, or classes; `UNKNOWN` without data."""
        found = []
        for reader, side in zip((self.before, self.after), self.sides, strict=True):
            values, known = reader.read(box)
            whole = np.where(known, values.astype(np.int64), UNKNOWN)
            found.append(whole if self.numbered else side.classes(whole))
        return found[0], found[1]

    def classes(self, before: Ints, after: Ints) -> tuple[Ints, Ints]:
        """The classes of `values`."""
        if not self.numbered:
            return before, after
        return self.sides[0].classes(before), self.sides[1].classes(after)


def compare(sides: tuple[Side, Side], options: ChangeOptions, store: Store, name: str) -> Change:
    """Compare two masks, and write the change mask as `<name><suffix>`.

    Raises `GridMismatch` if they lie on different grids and are not to be warped, `RecipeError` if
    one holds objects and the other classes, and the errors of reading and of the store.
    """
    with ExitStack() as stack:
        both = _open(sides, options, stack)
        found = JointSum([])

        def blocks() -> Iterator[EncodedBlock]:
            for tile in both.grid:
                limits.begin_work(tile.core.size)
                before, after = both.values(tile.core)
                found.add(Joint.of(before, after, both.spec, tile.core))
                labels = options.legend.labels(*both.classes(before, after))
                yield from writer.encode(labels, tile, both.spec, both.grid.tile)

        usual = FORMATS[both.spec.format].mask
        writer = mask_writer("cog" if len(both.spec.shape) == len("yx") else usual)
        mask = name_of(name, writer.suffix)
        writer.publish(store, mask, blocks(), both.spec, options.legend.mask, both.grid.tile)
        joint = found.total
        of_values = both.classes(joint.before, joint.after)
        classes = joint.mapped(*of_values)
        objects = object_changes(joint, of_values, both.spec) if both.numbered else None
        spread: tuple[Spread, ...] = ()
        if options.spread != UNKNOWN:
            spread = spread_of(
                both.spec,
                Grid(both.grid.shape, both.grid.tile, 1),
                lambda box: both.classes(*both.values(box)),
                options.spread,
            )
        return Change(
            classes.before,
            classes.after,
            classes.pixels,
            classes.areas(both.spec),
            both.spec.space.unit,
            both.warped,
            mask,
            objects,
            spread,
        )


def view(sides: tuple[Side, Side], options: ChangeOptions) -> ChangeView:
    """Two masks and their change as small pictures: every n-th pixel of the middle plane."""
    with ExitStack() as stack:
        both = _open(sides, options, stack)
        *planes, height, width = both.grid.shape
        step = max(1, -(-max(height, width) // _SIDE))
        middle = tuple(n // 2 for n in planes)
        rows = []
        for y in range(step // 2, height, step):
            box = Box((*middle, y, 0), (*(n + 1 for n in middle), y + 1, width))
            rows.append([each.reshape(-1)[step // 2 :: step] for each in both.values(box)])
        before, after = (np.stack(side) for side in zip(*rows, strict=True))
        labels = options.legend.labels(*both.classes(before, after))
        return ChangeView(before, after, labels, both.numbered)


def _open(sides: tuple[Side, Side], options: ChangeOptions, stack: ExitStack) -> _Both:
    specs = tuple(formats.describe(side.mask) for side in sides)
    here, there = specs
    numbered = holds_object_ids(here)
    if numbered != holds_object_ids(there):
        kinds = ("objects", "classes") if numbered else ("classes", "objects")
        raise RecipeError(
            f"{here.location} holds {kinds[0]} and {there.location} holds {kinds[1]}. Compare "
            "outputs of the same kind."
        )
    difference = grid_difference(here, there)
    if difference and not options.warp:
        remedy = (
            " With --warp, the second mask is resampled to the grid of the first one (nearest "
            "neighbour)."
        )
        raise GridMismatch(
            f"{here.location} and {there.location} lie on different grids: {difference}."
            + (remedy if can_be_warped(here) and can_be_warped(there) else "")
        )
    after = WarpedMask.open(there, here) if difference else open_mask(there, "index")
    tile = Tiling(options.tile).tile(here.shape)
    return _Both(
        here,
        stack.enter_context(open_mask(here, "index")),
        stack.enter_context(after),
        sides,
        numbered,
        bool(difference),
        Grid(here.shape, tile),
    )


def grid_difference(here: RasterSpec, there: RasterSpec) -> str:
    """How the grids of two rasters differ, in words; empty if they are the same."""
    sizes = [" x ".join(str(n) for n in reversed(spec.shape)) for spec in (here, there)]
    names = [_crs_text(spec.space.crs) for spec in (here, there)]
    if (here.space.crs is None) != (there.space.crs is None):
        return f"one {names[0]}, the other {names[1]}"
    if sizes[0] != sizes[1] or names[0] != names[1]:
        return f"{sizes[0]} pixels {names[0]}, and {sizes[1]} pixels {names[1]}"
    shift = largest_shift(there.space, here.space, here.shape)
    if not shift <= _LARGEST_SHIFT:
        return f"their corners are {shift:.3g} pixels apart, both {names[0]}"
    return fit(there, here).elsewhere


def _crs_text(crs: str | None) -> str:
    if crs is None:
        return "without a CRS"
    from pyproj import CRS

    system = CRS.from_user_input(crs)
    code = system.to_authority()
    return f"in {':'.join(code) if code else system.name}"
