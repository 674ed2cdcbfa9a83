"""What runs on a worker: plain functions from a job to a small answer.

    describe        the headers of some files
    select_engine   the engine and precision of a network
    observe         one round of fitting over whole images, or over some tiles of one image
    segment_images  small images from reading to published mask
    segment_part    some tiles of a large image, to a staged part
    join_image      the objects of a large image, from the labels of its tiles
    relabel_part    some tiles of a large image again, now that its objects are known
    finish_image    the staged parts of a large image, to its published mask

Jobs and answers are values of a few hundred bytes; pixels go from store to store. Every function
can be run again at any time, by another worker or after a crash, with the same result. An image
that cannot be processed is part of the answer (`Failure`); only what stops the whole run is raised.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from maskloom.segcore import formats
from maskloom.segcore.errors import (
    FitError,
    FormatError,
    ImageError,
    Missing,
    ReadError,
    RunError,
    SourceChanged,
    StoreError,
    Unavailable,
)
from maskloom.segcore.figures.preview import PreviewPart, preview_stride, render_preview
from maskloom.segcore.fold import observe_all
from maskloom.segcore.geometry import Box, Tile
from maskloom.segcore.ground.control import with_fitted_affine
from maskloom.segcore.masks import EncodedBlock
from maskloom.segcore.models.protocols import FIRST_CLASSES, Fitter, Model, caution_of, concluded
from maskloom.segcore.models.selection import probe_box
from maskloom.segcore.objects.numbering import tiles_of_layer
from maskloom.segcore.objects.rows import rows_in_order
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
    result_name,
    staging_folder,
)
from maskloom.segcore.pipeline.records import Failure, ImageResult, PlannedImage
from maskloom.segcore.pipeline.tile_results import (
    StagedLabels,
    StagedResults,
    States,
    merge_results,
    merge_states,
)
from maskloom.segcore.processes import limits
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.source import ABSENT, Source, learn_addresses, version_now
from maskloom.segcore.raster.spec import FORMATS, Block, RasterSpec, Reader
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.objects.table import Measures
from maskloom.segcore.storage.canonical import canonical
from maskloom.segcore.storage.filesystems import configure, filesystem, is_local
from maskloom.segcore.storage.packing import PackedFile, pack, unpack, unpack_table
from maskloom.segcore.storage.store import Store

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray


def prepare_process(
    storage: Mapping[str, Mapping[str, Any]] | None = None,
    threads: int = 1,
    time_limits: limits.Limits | None = None,
) -> None:
    """Set up a process for work: store options, threads of a network, limits, one thread for OpenCV
    (it ignores OMP_NUM_THREADS).
    """
    import cv2

    from maskloom.segcore.deep.inference.engines import opening as engines

    cv2.setNumThreads(1)
    configure(storage or {})
    limits.configure(time_limits or limits.Limits())
    engines.configure(threads)


@singledispatch
def perform(job: Any) -> Any:
    """Do a job of segmentation, whichever it is."""
    raise TypeError(f"there is no work in a {type(job).__name__}")


def describe(job: DescribeJob) -> tuple[PlannedImage, ...]:
    """The headers of the job's files, in their order."""
    return tuple(_describe(source, job) for source in job.sources)


def select_engine(job: SelectEngineJob) -> Mapping[str, Any] | None:
    """Select an engine on the middle of an image. None if no image can be read."""
    for image in job.images:
        try:
            spec = job.selector.select(_spec(image))
            box = probe_box(spec.shape)
            with _reading(image, spec) as reader:
                pixels, valid = reader.read(box)
        except ImageError:
            # It becomes a failed row when its own turn comes.
            continue
        return job.selector.select_engine(
            Block(Tile.whole(box.shape), pixels, valid, replace(spec, shape=box.shape))
        )
    return None


