"""Segment: one shard of images, from pixels to published masks and results.

Small images are done by one job each. Large ones go through passes: their parts are segmented;
where there are objects these are joined, once an image, and the parts drawn again; last the parts
are put together. An image that fails drops out of the passes that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from maskloom.segcore.errors import WorkerDied
from maskloom.segcore.models.protocols import Fitter
from maskloom.segcore.pipeline.jobs import (
    FinishJob,
    ImagesJob,
    Job,
    JoinJob,
    RelabelJob,
    RunSettings,
    TileRangeJob,
    TileRangeResult,
    staging_folder,
)
from maskloom.segcore.pipeline.records import Failure, ImageResult, PlannedImage, Shard
from maskloom.segcore.pipeline.worker import failed, perform
from maskloom.segcore.storage.store import Store
from maskloom.tasks import batching
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.fit import fit_alone
from maskloom.tasks.progress import Progress

_Staging = TileRangeJob | JoinJob | RelabelJob
"""Jobs that leave something for a later pass."""


@dataclass(frozen=True, slots=True)
class ShardContext:
    """What every shard works with."""

    fanout: Fanout
    settings: RunSettings
    classes: tuple[str, ...]
    """Names of the classes for images that fail. Empty where each image has a model of its own that
    names them.
    """
    progress: Progress


@dataclass(frozen=True, slots=True)
class _Large:
    """A large image whose parts have been staged."""

    order: RunSettings
    item: PlannedImage
    ranges: tuple[tuple[int, int], ...]
    """First tile, and one past the last, of each part in their order."""


def segment_shard(shard: Shard, context: ShardContext) -> list[ImageResult]:
    """A result for every image of the shard, in the shard's order."""
    results = {
        item.source.uri: _failed(context, item, item.failure)
        for item in shard.items
        if item.failure is not None
    }
    usable = [item for item in shard.items if item.failure is None]
    orders = _orders_of_large(usable, context, results)
    parts = (
        part
        for item in usable
        if item.source.uri in orders
        for part in batching.parts(orders[item.source.uri], item)
    )
    whole = batching.whole_images(context.settings, usable, context.fanout.workers)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for job, _ in _do(context, (*parts, *whole), results):
        if isinstance(job, TileRangeJob):
            ranges.setdefault(job.item.source.uri, []).append((job.first, job.stop))
    large = [
        _Large(orders[item.source.uri], item, tuple(sorted(ranges[item.source.uri])))
        for item in usable
        if item.source.uri in orders and item.source.uri not in results
    ]
    counts = _join([image for image in large if image.order.joins], context, results)
    finish = (
        FinishJob(image.order, image.item, image.ranges, counts.get(image.item.source.uri, 0))
        for image in large
        if image.item.source.uri not in results
    )
    _do(context, finish, results)
    return [results[item.source.uri] for item in shard.items]


def _orders_of_large(
    items: Sequence[PlannedImage], context: ShardContext, results: dict[str, ImageResult]
) -> dict[str, RunSettings]:
    """The orders for the large images, by URI. An image that no model can be fitted to gets its
    result.
    """
    orders = {}
    for item in items:
        if item.spec is not None and batching.is_spread(item.spec, context.settings):
            order = _order_for(item, context)
            if isinstance(order, Failure):
                results[item.source.uri] = _failed(context, item, order)
            else:
                orders[item.source.uri] = order
    return orders


def _join(
    images: Sequence[_Large], context: ShardContext, results: dict[str, ImageResult]
) -> dict[str, int]:
    """Join the objects of large images and draw their parts again; the number of objects of each,
    by URI.
    """
    joined = _do(
        context, (JoinJob(image.order, image.item, image.ranges) for image in images), results
    )
    redraw = (
        RelabelJob(part, answer.objects)
        for job, answer in joined
        if isinstance(job, JoinJob)
        for part in job.parts
    )
    _do(context, redraw, results)
    return {job.item.source.uri: answer.objects for job, answer in joined}


def clear_staging(results: Sequence[ImageResult], context: ShardContext) -> None:
    """Remove what was staged for these images, which is in their masks and tables now."""
    store = Store(context.settings.output)
    for result in results:
        for name in result.tables.values():
            store.remove(name)
        if result.spec is not None and batching.is_spread(result.spec, context.settings):
            store.remove(staging_folder(context.settings, PlannedImage(result.source, result.spec)))


def _order_for(item: PlannedImage, context: ShardContext) -> RunSettings | Failure:
    """The order for one large image, its model fitted to it where each image has its own; or why it
    has none.
    """
    if not isinstance(context.settings.model, Fitter):
        return context.settings
    fitted = fit_alone(context.fanout, context.settings, item)
    return fitted if isinstance(fitted, Failure) else replace(context.settings, model=fitted)


def _do(
    context: ShardContext, jobs: Iterable[Job], results: dict[str, ImageResult]
) -> list[tuple[_Staging, TileRangeResult]]:
    """Perform the jobs and file the results of images that are through; the other jobs that were
    done, with their answers.
    """
    staged: list[tuple[_Staging, TileRangeResult]] = []
    for job, answer in context.fanout.map(perform, jobs):
        items: Sequence[PlannedImage] = job.items if isinstance(job, ImagesJob) else (job.item,)
        if isinstance(answer, WorkerDied):
            results.update(
                (item.source.uri, _failed(context, item, Failure.of(answer))) for item in items
            )
        elif isinstance(job, ImagesJob):
            results.update((result.source.uri, result) for result in answer)
        elif isinstance(job, FinishJob):
            results[job.item.source.uri] = answer
        elif answer.failure is not None:
            results[job.item.source.uri] = _failed(context, job.item, answer.failure)
        else:
            staged.append((job, answer))
        context.progress.advance(job)
    return staged


def _failed(context: ShardContext, item: PlannedImage, failure: Failure | None) -> ImageResult:
    if failure is None:
        raise ValueError(f"{item.source.uri} has not failed")
    return failed(context.settings, item, failure, context.classes)
