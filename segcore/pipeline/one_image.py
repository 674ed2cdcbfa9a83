"""One image as a run segments it: fitted to its own pixels, in this process, from a file or from
memory. The labels and the rows of its tables stay in memory.

The work is that of `ImageRun`, so the numbers are those of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from maskloom.segcore.features.reader import open_features
from maskloom.segcore.fold import observe_all
from maskloom.segcore.formats.arrays import HeldReader
from maskloom.segcore.formats.user_nodata import open_with
from maskloom.segcore.geometry import Tile
from maskloom.segcore.models.protocols import EngineSelector, Fitter, Model, concluded
from maskloom.segcore.models.selection import pending_selections, probe_box, with_selections
from maskloom.segcore.objects.numbering import tiles_of_layer
from maskloom.segcore.objects.rows import rows_in_order
from maskloom.segcore.objects.typical_objects import TypicalCounts
from maskloom.segcore.pipeline.image_run import ImageRun
from maskloom.segcore.pipeline.reading import open_planned, read_block
from maskloom.segcore.pipeline.staging import warning_of
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import Block, RasterSpec, Reader
from maskloom.segcore.statistics.objects.geoparquet import schema
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.packing import unpack, unpack_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.figures.preview import PreviewPart
    from maskloom.segcore.geometry import Box, Shape
    from maskloom.segcore.masks.protocol import EncodedBlock, MaskWriter
    from maskloom.segcore.pipeline.jobs import RunSettings
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.segcore.pipeline.tile_results import TileResults
    from maskloom.segcore.raster.classes import ClassTable


class Openable(Protocol):
    """An image that can be read."""

    @property
    def spec(self) -> RasterSpec:
        """Its metadata, with all bands that segmenters may choose from."""
        ...

    def open(self, spec: RasterSpec) -> AbstractContextManager[Reader]:
        """Open it with the bands of `spec`. Raises `ImageError`."""
        ...


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """An image in a file, which must not change while it is read."""

    image: PlannedImage
    spec: RasterSpec

    def open(self, spec: RasterSpec) -> AbstractContextManager[Reader]:
        """See `Openable.open`."""
        return open_planned(self.image, spec)


@dataclass(frozen=True, slots=True, eq=False)
class HeldImage:
    """An image in memory."""

    spec: RasterSpec
    pixels: NDArray[Any]
    """(y, x, band), or (z, y, x, band), with all bands of `spec`."""
    valid: NDArray[np.bool_] | None = None
    """(y, x), or (z, y, x); True where there is data. None: everywhere."""

    def open(self, spec: RasterSpec) -> AbstractContextManager[Reader]:
        """See `Openable.open`."""
        return self._reader(spec)

    def _reader(self, spec: RasterSpec) -> Reader:
        if spec.features is not None:
            return open_features(spec, self._reader)
        nodata = spec.user_nodata
        return self._opened(spec) if nodata is None else open_with(spec, nodata, self._opened)

    def _opened(self, spec: RasterSpec) -> Reader:
        held = HeldReader(self.pixels, np.dtype(spec.dtype), spec.bands)
        return held if self.valid is None else _Masked(held, self.valid)


@dataclass(frozen=True, slots=True, eq=False)
class _Masked(NothingToClose):
    """A reader of an image of which a mask says where there is data."""

    reader: Reader
    valid: NDArray[np.bool_]

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels, valid = self.reader.read(box)
        return pixels, valid & self.valid[box.slices]


@dataclass(frozen=True, slots=True, eq=False)
class SegmentedImage:
    """The result of one image."""

    model: Model
    """The fitted model."""
    spec: RasterSpec
    """The image with the bands that were read."""
    labels: NDArray[np.unsignedinteger]
    """As in the mask of a run: classes with the nodata label, or ids of objects (uint32)."""
    class_table: ClassTable
    """Names and colours of the classes."""
    tables: Mapping[str, pa.Table]
    """Rows of the tables that were asked for, without the keys of runs and images."""
    previews: tuple[PreviewPart, ...]
    """The parts of its preview; of a volume, of the plane across z."""
    warning: str | None
    """What to look at in the result. None: no warning."""


def select_engine_on(selector: EngineSelector, image: Openable) -> Mapping[str, Any]:
    """The engine of a network, selected on the middle of an image. Raises `ImageError`, and
    `WeightsError` if no engine is suitable.
    """
    spec = selector.select(image.spec)
    box = probe_box(spec.shape)
    with image.open(spec) as reader:
        pixels, valid = reader.read(box)
    return selector.select_engine(
        Block(Tile.whole(box.shape), pixels, valid, replace(spec, shape=box.shape))
    )


def fitted(settings: RunSettings, image: Openable) -> Model:
    """The model of a run, fitted to this image alone if it must be. Raises `ImageError`, and
    `FitError`.
    """
    model = settings.model
    if isinstance(model, Fitter):
        spec = model.select(image.spec)
        with image.open(spec) as reader:
            while isinstance(model, Fitter):
                fitter = model
                seen = observe_all(
                    fitter, (read_block(reader, tile, spec) for tile in settings.grid(spec))
                )
                model = concluded(fitter, seen, settings.named)
    return model


def segment_in_memory(settings: RunSettings, image: Openable) -> SegmentedImage:
    """Fit, segment and measure an image as a run with these settings does, but write nothing.

    Raises `ImageError`, `FitError`, and `WeightsError` if no engine can run a network here.
    """
    pending = pending_selections(settings.model)
    selections = {key: select_engine_on(each, image) for key, each in pending.items()}
    settings = replace(settings, model=with_selections(settings.model, selections))
    model = fitted(settings, image)
    plain = ImageRun.of(replace(settings, model=model), image.spec)
    canvas = _Canvas.of(plain)
    run = _RunInMemory(plain.settings, plain.model, plain.opened, plain.source, plain.spec, canvas)
    with image.open(run.opened) as reader:
        tiles = [run.segment_tile(reader, tile) for tile in run.grid]
    whole, _ = run.finish_tiles(tiles)
    tables = _tables(run, whole)
    shares = {
        row["class_name"]: row["fraction"]
        for row in tables["areas"].select(["class_name", "fraction"]).to_pylist()
        if row["fraction"] is not None
    }
    typical = TypicalCounts()
    if Objects.table in tables:
        typical.add_rows(tables[Objects.table])
    return SegmentedImage(
        model,
        run.source,
        canvas.labels,
        run.class_table,
        tables,
        tuple(part for part in whole.previews if part.across == 0),
        warning_of(run, shares, typical.medians),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Canvas:
    """A writer of masks that draws them into an array."""

    labels: NDArray[np.unsignedinteger]
    suffix: str = ""
    beside: tuple[str, ...] = ()
    most_objects: int = 2**32 - 1

    @classmethod
    def of(cls, run: ImageRun) -> _Canvas:
        """An empty canvas for the masks of a run."""
        dtype = "uint32" if run.has_object_mask else run.class_table.dtype
        return cls(np.zeros(run.spec.shape, dtype))

    def encode(
        self,
        labels: NDArray[np.integer],
        tile: Tile,
        spec: RasterSpec,  # noqa: ARG002  the protocol has it
        tile_shape: Shape,  # noqa: ARG002
    ) -> list[EncodedBlock]:
        """Draw the labels of a tile's core."""
        self.labels[tile.core.slices] = labels
        return []

    def publish(self, *_: Any) -> Any:
        """Refuse: nothing is written."""
        raise TypeError("this mask stays in memory")


