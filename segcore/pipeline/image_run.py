"""One image under one run, tile by tile.

    segment_tile    first pass: reads a tile, segments it, counts and encodes final labels, and
                    packs the fragments of objects
    join            once per image: joins the fragments of all tiles
    relabel_tile    second pass: encodes and measures a tile's objects

A semantic mask is final after the first pass; a mask of objects, and their table, need the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.features.reader import shown
from maskloom.segcore.figures.preview import (
    PreviewPart,
    observe_previews,
    relabel_preview,
)
from maskloom.segcore.masks import EncodedBlock, MaskWriter, mask_writer
from maskloom.segcore.masks.quantised import Certainty, no_scores, quantised
from maskloom.segcore.masks.scores import score_writer
from maskloom.segcore.models.protocols import (
    Fitter,
    Model,
    ObjectSegmenter,
    Segmenter,
    labels_and_scores,
)
from maskloom.segcore.objects.components import Components, require_connectivity
from maskloom.segcore.objects.two_pass import (
    ObjectMerger,
    PackedLabels,
    RelabelledTile,
    Relabelling,
    TileToJoin,
    join_tiles,
    pack_labels,
    relabel,
    with_ring,
)
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.tile_results import States, TileResults, merge_results
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.raster.spec import FORMATS, Block, RasterSpec, Reader
from maskloom.segcore.statistics.objects.bands import BandSums, observe_bands
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.table import TileObjects, finish, measure
from maskloom.segcore.statistics.protocol import LabelledTile
from maskloom.segcore.storage.packing import pack, pack_table, packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Tile
    from maskloom.segcore.statistics.objects.options import Objects


@packable
@dataclass(frozen=True, slots=True, eq=False)
class TileSummary:
    """Summary of a tile's pixels for the second pass, which does not read them again."""

    previews: list[PreviewPart]
    """For masks of objects; their labels are final after the second pass."""
    bands: BandSums | None
    """Band values of the fragments, for the table of objects. None: no table."""
    score_of: NDArray[np.float32] | None
    """(n + 1,) confidence in each fragment's object."""


