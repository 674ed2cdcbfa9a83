"""The evaluation flow: the masks of a run against truth masks.

Truth files are found as inputs are, paired with the run's images, and compared by one job per image
(`tasks.evaluate`). The results are in one folder: five tables (`segcore.evaluation.tables`) and a
picture.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from maskloom.flows.evaluation.options import EvaluationRequest, find_truths
from maskloom.flows.evaluation.report import Comparison, Evaluation, draw_picture, notes
from maskloom.flows.mask_errors import mask_errors_for_users
from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.flows.stopping import BreakOff, stoppable
from maskloom.flows.terminal import count
from maskloom.segcore import formats
from maskloom.segcore.annotations.label_mapping import VOID
from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.annotations.pairing import MaskPairs, pair
from maskloom.segcore.annotations.polygons.collect import Collected, LabelledGrid, collect
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.evaluation.run_tables import Output, RunMask
from maskloom.segcore.evaluation.scoring import EvaluatedImage, EvaluationOptions, Score
from maskloom.segcore.evaluation.tables import Result
from maskloom.segcore.figures.reliability import Line, draw_reliability
from maskloom.segcore.formats.dicom.grouping import is_series
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.raster.colours import PALETTE
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.storage.store import Store
from maskloom.tasks.clusters import machine
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.discovery.discover import discover
from maskloom.tasks.discovery.series import SeriesHeaders
from maskloom.tasks.discovery.vectors import are_vectors, find_vectors
from maskloom.tasks.evaluate import ImageFailure, score_images, view_images
from maskloom.tasks.status import status

if TYPE_CHECKING:
    from maskloom.segcore.annotations.polygons.masks import PolygonMask
    from maskloom.segcore.raster.source import Member
    from maskloom.tasks.clusters.protocol import Cluster

FOLDER = "evaluation"
"""Folder of the results below an output."""
_WORST = 3
_AT_ONCE = 16
"""Headers that are read at once."""
_FAILURES_SHOWN = 5
_PIXELS_IN_PROCESS = 50_000_000
"""Worker processes take seconds to start, so they are worth it only above this number."""


def evaluate(
    location: str,
    request: EvaluationRequest,
    *,
    quiet: bool = True,
    break_off: BreakOff | None = None,
) -> Evaluation:
    """Compare the masks of an output with truth masks; write the tables and the picture.

    If the run is not finished, the masks that exist are compared; each of them is complete, and a
    note reports it. Images with broken files do not stop the others. `break_off`: see `stoppable`.

    Raises `RecipeError` if there is no mask or no truth, no truth belongs to an image, all images
    failed, or the truth has values without a meaning; `StoreError` if a store fails.
    """
    run = status(location)
    if run.left and not run.done:
        raise RecipeError(
            f"The run in {location} is not finished: it has no mask yet, and "
            f"{count(run.left, 'image is', 'images are')} left. "
            "Run its recipe again to finish it."
        )
    output = Output.read(Store(location))
    if are_vectors(request.truth):
        found = _polygons(output, request)
        pairs, drawn = _pairs_of_polygons(output, found), found.masks
        extra, passed_over = found.notes, ""
    else:
        truths, passed_over = find_truths(request.truth, location)
        pairs = pair({mask.uri: mask.image_id for mask in output.masks}, truths, request.suffixes)
        drawn, extra = {}, ()
    compared = _compare(output, pairs, drawn, request, quiet, break_off)
    store, folder = (
        (Store(location), f"{FOLDER}/") if request.out is None else (Store(request.out), "")
    )
    evaluation = Evaluation(
        compared.result,
        compared.failures,
        (*extra, *notes(output, run.left, pairs, compared, passed_over)),
        store.uri(folder).rstrip("/"),
        compared.volumes,
    )
    picture = draw_picture(evaluation, compared, location)
    compared.result.publish(store, folder)
    store.publish(f"{folder}evaluation.png", picture)
    reliability = compared.result.reliability
    if reliability is not None:
        lines = [Line("scores of the run", reliability, PALETTE[0])]
        title = f"{location}: reliability of scores"
        store.publish(f"{folder}reliability.png", draw_reliability(lines, title))
    return evaluation


def _polygons(output: Output, request: EvaluationRequest) -> Collected:
    """The polygons of the run's images. The headers of the masks say where these are."""
    files = find_vectors(request.truth, "--truth")
    with mask_errors_for_users(), ThreadPoolExecutor(_AT_ONCE, "headers") as pool:
        specs = pool.map(
            lambda mask: formats.describe(output.store.uri(mask.mask_uri)), output.masks
        )
        grids = {
            mask.uri: LabelledGrid(mask.image_id, replace(spec, location=mask.uri))
            for mask, spec in zip(output.masks, specs, strict=True)
        }
        first = formats.describe(output.store.uri(output.masks[0].mask_uri))
        options = request.job_options(output, holds_object_ids(first), polygons=True)
        rules = request.polygon_rules(output.classes.names, options.foreground)
        return collect({file.uri: file.image_id for file in files}, grids, rules, request.suffixes)


def _pairs_of_polygons(output: Output, found: Collected) -> MaskPairs:
    truth_of = {uri: mask.location for uri, mask in found.masks.items()}
    names = {mask.uri: mask.image_id for mask in output.masks if mask.uri in truth_of}
    return MaskPairs(truth_of, names, (), ())


