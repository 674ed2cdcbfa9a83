"""Evaluate: the masks of a run against truth masks.

Truth files are found as inputs are, paired with the run's images, and compared by one job per image
(`tasks.evaluate`). The results are in one folder: five tables (`segcore.evaluation.tables`) and a
picture.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maskloom.flows.progress import ItemProgress, display
from maskloom.flows.recipes.yaml_files import read_yaml
from maskloom.flows.signals import stop_on_signals
from maskloom.flows.terminal import count
from maskloom.segcore import formats
from maskloom.segcore.annotations.label_mapping import (
    VOID,
    VOID_NAME,
    LabelMapping,
    ValueRule,
    default_rules,
    parse_table,
    parse_values,
)
from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.annotations.pairing import MaskPairs, NameSuffixes, pair
from maskloom.segcore.errors import ImageError, RecipeError, StoreError, Unavailable
from maskloom.segcore.evaluation.run_tables import Output, RunMask
from maskloom.segcore.evaluation.scoring import EvaluatedImage, EvaluationOptions, Score
from maskloom.segcore.evaluation.tables import Result
from maskloom.segcore.figures.evaluation import ClassMeasures, Heading, draw, make_strip
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.source import ABSENT
from maskloom.segcore.storage.store import Store
from maskloom.tasks.clusters import machine
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.discover import discover
from maskloom.tasks.discover import told as passed_over_in_words
from maskloom.tasks.evaluate import ImageFailure, score_images, view_images
from maskloom.tasks.inspect import status

if TYPE_CHECKING:
    from maskloom.segcore.evaluation.scoring import TileView
    from maskloom.tasks.clusters.protocol import Cluster

FOLDER = "evaluation"
"""Folder of the results below an output."""
_WORST = 3
_FAILURES_SHOWN = 5
_PIXELS_IN_PROCESS = 50_000_000
"""Worker processes take seconds to start; they pay for more pixels than these."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that users set for an evaluation."""

    truth: tuple[str, ...]
    """Files, globs, folders or lists."""
    values: tuple[str, ...] = ()
    """VALUE=CLASS each."""
    colours: Path | None = None
    """YAML file of classes with their values or colours."""
    void: tuple[str, ...] = ()
    """Values, ranges or colours that do not count."""
    suffixes: NameSuffixes = field(default_factory=NameSuffixes)
    tolerance: float = 2.0
    """Pixels."""
    objects: Literal["auto", "yes", "no"] = "auto"
    """auto: if the run's masks hold ids of objects."""
    out: str | None = None
    """Folder for the results. None: `evaluation` below the output."""
    cluster: Cluster | None = None
    """Where to compare. None: in this process if there is little to compare, otherwise on worker
    processes of this machine.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The results, and where they are."""

    result: Result
    failures: tuple[ImageFailure, ...]
    """Images that could not be compared."""
    notes: tuple[str, ...]
    """For the user: images left out and the like."""
    folder: str

    @property
    def table(self) -> str:
        """Measures of each class, as text."""
        confusion, boundary, objects = self.result.total
        names = self.result.classes.names
        columns = {
            "IoU": confusion.iou,
            "Dice": confusion.dice,
            "precision": confusion.precision,
            "recall": confusion.recall,
        }
        columns["boundary F"] = boundary.f
        if objects is not None:
            columns |= {"PQ": objects.pq, "AP (DSB2018) @0.5": objects.ap_dsb2018[:, 0]}
        wide = max(map(len, (*names, "class")))
        # Heads and numbers of a column are aligned at the right.
        cells = [[head, *map(_figure, column)] for head, column in columns.items()]
        padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in cells]
        return "\n".join(
            "  ".join([first.ljust(wide), *row])
            for first, *row in zip(("class", *names), *padded, strict=True)
        )

    @property
    def summary(self) -> str:
        """The main figures in one line."""
        (row,) = (row for row in self.result.rows()["images"] if row["image_id"] is None)
        text = (
            f"{count(len(self.result.scores), 'image')}, {row['pixels'] / 1e6:.2f} megapixels: "
            f"accuracy {_figure(row['accuracy'])} "
            f"(majority {_figure(row['majority_baseline'])}), mean IoU {_figure(row['mean_iou'])}"
        )
        if "pq" in row:
            text += f", PQ {_figure(row['pq'])}, AP (DSB2018) @0.5 {_figure(row['ap_dsb2018_50'])}"
        return text


