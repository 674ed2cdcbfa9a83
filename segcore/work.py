"""What runs on a worker: plain functions from a job to a small answer.

    describe        the headers of some files
    observe         one round of fitting over whole images, or over some tiles of one image
    segment_images  small images from reading to published mask
    segment_part    some tiles of a large image, to a staged part
    finish_image    the staged parts of a large image, to its published mask

Jobs and answers are values of a few hundred bytes; pixels go from store to store. Every function can be run again at any time, by
another worker or after a crash, with the same result. An image that cannot be processed is part of the answer (`Failure`);
only what stops the whole run is raised.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce, singledispatch
from typing import Any

import numpy as np

from segcore import formats, segmenters, statistics  # noqa: F401  (their import fills the registries)
from segcore.errors import FitError, FormatError, ImageError, ReadError, RunError, Unavailable
from segcore.fold import observe_all
from segcore.geometry import Tile
from segcore.jobs import DescribeJob, FinishJob, ImagesJob, Observation, Order, PartJob, PartReceipt
from segcore.legend import Legend
from segcore.manifest import Failure, Item, Receipt, Source, canonical
from segcore.model import Fitter, Segmenter
from segcore.parts import Part, StagedPart, States, merge_parts, merge_states
from segcore.preview import PreviewPart, observe_preview, preview_stride, render_preview
from segcore.raster import FORMATS, Block, Piece, RasterSpec, Reader
from segcore.statistic import Labelled
from segcore.storage import Store, configure, filesystem, is_local


def prepare_process(storage: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Set up a process for work: store options, one thread for OpenCV (it ignores OMP_NUM_THREADS)."""
    import cv2

    cv2.setNumThreads(1)
    configure(storage or {})


@singledispatch
def perform(job: Any) -> Any:
    """Do a job of segmentation, whichever it is."""
    raise TypeError(f"there is no work in a {type(job).__name__}")


def describe(job: DescribeJob) -> tuple[Item, ...]:
    """The headers of the job's files, in their order."""
    return tuple(_describe(source, job.format) for source in job.sources)


def observe(job: ImagesJob | PartJob) -> Observation:
    """One round of fitting over the job's pixels. An image that fails contributes nothing."""
    fitter = job.order.model
    if not isinstance(fitter, Fitter):
        raise TypeError(f"{type(fitter).__name__} has nothing left to fit")
    state, failures = None, []
    for item in job.items if isinstance(job, ImagesJob) else (job.item,):
        try:
            with _reading(item, fitter) as (reader, spec):
                grid = job.order.grid(spec)
                tiles: Sequence[Tile] = grid if isinstance(job, ImagesJob) else grid[job.first : job.stop]
                seen = observe_all(fitter, (_block(reader, tile, spec) for tile in tiles))
        except ImageError as error:
            failures.append((item, Failure.of(error)))
        else:
            state = seen if state is None else fitter.merge(state, seen)
    return Observation(state, tuple(failures))


@perform.register
def segment_images(job: ImagesJob) -> tuple[Receipt, ...]:
    """Read, segment, count and publish whole images, one after the other."""
    return tuple(_segment_image(job.order, item) for item in job.items)


@perform.register
def segment_part(job: PartJob) -> PartReceipt:
    """Segment some tiles of a large image and stage what they give. A part that is staged already is left as it is."""
    store = Store(job.order.output)
    model = _ready(job.order.model)
    if store.exists(job.name):
        return PartReceipt()
    started = time.perf_counter()
    try:
        with _reading(job.item, model) as (reader, spec):
            parts = [_segment_tile(reader, tile, job.order, model, spec) for tile in job.order.grid(spec)[job.first : job.stop]]
    except ImageError as error:
        return PartReceipt(Failure.of(error))
    with store.writing(job.name) as out:
        merge_parts(parts, job.order.statistics).dump(out, time.perf_counter() - started)
    return PartReceipt()


@perform.register
def finish_image(job: FinishJob) -> Receipt:
    """Join the staged parts of a large image: its mask, its preview, its rows."""
    started = time.perf_counter()
    store, order = Store(job.order.output), job.order
    model = _ready(order.model)
    spec = model.select(_spec(job.item))
    try:
        headers = [StagedPart.load(store, name) for name in job.parts]
    except FileNotFoundError as error:
        raise RunError(
            f"A staged part of {job.item.source.uri} is gone ({error}): another run on {order.output} has finished it. "
            "Run the same command again."
        ) from error
    pieces = (piece for name, header in zip(job.parts, headers, strict=True) for piece in header.pieces(store, name))
    previews = [preview for header in headers for preview in header.previews]
    states = reduce(lambda a, b: merge_states(a, b, order.statistics), (header.states for header in headers))
    seconds = sum(header.seconds for header in headers)
    receipt = _publish(order, job.item, model, spec, pieces, previews)
    rows = _rows(states, order, model, spec)
    return replace(receipt, rows=rows, seconds=seconds + time.perf_counter() - started)


def failed(order: Order, item: Item, failure: Failure, classes: tuple[str, ...]) -> Receipt:
    """The receipt of an image that could not be processed: all its pixels, where their number is known, are unprocessed."""
    rows = {}
    if item.spec is not None:
        legend = Legend.of(classes)
        rows = {name: statistic.finish(None, item.spec, legend) for name, statistic in order.statistics.items()}
    return Receipt(item.source, item.spec, failure, rows, segmenter=order.kind)


