"""Bundles: images and tiles put together into jobs of a useful size.

Small images travel many to a job and are done from reading to mask by one worker. An image larger
than two parts whose file allows random access is spread over all workers in parts of consecutive
tiles. Parts do not depend on the number of workers, so that a resumed run finds the parts of the
interrupted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.protocols import Fitter
from maskloom.segcore.pipeline.jobs import ImagesJob, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.raster.spec import RasterSpec

PART_PIXELS = 2**23
FIT_PIXELS = 2**26
BUNDLE_IMAGES = 64


def is_spread(spec: RasterSpec, order: RunSettings) -> bool:
    """Whether the image is large for its segmenter, readable by windows, and more than one tile."""
    several = spec.pixels > order.tiling.pixels and 4 * prod(spec.chunks) <= spec.pixels
    return several and spec.pixels > 2 * part_pixels(order)


def require_tiling(order: RunSettings, items: Iterable[PlannedImage]) -> None:
    """Raise `RecipeError` where the tiling has a side for each axis, and an image has other
    axes.
    """
    for item in items:
        if item.spec is not None and not order.tiling.suits(item.spec.shape):
            raise RecipeError(
                f"tiling.tile: {order.tiling} has a side for each of the axes z, y and x, but "
                f"{item.source.uri} has {len(item.spec.shape)} axes. Use one number, which suits "
                "images and volumes, or leave it out of `inputs`."
            )


def part_pixels(order: RunSettings) -> int:
    """Pixels of a part. Fewer where a pixel takes a segmenter long."""
    model = order.model
    return max(2**16, PART_PIXELS // (1 if isinstance(model, Fitter) else model.requirements.cost))


def whole_images(
    order: RunSettings, items: Iterable[PlannedImage], workers: int
) -> Iterator[ImagesJob]:
    """Jobs of whole images, small enough to keep all workers busy."""
    small = [item for item in items if item.spec is not None and not is_spread(item.spec, order)]
    total = sum(item.spec.pixels for item in small if item.spec)
    limit = min(part_pixels(order), max(2**18, total // (4 * workers)))
    most = max(1, min(BUNDLE_IMAGES, -(-len(small) // (4 * workers))))
    bundle: list[PlannedImage] = []
    pixels = 0
    for item in small:
        bundle.append(item)
        pixels += item.spec.pixels if item.spec else 0
        if pixels >= limit or len(bundle) >= most:
            yield ImagesJob(order, tuple(bundle))
            bundle, pixels = [], 0
    if bundle:
        yield ImagesJob(order, tuple(bundle))


def parts(
    order: RunSettings, item: PlannedImage, pixels: int | None = None
) -> Iterator[TileRangeJob]:
    """Jobs of consecutive tiles of one large image, of about so many pixels. None: what suits the
    segmenter.
    """
    if item.spec is None:
        return
    grid = order.grid(item.spec)
    step = max(1, (pixels or part_pixels(order)) // order.tiling.pixels)
    for first in range(0, len(grid), step):
        yield TileRangeJob(order, item, first, min(first + step, len(grid)))


def fitting_jobs(
    order: RunSettings, items: Iterable[PlannedImage], workers: int
) -> Iterator[ImagesJob | TileRangeJob]:
    """All jobs of one round of fitting, the large images first so that the last worker does not
    wait for one.

    Their parts are larger than those that are segmented: each part's state travels, and nothing of
    it is kept for a restart.
    """
    items = list(items)
    for item in items:
        if item.spec is not None and is_spread(item.spec, order):
            yield from parts(
                order, item, min(FIT_PIXELS, max(PART_PIXELS, item.spec.pixels // (3 * workers)))
            )
    yield from whole_images(order, items, workers)