def observe(job: ImagesJob | TileRangeJob) -> Observation:
    """One round of fitting over the job's pixels. An image that fails contributes nothing."""
    fitter = job.settings.model
    if not isinstance(fitter, Fitter):
        raise TypeError(f"{type(fitter).__name__} has nothing left to fit")
    state, failures = None, []
    for image in job.images if isinstance(job, ImagesJob) else (job.image,):
        try:
            spec = fitter.select(_spec(image))
            with _reading(image, spec) as reader:
                grid = job.settings.grid(spec)
                tiles: Sequence[Tile] = (
                    grid if isinstance(job, ImagesJob) else grid[job.first : job.stop]
                )
                seen = observe_all(fitter, (_block(reader, tile, spec) for tile in tiles))
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
    """The first pass over some tiles of a large image. A part that is staged already is left as it
    is.
    """
    store = Store(job.settings.output)
    if store.exists(job.name) and (store.exists(job.labels) or not job.settings.joins):
        return TileRangeResult()
    started = time.perf_counter()
    try:
        run = ImageRun.of(job.settings, _spec(job.image))
        with _reading(job.image, run.source) as reader:
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
    """Join the objects of a large image and stage what each part must know of them."""
    limits.begin_work(_spec(job.image).pixels)
    store, run = Store(job.settings.output), ImageRun.of(job.settings, _spec(job.image))
    with _staged(job.image, job.settings):
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
    limits.begin_work(_spec(job.image).pixels)
    part, store = job.part, Store(job.settings.output)
    if store.exists(part.relabelled):
        return TileRangeResult()
    started = time.perf_counter()
    run = ImageRun.of(job.settings, _spec(job.image))
    with _staged(job.image, job.settings):
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
    """Put the staged parts of a large image together: its mask, its preview, its rows."""
    limits.begin_work(_spec(job.image).pixels)
    started = time.perf_counter()
    store, settings = Store(job.settings.output), job.settings
    run = ImageRun.of(settings, _spec(job.image))
    names = [part.name for part in job.parts] + [
        part.relabelled for part in job.parts if settings.joins
    ]
    with _staged(job.image, settings):
        staged = [StagedResults.open(store, name) for name in names]
    blocks = (block for part in staged for block in part.blocks())
    previews = [preview for part in staged for preview in part.front.previews]
    states = reduce(
        lambda a, b: merge_states(a, b, settings.statistics), (part.front.states for part in staged)
    )
    seconds = sum(part.front.seconds for part in staged)
    result = _stage_results(run, job.image, blocks, previews, job.objects)
    tables = _stage_objects(
        run,
        (each for part in staged for each in part.rows()),
        (each for part in staged for each in part.spanning()),
    )
    seconds += time.perf_counter() - started
    return replace(_counted(result, run, states), tables=tables, seconds=seconds)


def failed(
    settings: RunSettings, image: PlannedImage, failure: Failure, classes: tuple[str, ...]
) -> ImageResult:
    """The receipt of an image that could not be processed: all its pixels, where their number is
    known, are unprocessed.

    Where the names of the classes are not known (`auto`), one stands for them, so that the tables
    account for these pixels too.
    """
    rows = {}
    if image.spec is not None:
        class_table = ClassTable.of(classes or FIRST_CLASSES)
        rows = {
            name: statistic.finish(None, image.spec, class_table)
            for name, statistic in settings.statistics.items()
        }
    return ImageResult(image.source, image.spec, failure, rows, segmenter=settings.kind)


def _describe(source: Source, job: DescribeJob) -> PlannedImage:
    learn_addresses(source)
    limits.begin_read()
    try:
        if source.version == ABSENT:
            raise Missing(f"{source.uri} does not exist. Check its name in `inputs`.")
        with _failures_of(source.uri):
            _require_regular_files(source)
            version = _version(source)
            if is_local(source.uri) and version != source.version:
                raise _changed(source.uri)
            # Some stores tell another version of a file when they list a folder: later looks are
            # compared with this one.
            spec = formats.describe_source(source, version, job.format)
            return PlannedImage(
                source, _fitted_to_ground(spec) if job.ground_control == "affine" else spec
            )
    except ImageError as error:
        return PlannedImage(source, None, Failure.of(error))


