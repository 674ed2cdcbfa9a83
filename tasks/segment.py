"""Segment: one shard of images, from pixels to published masks and receipts.

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
from maskloom.tasks.fanout.dask import Fanout
from maskloom.tasks.fit import fit_alone
from maskloom.tasks.progress import Progress

_Staging = TileRangeJob | JoinJob | RelabelJob
"""Jobs that leave something for a later pass."""


@dataclass(frozen=True, slots=True)
class ShardContext:
    """What every shard works with."""

    fanout: Fanout
    order: RunSettings
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


def segment_shard(shard: Shard, bench: ShardContext) -> list[ImageResult]:
    """A receipt for every image of the shard, in the shard's order."""
    receipts = {
        item.source.uri: _failed(bench, item, item.failure)
        for item in shard.items
        if item.failure is not None
    }
    usable = [item for item in shard.items if item.failure is None]
    orders = _orders_of_large(usable, bench, receipts)
    parts = (
        part
        for item in usable
        if item.source.uri in orders
        for part in batching.parts(orders[item.source.uri], item)
    )
    whole = batching.whole_images(bench.order, usable, bench.fanout.workers)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for job, _ in _do(bench, (*parts, *whole), receipts):
        if isinstance(job, TileRangeJob):
            ranges.setdefault(job.item.source.uri, []).append((job.first, job.stop))
    large = [
        _Large(orders[item.source.uri], item, tuple(sorted(ranges[item.source.uri])))
        for item in usable
        if item.source.uri in orders and item.source.uri not in receipts
    ]
    counts = _join([image for image in large if image.order.joins], bench, receipts)
    finish = (
        FinishJob(image.order, image.item, image.ranges, counts.get(image.item.source.uri, 0))
        for image in large
        if image.item.source.uri not in receipts
    )
    _do(bench, finish, receipts)
    return [receipts[item.source.uri] for item in shard.items]


def _orders_of_large(
    items: Sequence[PlannedImage], bench: ShardContext, receipts: dict[str, ImageResult]
) -> dict[str, RunSettings]:
    """The orders for the large images, by URI. An image that no model can be fitted to gets its
    receipt.
    """
    orders = {}
    for item in items:
        if item.spec is not None and batching.is_spread(item.spec, bench.order):
            order = _order_for(item, bench)
            if isinstance(order, Failure):
                receipts[item.source.uri] = _failed(bench, item, order)
            else:
                orders[item.source.uri] = order
    return orders


def _join(
    images: Sequence[_Large], bench: ShardContext, receipts: dict[str, ImageResult]
) -> dict[str, int]:
    """Join the objects of large images and relabel their tiles; the number of objects of each,
    by URI.
    """
    joined = _do(
        bench, (JoinJob(image.order, image.item, image.ranges) for image in images), receipts
    )
    relabel = (
        RelabelJob(part, answer.objects)
        for job, answer in joined
        if isinstance(job, JoinJob)
        for part in job.parts
    )
    _do(bench, relabel, receipts)
    return {job.item.source.uri: answer.objects for job, answer in joined}


def clear_staging(receipts: Sequence[ImageResult], bench: ShardContext) -> None:
    """Remove what was staged for these images, which is in their masks and tables now."""
    store = Store(bench.order.output)
    for receipt in receipts:
        for name in receipt.tables.values():
            store.remove(name)
        if receipt.spec is not None and batching.is_spread(receipt.spec, bench.order):
            store.remove(staging_folder(bench.order, PlannedImage(receipt.source, receipt.spec)))


def _order_for(item: PlannedImage, bench: ShardContext) -> RunSettings | Failure:
    """The order for one large image, its model fitted to it where each image has its own; or why it
    has none.
    """
    if not isinstance(bench.order.model, Fitter):
        return bench.order
    fitted = fit_alone(bench.fanout, bench.order, item)
    return fitted if isinstance(fitted, Failure) else replace(bench.order, model=fitted)


def _do(
    bench: ShardContext, jobs: Iterable[Job], receipts: dict[str, ImageResult]
) -> list[tuple[_Staging, TileRangeResult]]:
    """Perform the jobs and file the receipts of images that are through; the other jobs that were
    done, with their answers.
    """
    staged: list[tuple[_Staging, TileRangeResult]] = []
    for job, answer in bench.fanout.map(perform, jobs):
        items: Sequence[PlannedImage] = job.items if isinstance(job, ImagesJob) else (job.item,)
        if isinstance(answer, WorkerDied):
            receipts.update(
                (item.source.uri, _failed(bench, item, Failure.of(answer))) for item in items
            )
        elif isinstance(job, ImagesJob):
            receipts.update((receipt.source.uri, receipt) for receipt in answer)
        elif isinstance(job, FinishJob):
            receipts[job.item.source.uri] = answer
        elif answer.failure is not None:
            receipts[job.item.source.uri] = _failed(bench, job.item, answer.failure)
        else:
            staged.append((job, answer))
        bench.progress.advance(job)
    return staged


def _failed(bench: ShardContext, item: PlannedImage, failure: Failure | None) -> ImageResult:
    if failure is None:
        raise ValueError(f"{item.source.uri} has not failed")
    return failed(bench.order, item, failure, bench.classes)
