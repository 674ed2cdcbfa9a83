"""Scenes: fitting and segmenting in memory, under any tiling. For audits, comparisons and tests; runs go through `work.py`.

A scene gives the block of any tile: a picture in memory, or a region of an image file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from segcore.fold import observe_all
from segcore.geometry import Box, Grid, Tile
from segcore.model import Fitter, Model, ObjectSegmenter
from segcore.objects.sketch import place_objects, redraw, sketch_tile
from segcore.raster import FORMATS, Block, RasterSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segcore.geometry import Shape


class Scene(Protocol):
    """Whatever has pixels."""

    @property
    def spec(self) -> RasterSpec:
        """What the header of such an image would tell."""
        ...

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """A tile, read by the bands of `spec`."""
        ...


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image file, as if it were an image of its own."""

    image: RasterSpec
    box: Box

    @classmethod
    def middle(cls, image: RasterSpec, pixels: int) -> Region:
        """The middle of an image, of at most about so many pixels and the image's proportions; the whole where it is smaller."""
        shrink = min(1.0, (pixels / image.pixels) ** 0.5)
        shape = tuple(max(1, int(n * shrink)) for n in image.shape)
        start = tuple((n - m) // 2 for n, m in zip(image.shape, shape, strict=True))
        return cls(image, Box(start, tuple(a + m for a, m in zip(start, shape, strict=True))))

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
        with FORMATS[spec.format].open(replace(spec, shape=self.image.shape)) as reader:
            pixels, valid = reader.read(place)
        return Block(tile, pixels, valid, spec)


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """What a model says of a whole scene."""

    values: NDArray[np.integer]
    """Classes, or ids of objects (uint32). Without meaning where there is no data."""
    classes: NDArray[np.integer]
    """The class of each pixel."""
    valid: NDArray[np.bool_]


def blocks(scene: Scene, model: Fitter | Model, tile: Shape | None = None) -> Iterator[Block]:
    """The blocks that a model sees under this tiling. None: one block."""
    spec = model.select(scene.spec)
    return (scene.block(each, spec) for each in Grid(spec.shape, tile or spec.shape, model.footprint.halo))


def fit_to(model: Fitter | Model, scenes: Sequence[Scene], tile: Shape | None = None) -> Model:
    """The model fitted to all scenes together. Raises `FitError`."""
    while isinstance(model, Fitter):
        fitter = model
        model = fitter.finish(observe_all(fitter, (block for scene in scenes for block in blocks(scene, fitter, tile))))
    return model


def segment_scene(model: Model, scene: Scene, tile: Shape | None = None) -> Mask:
    """The mask of a scene under this tiling."""
    shape = scene.spec.shape
    valid = np.zeros(shape, np.bool_)
    if isinstance(model, ObjectSegmenter):
        return _segment_objects(model, scene, tile, valid)
    values = np.zeros(shape, np.uint16)
    for block in blocks(scene, model, tile):
        core = block.tile.core.slices
        values[core] = block.tile.trim(model.segment(block).values)
        valid[core] = block.tile.trim(block.valid)
    return Mask(values, values, valid)


def _segment_objects(model: ObjectSegmenter, scene: Scene, tile: Shape | None, valid: NDArray[np.bool_]) -> Mask:
    shape = scene.spec.shape
    grid = Grid(shape, tile or shape, model.footprint.halo)
    sketches = []
    for block in blocks(scene, model, tile):
        core_valid = block.tile.trim(block.valid)
        valid[block.tile.core.slices] = core_valid
        sketches.append(sketch_tile(model.fragment(block), core_valid, block.tile, shape[1], {}))
    placements = place_objects(
        model, grid, [sketch.seam for sketch in sketches], lambda number: sketches[number].firsts, scene.spec.location
    )
    values, classes = np.zeros(shape, np.uint32), np.zeros(shape, np.uint16)
    for each, sketch, placement in zip(grid, sketches, placements, strict=True):
        drawn = redraw(sketch.body, placement)
        values[each.core.slices], classes[each.core.slices] = drawn.ids, drawn.classes(0, "uint16")
    return Mask(values, classes, valid)
