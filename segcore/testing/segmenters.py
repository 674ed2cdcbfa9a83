"""The contract of segmenters: checks that authors of plug-ins can call from their tests.

A check takes a recipe (any member of `SEGMENTERS`, made with its parameters) and a picture, and
raises `AssertionError` if the contract is broken: tiling must not matter, merging must not depend
on order, values must pickle, memory must stay within the model's `requirements`, and a fitted model
must be made of JSON values.
"""

from __future__ import annotations

import json
import pickle
import tracemalloc
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from maskloom.segcore.fold import observe_all
from maskloom.segcore.ground.space import AXES, Space
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.models.protocols import (
    MODELS,
    Exactness,
    Fitter,
    Model,
    ObjectSegmenter,
    Segmenter,
    requirements_of,
)
from maskloom.segcore.pipeline.in_memory import blocks, fit_to, segment_source
from maskloom.segcore.raster.spec import Block, RasterSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image or a volume in memory."""

    pixels: NDArray[np.generic]
    """(y, x, band), or (z, y, x, band)."""
    valid: NDArray[np.bool_]
    interpretation: Literal["rgb", "bands"] = "bands"
    name: str = "memory.tif"

    @property
    def spec(self) -> RasterSpec:
        """The metadata of such an image."""
        *shape, channels = self.pixels.shape
        return RasterSpec(
            location=f"file:///pictures/{self.name}",
            format="memory",
            shape=tuple(shape),
            bands=tuple(range(1, channels + 1)),
            dtype=self.pixels.dtype.name,
            chunks=tuple(shape),
            version="1",
            file_bands=channels,
            interpretation=self.interpretation,
            space=Space(axes=AXES[-len(shape) :]),
        )

    def block(self, tile: Tile, spec: RasterSpec) -> Block:
        """The block of a tile, as read with the bands of `spec`."""
        channels = [band - 1 for band in spec.bands]
        # Indexing by a list leaves bands apart in memory; readers deliver the bands of a pixel side
        # by side.
        pixels = np.ascontiguousarray(self.pixels[tile.read.slices][..., channels])
        return Block(tile, pixels, np.ascontiguousarray(self.valid[tile.read.slices]), spec)

    def blocks(self, model: Fitter | Model, tile: Shape | None = None) -> list[Block]:
        """The blocks of the image for a model under this tiling. None: one block."""
        return list(blocks(self, model, tile))


def started(recipe: Any) -> Fitter | Model:
    """The fitter or model of a recipe."""
    return cast("Fitter | Model", recipe.start())


def fitted(recipe: Any, pictures: Sequence[Picture], tile: Shape | None = None) -> Model:
    """The model of a recipe on these pictures under this tiling."""
    return fit_to(started(recipe), pictures, tile)


def labelled(model: Model, picture: Picture, tile: Shape | None = None) -> NDArray[np.integer]:
    """The labels of the whole picture under this tiling: classes, or ids of objects."""
    return segment_source(model, picture, tile).values


def object_mask(
    model: ObjectSegmenter, picture: Picture, tile: Shape | None = None
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The ids of all objects of the picture under this tiling, and the class of each pixel."""
    mask = segment_source(model, picture, tile)
    return mask.values, mask.classes


def check_tiling(recipe: Any, picture: Picture, tile: Shape) -> None:
    """The model is the same for any tiling; if it is EXACT, so is the label of every valid
    pixel.
    """
    whole, tiled = fitted(recipe, [picture]), fitted(recipe, [picture], tile)
    assert whole == tiled, f"{recipe}: fitted on tiles of {tile} the model differs"
    if whole.exactness is Exactness.EXACT:
        one, many = labelled(whole, picture), labelled(whole, picture, tile)
        differing = int(np.count_nonzero((one != many) & picture.valid))
        assert differing == 0, f"{recipe}: {differing} pixels differ under tiles of {tile}"


def check_merging(recipe: Any, picture: Picture, tile: Shape) -> None:
    """Merging in another order, in another grouping or after pickling gives the same model."""
    fitter = started(recipe)
    while isinstance(fitter, Fitter):
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
    assert load_model(dump_model(model)) == model, (
        f"{recipe}: the model read back from its file differs"
    )


def check_labels(recipe: Any, picture: Picture) -> None:
    """Labels cover the block and are ids of named classes."""
    model = fitted(recipe, [picture])
    (block,) = picture.blocks(model)
    if isinstance(model, ObjectSegmenter):
        fragments = model.fragment(block)
        assert fragments.values.shape == block.tile.core.shape
        assert fragments.values.dtype == np.uint32
        assert not fragments.values[~block.tile.trim(block.valid)].any(), (
            f"{recipe}: objects where there is no data"
        )
        assert np.array_equal(
            np.unique(np.append(fragments.values, 0)), np.arange(len(fragments.class_of))
        )
        ids = fragments.class_of
    else:
        labels = model.segment(block)
        assert labels.values.shape == block.valid.shape
        assert labels.values.dtype.kind in "iu"
        ids = (
            np.unique(labels.values[block.valid])
            if labels.class_of is None
            else np.array(labels.class_of)
        )
    assert ids.size == 0 or (ids.min() >= 0 and ids.max() < len(model.classes)), (
        f"{recipe}: labels without a class name"
    )


def check_memory(recipe: Any, picture: Picture, slack: int = 2**21) -> None:
    """Neither fitting nor labelling takes more memory than the model's `requirements` state, once
    the process is warm.
    """
    model = started(recipe)
    while isinstance(model, Fitter):
        fitter = model
        (block,) = picture.blocks(fitter)
        fitter.observe(block)
        _measure(lambda fitter=fitter, block=block: fitter.observe(block), fitter, block, slack)
        model = fitter.finish(fitter.observe(block))
    work: Any = model.segment if isinstance(model, Segmenter) else model.fragment
    (block,) = picture.blocks(model)
    work(block)
    _measure(lambda: work(block), model, block, slack)


def _measure(work: Any, model: Fitter | Model, block: Block, slack: int) -> None:
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    used = peak + block.pixels.nbytes + block.valid.nbytes
    stated = requirements_of(model, block.spec).bytes_per_pixel
    allowed = stated * block.valid.size + slack
    per_pixel = used / block.valid.size
    assert used <= allowed, (
        f"{model}: {per_pixel:.1f} bytes per pixel; its requirements state {stated}"
    )
