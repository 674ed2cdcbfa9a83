"""What runs on a worker: plain functions from a job to a small answer.

    describe        the headers of some files
    choose          what a model leaves to the machine that runs it
    observe         one round of fitting over whole images, or over some tiles of one image
    segment_images  small images from reading to published mask
    segment_part    some tiles of a large image, to a staged part
    join_image      the objects of a large image, from the sketches of its parts
    redraw_part     some tiles of a large image again, now that its objects are known
    finish_image    the staged parts of a large image, to its published mask

Jobs and answers are values of a few hundred bytes; pixels go from store to store. Every function can be run again at any time, by
another worker or after a crash, with the same result. An image that cannot be processed is part of the answer (`Failure`);
only what stops the whole run is raised.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce, singledispatch
from itertools import islice
from typing import Any

import pyarrow as pa

from segcore import formats
from segcore.canvas import Canvas
from segcore.choices import PROBE_PIXELS
from segcore.errors import FitError, FormatError, ImageError, ReadError, RunError, Unavailable
from segcore.fold import observe_all
from segcore.geometry import Box, Tile, middle
from segcore.jobs import (
    ChooseJob,
    DescribeJob,
    FinishJob,
    ImagesJob,
    JoinJob,
    Observation,
    Order,
    PartJob,
    PartReceipt,
    RedrawJob,
    staging_folder,
)
from segcore.legend import Legend
from segcore.manifest import Failure, Item, Receipt, Source, canonical
from segcore.model import Fitter, Model, caution_of
from segcore.objects.rows import rows_in_order
from segcore.objects.sketch import Placement, Sketch, place_objects
from segcore.objects.table import Measures
from segcore.packing import Blobs, unpack_table
from segcore.parts import Measured, Part, StagedPart, States, merge_parts, merge_states
from segcore.preview import PreviewPart, preview_stride, render_preview
from segcore.raster import FORMATS, Block, Piece, RasterSpec, Reader
from segcore.statistics.objects import Objects
from segcore.storage import Store, configure, filesystem, is_local


def prepare_process(storage: Mapping[str, Mapping[str, Any]] | None = None, threads: int = 1) -> None:
    """Set up a process for work: store options, threads of a network, one thread for OpenCV (it ignores OMP_NUM_THREADS)."""
    import cv2

    from segcore.inference import engines

    cv2.setNumThreads(1)
    configure(storage or {})
    engines.configure(threads)


@singledispatch
def perform(job: Any) -> Any:
    """Do a job of segmentation, whichever it is."""
    raise TypeError(f"there is no work in a {type(job).__name__}")


def describe(job: DescribeJob) -> tuple[Item, ...]:
    """The headers of the job's files, in their order."""
    return tuple(_describe(source, job.format) for source in job.sources)


def choose(job: ChooseJob) -> Mapping[str, Any] | None:
    """What suits this machine, tried on the middle of an image; None where no image can be read."""
    for item in job.items:
        try:
            spec = job.chooser.select(_spec(item))
            box = middle(spec.shape, PROBE_PIXELS)
            with _reading(item, spec) as reader:
                pixels, valid = reader.read(box)
        except ImageError:
            # It becomes a failed row when its own turn comes.
            continue
        whole = Box.whole(box.shape)
        return job.chooser.choose(Block(Tile((0, 0), whole, whole), pixels, valid, replace(spec, shape=box.shape)))
    return None


def observe(job: ImagesJob | PartJob) -> Observation:
    """One round of fitting over the job's pixels. An image that fails contributes nothing."""
    fitter = job.order.model
    if not isinstance(fitter, Fitter):
        raise TypeError(f"{type(fitter).__name__} has nothing left to fit")
    state, failures = None, []
    for item in job.items if isinstance(job, ImagesJob) else (job.item,):
        try:
            spec = fitter.select(_spec(item))
            with _reading(item, spec) as reader:
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
    """The first pass over some tiles of a large image. A part that is staged already is left as it is."""
    store = Store(job.order.output)
    if store.exists(job.name) and (store.exists(job.sketches) or not job.order.joins):
        return PartReceipt()
    started = time.perf_counter()
    try:
        canvas = Canvas.of(job.order, job.order.model, _spec(job.item))
        with _reading(job.item, canvas.source) as reader:
            drawn = [canvas.first(reader, tile) for tile in canvas.grid[job.first : job.stop]]
    except ImageError as error:
        return PartReceipt(Failure.of(error))
    sketches = [sketch for _, sketch in drawn if sketch is not None]
    if sketches:
        groups = {name: [getattr(sketch, name) for sketch in sketches] for name in ("seam", "firsts", "body")}
        with store.writing(job.sketches) as out:
            Blobs.dump(groups, out)
    with store.writing(job.name) as out:
        merge_parts([part for part, _ in drawn], job.order.statistics).dump(out, time.perf_counter() - started)
    return PartReceipt()


