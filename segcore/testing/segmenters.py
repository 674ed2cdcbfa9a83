"""What every segmenter must hold. Plug-in authors can run these checks on their own.

A check takes a recipe (any member of `SEGMENTERS`, made with its parameters) and a picture, and raises `AssertionError` where
the contract is broken: tiling must not matter, merging must not depend on order, values must pickle, memory must stay within
the footprint, and a fitted model must be made of JSON values.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import tracemalloc
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from segcore.fold import observe_all
from segcore.geometry import Grid
from segcore.model import MODELS, Exactness, Fitter, Segmenter
from segcore.raster import Block, RasterSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from segcore.geometry import Shape, Tile


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image in memory."""

    pixels: NDArray[np.generic]
    """Shape (y, x, channels)."""
    valid: NDArray[np.bool_]
    interpretation: Literal["rgb", "bands"] = "bands"
    name: str = "memory.tif"

    @property
    def spec(self) -> RasterSpec:
        """What the header of such an image would tell."""
        height, width, channels = self.pixels.shape
        return RasterSpec(
            location=f"file:///pictures/{self.name}",
            format="memory",
            shape=(height, width),
            bands=tuple(range(1, channels + 1)),
            dtype=self.pixels.dtype.name,
            chunks=(height, width),
            version="1",
            file_bands=channels,
            interpretation=self.interpretation,
        )

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """What a reader of the bands of `spec` delivers for a tile."""
        channels = [band - 1 for band in spec.bands]
        # Picking channels by a list leaves them apart in memory; readers deliver the bands of a pixel side by side.
        pixels = np.ascontiguousarray(self.pixels[tile.read.slices][..., channels])
        return Block(tile, pixels, np.ascontiguousarray(self.valid[tile.read.slices]), spec)

    def blocks(self, model: Fitter | Segmenter, tile: Shape | None = None) -> list[Block]:
        """The blocks that a model sees under this tiling. None: one block."""
        spec = model.select(self.spec)
        return [self.block(each, spec) for each in Grid(spec.shape, tile or spec.shape, model.footprint.halo)]


def started(recipe: Any) -> Fitter | Segmenter:
    """What a recipe starts with."""
    return cast("Fitter | Segmenter", recipe.start())


def fitted(recipe: Any, pictures: Sequence[Picture], tile: Shape | None = None) -> Segmenter:
    """The model of a recipe on these pictures under this tiling."""
    model = started(recipe)
    while not isinstance(model, Segmenter):
        fitter = model
        blocks = [block for picture in pictures for block in picture.blocks(fitter, tile)]
        model = fitter.finish(observe_all(fitter, blocks))
    return model


def labelled(model: Segmenter, picture: Picture, tile: Shape | None = None) -> NDArray[np.integer]:
    """The labels of the whole picture under this tiling."""
    out = np.zeros(picture.spec.shape, np.uint32)
    for block in picture.blocks(model, tile):
        out[block.tile.core.slices] = block.tile.trim(model.segment(block).values)
    return out


def check_tiling(recipe: Any, picture: Picture, tile: Shape) -> None:
    """The model is the same for any tiling, and where the recipe says EXACT so is every valid pixel's class."""
    whole, tiled = fitted(recipe, [picture]), fitted(recipe, [picture], tile)
    assert whole == tiled, f"{recipe}: fitted on tiles of {tile} the model differs"
    if whole.exactness is Exactness.EXACT:
        one, many = labelled(whole, picture), labelled(whole, picture, tile)
        differing = int(np.count_nonzero((one != many) & picture.valid))
        assert differing == 0, f"{recipe}: {differing} pixels differ under tiles of {tile}"


def check_merging(recipe: Any, picture: Picture, tile: Shape) -> None:
    """Merging in another order, another grouping, or after a journey by pickle gives the same model."""
    fitter = started(recipe)
    while not isinstance(fitter, Segmenter):
        blocks = picture.blocks(fitter, tile)
        forth = observe_all(fitter, blocks)
        back = observe_all(fitter, blocks[::-1])
        half = len(blocks) // 2
        halves = [observe_all(fitter, blocks[half:]), observe_all(fitter, blocks[:half])]
        travelled = [pickle.loads(pickle.dumps(part)) for part in halves if part is not None]
        results = [fitter.finish(state) for state in (forth, back, reduce(fitter.merge, travelled))]
        assert results[0] == results[1], f"{recipe}: the order of merging changes the result"
        assert results[0] == results[2], f"{recipe}: the grouping of merging changes the result"
        fitter = results[0]


def check_values(recipe: Any, picture: Picture) -> None:
    """Recipes and models pickle and compare; a model's file and its provenance are JSON."""
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    model = fitted(recipe, [picture])
    assert pickle.loads(pickle.dumps(model)) == model
    assert type(model) in MODELS.values(), f"{type(model).__name__} is not registered in MODELS"
    json.dumps(dict(model.provenance()), allow_nan=False)
    fields = json.loads(json.dumps(dataclasses.asdict(cast("Any", model))))
    again = type(model)(**{name: _tuples(value) for name, value in fields.items()})
    assert again == model, f"{recipe}: the model read back from JSON differs"


def check_labels(recipe: Any, picture: Picture) -> None:
    """Labels cover the block and are ids of named classes."""
    model = fitted(recipe, [picture])
    (block,) = picture.blocks(model)
    labels = model.segment(block)
    assert labels.values.shape == block.valid.shape
    assert labels.values.dtype.kind in "iu"
    ids = np.unique(labels.values[block.valid]) if labels.class_of is None else np.array(labels.class_of)
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < len(model.classes)), f"{recipe}: labels without a class name"


def check_footprint(recipe: Any, picture: Picture, slack: int = 2**21) -> None:
    """Neither fitting nor labelling takes more memory than the footprint says, once the process is warm."""
    model = started(recipe)
    while not isinstance(model, Segmenter):
        fitter = model
        (block,) = picture.blocks(fitter)
        fitter.observe(block)
        _measure(lambda fitter=fitter, block=block: fitter.observe(block), fitter, block, slack)
        model = fitter.finish(fitter.observe(block))
    segmenter = model
    (block,) = picture.blocks(segmenter)
    segmenter.segment(block)
    _measure(lambda: segmenter.segment(block), segmenter, block, slack)


def _measure(work: Any, model: Fitter | Segmenter, block: Block, slack: int) -> None:
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    used = peak + block.pixels.nbytes + block.valid.nbytes
    allowed = model.footprint.bytes_per_pixel * block.valid.size + slack
    per_pixel = used / block.valid.size
    assert used <= allowed, f"{model}: {per_pixel:.1f} bytes a pixel; its footprint says {model.footprint.bytes_per_pixel}"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
