"""Segment: one shard of images, from pixels to published masks and receipts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from segcore.errors import FitError, WorkerDied
from segcore.jobs import FinishJob, ImagesJob, Order, PartJob, staging_folder
from segcore.manifest import Failure, Item, Receipt, Shard
from segcore.model import Segmenter
from segcore.storage import Store
from segcore.work import failed, perform
from tasks import bundles
from tasks.fanout import Fanout
from tasks.fit import fit
from tasks.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class Bench:
    """What every shard works with."""

    fanout: Fanout
    order: Order
    classes: tuple[str, ...]
    """Names of the classes for images that fail. Empty where each image has a model of its own that names them."""
    progress: Progress


def segment_shard(shard: Shard, bench: Bench) -> list[Receipt]:
    """A receipt for every image of the shard, in the shard's order."""
    receipts = {item.source.uri: _failed(bench, item, item.failure) for item in shard.items if item.failure is not None}
    usable = [item for item in shard.items if item.failure is None]
    spread = [item for item in usable if item.spec is not None and bundles.is_spread(item.spec)]
    orders = {}
    for item in spread:
        try:
            orders[item.source.uri] = _order_for(item, bench)
        except FitError as error:
            receipts[item.source.uri] = _failed(bench, item, Failure.of(error))
    parts = (part for item in spread if item.source.uri in orders for part in bundles.parts(orders[item.source.uri], item))
    whole = bundles.whole_images(bench.order, usable, bench.fanout.workers)
    made = _do(bench, (*parts, *whole), receipts)
    finish = [
        FinishJob(orders[item.source.uri], item, tuple(sorted(made[item.source.uri])))
        for item in spread
        if item.source.uri in made and item.source.uri not in receipts
    ]
    _do(bench, finish, receipts)
    return [receipts[item.source.uri] for item in shard.items]


def clear_staging(shard: Shard, bench: Bench) -> None:
    """Remove the staged parts of the shard's images, which are in their masks now."""
    store = Store(bench.order.output)
    for item in shard.items:
        if item.spec is not None and bundles.is_spread(item.spec):
            store.remove(staging_folder(bench.order, item))


def _order_for(item: Item, bench: Bench) -> Order:
    """The order for one large image, its model fitted to it where each image has its own."""
    if isinstance(bench.order.model, Segmenter):
        return bench.order
    fitted = fit(bench.fanout, bench.order, [item], Silent())
    return replace(bench.order, model=fitted.model)


def _do(bench: Bench, jobs: Iterable[ImagesJob | PartJob | FinishJob], receipts: dict[str, Receipt]) -> dict[str, list[str]]:
    """Perform the jobs and file the receipts of images that are through; the names of the parts made, by URI."""
    made: dict[str, list[str]] = {}
    for job, answer in bench.fanout.map(perform, jobs):
        items: Sequence[Item] = job.items if isinstance(job, ImagesJob) else (job.item,)
        if isinstance(answer, WorkerDied):
            receipts.update((item.source.uri, _failed(bench, item, Failure.of(answer))) for item in items)
        elif isinstance(job, ImagesJob):
            receipts.update((receipt.source.uri, receipt) for receipt in answer)
        elif isinstance(job, FinishJob):
            receipts[job.item.source.uri] = answer
        elif answer.failure is not None:
            receipts[job.item.source.uri] = _failed(bench, job.item, answer.failure)
        else:
            made.setdefault(job.item.source.uri, []).append(job.name)
        bench.progress.advance(job)
    return made


def _failed(bench: Bench, item: Item, failure: Failure | None) -> Receipt:
    if failure is None:
        raise ValueError(f"{item.source.uri} has not failed")
    return failed(bench.order, item, failure, bench.classes)