@dataclass(frozen=True, slots=True)
class ImageRun:
    """An image and the run that segments it."""

    settings: RunSettings
    model: Model
    opened: RasterSpec
    """The image with all bands that are read."""
    source: RasterSpec
    """The image with the bands that objects are measured in."""
    spec: RasterSpec
    """The image with the bands of the model."""

    @classmethod
    def of(cls, settings: RunSettings, spec: RasterSpec) -> ImageRun:
        """The run of an image whose model is fitted. Raises `ModelMismatch` if the image does not
        match the model.
        """
        model = settings.model
        if isinstance(model, Fitter):
            raise TypeError(f"{type(model).__name__} must be fitted first")
        chosen = model.select(spec)
        if settings.objects is not None and not isinstance(model, ObjectSegmenter):
            require_connectivity(settings.objects.connectivity, spec)
        # The table of objects has means of all bands, not only of the model's.
        source = (
            spec.select(tuple(dict.fromkeys((*spec.bands, *chosen.bands))))
            if settings.objects is not None
            else chosen
        )
        bands = tuple(dict.fromkeys((*source.bands, *shown(chosen).bands)))
        return cls(settings, model, replace(source, bands=bands), source, chosen)

    @property
    def grid(self) -> Grid:
        """The tiles of the image."""
        return self.settings.grid(self.spec)

    @property
    def class_table(self) -> ClassTable:
        """Names and colours of the model's classes."""
        return self.settings.class_table(self.model.classes, self.spec)

    @property
    def merger(self) -> ObjectMerger | None:
        """The rule that joins the objects of tiles. None: the run has no objects."""
        if isinstance(self.model, ObjectSegmenter):
            return self.model
        return self._components

    @property
    def has_object_mask(self) -> bool:
        """Whether the values of the mask are ids of objects."""
        return isinstance(self.model, ObjectSegmenter)

    def mask_writer(self, count: int) -> MaskWriter:
        """The writer of the mask, which may hold `count` objects."""
        usual = self.spec.mask or FORMATS[self.spec.format].mask
        name = self.settings.masks.get(self.spec.format, usual)
        return mask_writer(name, count if self.has_object_mask else 0)

    def segment_tile(self, reader: Reader, tile: Tile) -> tuple[TileResults, PackedLabels | None]:
        """The first pass over a tile; no labels if the run has no objects."""
        pixels, valid = reader.read(tile.read)
        block = Block(tile, self._channels(pixels, self.spec), valid, self.spec)
        picture = shown(self.spec)
        seen = replace(block, pixels=self._channels(pixels, picture), spec=picture)
        if isinstance(self.model, ObjectSegmenter):
            fragments = self.model.fragment(block)
            results = TileResults()
            previews = observe_previews(seen, fragments.values)
        else:
            classes, scores, certainty = self._classes(block)
            results, previews = self._classified(seen, classes), []
            results = replace(results, scores=scores, certainty=certainty)
            components = self._components
            if components is None:
                return results, None
            fragments = components.fragment(classes, tile, self.spec.shape)
        bands = (
            None
            if self.settings.objects is None
            else observe_bands(
                fragments.values,
                tile.trim(self._channels(pixels, self.source)),
                len(fragments.class_of) - 1,
            )
        )
        summary = TileSummary(previews, bands, fragments.score_of)
        return results, pack_labels(fragments, tile.trim(valid), tile, self.spec.shape, summary)

    def join(self, tiles: Sequence[TileToJoin]) -> Iterator[Relabelling]:
        """The relabelling of each tile in the order of the grid, from the packed labels of all
        tiles; none if the run has no objects. Raises `FormatError` if there are too many objects.
        """
        merger = self.merger
        if merger is None:
            return iter(())
        return join_tiles(merger, self.grid, tiles, self.spec.location)

    def finish_tiles(
        self, tiles: Sequence[tuple[TileResults, PackedLabels | None]]
    ) -> tuple[TileResults, int]:
        """The results of the whole image, from those of the first pass over all its tiles in the
        order of the grid; and the number of its objects. Raises as `join`.
        """
        labels = [found for _, found in tiles if found is not None]
        relabellings = list(self.join(labels))
        count = max((each.numbers.greatest for each in relabellings), default=0)
        # Without objects there are no labels, and no second pass.
        again = zip(self.grid, labels, relabellings, strict=bool(labels))
        parts = [
            *(results for results, _ in tiles),
            *(self.relabel_tile(tile, each.labels, to, count) for tile, each, to in again),
        ]
        return merge_results(parts, self.settings.statistics), count

    def relabel_tile(
        self, tile: Tile, labels: bytes, relabelling: Relabelling, count: int
    ) -> TileResults:
        """The second pass over a tile of an image with `count` objects: `labels` are those of the
        tile's `PackedLabels`.
        """
        found = relabel(labels, relabelling)
        summary: TileSummary = found.summary
        results = TileResults()
        if self.has_object_mask:
            class_table = self.class_table
            classes = found.classes(class_table.nodata, class_table.dtype)
            results = TileResults(
                self.mask_writer(count).encode(found.ids, tile, self.spec, self.grid.tile),
                self._count(classes, tile),
                [
                    relabel_preview(each, found.ids, tile, self.spec.shape)
                    for each in summary.previews
                ],
            )
        if self.settings.objects is not None:
            alone, spanning = self._measured(tile, found, relabelling.ring)
            results.rows.append(pack_table(self.rows_of(alone)))
            results.spanning.append(pack(spanning))
        return results

    def rows_of(self, measures: Measures) -> pa.Table:
        """Rows of the table of objects, from the measures of whole objects."""
        wanted = self.settings.objects
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

    def _channels(self, pixels: NDArray[np.generic], spec: RasterSpec) -> NDArray[np.generic]:
        """The bands of `spec`, in its type, among those that were read."""
        if spec.bands == self.opened.bands:
            return pixels
        chosen = [self.opened.bands.index(band) for band in spec.bands]
        return np.ascontiguousarray(pixels[..., chosen], spec.dtype)

    def _classified(self, block: Block, classes: NDArray[np.integer]) -> TileResults:
        tile = block.tile
        return TileResults(
            self.mask_writer(0).encode(classes, tile, self.spec, self.grid.tile),
            self._count(classes, tile),
            observe_previews(block, classes),
        )

    def _classes(
        self, block: Block
    ) -> tuple[NDArray[np.unsignedinteger], list[EncodedBlock], Certainty]:
        """The classes of a block's core, with the nodata label, and their scores if the run keeps
        them.
        """
        tile, model, class_table = block.tile, self.model, self.class_table
        valid = tile.trim(block.valid)
        wanted = self.settings.scores
        if not valid.any():
            shape = tile.core.shape
            none = no_scores(len(model.classes), shape) if wanted else None
            return np.full(shape, class_table.nodata, class_table.dtype), *self._encoded(none, tile)
        assert isinstance(model, Segmenter)
        labels, scores = labels_and_scores(model, block) if wanted else (model.segment(block), None)
        values: NDArray[np.unsignedinteger] = tile.trim(labels.values).astype(
            class_table.dtype, copy=False
        )
        if not valid.all():
            values = np.where(valid, values, np.array(class_table.nodata, class_table.dtype))
        found = None if scores is None else quantised(tile.trim(scores), valid)
        return values, *self._encoded(found, tile)

    def _encoded(
        self, found: tuple[NDArray[np.uint8], Certainty] | None, tile: Tile
    ) -> tuple[list[EncodedBlock], Certainty]:
        """The blocks of the scores of a tile; none if there are none."""
        if found is None:
            return [], Certainty()
        values, certainty = found
        return score_writer(self.spec).encode(values, tile, self.spec, self.grid.tile), certainty

    @property
    def _components(self) -> Components | None:
        """The rule for the objects of a semantic mask. None: no table of objects."""
        wanted = self.settings.objects
        return None if wanted is None else components_of(wanted, self.model.classes)

    def _count(self, classes: NDArray[np.integer], tile: Tile) -> States:
        labelled = LabelledTile(classes, tile, self.spec, self.class_table)
        return {
            name: statistic.observe(labelled)
            for name, statistic in self.settings.statistics.items()
        }

    def _measured(
        self, tile: Tile, found: RelabelledTile, ring: NDArray[np.uint32]
    ) -> tuple[Measures, Measures]:
        """Measures of the objects that are in this tile only, and of those that are in several
        tiles.
        """
        numbers, summary = found.numbers, found.summary
        assert self.settings.objects is not None
        object_id = np.unique(np.concatenate([np.zeros(1, np.uint32), numbers.ids, ring]))
        place = np.searchsorted(object_id, numbers.ids)
        class_id, whole = np.zeros(len(object_id), np.int32), np.zeros(len(object_id), np.bool_)
        class_id[place] = numbers.class_of
        whole[place[numbers.whole]] = True
        score = np.full(len(object_id), np.nan, np.float32)
        if summary.score_of is not None:
            joined = numbers.score_of
            own = summary.score_of
            np.fmax.at(
                score, place, own if joined is None else np.where(np.isnan(joined), own, joined)
            )
        core = place.astype(np.uint32)[found.fragments]
        around = np.searchsorted(object_id, ring).astype(np.uint32)
        measures = measure(
            TileObjects(
                labels=with_ring(core, around, tile, self.spec.shape),
                object_id=object_id.astype(np.int64),
                class_id=class_id,
                whole=whole,
                bands=summary.bands.sum_by(place, len(object_id)),
                tile=tile,
                spec=self.source,
                score=score,
            ),
            self.settings.objects.geometry,
        )
        return measures.split(measures.whole)


def components_of(wanted: Objects, names: tuple[str, ...]) -> Components:
    """The rule by which the connected parts of a semantic mask with these classes become objects.

    Raises `ModelMismatch` if `wanted` names a class that the mask lacks.
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