@perform.register
def join_image(job: JoinJob) -> PartReceipt:
    """Join the objects of a large image and stage what each part must know of them."""
    store = Store(job.order.output)
    canvas = Canvas.of(job.order, job.order.model, _spec(job.item))
    with _staged(job.item, job.order):
        sketches = [Blobs.load(store, part.sketches) for part in job.parts]
    of_tile = [(part, i) for part, (first, stop) in zip(sketches, job.ranges, strict=True) for i in range(stop - first)]
    seams = [seam for part in sketches for seam in part.group(store, "seam")]

    def firsts(number: int) -> bytes:
        part, i = of_tile[number]
        return part.get(store, "firsts", i)

    count = 0
    try:
        placements = _placements(canvas, seams, firsts)
        for part in job.parts:
            placed = list(islice(placements, part.stop - part.first))
            count = max([count, *(int(placement.numbers.ids.max(initial=0)) for placement in placed)])
            with store.writing(part.placements) as out:
                Blobs.dump({"placement": [placement.to_bytes() for placement in placed]}, out)
    except ImageError as error:
        return PartReceipt(Failure.of(error))
    return PartReceipt(objects=count)


@perform.register
def redraw_part(job: RedrawJob) -> PartReceipt:
    """The second pass over some tiles of a large image."""
    part, store = job.part, Store(job.order.output)
    if store.exists(part.redrawn):
        return PartReceipt()
    started = time.perf_counter()
    canvas = Canvas.of(job.order, job.order.model, _spec(job.item))
    with _staged(job.item, job.order):
        sketches, placed = Blobs.load(store, part.sketches), Blobs.load(store, part.placements)
    parts = []
    for i, tile in enumerate(canvas.grid[part.first : part.stop]):
        placement = Placement.from_bytes(placed.get(store, "placement", i))
        parts.append(canvas.second(tile, sketches.get(store, "body", i), placement, job.objects))
    with store.writing(part.redrawn) as out:
        merge_parts(parts, job.order.statistics).dump(out, time.perf_counter() - started)
    return PartReceipt()


@perform.register
def finish_image(job: FinishJob) -> Receipt:
    """Put the staged parts of a large image together: its mask, its preview, its rows."""
    started = time.perf_counter()
    store, order = Store(job.order.output), job.order
    canvas = Canvas.of(order, order.model, _spec(job.item))
    names = [part.name for part in job.parts] + [part.redrawn for part in job.parts if order.joins]
    with _staged(job.item, order):
        staged = [StagedPart.load(store, name) for name in names]
    pieces = (piece for part in staged for piece in part.pieces(store))
    previews = [preview for part in staged for preview in part.previews]
    states = reduce(lambda a, b: merge_states(a, b, order.statistics), (part.states for part in staged))
    seconds = sum(part.seconds for part in staged)
    receipt = _publish(canvas, job.item, pieces, previews, job.objects)
    tables = _stage_objects(canvas, job.item, lambda: (each for part in staged for each in part.measures(store)))
    seconds += time.perf_counter() - started
    return replace(_counted(receipt, canvas, states), tables=tables, seconds=seconds)


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
        model = _fitted(order, item)
        canvas = Canvas.of(order, model, _spec(item))
        with _reading(item, canvas.source) as reader:
            drawn = [canvas.first(reader, tile) for tile in canvas.grid]
        parts = [part for part, _ in drawn]
        sketches = [sketch for _, sketch in drawn if sketch is not None]
        placements = list(_placements(canvas, [sketch.seam for sketch in sketches], lambda i: sketches[i].firsts))
        count = max((int(placement.numbers.ids.max(initial=0)) for placement in placements), default=0)
        parts += _redraw(canvas, sketches, placements, count)
        whole = merge_parts(parts, order.statistics)
        receipt = _publish(canvas, item, iter(whole.pieces), whole.previews, count)
    except (ImageError, FitError) as error:
        classes = order.model.expected_classes if isinstance(order.model, Fitter) else order.model.classes
        return replace(failed(order, item, Failure.of(error), classes), seconds=time.perf_counter() - started)
    tables = _stage_objects(canvas, item, lambda: iter(whole.measured))
    return replace(_counted(receipt, canvas, whole.states), tables=tables, seconds=time.perf_counter() - started)