def _describe(source: Source, format_name: str | None) -> Item:
    try:
        fs, path = filesystem(source.uri)
        with _failures_of(source.uri):
            if is_local(source.uri) and not fs.isfile(path) and fs.exists(path):
                # A pipe would be waited for until somebody writes into it.
                raise FormatError(f"{source.uri} is not a regular file. Leave it out of `inputs`.")
            with fs.open(path, "rb", block_size=4096, cache_type="none") as file:
                head = file.read(512)
            chosen = formats.format_of(source.uri, head, format_name)
            return Item(source, FORMATS[chosen].describe(source.uri, source.version))
    except ImageError as error:
        return Item(source, None, Failure.of(error))


def _segment_image(order: Order, item: Item) -> Receipt:
    started = time.perf_counter()
    try:
        with _reading(item, order.model) as (reader, spec):
            model = _fitted(order, reader, spec)
            parts = [_segment_tile(reader, tile, order, model, spec) for tile in order.grid(spec)]
    except (ImageError, FitError) as error:
        classes = order.model.classes if isinstance(order.model, Segmenter) else order.model.expected_classes
        return replace(failed(order, item, Failure.of(error), classes), seconds=time.perf_counter() - started)
    whole = merge_parts(parts, order.statistics)
    receipt = _publish(order, item, model, spec, iter(whole.pieces), whole.previews)
    rows = _rows(whole.states, order, model, spec)
    return replace(receipt, rows=rows, seconds=time.perf_counter() - started)


def _fitted(order: Order, reader: Reader, spec: RasterSpec) -> Segmenter:
    model = order.model
    while not isinstance(model, Segmenter):
        fitter = model
        model = fitter.finish(observe_all(fitter, (_block(reader, tile, spec) for tile in order.grid(spec))))
    return model


def _segment_tile(reader: Reader, tile: Tile, order: Order, model: Segmenter, spec: RasterSpec) -> Part:
    block = _block(reader, tile, spec)
    legend = Legend.of(model.classes)
    valid = tile.trim(block.valid)
    if valid.any():
        values = tile.trim(model.segment(block).values).astype(legend.dtype, copy=False)
        if not valid.all():
            values = np.where(valid, values, np.array(legend.nodata, legend.dtype))
    else:
        values = np.full(tile.core.shape, legend.nodata, legend.dtype)
    labelled = Labelled(values, block, legend)
    return Part(
        FORMATS[spec.format].encode(values, tile, spec, order.tile),
        {name: statistic.observe(labelled) for name, statistic in order.statistics.items()},
        [observe_preview(block, values, preview_stride(spec.shape))],
    )


def _publish(
    order: Order, item: Item, model: Segmenter, spec: RasterSpec, pieces: Iterator[Piece], previews: list[PreviewPart]
) -> Receipt:
    store, image_format, legend = Store(order.output), FORMATS[spec.format], Legend.of(model.classes)
    name = f"masks/{item.source.image_id}{image_format.mask_suffix}"
    for suffix, content in image_format.sidecars(legend).items():
        store.publish(name + suffix, content)
    with store.writing(name) as out:
        image_format.assemble(pieces, spec, legend, out, order.tile)
    picture = render_preview(previews, spec.shape, spec.interpretation, legend, preview_stride(spec.shape))
    store.publish(f"previews/{item.source.image_id}.png", picture)
    return Receipt(
        item.source,
        spec,
        None,
        mask=name,
        mask_sha256=out.artefact.sha256,
        tiles=len(order.grid(spec)),
        segmenter=canonical({"kind": order.kind, **model.provenance()}),
    )


def _rows(states: States, order: Order, model: Segmenter, spec: RasterSpec) -> dict[str, list[dict[str, Any]]]:
    legend = Legend.of(model.classes)
    return {name: statistic.finish(states[name], spec, legend) for name, statistic in order.statistics.items()}


def _block(reader: Reader, tile: Tile, spec: RasterSpec) -> Block:
    pixels, valid = reader.read(tile.read)
    return Block(tile, pixels, valid, spec)


def _spec(item: Item) -> RasterSpec:
    if item.spec is None:
        raise ReadError(f"The header of {item.source.uri} could not be read.")
    return item.spec


def _ready(model: Fitter | Segmenter) -> Segmenter:
    if not isinstance(model, Segmenter):
        raise TypeError(f"{type(model).__name__} must be fitted first")
    return model


@contextlib.contextmanager
def _reading(item: Item, model: Fitter | Segmenter) -> Iterator[tuple[Reader, RasterSpec]]:
    """The image opened with the bands that the model wants."""
    spec = model.select(_spec(item))
    with _failures_of(item.source.uri), FORMATS[spec.format].open(spec) as reader:
        yield reader, spec


@contextlib.contextmanager
def _failures_of(uri: str) -> Iterator[None]:
    """Turn what stores and memory do to one image into a failure of that image, to be tried again by the next run."""
    try:
        yield
    except (ImageError, RunError):
        raise
    except FileNotFoundError as error:
        raise Unavailable(f"{uri} does not exist, or no longer. Check its name in `inputs`.") from error
    except MemoryError as error:
        raise Unavailable(f"Not enough memory for {uri}: {error}. Use smaller tiles or fewer workers.") from error
    except OSError as error:
        raise Unavailable(f"{uri} could not be read: {error}") from error