def _require_regular_files(source: Source) -> None:
    """Raise `FormatError` for a pipe: opening it would wait until somebody writes into it."""
    for uri in () if source.is_folder else [each.uri for each in source.members] or [source.uri]:
        fs, path = filesystem(uri)
        if is_local(uri) and not fs.isfile(path) and fs.exists(path):
            raise FormatError(f"{uri} is not a regular file. Leave it out of `inputs`.")


def _fitted_to_ground(spec: RasterSpec) -> RasterSpec:
    space, note = with_fitted_affine(spec.space, spec.shape)
    if not note:
        return spec
    # What the reader says of points that are kept does not hold any more.
    return replace(
        spec,
        space=space,
        notes=(*(kept for kept in spec.notes if "ground control points" not in kept), note),
    )


def _segment_image(settings: RunSettings, image: PlannedImage) -> ImageResult:
    started = time.perf_counter()
    try:
        run = ImageRun.of(replace(settings, model=_fitted(settings, image)), _spec(image))
        with _reading(image, run.source) as reader:
            tiles = [run.segment_tile(reader, tile) for tile in run.grid]
        labels = [found for _, found in tiles if found is not None]
        relabellings = list(run.join(labels))
        count = max((each.numbers.greatest for each in relabellings), default=0)
        # Without objects there are no labels, and nothing is left to do.
        again = zip(run.grid, labels, relabellings, strict=bool(labels))
        whole = merge_results(
            [
                *(results for results, _ in tiles),
                *(run.relabel_tile(tile, each.labels, to, count) for tile, each, to in again),
            ],
            settings.statistics,
        )
        result = _stage_results(run, image, iter(whole.blocks), whole.previews, count)
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
    tables = _stage_objects(run, iter(whole.rows), iter(whole.spanning))
    return replace(
        _counted(result, run, whole.states),
        tables=tables,
        seconds=time.perf_counter() - started,
    )


def _fitted(settings: RunSettings, image: PlannedImage) -> Model:
    model = settings.model
    if isinstance(model, Fitter):
        spec = model.select(_spec(image))
        with _reading(image, spec) as reader:
            while isinstance(model, Fitter):
                fitter = model
                seen = observe_all(
                    fitter, (_block(reader, tile, spec) for tile in settings.grid(spec))
                )
                model = concluded(fitter, seen, settings.named)
    return model


def _stage_results(
    run: ImageRun,
    image: PlannedImage,
    blocks: Iterator[EncodedBlock],
    previews: list[PreviewPart],
    count: int,
) -> ImageResult:
    """Stage mask and preview of an image for the commit; `count` is the number of its objects."""
    settings, model, spec, classes = run.settings, run.model, run.spec, run.class_table
    store, writer = Store(settings.output), run.mask_writer(count)
    name = f"masks/{image.source.image_id}{writer.suffix}"
    mask = writer.publish(store, result_name(settings), blocks, spec, classes, run.grid.tile)
    staged = {name + ending: artefact.name for ending, artefact in mask.files.items()}
    picture = render_preview(
        previews, spec.shape, spec.interpretation, classes, preview_stride(spec.shape)
    )
    preview = store.publish(result_name(settings), picture)
    staged[f"previews/{image.source.image_id}.png"] = preview.name
    return ImageResult(
        image.source,
        image.spec,
        None,
        mask=name,
        staged=staged,
        mask_sha256=mask.sha256,
        tiles=len(run.grid),
        segmenter=canonical({"kind": settings.kind, **model.provenance()}),
    )


def _stage_objects(
    run: ImageRun, rows: Iterator[bytes], spanning: Iterator[bytes]
) -> dict[str, str]:
    """Stage the rows of the image's objects; the name of the file by that of the table. Nothing
    where no table is wanted.

    `rows` and `spanning` are those of `TileResults`, in the order of the tiles.
    """
    settings = run.settings
    if settings.objects is None:
        return {}
    name = result_name(settings)
    measures = Measures.concatenate([unpack(Measures, each) for each in spanning])
    joined = run.rows_of(measures)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        Store(settings.output).writing(name) as out,
        pa.ipc.new_stream(out, joined.schema, options=options) as stream,
    ):
        tables = (unpack_table(each) for each in rows)
        for table in rows_in_order(tables, joined, tiles_of_layer(run.grid)):
            stream.write_table(table)
    return {Objects.table: name}