def _fitted(order: Order, item: Item) -> Model:
    model = order.model
    if isinstance(model, Fitter):
        spec = model.select(_spec(item))
        with _reading(item, spec) as reader:
            while isinstance(model, Fitter):
                fitter = model
                model = fitter.finish(observe_all(fitter, (_block(reader, tile, spec) for tile in order.grid(spec))))
    return model


def _placements(canvas: Canvas, seams: Sequence[bytes], firsts: Callable[[int], bytes]) -> Iterator[Placement]:
    """The placement of each tile's objects; none where the image has no objects."""
    joiner = canvas.joiner
    if joiner is None:
        return iter(())
    return place_objects(joiner, canvas.grid, seams, firsts, canvas.spec.location)


def _redraw(canvas: Canvas, sketches: Sequence[Sketch], placements: Sequence[Placement], count: int) -> list[Part]:
    if not sketches:
        return []
    return [
        canvas.second(tile, sketch.body, placement, count)
        for tile, sketch, placement in zip(canvas.grid, sketches, placements, strict=True)
    ]


def _publish(canvas: Canvas, item: Item, pieces: Iterator[Piece], previews: list[PreviewPart], count: int) -> Receipt:
    """Publish mask and preview of an image; `count` is the number of its objects."""
    order, model, spec, legend = canvas.order, canvas.model, canvas.spec, canvas.legend
    store, image_format = Store(order.output), canvas.mask_format(count)
    name = f"masks/{item.source.image_id}{image_format.mask_suffix}"
    # A side-car names classes; the values of a mask of objects are ids.
    for suffix, content in ({} if canvas.draws_objects else image_format.sidecars(legend)).items():
        store.publish(name + suffix, content)
    with store.writing(name) as out:
        image_format.assemble(pieces, spec, legend, out, order.tile)
    picture = render_preview(previews, spec.shape, spec.interpretation, legend, preview_stride(spec.shape))
    store.publish(f"previews/{item.source.image_id}.png", picture)
    return Receipt(
        item.source,
        item.spec,
        None,
        mask=name,
        mask_sha256=out.artefact.sha256,
        tiles=len(canvas.grid),
        segmenter=canonical({"kind": order.kind, **model.provenance()}),
    )


def _stage_objects(canvas: Canvas, item: Item, measured: Callable[[], Iterator[Measured]]) -> dict[str, str]:
    """Stage the rows of the image's objects; the name of the file by that of the table. Nothing where no table is asked for.

    `measured` gives what each tile has measured, in the order of the tiles; it is asked twice.
    """
    order = canvas.order
    if order.objects is None:
        return {}
    name = f"{staging_folder(order, item)}/objects.arrow"
    spanning = canvas.rows_of(Measures.concatenate([Measures.from_bytes(each.spanning) for each in measured()]))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with Store(order.output).writing(name) as out, pa.ipc.new_stream(out, spanning.schema, options=options) as stream:
        tiles = (unpack_table(each.rows) for each in measured())
        for rows in rows_in_order(tiles, spanning, canvas.grid.counts[1]):
            stream.write_table(rows)
    return {Objects.table: name}


def _counted(receipt: Receipt, canvas: Canvas, states: States) -> Receipt:
    """The receipt with its rows, and with what the model knows against them."""
    rows = {
        name: statistic.finish(states[name], canvas.spec, canvas.legend) for name, statistic in canvas.order.statistics.items()
    }
    shares = {row["class_name"]: row["fraction"] for row in rows["area"] if row["fraction"] is not None}
    return replace(receipt, rows=rows, warning=caution_of([canvas.model], canvas.spec, shares))


def _block(reader: Reader, tile: Tile, spec: RasterSpec) -> Block:
    pixels, valid = reader.read(tile.read)
    return Block(tile, pixels, valid, spec)


def _spec(item: Item) -> RasterSpec:
    if item.spec is None:
        raise ReadError(f"The header of {item.source.uri} could not be read.")
    return item.spec


@contextlib.contextmanager
def _reading(item: Item, spec: RasterSpec) -> Iterator[Reader]:
    """The image opened with the bands of `spec`."""
    with _failures_of(item.source.uri), FORMATS[spec.format].open(spec) as reader:
        yield reader


@contextlib.contextmanager
def _staged(item: Item, order: Order) -> Iterator[None]:
    """Whoever misses a staged file here has been overtaken."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(
            f"A staged part of {item.source.uri} is gone ({error}): another run on {order.output} has finished it. "
            "Run the same command again."
        ) from error


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
