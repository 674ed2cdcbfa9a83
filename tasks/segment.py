"""Segments one shard of images, from pixels to staged masks and results.

A small image takes one job. A large image takes several passes: jobs segment ranges of its tiles;
if there are objects, one job joins them across tiles and others relabel the tiles; one job
assembles the mask. An image that fails takes no part in later passes.
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
from maskloom.segcore.pipeline.staging import failed
from maskloom.segcore.pipeline.worker import perform
from maskloom.segcore.storage.store import Store
from maskloom.tasks import batching
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.fit import fit_alone
from maskloom.tasks.progress import Progress

_Staging = TileRangeJob | JoinJob | RelabelJob
"""Jobs that stage results for a later pass."""


@dataclass(frozen=True, slots=True)
class ShardContext:
    """What the shards of a run share."""

    fanout: Fanout
    settings: RunSettings
    classes: tuple[str, ...]
    """Class names, for the results of images that fail. Empty if each image has its own model,
    which names the classes.
    """
    progress: Progress


@dataclass(frozen=True, slots=True)
class _Large:
    """A large image whose tiles have been staged."""

    settings: RunSettings
    image: PlannedImage
    ranges: tuple[tuple[int, int], ...]
    """First tile of each range and one past its last, in order."""


def segment_shard(
    shard: Shard, context: ShardContext, results: dict[str, ImageResult]
) -> list[ImageResult]:
    """A result for every image of the shard, in the shard's order. `results` gets them by URI as
    they come, so that those of a run that is stopped are known.
    """
    # A stored plan reads them each time.
    images = tuple(shard.images)
    results.update(
        (image.source.uri, _failed(context, image, image.failure))
        for image in images
        if image.failure is not None
    )
    usable = [image for image in images if image.failure is None]
    settings_of = _settings_of_large(usable, context, results)
    tile_ranges = (
        job
        for image in usable
        if image.source.uri in settings_of
        for job in batching.tile_ranges(settings_of[image.source.uri], image)
    )
    whole = batching.whole_images(context.settings, usable, context.fanout.workers)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for job, _ in _perform(context, (*tile_ranges, *whole), results):
        if isinstance(job, TileRangeJob):
            ranges.setdefault(job.image.source.uri, []).append((job.first, job.stop))
    large = [
        _Large(settings_of[image.source.uri], image, tuple(sorted(ranges[image.source.uri])))
        for image in usable
        if image.source.uri in settings_of and image.source.uri not in results
    ]
    counts = _join([each for each in large if each.settings.joins], context, results)
    finish = (
        FinishJob(each.settings, each.image, each.ranges, counts.get(each.image.source.uri, 0))
        for each in large
        if each.image.source.uri not in results
    )
    _perform(context, finish, results)
    return [results[image.source.uri] for image in images]


def _settings_of_large(
    images: Sequence[PlannedImage], context: ShardContext, results: dict[str, ImageResult]
) -> dict[str, RunSettings]:
    """Settings for the large images, by URI. An image that allows no fit gets a failed result."""
    settings_of = {}
    for image in images:
        if image.spec is not None and batching.is_spread(image.spec, context.settings):
            settings = _settings_for(image, context)
            if isinstance(settings, Failure):
                results[image.source.uri] = _failed(context, image, settings)
            else:
                settings_of[image.source.uri] = settings
    return settings_of


def _join(
    large: Sequence[_Large], context: ShardContext, results: dict[str, ImageResult]
) -> dict[str, int]:
    """Join the objects of large images across tiles and relabel the tiles. Returns the number of
    objects of each image, by URI.
    """
    joined = _perform(
        context, (JoinJob(each.settings, each.image, each.ranges) for each in large), results
    )
    relabel = (
        RelabelJob(part, answer.objects)
        for job, answer in joined
        if isinstance(job, JoinJob)
        for part in job.parts
    )
    _perform(context, relabel, results)
    return {job.image.source.uri: answer.objects for job, answer in joined}


def clear_staging(results: Sequence[ImageResult], context: ShardContext) -> None:
    """Remove the staged files of images that are now in masks and tables."""
    store = Store(context.settings.output)
    for result in results:
        for name in result.tables.values():
            store.remove(name)
        if result.spec is not None and batching.is_spread(result.spec, context.settings):
            store.remove(staging_folder(context.settings, PlannedImage(result.source, result.spec)))


def _settings_for(image: PlannedImage, context: ShardContext) -> RunSettings | Failure:
    """Settings for one large image, with a model fitted to it if each image has its own; or the
    failure of the fit.
    """
    if not isinstance(context.settings.model, Fitter):
        return context.settings
    fitted = fit_alone(context.fanout, context.settings, image)
    return fitted if isinstance(fitted, Failure) else replace(context.settings, model=fitted)


def _perform(
    context: ShardContext, jobs: Iterable[Job], results: dict[str, ImageResult]
) -> list[tuple[_Staging, TileRangeResult]]:
    """Perform jobs and add the results of finished images to `results`. Returns the other jobs that
    succeeded, with their answers.
    """
    staged: list[tuple[_Staging, TileRangeResult]] = []
    for job, answer in context.fanout.map(perform, jobs):
        images: Sequence[PlannedImage] = job.images if isinstance(job, ImagesJob) else (job.image,)
        if isinstance(answer, WorkerDied):
            results.update(
                (image.source.uri, _failed(context, image, Failure.of(answer))) for image in images
            )
        elif isinstance(job, ImagesJob):
            results.update((result.source.uri, result) for result in answer)
        elif isinstance(job, FinishJob):
            results[job.image.source.uri] = answer
        elif answer.failure is not None:
            results[job.image.source.uri] = _failed(context, job.image, answer.failure)
        else:
            staged.append((job, answer))
        context.progress.advance(job)
    return staged


def _failed(context: ShardContext, image: PlannedImage, failure: Failure | None) -> ImageResult:
    if failure is None:
        raise ValueError(f"{image.source.uri} has not failed")
    return failed(context.settings, image, failure, context.classes)
