"""Fitting and segmenting in memory, under any tiling. For audits, comparisons and tests; runs go
through `segcore.pipeline.worker`.

An `ImageSource` gives the block of any tile, of an image in memory or of a region of an image file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from maskloom.segcore.fold import observe_all
from maskloom.segcore.formats import open_image
from maskloom.segcore.geometry import Box, Grid, Tile, Tiling, middle
from maskloom.segcore.models.protocols import (
    EngineSelector,
    Fitter,
    Model,
    ObjectSegmenter,
    requirements_of,
)
from maskloom.segcore.models.selection import pending_selections, probe_box, with_selections
from maskloom.segcore.objects.two_pass import join_tiles, pack_labels, relabel
from maskloom.segcore.raster.spec import Block, RasterSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape


Started = TypeVar("Started", bound=Fitter | Model)


class ImageSource(Protocol):
    """An image or volume whose blocks can be read."""

    @property
    def spec(self) -> RasterSpec:
        """The metadata of the image."""
        ...

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """The block of a tile, with the bands of `spec`."""
        ...


@dataclass(frozen=True, slots=True)
class Region:
    """A box of an image file, treated as an image."""

    image: RasterSpec
    box: Box

    @classmethod
    def middle(cls, image: RasterSpec, pixels: int) -> Region:
        """The middle of an image: a box with its proportions and at most about `pixels` pixels, or
        all of a smaller image.
        """
        return cls(image, middle(image.shape, pixels))

    @property
    def spec(self) -> RasterSpec:
        """The image's header with the shape of the region."""
        return replace(self.image, shape=self.box.shape)

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """Read a tile of the region. Raises `ReadError`."""
        start = self.box.start
        place = Box(
            tuple(a + b for a, b in zip(tile.read.start, start, strict=True)),
            tuple(a + b for a, b in zip(tile.read.stop, start, strict=True)),
        )
        with open_image(replace(spec, shape=self.image.shape)) as reader:
            pixels, valid = reader.read(place)
        return Block(tile, pixels, valid, spec)


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A model's output for a whole image."""

    values: NDArray[np.integer]
    """Classes, or ids of objects (uint32). Undefined where there is no data."""
    classes: NDArray[np.integer]
    """The class of each pixel."""
    valid: NDArray[np.bool_]


def blocks(
    source: ImageSource, model: Fitter | Model, tile: Shape | None = None
) -> Iterator[Block]:
    """The blocks of an image for a model under this tiling. None: one block."""
    spec = model.select(source.spec)
    return (source.block(each, spec) for each in _grid(model, spec, tile))


def _grid(model: Fitter | Model, spec: RasterSpec, tile: Shape | None) -> Grid:
    requirements = requirements_of(model, spec)
    return Tiling(tile or spec.shape).grid(spec.shape, requirements.halo, requirements.planar)


def with_selection(model: Started, source: ImageSource) -> Started:
    """Return the model or fitter with its engines selected on the middle of the image."""
    return with_selections(
        model,
        {
            key: _select_engine(selector, source)
            for key, selector in pending_selections(model).items()
        },
    )


def _select_engine(selector: EngineSelector, source: ImageSource) -> Mapping[str, Any]:
    spec = selector.select(source.spec)
    box = probe_box(spec.shape)
    return selector.select_engine(source.block(Tile((0,) * len(box.shape), box, box), spec))


def fit_to(
    model: Fitter | Model, sources: Sequence[ImageSource], tile: Shape | None = None
) -> Model:
    """The model fitted to all sources together. Raises `FitError`."""
    while isinstance(model, Fitter):
        fitter = model
        model = fitter.finish(
            observe_all(
                fitter, (block for source in sources for block in blocks(source, fitter, tile))
            )
        )
    return model


def segment_source(model: Model, source: ImageSource, tile: Shape | None = None) -> Mask:
    """The mask of an image under this tiling. None: untiled."""
    shape = source.spec.shape
    valid = np.zeros(shape, np.bool_)
    if isinstance(model, ObjectSegmenter):
        return _segment_objects(model, source, tile, valid)
    values = np.zeros(shape, np.uint16)
    for block in blocks(source, model, tile):
        core = block.tile.core.slices
        values[core] = block.tile.trim(model.segment(block).values)
        valid[core] = block.tile.trim(block.valid)
    return Mask(values, values, valid)


def _segment_objects(
    model: ObjectSegmenter, source: ImageSource, tile: Shape | None, valid: NDArray[np.bool_]
) -> Mask:
    shape = source.spec.shape
    grid = _grid(model, model.select(source.spec), tile)
    tiles = []
    for block in blocks(source, model, tile):
        core_valid = block.tile.trim(block.valid)
        valid[block.tile.core.slices] = core_valid
        tiles.append(pack_labels(model.fragment(block), core_valid, block.tile, shape))
    relabellings = join_tiles(model, grid, tiles, source.spec.location)
    values, classes = np.zeros(shape, np.uint32), np.zeros(shape, np.uint16)
    for each, packed, relabelling in zip(grid, tiles, relabellings, strict=True):
        found = relabel(packed.labels, relabelling)
        values[each.core.slices], classes[each.core.slices] = found.ids, found.classes(0, "uint16")
    return Mask(values, classes, valid)
