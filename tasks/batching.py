"""Batches images and tiles into jobs of a useful size.

Many small images share a job, in which one worker takes them from reading to mask. An image larger
than two ranges of tiles, whose file allows random access, is divided into ranges of consecutive
tiles for all workers. Ranges do not depend on the number of workers, so a resumed run finds those
of the interrupted one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from math import prod

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.protocols import Fitter
from maskloom.segcore.pipeline.jobs import ImagesJob, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.raster.spec import RasterSpec

RANGE_PIXELS = 2**23
FIT_RANGE_PIXELS = 2**26
BATCH_IMAGES = 64


def is_spread(spec: RasterSpec, settings: RunSettings) -> bool:
    """Whether an image is divided among workers: it is large for its segmenter, readable by
    windows, and has several tiles.
    """
    several = spec.pixels > settings.tiling.pixels and 4 * prod(spec.chunks) <= spec.pixels
    return several and spec.pixels > 2 * range_pixels(settings)


def require_tiling(settings: RunSettings, images: Iterable[PlannedImage]) -> None:
    """Raise `RecipeError` if the tiling gives a side for each axis and an image has other axes."""
    for image in images:
        if image.spec is not None and not settings.tiling.suits(image.spec.shape):
            raise RecipeError(
                f"tiling.tile: {settings.tiling} has a side for each of the axes z, y and x, but "
                f"{image.source.uri} has {len(image.spec.shape)} axes. Use one number, which suits "
                "images and volumes, or remove the image from `inputs`."
            )


def range_pixels(settings: RunSettings) -> int:
    """Number of pixels in a range of tiles; fewer for segmenters that take long per pixel."""
    model = settings.model
    return max(2**16, RANGE_PIXELS // (1 if isinstance(model, Fitter) else model.requirements.cost))


def whole_images(
    settings: RunSettings, images: Collection[PlannedImage], workers: int
) -> Iterator[ImagesJob]:
    """Jobs of whole images, small enough to keep all workers busy."""
    number = total = 0
    for image in _small(settings, images):
        number += 1
        total += image.spec.pixels if image.spec else 0
    limit = min(range_pixels(settings), max(2**18, total // (4 * workers)))
    most = max(1, min(BATCH_IMAGES, -(-number // (4 * workers))))
    batch: list[PlannedImage] = []
    pixels = 0
    for image in _small(settings, images):
        batch.append(image)
        pixels += image.spec.pixels if image.spec else 0
        if pixels >= limit or len(batch) >= most:
            yield ImagesJob(settings, tuple(batch))
            batch, pixels = [], 0
    if batch:
        yield ImagesJob(settings, tuple(batch))


def _small(settings: RunSettings, images: Iterable[PlannedImage]) -> Iterator[PlannedImage]:
    """The readable images that are not spread."""
    for image in images:
        if image.spec is not None and not is_spread(image.spec, settings):
            yield image


def tile_ranges(
    settings: RunSettings, image: PlannedImage, pixels: int | None = None
) -> Iterator[TileRangeJob]:
    """Jobs of consecutive tiles of one large image. `pixels`: approximate number in each; None: as
    many as suit the segmenter.
    """
    if image.spec is None:
        return
    grid = settings.grid(image.spec)
    step = max(1, (pixels or range_pixels(settings)) // settings.tiling.pixels)
    for first in range(0, len(grid), step):
        yield TileRangeJob(settings, image, first, min(first + step, len(grid)))


def fitting_jobs(
    settings: RunSettings, images: Collection[PlannedImage], workers: int
) -> Iterator[ImagesJob | TileRangeJob]:
    """All jobs of one round of fitting, those of large images first, so that none of them runs last
    alone.

    Ranges of tiles are larger than for segmentation, since each range sends a state to the driver
    and nothing is staged for a restart.
    """
    for image in images:
        if image.spec is not None and is_spread(image.spec, settings):
            yield from tile_ranges(
                settings,
                image,
                min(FIT_RANGE_PIXELS, max(RANGE_PIXELS, image.spec.pixels // (3 * workers))),
            )
    yield from whole_images(settings, images, workers)