def evaluate(location: str, options: Options, *, quiet: bool = True) -> Evaluation:
    """Compare the masks of an output with truth masks and write tables and picture.

    If the run is not finished, the masks that exist are compared: each is whole. A note reports it,
    and images that could not be compared, because of their files, do not stop the others.

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
    truths, passed_over = _truths(options.truth, location)
    pairs = pair({mask.uri: mask.image_id for mask in output.masks}, truths, options.suffixes)
    compared = _compare(output, pairs, options, quiet)
    store, folder = (
        (Store(location), f"{FOLDER}/") if options.out is None else (Store(options.out), "")
    )
    failures = compared.failures
    notes = (*_notes(output, run.left, pairs, compared.result), *_failed(failures))
    if passed_over:
        notes += (f"--truth: {passed_over}",)
    evaluation = Evaluation(compared.result, failures, notes, store.uri(folder).rstrip("/"))
    picture = _picture(evaluation, compared, location)
    compared.result.publish(store, folder)
    store.publish(f"{folder}evaluation.png", picture)
    return evaluation


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """All images compared, and those for the picture."""

    result: Result
    failures: tuple[ImageFailure, ...]
    worst: Sequence[Score]
    """The images with the most errors, the worst first."""
    views: Mapping[str, TileView]
    """A tile of each of them, by `image_id`."""


def _compare(output: Output, pairs: MaskPairs, options: Options, quiet: bool) -> _Compared:
    """Compare all pairs, on a cluster or in this process."""
    masks = [mask for mask in output.masks if mask.uri in pairs.truth_of]
    cluster = options.cluster or _cluster(output, len(masks))
    stop = threading.Event()
    with _readable(), ExitStack() as stack:
        first = formats.describe(output.store.uri(masks[0].mask_uri))
        settings = _settings(output, options, holds_object_ids(first))
        stack.enter_context(stop_on_signals(stop))
        prepare = partial(prepare_process, threads=cluster.worker_threads)
        fanout = stack.enter_context(cluster.open(prepare, stop))
        shown_by = stack.enter_context(display(quiet))
        scored = score_images(
            fanout,
            _images(output, masks, pairs, settings),
            settings,
            ItemProgress(shown_by, "evaluate", "images", len(masks)),
        )
        _refuse(scored.failures, all_failed=not scored.scores)
        result = Result(output.classes, scored.scores)
        if not result.total[0].pixels:
            raise RecipeError(
                f"No pixel has a class in the truth and in the mask: all of {options.truth[0]} is "
                "void, or the masks have no data there."
            )
        worst = sorted((each for each in scored.scores if each.confusion.pixels), key=_quality)
        tiles = {each.image_id: each.worst for each in worst[:_WORST]}
        shown = [mask for mask in masks if mask.image_id in tiles]
        images = _images(output, shown, pairs, settings)
        views = view_images(fanout, images, settings, tiles)
    return _Compared(result, scored.failures, worst[:_WORST], views)


def _cluster(output: Output, images: int) -> Cluster:
    """This process, or a worker process per core if the images have many pixels."""
    pixels = output.classes.pixels * images / len(output.masks)
    workers = min(machine.core_count(), images)
    if workers == 1 or pixels <= _PIXELS_IN_PROCESS:
        return SerialCluster()
    return LocalCluster(workers)


def cluster_of(workers: int) -> Cluster:
    """This process for one worker, otherwise so many worker processes."""
    return SerialCluster() if workers == 1 else LocalCluster(workers)


def _refuse(failures: Sequence[ImageFailure], *, all_failed: bool) -> None:
    """Raise `RecipeError` if the options are wrong for an image, or no image is left."""
    wrong = [each.reason for each in failures if each.usage or all_failed]
    if wrong:
        more = len(wrong) - _FAILURES_SHOWN
        listed = "\n".join(wrong[:_FAILURES_SHOWN])
        raise RecipeError(f"{listed}\n... and {more} more images." if more > 0 else listed)


def _failed(failures: Sequence[ImageFailure]) -> Iterator[str]:
    for each in failures[:_FAILURES_SHOWN]:
        yield f"failed: {each.image_id}: {each.reason}"
    if len(failures) > _FAILURES_SHOWN:
        yield f"... and {len(failures) - _FAILURES_SHOWN} more images failed."


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Users can replace a mask that cannot be read, but not fix a store."""
    try:
        yield
    except Unavailable as error:
        raise StoreError(f"{error}. Check the store, then run the same command again.") from error
    except ImageError as error:
        raise RecipeError(str(error)) from error


def _truths(given: Sequence[str], output: str) -> tuple[dict[str, str], str]:
    """Truth files, with their paths below their common folder, by URI; and the files passed over,
    in words.
    """
    try:
        found = discover(given, output, {})
    except RecipeError as error:
        raise RecipeError(f"--truth: {str(error).removeprefix('inputs: ')}") from error
    absent = [source.uri for source in found.sources if source.version == ABSENT]
    if absent:
        raise RecipeError(f"--truth: {absent[0]!r} does not exist. Check its name.")
    passed_over = passed_over_in_words(found.passed_over).strip() if found.passed_over else ""
    return {source.uri: source.image_id for source in found.sources}, passed_over