def _compare(
    output: Output,
    pairs: MaskPairs,
    polygons: Mapping[str, PolygonMask],
    request: EvaluationRequest,
    quiet: bool,
    break_off: BreakOff | None,
) -> Comparison:
    """Compare all pairs, on a cluster or in this process. `polygons`: truth that is no mask, by
    URI of the image.
    """
    masks = [mask for mask in output.masks if mask.uri in pairs.truth_of]
    cluster = request.cluster or _cluster(output, len(masks))
    stop = threading.Event()
    with mask_errors_for_users(), ExitStack() as stack:
        first = formats.describe(output.store.uri(masks[0].mask_uri))
        options = request.job_options(output, holds_object_ids(first), polygons=bool(polygons))
        shown_by = stack.enter_context(display(quiet))
        signals = stack.enter_context(stoppable(stop, shown_by, break_off))
        prepare = partial(prepare_process, threads=cluster.worker_threads)
        fanout = signals.works_on(stack.enter_context(cluster.opened(prepare, stop)))
        progress = ItemProgress(shown_by, "evaluate", "images", len(masks))
        images = _with_polygons(_images(output, masks, pairs, options), polygons)
        scored = score_images(fanout, images, options, progress)
        _require_valid(scored.failures, all_failed=not scored.scores)
        result = Result(output.classes, scored.scores)
        if not result.total[0].pixels:
            raise RecipeError(
                f"No pixel has a class in both truth and mask: all of {request.truth[0]} is void, "
                "or the masks have no data there. Check --values and --void."
            )
        worst = sorted((each for each in scored.scores if each.confusion.pixels), key=_quality)
        tiles = {each.image_id: each.worst for each in worst[:_WORST]}
        shown = [mask for mask in masks if mask.image_id in tiles]
        pictured = (
            replace(each, members=_members(output.store, each.image_uri))
            for each in _with_polygons(_images(output, shown, pairs, options), polygons)
        )
        views = view_images(fanout, pictured, options, tiles)
    volumes = len(first.shape) > len("yx")
    return Comparison(result, scored.failures, worst[:_WORST], views, volumes)


def _cluster(output: Output, images: int) -> Cluster:
    """This process, or a worker process per core if the images have many pixels."""
    pixels = output.classes.pixels * images / len(output.masks)
    workers = min(machine.core_count(), images)
    if workers == 1 or pixels <= _PIXELS_IN_PROCESS:
        return SerialCluster()
    return LocalCluster(workers)


def _require_valid(failures: Sequence[ImageFailure], *, all_failed: bool) -> None:
    """Raise `RecipeError` if the options are wrong for an image, or no image is left."""
    wrong = [each.reason for each in failures if each.usage or all_failed]
    if wrong:
        more = len(wrong) - _FAILURES_SHOWN
        listed = "\n".join(wrong[:_FAILURES_SHOWN])
        raise RecipeError(f"{listed}\n... and {more} more images." if more > 0 else listed)


def _images(
    output: Output, masks: Sequence[RunMask], pairs: MaskPairs, options: EvaluationOptions
) -> Iterator[EvaluatedImage]:
    """The images of these masks, with the classes of their values. The run's tables are read file
    by file.
    """
    for file, group in itertools.groupby(masks, lambda mask: mask.file):
        own_masks = list(group)
        numbered = options.numbered
        objects = (
            output.object_tables(file, [mask.image_id for mask in own_masks]) if numbered else {}
        )
        classes = {} if numbered else output.class_tables(file)
        for mask in own_masks:
            files = (
                mask.image_id,
                mask.uri,
                output.store.uri(mask.mask_uri),
                pairs.truth_of[mask.uri],
            )
            if numbered:
                known = objects[mask.image_id]
                yield EvaluatedImage(*files, known.classes, known.others, known.scores)
            else:
                scores = mask.scores_uri
                yield EvaluatedImage(
                    *files,
                    classes[mask.image_id],
                    VOID,
                    probabilities=None if scores is None else output.store.uri(scores),
                )


def _with_polygons(
    images: Iterator[EvaluatedImage], polygons: Mapping[str, PolygonMask]
) -> Iterator[EvaluatedImage]:
    return (replace(each, polygons=polygons.get(each.image_uri)) for each in images)


def _members(store: Store, uri: str) -> tuple[Member, ...]:
    """The files of a series of a run, to show it; none for other images, and if the series is
    gone.
    """
    if not is_series(uri):
        return ()
    series = split_part(uri)[0]
    try:
        # The run has kept the headers, unless it was told to read them in another way.
        found = discover([series.rpartition("/")[0]], store.root, {}, SeriesHeaders(store))
    except (RecipeError, StoreError):
        return ()
    return next((each.members for each in found.sources if each.uri == series), ())


def _quality(each: Score) -> tuple[float, float]:
    """A sort key, lower for images with more errors: in their objects, then in their pixels."""
    accuracy = each.confusion.accuracy
    if each.objects is None:
        return accuracy, accuracy
    counts = each.objects.tallies[:, 0].sum(axis=0)
    # An image without objects on both sides has no error.
    return float(counts[0] / counts.sum()) if counts.any() else 1.0, accuracy
