"""The work on a worker: functions from a job to a small answer.

    describe        the headers of some files
    select_engine   the engine and precision of a network
    observe         one round of fitting over whole images, or over some tiles of one image
    segment_images  small images from reading to published mask
    segment_part    some tiles of a large image, to a staged part
    join_image      the objects of a large image, from the labels of its tiles
    relabel_part    some tiles of a large image again, after its objects are joined
    finish_image    the staged parts of a large image, to its published mask

Jobs and answers are values of a few hundred bytes; pixels go from store to store. Every function
can be repeated at any time, by another worker or after a crash, with the same result. An image that
cannot be processed is part of the answer (`Failure`); only errors that stop the run are raised.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce, singledispatch
from importlib import import_module
from itertools import islice
from typing import Any

from maskloom.segcore.errors import FitError, ImageError
from maskloom.segcore.fold import observe_all
from maskloom.segcore.geometry import Tile
from maskloom.segcore.masks.quantised import Certainty
from maskloom.segcore.models.protocols import Fitter
from maskloom.segcore.objects.two_pass import Relabelling
from maskloom.segcore.pipeline.image_run import ImageRun
from maskloom.segcore.pipeline.jobs import (
    DescribeJob,
    FinishJob,
    ImagesJob,
    JoinJob,
    Observation,
    RelabelJob,
    RunSettings,
    SelectEngineJob,
    TileRangeJob,
    TileRangeResult,
)
from maskloom.segcore.pipeline.one_image import PlannedFile, fitted, select_engine_on
from maskloom.segcore.pipeline.reading import describe_source, open_planned, read_block, spec_of
from maskloom.segcore.pipeline.records import Failure, ImageResult, PlannedImage
from maskloom.segcore.pipeline.staging import (
    failed,
    stage_mask,
    stage_objects,
    staged_errors,
    with_rows,
    with_scores,
)
from maskloom.segcore.pipeline.tile_results import (
    StagedLabels,
    StagedResults,
    merge_results,
    merge_states,
)
from maskloom.segcore.processes import limits
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.storage.filesystems import configure
from maskloom.segcore.storage.packing import PackedFile, pack, unpack
from maskloom.segcore.storage.store import Store


def prepare_process(
    storage: Mapping[str, Mapping[str, Any]] | None = None,
    threads: int = 1,
    time_limits: limits.Limits | None = None,
    libraries: Sequence[str] = (),
) -> None:
    """Set up a process for work: store options, threads of a network, limits, one thread for OpenCV
    (it ignores OMP_NUM_THREADS), and the modules that the first jobs need, among them these
    `libraries` where they are installed.
    """
    import cv2

    from maskloom.segcore.deep.inference.engines import opening as engines

    cv2.setNumThreads(1)
    configure(storage or {})
    limits.configure(time_limits or limits.Limits())
    engines.configure(threads)
    # Now the driver still plans; the first job would wait for them.
    iter(FORMATS)
    for library in libraries:
        with suppress(ImportError, OSError):
            import_module(library)


@singledispatch
def perform(job: Any) -> Any:
    """Do a job of segmentation of any kind."""
    raise TypeError(f"there is no work in a {type(job).__name__}")


def describe(job: DescribeJob) -> tuple[PlannedImage, ...]:
    """The images of the job's sources with their headers, in the order of the job."""
    return tuple(image for source in job.sources for image in describe_source(source, job))


def select_engine(job: SelectEngineJob) -> Mapping[str, Any] | None:
    """Select an engine on the middle of an image. None if no image can be read."""
    for image in job.images:
        try:
            return select_engine_on(job.selector, PlannedFile(image, spec_of(image)))
        except ImageError:
            # It becomes a failed row later.
            continue
    return None


def observe(job: ImagesJob | TileRangeJob) -> Observation:
    """One round of fitting over the job's pixels. An image that fails contributes nothing."""
    fitter = job.settings.model
    if not isinstance(fitter, Fitter):
        raise TypeError(f"{type(fitter).__name__} has nothing left to fit")
    state, failures = None, []
    for image in job.images if isinstance(job, ImagesJob) else (job.image,):
        try:
            spec = fitter.select(spec_of(image))
            with open_planned(image, spec) as reader:
                grid = job.settings.grid(spec)
                tiles: Sequence[Tile] = (
                    grid if isinstance(job, ImagesJob) else grid[job.first : job.stop]
                )
                seen = observe_all(fitter, (read_block(reader, tile, spec) for tile in tiles))
        except ImageError as error:
            failures.append((image, Failure.of(error)))
        else:
            state = seen if state is None else fitter.merge(state, seen)
    return Observation(state, tuple(failures))


@perform.register
def segment_images(job: ImagesJob) -> tuple[ImageResult, ...]:
    """Read, segment, count and publish whole images, one after the other."""
    return tuple(_segment_image(job.settings, image) for image in job.images)