def _settings(output: Output, options: Options, numbered: bool) -> EvaluationOptions:
    classes = output.classes
    compared = numbered if options.objects == "auto" else options.objects == "yes"
    if compared and not classes.foreground:
        raise RecipeError(
            f"--objects: the classes of the run ({', '.join(classes.names)}) all mean background, "
            "so nothing is an object."
        )
    rules = [*parse_values(options.values), *_colours(options.colours)]
    if not rules:
        rules = default_rules(
            classes.names, tuple(classes.names[i] for i in classes.foreground) if numbered else None
        )
    rules += [
        ValueRule.parse(value, VOID_NAME, "--void")
        for text in options.void
        for value in text.split(",")
    ]
    return EvaluationOptions(
        LabelMapping.of(rules, classes.names),
        options.tolerance,
        classes.foreground if compared else (),
        numbered,
    )


def _colours(path: Path | None) -> list[ValueRule]:
    if path is None:
        return []
    return parse_table(read_yaml(path, "the file of --colours"), f"--colours {path}")


def _images(
    output: Output, masks: Sequence[RunMask], pairs: MaskPairs, options: EvaluationOptions
) -> Iterator[EvaluatedImage]:
    """The images of these masks, with the classes of their values. The run's tables are read file
    by file.
    """
    for file, group in itertools.groupby(masks, lambda mask: mask.file):
        own = list(group)
        numbered = options.numbered
        objects = output.object_tables(file, [mask.image_id for mask in own]) if numbered else {}
        classes = {} if numbered else output.class_tables(file)
        for mask in own:
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
                yield EvaluatedImage(*files, classes[mask.image_id], VOID)


def _notes(output: Output, left: int, pairs: MaskPairs, result: Result) -> Iterator[str]:
    if left:
        unfinished = count(left, "image is", "images are")
        yield (
            f"The run is not finished, {unfinished} left; the masks that it has are evaluated. Run "
            "its recipe again to finish it."
        )
    recipes = len({mask.fingerprint for mask in output.masks})
    if recipes > 1:
        yield (
            f"The masks were made by {recipes} recipes (images that leave the inputs keep theirs); "
            "figures and areas are of all."
        )
    if pairs.without_truth:
        without = count(
            len(pairs.without_truth),
            "image has no truth and is not evaluated",
            "images have no truth and are not evaluated",
        )
        yield f"{without} ({_few(pairs.without_truth)})."
    if pairs.without_image:
        yield (
            f"{count(len(pairs.without_image), 'truth file belongs', 'truth files belong')} to no "
            f"image of the run ({_few(pairs.without_image)})."
        )
    if output.failed:
        failed = count(
            output.failed, "image of the run failed and has", "images of the run failed and have"
        )
        yield f"{failed} no mask."
    confusion = result.total[0]
    if confusion.void:
        share = confusion.void / (confusion.void + int(confusion.counts.sum()))
        yield (
            f"{confusion.void} pixels ({share:.1%}) are void or no data in the truth and count "
            "nowhere."
        )
    if confusion.unpredicted:
        yield (
            f"{confusion.unpredicted} pixels have a class in the truth and no data in the mask; "
            "they are counted apart (unpredicted)."
        )
    rows = result.rows()["areas"]
    if "adjusted_area" not in rows[0]:
        absent = [
            row["class_name"] for row in rows if row["mapped_area"] and not row["sample_pixels"]
        ]
        yield f"No error-adjusted areas: the truth has no pixels of mask class {', '.join(absent)}."


def _figure(value: float) -> str:
    """Three digits, or a dash if the measure is not defined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _few(uris: Sequence[str]) -> str:
    names = [uri.rsplit("/", 1)[-1] for uri in uris[:3]]
    return ", ".join(names) + (", ..." if len(uris) > 3 else "")


def _quality(each: Score) -> tuple[float, float]:
    """Low for an image with many errors: by its objects, then by its pixels."""
    accuracy = each.confusion.accuracy
    if each.objects is None:
        return accuracy, accuracy
    counts = each.objects.tallies[:, 0].sum(axis=0)
    # An image without objects on both sides has no error.
    return float(counts[0] / counts.sum()) if counts.any() else 1.0, accuracy


def _picture(evaluation: Evaluation, compared: _Compared, location: str) -> bytes:
    result = evaluation.result
    table = ClassTable.of(result.classes.names)
    strips = []
    for rank, each in enumerate(compared.worst, 1):
        figures = f"accuracy {each.confusion.accuracy:.3f}"
        if each.objects is not None:
            matched, false, missed = each.objects.tallies[:, 0].sum(axis=0).tolist()
            figures += f", {matched} objects matched, {false} false, {missed} missed"
        if (seen := compared.views.get(each.image_id)) is not None:
            strips.append(
                make_strip(
                    f"{rank}. of the worst: {each.image_id} · {figures}",
                    table,
                    seen.photo,
                    (seen.truth, seen.predicted),
                    seen.outlines,
                    seen.unmatched,
                )
            )
    confusion, boundary, _ = result.total
    return draw(
        Heading(f"Evaluation of {location}", evaluation.summary),
        ClassMeasures(table, confusion.square, confusion.iou, boundary.f),
        strips,
    )
