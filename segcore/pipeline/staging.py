"""Results of images, staged in the output store until they are committed."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from maskloom.segcore.errors import RunError
from maskloom.segcore.features.reader import shown
from maskloom.segcore.figures import thumbnails
from maskloom.segcore.figures.preview import PreviewPart, preview_stride, render_preview
from maskloom.segcore.figures.sheets import Caption
from maskloom.segcore.masks import EncodedBlock, name_of
from maskloom.segcore.masks.quantised import Certainty
from maskloom.segcore.masks.scores import FOLDER, score_writer
from maskloom.segcore.models.protocols import FIRST_CLASSES, caution_of, caution_of_objects
from maskloom.segcore.models.typical import TypicalObjects
from maskloom.segcore.objects.numbering import tiles_of_layer
from maskloom.segcore.objects.rows import rows_in_order
from maskloom.segcore.objects.typical_objects import TypicalCounts
from maskloom.segcore.pipeline.image_run import ImageRun
from maskloom.segcore.pipeline.jobs import RunSettings, result_name, staging_folder
from maskloom.segcore.pipeline.records import Failure, ImageResult, PlannedImage
from maskloom.segcore.pipeline.tile_results import States
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.canonical import canonical
from maskloom.segcore.storage.packing import unpack, unpack_table
from maskloom.segcore.storage.store import Store


def failed(
    settings: RunSettings, image: PlannedImage, failure: Failure, classes: tuple[str, ...]
) -> ImageResult:
    """The result of an image that could not be processed: all its pixels, if their number is known,
    are unprocessed.

    If the names of the classes are unknown (`auto`), `FIRST_CLASSES` are used, so that the tables
    include these pixels.
    """
    rows = {}
    if image.spec is not None:
        class_table = settings.class_table(classes or FIRST_CLASSES, image.spec)
        rows = {
            name: statistic.finish(None, image.spec, class_table)
            for name, statistic in settings.statistics.items()
        }
    return ImageResult(image.source, image.spec, failure, rows, segmenter=settings.kind)


def stage_mask(
    run: ImageRun,
    image: PlannedImage,
    blocks: Iterator[EncodedBlock],
    previews: list[PreviewPart],
    states: States,
    count: int,
) -> ImageResult:
    """Stage the mask and the preview of an image. `states`: those of its statistics; `count`: the
    number of its objects.
    """
    settings, model, spec, classes = run.settings, run.model, run.spec, run.class_table
    store, writer = Store(settings.output), run.mask_writer(count)
    name = f"masks/{image.source.image_id}{writer.suffix}"
    mask = writer.publish(store, result_name(settings), blocks, spec, classes, run.grid.tile)
    staged = {name_of(name, ending): artefact.name for ending, artefact in mask.files.items()}
    picture = render_preview(previews, shown(spec), classes, _caption(run, image, states, count))
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
        pictures=_small_pictures(run, previews),
    )


def with_scores(
    result: ImageResult, run: ImageRun, blocks: Iterator[EncodedBlock], certainty: Certainty
) -> ImageResult:
    """The result with the scores of the classes staged, if the run keeps them."""
    settings, spec = run.settings, run.spec
    if not settings.scores:
        return result
    writer = score_writer(spec)
    name = f"{FOLDER}/{result.source.image_id}{writer.suffix}"
    scores = writer.publish(
        Store(settings.output), result_name(settings), blocks, spec, run.class_table, run.grid.tile
    )
    files = {name_of(name, ending): artefact.name for ending, artefact in scores.files.items()}
    return replace(
        result,
        scores=name,
        scores_sha256=scores.sha256,
        mean_entropy=certainty.mean_entropy,
        mean_margin=certainty.mean_margin,
        staged={**result.staged, **files},
    )


def _caption(run: ImageRun, image: PlannedImage, states: States, count: int) -> Caption:
    """What the preview says in words."""
    area = run.settings.statistics["area"]  # it always runs
    return Caption(
        image.source.image_id,
        run.settings.kind,
        area.finish(states["area"], run.spec, run.class_table),
        count if run.merger is not None else None,
        # The day.
        (run.spec.acquired or "")[:10],
    )


def _small_pictures(run: ImageRun, previews: list[PreviewPart]) -> thumbnails.Pictures | None:
    """The pictures for the report. None: not asked for."""
    sizes, spec = run.settings.pictures, run.spec
    if sizes is None:
        return None
    stride = preview_stride(spec.shape)
    previews = [part for part in previews if part.across == 0]
    return thumbnails.draw(previews, spec.shape, run.class_table, stride, sizes, spec.space.frame)


def stage_objects(
    run: ImageRun, rows: Iterator[bytes], spanning: Iterator[bytes]
) -> tuple[dict[str, str], TypicalObjects]:
    """Stage the rows of the image's objects. Returns the name of the file by the name of the table,
    and what objects are typical; empty if there is no table of objects.

    `rows` and `spanning` are those of `TileResults`, in the order of the tiles.
    """
    settings = run.settings
    if settings.objects is None:
        return {}, TypicalObjects()
    name = result_name(settings)
    measures = Measures.concatenate([unpack(Measures, each) for each in spanning])
    joined = run.rows_of(measures)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    typical = TypicalCounts()
    with (
        Store(settings.output).writing(name) as out,
        pa.ipc.new_stream(out, joined.schema, options=options) as stream,
    ):
        tables = (unpack_table(each) for each in rows)
        for table in rows_in_order(tables, joined, tiles_of_layer(run.grid)):
            stream.write_table(table)
            typical.add_rows(table)
    return {Objects.table: name}, typical.medians


def with_rows(
    result: ImageResult, run: ImageRun, states: States, typical: TypicalObjects
) -> ImageResult:
    """The result with its rows and the warnings of the model, which has these typical objects."""
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
        warning=warning_of(run, shares, typical),
    )


def warning_of(run: ImageRun, shares: Mapping[str, float], typical: TypicalObjects) -> str | None:
    """The warnings about the result on an image, from the shares of its classes and its typical
    objects. None: no warning.
    """
    level = run.spec.level
    read = f"level {level} of the pyramid was read, not full resolution" if level else None
    told = (
        caution_of([run.model], run.spec, shares),
        caution_of_objects(run.model, run.spec, typical),
    )
    return "; ".join(filter(None, (read, *told))) or None


@contextlib.contextmanager
def staged_errors(image: PlannedImage, settings: RunSettings) -> Iterator[None]:
    """Turn errors of staged files into `RunError`. A missing file means that another run has
    finished the image; an unreadable one is damaged.
    """
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