@perform.register
def segment_part(job: TileRangeJob) -> TileRangeResult:
    """The first pass over some tiles of a large image. A part that is already staged is kept."""
    store = Store(job.settings.output)
    if store.exists(job.name) and (store.exists(job.labels) or not job.settings.joins):
        return TileRangeResult()
    started = time.perf_counter()
    try:
        run = ImageRun.of(job.settings, spec_of(job.image))
        with open_planned(job.image, run.opened) as reader:
            tiles = [run.segment_tile(reader, tile) for tile in run.grid[job.first : job.stop]]
    except ImageError as error:
        return TileRangeResult(Failure.of(error))
    labels = [found for _, found in tiles if found is not None]
    if labels:
        with store.writing(job.labels) as out:
            StagedLabels.write(labels, out)
    with store.writing(job.name) as out:
        results = merge_results([part for part, _ in tiles], job.settings.statistics)
        results.stage(time.perf_counter() - started, out)
    return TileRangeResult()


@perform.register
def join_image(job: JoinJob) -> TileRangeResult:
    """Join the objects of a large image, and stage the relabellings of each part."""
    limits.begin_work(spec_of(job.image).pixels)
    store, run = Store(job.settings.output), ImageRun.of(job.settings, spec_of(job.image))
    with staged_errors(job.image, job.settings):
        tiles = [tile for part in job.parts for tile in StagedLabels.read(store, part.labels)]
    count = 0
    try:
        relabellings = run.join(tiles)
        for part in job.parts:
            found = list(islice(relabellings, part.stop - part.first))
            count = max([count, *(each.numbers.greatest for each in found)])
            with store.writing(part.relabellings) as out:
                PackedFile.write({"relabellings": [pack(each) for each in found]}, out)
    except ImageError as error:
        return TileRangeResult(Failure.of(error))
    return TileRangeResult(objects=count)


@perform.register
def relabel_part(job: RelabelJob) -> TileRangeResult:
    """The second pass over some tiles of a large image."""
    limits.begin_work(spec_of(job.image).pixels)
    part, store = job.part, Store(job.settings.output)
    if store.exists(part.relabelled):
        return TileRangeResult()
    started = time.perf_counter()
    run = ImageRun.of(job.settings, spec_of(job.image))
    with staged_errors(job.image, job.settings):
        labels = PackedFile.open(store, part.labels)
        relabellings = PackedFile.open(store, part.relabellings)
    results = []
    for i, tile in enumerate(run.grid[part.first : part.stop]):
        relabelling = unpack(Relabelling, relabellings.one(store, "relabellings", i))
        results.append(
            run.relabel_tile(tile, labels.one(store, "labels", i), relabelling, job.objects)
        )
    with store.writing(part.relabelled) as out:
        merge_results(results, job.settings.statistics).stage(time.perf_counter() - started, out)
    return TileRangeResult()


@perform.register
def finish_image(job: FinishJob) -> ImageResult:
    """Assemble the mask, the preview and the rows of a large image from its staged parts."""
    limits.begin_work(spec_of(job.image).pixels)
    started = time.perf_counter()
    store, settings = Store(job.settings.output), job.settings
    run = ImageRun.of(settings, spec_of(job.image))
    names = [part.name for part in job.parts] + [
        part.relabelled for part in job.parts if settings.joins
    ]
    with staged_errors(job.image, settings):
        staged = [StagedResults.open(store, name) for name in names]
    blocks = (block for part in staged for block in part.blocks())
    previews = [preview for part in staged for preview in part.front.previews]
    states = reduce(
        lambda a, b: merge_states(a, b, settings.statistics), (part.front.states for part in staged)
    )
    seconds = sum(part.front.seconds for part in staged)
    result = stage_mask(run, job.image, blocks, previews, states, job.objects)
    scores = (block for part in staged for block in part.scores())
    certainty = sum((part.front.certainty for part in staged), Certainty())
    result = with_scores(result, run, scores, certainty)
    tables, typical = stage_objects(
        run,
        (each for part in staged for each in part.rows()),
        (each for part in staged for each in part.spanning()),
    )
    seconds += time.perf_counter() - started
    return replace(with_rows(result, run, states, typical), tables=tables, seconds=seconds)


def _segment_image(settings: RunSettings, image: PlannedImage) -> ImageResult:
    started = time.perf_counter()
    try:
        model = fitted(settings, PlannedFile(image, spec_of(image)))
        run = ImageRun.of(replace(settings, model=model), spec_of(image))
        with open_planned(image, run.opened) as reader:
            tiles = [run.segment_tile(reader, tile) for tile in run.grid]
        whole, count = run.finish_tiles(tiles)
        result = stage_mask(run, image, iter(whole.blocks), whole.previews, whole.states, count)
        result = with_scores(result, run, iter(whole.scores), whole.certainty)
    except (ImageError, FitError) as error:
        classes = (
            settings.model.expected_classes
            if isinstance(settings.model, Fitter)
            else settings.model.classes
        )
        return replace(
            failed(settings, image, Failure.of(error), classes),
            seconds=time.perf_counter() - started,
        )
    tables, typical = stage_objects(run, iter(whole.rows), iter(whole.spanning))
    return replace(
        with_rows(result, run, whole.states, typical),
        tables=tables,
        seconds=time.perf_counter() - started,
    )