def _counted(result: ImageResult, run: ImageRun, states: States) -> ImageResult:
    """The receipt with its rows, and with what the model knows against them."""
    rows = {
        name: statistic.finish(states[name], run.spec, run.class_table)
        for name, statistic in run.settings.statistics.items()
    }
    areas = rows["area"]  # it always runs
    shares = {row["class_name"]: row["fraction"] for row in areas if row["fraction"] is not None}
    return replace(
        result,
        rows=rows,
        nodata_pixels=areas[0]["nodata_pixels"],
        warning=caution_of([run.model], run.spec, shares),
    )


def _block(reader: Reader, tile: Tile, spec: RasterSpec) -> Block:
    pixels, valid = reader.read(tile.read)
    return Block(tile, pixels, valid, spec)


def _spec(image: PlannedImage) -> RasterSpec:
    if image.spec is None:
        raise ReadError(f"The header of {image.source.uri} could not be read.")
    return image.spec


@contextlib.contextmanager
def _reading(image: PlannedImage, spec: RasterSpec) -> Iterator[Reader]:
    """The image opened with the bands of `spec`. Raises `SourceChanged` unless it is the planned
    one before and after it is read.
    """
    learn_addresses(image.source)
    planned = _spec(image)
    with _failures_of(planned.location):
        limits.begin_read(prod(planned.chunks))
        _require_unchanged(image)
        try:
            with FORMATS[spec.format].open(spec) as reader:
                yield _Steps(reader, prod(planned.chunks))
        except ImageError:
            # What made no sense may have been parts of two files.
            _require_unchanged(image)
            raise
        limits.begin_read()
        _require_unchanged(image)
    limits.begin_work(planned.pixels)


@dataclass(frozen=True, slots=True)
class _Steps:
    """A reader that says when a read begins, and when the work on what was read does."""

    reader: Reader
    least: int
    """Pixels that are decoded for any one of them."""

    def __enter__(self) -> _Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The reader is closed by whoever opened it."""

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        limits.begin_read(max(box.size, self.least))
        block = self.reader.read(box)
        limits.begin_work(box.size)
        return block


def _require_unchanged(image: PlannedImage) -> None:
    if _version(image.source) != _spec(image).version:
        raise _changed(image.source.uri)


def _version(source: Source) -> str:
    try:
        return version_now(source)
    except StoreError as error:
        raise Unavailable(str(error)) from error


def _changed(uri: str) -> SourceChanged:
    return SourceChanged(
        f"{uri} was changed or replaced since the run was planned. The next run takes it as it is "
        "then."
    )


@contextlib.contextmanager
def _staged(image: PlannedImage, settings: RunSettings) -> Iterator[None]:
    """Whoever misses a staged file here has been overtaken; what cannot be read is damaged."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(
            f"A staged part of {image.source.uri} is gone ({error}): another run on "
            f"{settings.output} has finished it. Run the same command again."
        ) from error
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise RunError(
            f"A staged part of {image.source.uri} is damaged ({error}). Remove "
            f"{Store(settings.output).uri(staging_folder(settings, image))} and "
            "run the same command again."
        ) from error


@contextlib.contextmanager
def _failures_of(uri: str) -> Iterator[None]:
    """Turn what stores and memory do to one image into a failure of that image, to be tried again
    by the next run.
    """
    try:
        yield
    except (ImageError, RunError):
        raise
    except FileNotFoundError as error:
        # Of a web server fsspec says so whatever it answered, and keeps the answer as the cause.
        reason = (
            f"its store did not give it ({error.__cause__})"
            if error.__cause__
            else "it does not exist any longer"
        )
        raise Unavailable(
            f"{uri} could not be read: {reason}. Run the same command again."
        ) from error
    except MemoryError as error:
        raise Unavailable(
            f"Not enough memory for {uri}: {error}. Use smaller tiles or fewer workers."
        ) from error
    except OSError as error:
        raise Unavailable(f"{uri} could not be read: {error}") from error