@dataclass(frozen=True, slots=True)
class _RunInMemory(ImageRun):
    """The run of one image whose mask stays in memory."""

    canvas: _Canvas

    def mask_writer(self, count: int) -> MaskWriter:  # noqa: ARG002  it takes any number
        """The canvas."""
        return self.canvas


def _tables(run: ImageRun, whole: TileResults) -> dict[str, pa.Table]:
    tables = {}
    for name, statistic in run.settings.statistics.items():
        rows = statistic.finish(whole.states[name], run.spec, run.class_table)
        tables[statistic.table] = pa.Table.from_pylist(rows, schema=statistic.schema)
    if run.settings.objects is not None:
        tables[Objects.table] = _objects(run, whole)
    return tables


def _objects(run: ImageRun, whole: TileResults) -> pa.Table:
    """The rows of the objects by ascending id, with columns for all bands of the file."""
    spanning = run.rows_of(
        Measures.concatenate([unpack(Measures, each) for each in whole.spanning])
    )
    rows = (unpack_table(each) for each in whole.rows)
    found = pa.concat_tables(rows_in_order(rows, spanning, tiles_of_layer(run.grid)))
    wanted = schema(run.source.file_bands, len(run.source.shape))
    columns = [
        found[each.name] if each.name in found.column_names else pa.nulls(len(found), each.type)
        for each in wanted
    ]
    return pa.table(columns, schema=wanted)
