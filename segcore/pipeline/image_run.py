"""Canvas: one image under one order, drawn tile by tile.

    first    reads a tile, segments it, counts and encodes what is final, and sketches objects
    second   draws and measures a tile's objects once they are joined; only where there are objects

A semantic mask is final after the first pass; a mask of objects, and their table, need the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.figures.preview import (
    PreviewPart,
    observe_preview,
    preview_stride,
    relabel_preview,
)
from maskloom.segcore.masks import MaskWriter, mask_writer
from maskloom.segcore.models.protocols import Fitter, Model, ObjectSegmenter, Segmenter
from maskloom.segcore.objects.components import Components
from maskloom.segcore.objects.two_pass import (
    ObjectMerger,
    PackedTile,
    RelabelledTile,
    Relabelling,
    redraw,
    sketch_tile,
    surrounded,
)
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.tile_results import Measured, States, TileResults
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.spec import FORMATS, Block, RasterSpec, Reader
from maskloom.segcore.statistics.objects.table import (
    BandSums,
    Measures,
    TileObjects,
    finish,
    measure,
    observe_bands,
)
from maskloom.segcore.statistics.protocol import Labelled
from maskloom.segcore.storage.packing import pack_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Tile
    from maskloom.segcore.statistics.objects.options import Objects


@dataclass(frozen=True, slots=True)
class ImageRun:
    """An image, the model that is run on it, and what is asked for."""

    order: RunSettings
    model: Model
    source: RasterSpec
    """The image with the bands that are read."""
    spec: RasterSpec
    """The image with the bands that the model sees."""

    @classmethod
    def of(cls, order: RunSettings, model: Fitter | Model, spec: RasterSpec) -> ImageRun:
        """The canvas of an image. Raises `ModelMismatch` where the image does not suit the
        model.
        """
        if isinstance(model, Fitter):
            raise TypeError(f"{type(model).__name__} must be fitted first")
        chosen = model.select(spec)
        # Band means of objects are of all bands, whatever the model looks at.
        read = (
            spec.select(tuple(dict.fromkeys((*spec.bands, *chosen.bands))))
            if order.objects is not None
            else chosen
        )
        return cls(order, model, read, chosen)

    @property
    def grid(self) -> Grid:
        """The tiles of the image."""
        return self.order.grid(self.spec)

    @property
    def legend(self) -> ClassTable:
        """Names and colours of the model's classes."""
        return ClassTable.of(self.model.classes)

    @property
    def joiner(self) -> ObjectMerger | None:
        """Who joins the objects of tiles; None where there are none."""
        if isinstance(self.model, ObjectSegmenter):
            return self.model
        return (
            None if self.order.objects is None else parts_of(self.order.objects, self.model.classes)
        )

    @property
    def draws_objects(self) -> bool:
        """Whether the values of the mask are ids of objects."""
        return isinstance(self.model, ObjectSegmenter)

    def mask_writer(self, count: int) -> MaskWriter:
        """The writer of the mask, which may hold `count` objects."""
        return mask_writer(FORMATS[self.spec.format].mask, count if self.draws_objects else 0)

    def first(self, reader: Reader, tile: Tile) -> tuple[TileResults, PackedTile | None]:
        """The first pass over a tile."""
        pixels, valid = reader.read(tile.read)
        block = Block(tile, self._channels(pixels), valid, self.spec)
        if isinstance(self.model, ObjectSegmenter):
            fragments = self.model.fragment(block)
            # Their final labels come with the second pass.
            preview = observe_preview(block, fragments.values, preview_stride(self.spec.shape))
            part = TileResults()
            extra: dict[str, NDArray[Any]] = {
                "preview": np.frombuffer(preview.to_bytes(), np.uint8)
            }
        else:
            classes = _classes(self.model, block, self.legend)
            part, extra = self._classified(block, classes), {}
            if self.order.objects is None:
                return part, None
            fragments = parts_of(self.order.objects, self.model.classes).fragment(
                classes, tile, self.spec.shape
            )
        if self.order.objects is not None:
            sums = observe_bands(fragments.values, tile.trim(pixels), len(fragments.class_of) - 1)
            extra.update((f"bands.{name}", array) for name, array in sums.to_arrays().items())
            if fragments.score_of is not None:
                extra["score"] = fragments.score_of
        return part, sketch_tile(fragments, tile.trim(valid), tile, self.spec.shape[1], extra)

    def second(self, tile: Tile, body: bytes, placement: Relabelling, count: int) -> TileResults:
        """The second pass over a tile of an image with `count` objects: `body` is that of the
        tile's sketch.
        """
        drawn = redraw(body, placement)
        measured = [] if self.order.objects is None else [self._measured(tile, drawn, placement)]
        if not isinstance(self.model, ObjectSegmenter):
            return TileResults(measured=measured)
        preview = PreviewPart.from_bytes(drawn.extra["preview"].tobytes())
        return TileResults(
            self.mask_writer(count).encode(drawn.ids, tile, self.spec, self.grid.tile),
            self._count(drawn.classes(self.legend.nodata, self.legend.dtype), tile),
            [relabel_preview(preview, drawn.ids, tile, preview_stride(self.spec.shape))],
            measured,
        )

    def rows_of(self, measures: Measures) -> pa.Table:
        """Rows of the table of objects, for objects of which no tile knows more."""
        wanted = self.order.objects
        assert wanted is not None
        chosen = measures.pixels >= wanted.min_size
        if wanted.classes is not None:
            chosen &= np.isin(
                measures.class_id,
                [i for i, name in enumerate(self.model.classes) if name in wanted.classes],
            )
        return finish(
            measures.take(np.flatnonzero(chosen)),
            self.source,
            self.model.classes,
            max(self.source.bands),
        )

    def _channels(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """The bands that the model sees among those that were read."""
        if self.spec.bands == self.source.bands:
            return pixels
        return np.ascontiguousarray(
            pixels[..., [self.source.bands.index(band) for band in self.spec.bands]]
        )

    def _classified(self, block: Block, classes: NDArray[np.integer]) -> TileResults:
        tile = block.tile
        return TileResults(
            self.mask_writer(0).encode(classes, tile, self.spec, self.grid.tile),
            self._count(classes, tile),
            [observe_preview(block, classes, preview_stride(self.spec.shape))],
        )

    def _count(self, classes: NDArray[np.integer], tile: Tile) -> States:
        labelled = Labelled(classes, tile, self.spec, self.legend)
        return {
            name: statistic.observe(labelled) for name, statistic in self.order.statistics.items()
        }

    def _measured(self, tile: Tile, drawn: RelabelledTile, placement: Relabelling) -> Measured:
        numbers = placement.numbers
        object_id = np.unique(np.concatenate([np.zeros(1, np.uint32), numbers.ids, placement.ring]))
        place = np.searchsorted(object_id, numbers.ids)
        class_id, whole = np.zeros(len(object_id), np.int32), np.zeros(len(object_id), np.bool_)
        class_id[place] = numbers.class_of
        whole[place[numbers.whole]] = True
        score = np.full(len(object_id), np.nan, np.float32)
        if "score" in drawn.extra:
            np.fmax.at(score, place, drawn.extra["score"])
        core, ring = (
            place.astype(np.uint32)[drawn.fragments],
            np.searchsorted(object_id, placement.ring),
        )
        sums = {
            name.removeprefix("bands."): array
            for name, array in drawn.extra.items()
            if name.startswith("bands.")
        }
        assert self.order.objects is not None
        tile_objects = TileObjects(
            labels=surrounded(core, ring.astype(np.uint32), tile, self.spec.shape),
            object_id=object_id.astype(np.int64),
            class_id=class_id,
            whole=whole,
            bands=BandSums.from_arrays(sums).sum_by(place, len(object_id)),
            tile=tile,
            spec=self.source,
            score=score,
        )
        measures = measure(tile_objects, self.order.objects.geometry)
        alone, spanning = measures.split(measures.whole)
        return Measured(pack_table(self.rows_of(alone)), spanning.to_bytes())


def parts_of(wanted: Objects, names: tuple[str, ...]) -> Components:
    """The rule by which the connected parts of a semantic mask with these classes become objects.

    Raises `ModelMismatch` where a class is asked for that the mask does not have.
    """
    strangers = sorted(set(wanted.classes or ()) - set(names))
    if strangers:
        raise ModelMismatch(
            f"statistics.objects.classes: the mask has no class {strangers[0]!r}. Its classes are "
            f"{', '.join(names)}."
        )
    chosen = wanted.classes or tuple(name for name in names if name.lower() not in BACKGROUND_NAMES)
    return Components(
        tuple(names.index(name) for name in chosen), wanted.connectivity, wanted.min_size
    )


def _classes(model: Segmenter, block: Block, legend: ClassTable) -> NDArray[np.unsignedinteger]:
    """The classes of a block's core, with the nodata label."""
    tile = block.tile
    valid = tile.trim(block.valid)
    if not valid.any():
        return np.full(tile.core.shape, legend.nodata, legend.dtype)
    values: NDArray[np.unsignedinteger] = tile.trim(model.segment(block).values).astype(
        legend.dtype, copy=False
    )
    return values if valid.all() else np.where(valid, values, np.array(legend.nodata, legend.dtype))
