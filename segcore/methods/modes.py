"""Mean shift in the space of values: the classes are the basins of attraction of the modes of the
density of all pixels' values.

The density is that of all pixels if these have at most 24 bits, otherwise that of a uniform sample
of 2**18 (`segcore.methods.samples`). So neither tiling nor the number of workers changes it.
`segcore.methods.basins` finds its modes and documents what is exact and what is approximate.

A basin with less than a thousandth of the pixels is noise, not a class: its values join the nearest
mode, as do values that the fit has not seen. All other values go to the mode at the end of their
own path, which the model stores as a table of cells.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import FitError
from maskloom.segcore.geometry import in_rows
from maskloom.segcore.methods import basins
from maskloom.segcore.methods.naming import (
    MOST_CLASSES,
    check_names,
    class_names,
    class_order,
)
from maskloom.segcore.methods.notes import note_of_nodata, note_of_units
from maskloom.segcore.methods.pointwise import select_fitted
from maskloom.segcore.methods.sampled_fitter import SampledFitter
from maskloom.segcore.methods.samples import Samples, State, Units, spread_of
from maskloom.segcore.methods.shown import colours_of_means
from maskloom.segcore.models.protocols import MODELS, Exactness, Requirements, Segmenter
from maskloom.segcore.raster.colours import Colour
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import Block, RasterSpec

    Floats = NDArray[np.float64]

LEAST_SHARE = 1e-3
"""Smallest share of the pixels for a basin to become a class."""
_MANY_CLASSES = 50
_MEMO_PAYS_FROM = 2**16
"""In smaller blocks (in pixels), looking up cells is faster than a table of colours that is still
empty.
"""
_TABLES_KEPT = 2


@dataclass(frozen=True, slots=True)
class FeatureMeanShift(SampledFitter):
    """Clusters of similar pixels, one for each mode of the density of their values."""

    kernel: basins.Kernel = "gaussian"
    """Weight of a pixel at distance d from the window's centre, for bandwidth h: flat (1 up to h),
    epanechnikov (1 - d²/h² up to h), gaussian (exp(-d²/2h²) up to 3 h). On integers with an evenly
    sloping density, the first two stop early and divide grey values into slices.
    """
    bandwidth: float | None = None
    """In units of the pixels, or in standard deviations; modes are farther apart than this. None:
    derived from the spread of the values.
    """
    bands: tuple[int, ...] | None = None
    """Bands to use, counted from 1. None: all."""
    classes: tuple[str, ...] | Mapping[str, tuple[float, ...] | str] | None = None
    """Names by class id (ascending luminance), or names with one reference each: one number per
    band, or `#rrggbb`.
    """
    standardise: bool = False
    """Whether bands and bandwidth are in units of each band's standard deviation over all
    pixels.
    """
    seed: int = 0
    """Determines the sample, if pixels are sampled, and the pixels used to choose the bandwidth."""

    def __post_init__(self) -> None:
        if self.kernel not in ("flat", "epanechnikov", "gaussian"):
            raise ValueError(
                f"kernel: expected flat, epanechnikov or gaussian; got {self.kernel!r}"
            )
        if self.bandwidth is not None and not 1e-15 <= self.bandwidth <= 1e15:
            raise ValueError(
                f"bandwidth: expected a number from 1e-15 to 1e15, or auto; got {self.bandwidth}"
            )
        if self.classes is not None:
            check_names(tuple(self.classes))
            if not 1 <= len(self.classes) <= MOST_CLASSES:
                raise ValueError(
                    f"classes: expected 1 to {MOST_CLASSES} names; got {len(self.classes)}"
                )
        self.check_common()

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """The given names; empty without names, since the number of modes is unknown."""
        return () if self.classes is None else tuple(self.classes)

    def finish(self, total: State) -> Segmenter:
        """The fitted model.

        Raises `FitError` if there is no valid pixel; if the bandwidth is so small that there are
        more than 250 classes or most pixels are in basins too small for a class; if the number of
        classes differs from that of the names; and if the values are too far apart.
        """
        dataset = Samples(self.seed).finish(total, self.bands)
        units = Units.of(dataset)
        spread = units.spread if self.standardise else np.ones_like(units.spread)
        centred, origin = dataset.centred()
        values, weights = centred.ascending()
        values = _counted_in(values, spread)
        bandwidth = self.bandwidth or basins.auto_bandwidth(values, weights, self.kernel, self.seed)
        points = basins.mode_points(values, weights, self.kernel, bandwidth)
        modes, members, orphans = _select_classes(
            points, basins.find_basins(points, self.kernel, bandwidth), bandwidth
        )
        if self.classes is not None and len(self.classes) != len(modes):
            raise FitError(
                f"classes: {len(self.classes)} names, but mean shift found {len(modes)} modes with "
                f"bandwidth {bandwidth:.6g}. Give as "
                "many names, leave them out, or "
                f"{'raise' if len(self.classes) < len(modes) else 'lower'} `bandwidth`."
            )
        modes = modes * spread + origin
        order = class_order(modes, self.classes, units.spread, rgb=dataset.rgb)
        keys, kinds, shares = _table(points, np.argsort(order)[members])
        return ModesModel(
            modes=tuple(map(tuple, modes[order].tolist())),
            classes=class_names(len(order), self.classes),
            bands=self.bands,
            kernel=self.kernel,
            bandwidth=bandwidth,
            fractions=tuple((np.bincount(kinds, shares, len(order)) / shares.sum()).tolist()),
            orphans=orphans,
            side=points.lattice.side,
            lows=tuple((np.array(points.lattice.lows) + origin / spread).tolist()),
            extents=points.lattice.extents,
            cells=_packed(np.diff(keys, prepend=np.uint64(0))),
            cell_classes=_packed(kinds.astype(np.uint8)),
            pixels=dataset.pixels,
            values=int(weights.size),
            points=len(points.values),
            exact=dataset.exact and points.complete,
            chosen=self.bandwidth is None,
            deviations=tuple(units.deviation.tolist()),
            standardised=self.standardise,
            suspect=note_of_nodata(dataset, self.bands),
        )


@MODELS.register("mean_shift_feature")
@dataclass(frozen=True, slots=True)
class ModesModel:
    """A fitted model: modes and their basins."""

    modes: tuple[tuple[float, ...], ...]
    """One per class, each with one number per band."""
    classes: tuple[str, ...]
    bands: tuple[int, ...] | None
    kernel: str
    bandwidth: float
    fractions: tuple[float, ...]
    """Share of the fitted pixels in each class."""
    orphans: float
    """Share of the fitted pixels whose own basin was too small to be a class."""
    side: float
    """Side of the cells that identify basins, in units of the bandwidth."""
    lows: tuple[float, ...]
    extents: tuple[float, ...]
    """Lower bound of the first cell along each channel, in units of the bandwidth, and number of
    cells.
    """
    cells: str
    """Keys of the occupied cells in ascending order, as differences: uint64, zlib, base64. At most
    2**17.
    """
    cell_classes: str
    """Their classes: uint8, zlib, base64."""
    pixels: int
    """Number of valid pixels."""
    values: int
    """Number of distinct values that represent them."""
    points: int
    """Number of points that represent the values: the values themselves, or the occupied cells."""
    exact: bool
    """Whether all pixels took part, with none left out by sampling or because of the number of
    bands. If False, `fractions` are estimates.
    """
    deviations: tuple[float, ...]
    """Standard deviation of each band over the fitted pixels."""
    standardised: bool = False
    """Whether bandwidth and distances are in units of `deviations`, otherwise in units of the
    pixels.
    """
    chosen: bool = False
    """Whether the bandwidth was derived from the spread of the values."""
    suspect: str | None = None
    """A note if some fitted pixels look like undeclared nodata."""

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """No halo. The table of colours adds 16 MiB per process, that of cells up to 4 MiB."""
        return Requirements(bytes_per_pixel=8 * len(self.modes[0]) + 8)

    def mean_colours(self, spec: RasterSpec) -> tuple[Colour, ...] | None:
        """The colours of the modes."""
        return colours_of_means(self.modes, self.fractions, self.deviations, spec)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the selected bands. Raises `ModelMismatch` if the number of bands differs
        from that of the modes.
        """
        return select_fitted(spec, self.bands, len(self.modes[0]))

    def segment(self, block: Block) -> Labels:
        """The mode of each pixel."""
        from maskloom.segcore.kernels import modes as kernels

        pixels = block.pixels.view(np.uint8) if block.pixels.dtype == np.bool_ else block.pixels
        shape, channels, kind = pixels.shape[:-1], pixels.shape[-1], pixels.dtype
        if (
            kind == np.uint8
            and channels == 3
            and not self.standardised
            and block.valid.size >= _MEMO_PAYS_FROM
        ):
            out = np.empty(shape, np.uint8)
            kernels.label_colours(in_rows(pixels, 3), _labeller(self), _colours(self), in_rows(out))
            return Labels(out)
        if kind.kind in "iu" and kind.itemsize * channels <= 2:
            bits = np.ascontiguousarray(pixels).view(f"u{kind.itemsize * channels}")[..., 0]
            return Labels(_complete_table(self, kind.name)[bits])
        return Labels(self.label(pixels.reshape(-1, channels)).reshape(shape))

    def label(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Classes of the rows of `values` (n, channel), shape (n,), without the tables of
        colours.
        """
        from maskloom.segcore.kernels import modes as kernels

        out = np.empty(len(values), np.uint8)
        if self.standardised:
            values = _counted_in(values.T, spread_of(self.deviations)).T
        kernels.label_values(
            values.astype(np.float32) if values.dtype == np.float16 else values,
            *_labeller(self),
            out,
        )
        return out

    def provenance(self) -> Mapping[str, Any]:
        """Modes, shares and the settings of the fit, with a note if bandwidth, units or nodata need
        attention.
        """
        note = self._note
        return {
            "clusters": len(self.modes),
            "modes": [list(mode) for mode in self.modes],
            "fractions": list(self.fractions),
            "orphans": self.orphans,
            "kernel": self.kernel,
            "bandwidth": self.bandwidth,
            "standardised": self.standardised,
            "deviations": list(self.deviations),
            **({} if note is None else {"note": note}),
            "pixels": self.pixels,
            "values": self.values,
            "points": self.points,
            "exact": self.exact,
        }

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:  # noqa: ARG002
        """The note of `provenance`."""
        return self._note

    @property
    def _note(self) -> str | None:
        notes = [self.suspect]
        if self.chosen and not 1 < len(self.modes) <= _MANY_CLASSES:
            found, way = (
                ("one class alone", "lower")
                if len(self.modes) == 1
                else (f"{len(self.modes)} classes", "higher")
            )
            notes.append(
                f"`bandwidth: auto` chose {self.bandwidth:.6g} and found {found}: start from "
                f"`bandwidth`, with a {way} number"
            )
        if not self.standardised:
            notes.append(note_of_units(self.deviations, self.bands))
        return "; ".join(filter(None, notes)) or None


def _counted_in(values: NDArray[np.generic], spread: Floats) -> NDArray[np.generic]:
    """The values (channel, n), each channel in units of its spread."""
    return values if (spread == 1).all() else values.astype(np.float64) * (1 / spread)[:, None]


def _select_classes(
    points: basins.ModePoints, found: basins.Basins, bandwidth: float
) -> tuple[Floats, NDArray[np.int64], float]:
    """Modes that are classes, the mode of each point, and the share of pixels from basins too small
    to be a class.
    """
    # The last share is that of the points without a kept mode (-1). They are orphans, however many
    # they are.
    shares = (
        np.bincount(found.members % (len(found.modes) + 1), points.weights, len(found.modes) + 1)
        / points.weights.sum()
    )
    large = shares >= LEAST_SHARE
    large[-1] = False
    orphans = float(shares[~large].sum())
    count = int(np.count_nonzero(large))
    if count > MOST_CLASSES or orphans > 0.5:
        raise FitError(
            f"Mean shift with bandwidth {bandwidth:.6g} finds {len(found.modes)} modes, {count} of "
            "them with a thousandth of the pixels "
            f"or more; expected at most {MOST_CLASSES}, holding at least half of the pixels. Raise "
            "`bandwidth`."
        )
    members = (np.cumsum(large) - 1)[found.members]
    modes = found.modes[large[:-1]]
    alone = ~large[found.members]
    members[alone] = basins.nearest_mode(points.values[alone], modes)
    return modes, members, orphans


def _table(
    points: basins.ModePoints, kinds: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], Floats]:
    """Occupied cells by ascending key, the most frequent class of their pixels (the first of
    equals), and their number of pixels.
    """
    order = np.lexsort((kinds, points.keys))
    keys, sorted_kinds = points.keys[order], kinds[order]
    first = np.flatnonzero(
        np.concatenate([[True], (keys[1:] != keys[:-1]) | (sorted_kinds[1:] != sorted_kinds[:-1])])
    )
    weights = np.add.reduceat(points.weights[order], first)
    keys, sorted_kinds = keys[first], sorted_kinds[first]
    heaviest = np.lexsort((sorted_kinds, -weights, keys))
    cells, at = np.unique(keys[heaviest], return_index=True)
    totals = np.add.reduceat(weights, np.searchsorted(keys, cells))
    return cells, sorted_kinds[heaviest][at], totals


def _packed(numbers: NDArray[np.unsignedinteger]) -> str:
    return base64.b64encode(
        zlib.compress(np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).tobytes(), 9)
    ).decode()


def _unpacked(text: str, kind: str) -> NDArray[np.unsignedinteger]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


@lru_cache(maxsize=16)
def _labeller(model: ModesModel) -> tuple[Any, Any, Floats]:
    """Lattice, table of cells and modes, as arguments of the kernels."""
    from maskloom.segcore.kernels import modes as kernels

    keys = np.cumsum(_unpacked(model.cells, "<u8").astype(np.uint64), dtype=np.uint64)
    table = basins.table_for(keys.size)
    kernels.fill(*table, keys, _unpacked(model.cell_classes, "u1"))
    modes = np.array(model.modes)
    if model.standardised:
        modes *= 1 / spread_of(model.deviations)
    return basins.ModeLattice(model.side, model.lows, model.extents).arrays, table, modes


# Threads that fill one table concurrently write the same values.
@lru_cache(maxsize=_TABLES_KEPT)
def _colours(model: ModesModel) -> NDArray[np.uint8]:  # noqa: ARG001  the cache's key
    """Class + 1 by Morton code of a colour; 0: not computed yet."""
    return np.zeros(2**24, np.uint8)


@lru_cache(maxsize=_TABLES_KEPT)
def _complete_table(model: ModesModel, dtype: str) -> NDArray[np.uint8]:
    """The class of every possible pixel of one 16-bit band, or of one or two 8-bit bands, by the
    pixel's bits.
    """
    kind = np.dtype(dtype)
    bytes_per_pixel = kind.itemsize * len(model.modes[0])
    return model.label(
        np.arange(2 ** (8 * bytes_per_pixel), dtype=f"u{bytes_per_pixel}")[:, None].view(kind)
    )
