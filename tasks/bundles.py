"""Bundles: images and tiles put together into jobs of a useful size.

Small images travel many to a job and are done from reading to mask by one worker. An image larger than `SPREAD_PIXELS` whose file allows random
access is spread over all workers in parts of consecutive tiles. Parts do not depend on the number of workers, so that a resumed run
finds the parts of the interrupted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from segcore.jobs import ImagesJob, Order, PartJob
from segcore.manifest import Item
from segcore.raster import RasterSpec

PART_PIXELS = 2**23
FIT_PIXELS = 2**26
SPREAD_PIXELS = 2 * PART_PIXELS
BUNDLE_IMAGES = 64


def is_spread(spec: RasterSpec) -> bool:
    """Whether the image is large, and readable by windows."""
    return spec.pixels > SPREAD_PIXELS and 4 * spec.chunks[0] * spec.chunks[1] <= spec.pixels


def whole_images(order: Order, items: Iterable[Item], workers: int) -> Iterator[ImagesJob]:
    """Jobs of whole images, small enough to keep all workers busy."""
    small = [item for item in items if item.spec is not None and not is_spread(item.spec)]
    total = sum(item.spec.pixels for item in small if item.spec)
    limit = min(PART_PIXELS, max(2**18, total // (4 * workers)))
    most = max(1, min(BUNDLE_IMAGES, -(-len(small) // (4 * workers))))
    bundle: list[Item] = []
    pixels = 0
    for item in small:
        bundle.append(item)
        pixels += item.spec.pixels if item.spec else 0
        if pixels >= limit or len(bundle) >= most:
            yield ImagesJob(order, tuple(bundle))
            bundle, pixels = [], 0
    if bundle:
        yield ImagesJob(order, tuple(bundle))


def parts(order: Order, item: Item, pixels: int = PART_PIXELS) -> Iterator[PartJob]:
    """Jobs of consecutive tiles of one large image, of about so many pixels."""
    if item.spec is None:
        return
    grid = order.grid(item.spec)
    step = max(1, pixels // order.tile**2)
    for first in range(0, len(grid), step):
        yield PartJob(order, item, first, min(first + step, len(grid)))


def fitting_jobs(order: Order, items: Iterable[Item], workers: int) -> Iterator[ImagesJob | PartJob]:
    """All jobs of one round of fitting, the large images first so that the last worker does not wait for one.

    Their parts are larger than those that are segmented: each part's state travels, and nothing of it is kept for a restart.
    """
    items = list(items)
    for item in items:
        if item.spec is not None and is_spread(item.spec):
            yield from parts(order, item, min(FIT_PIXELS, max(PART_PIXELS, item.spec.pixels // (3 * workers))))
    yield from whole_images(order, items, workers)
