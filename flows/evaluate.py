"""Evaluate: the masks of a run against truth masks.

Truth files are found as inputs are, paired with the run's images by name, and read tile by tile
beside the masks. What comes out lies in one folder: five tables (`segcore.evaluation.tables`) and a
picture.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maskloom.flows.progress import SECONDS_BETWEEN_LINES
from maskloom.flows.recipes.yaml_files import read_yaml
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
from maskloom.segcore.annotations.masks import MaskFile
from maskloom.segcore.annotations.pairing import MaskPairs, NameSuffixes, pair
from maskloom.segcore.errors import ImageError, RecipeError, StoreError, Unavailable
from maskloom.segcore.evaluation.picture import Heading, draw, make_strip, photo_of
from maskloom.segcore.evaluation.run_tables import Output, RunMask
from maskloom.segcore.evaluation.scoring import EvaluatedImage, EvaluationOptions, Score, score
from maskloom.segcore.evaluation.tables import Result
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.source import ABSENT
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.storage.store import Store
from maskloom.tasks.discover import discover
from maskloom.tasks.inspect import status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER = "evaluation"
"""Where results go below an output."""
_WORST = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What users say of an evaluation."""

    truth: tuple[str, ...]
    """Files, globs, folders or lists."""
    values: tuple[str, ...] = ()
    """VALUE=CLASS each."""
    colours: Path | None = None
    """YAML file of classes with their values or colours."""
    void: tuple[str, ...] = ()
    affixes: NameSuffixes = field(default_factory=NameSuffixes)
    tolerance: float = 2.0
    """Pixels."""
    objects: Literal["auto", "yes", "no"] = "auto"
    """auto: where the run's masks hold ids of objects."""
    out: str | None = None
    """Folder for the results. None: `evaluation` below the output."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What was found, and where it lies."""

    result: Result
    notes: tuple[str, ...]
    """What people should know: images left out and the like."""
    folder: str

    @property
    def table(self) -> str:
        """Measures of each class, for people."""
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
        # A head stands over its numbers: both end where the wider of them does.
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
        told = (
            f"{count(len(self.result.scores), 'image')}, {row['pixels'] / 1e6:.2f} megapixels: "
            f"accuracy {_figure(row['accuracy'])} "
            f"(majority {_figure(row['majority_baseline'])}), mean IoU {_figure(row['mean_iou'])}"
        )
        if "pq" in row:
            told += f", PQ {_figure(row['pq'])}, AP (DSB2018) @0.5 {_figure(row['ap_dsb2018_50'])}"
        return told


def evaluate(location: str, options: Options, watch: Literal["progress", "quiet"]) -> Evaluation:
    """Compare the masks of an output with truth masks and write tables and picture.

    Of a run that is not finished, the masks that it has are compared: each is whole, and measures
    are of pixels that are there. A note tells.

    Raises `RecipeError` where there is no mask or no truth, where truth and images do not match by
    name, size or place, or where truth has values that nobody explains; `StoreError` where a store
    fails.
    """
    run = status(location)
    if run.left and not run.done:
        raise RecipeError(
            f"The run in {location} is not finished: it has no mask yet, and "
            f"{count(run.left, 'image is', 'images are')} left. "
            "Run its recipe again to finish it."
        )
    output = Output.read(Store(location))
    truths = _truths(options.truth, location)
    pairs = pair([mask.uri for mask in output.masks], truths, options.affixes)
    chosen = [mask for mask in output.masks if mask.uri in pairs.truth_of]
    with _readable():
        terms = _terms(
            output, options, MaskFile.describe(output.store.uri(chosen[0].mask_uri)).numbers_objects
        )
        subjects = _subjects(output, chosen, pairs, terms)
        scores = [score(subject, terms) for subject in _watched(subjects, len(chosen), watch)]
        result = Result(output.classes, scores)
        if not result.total[0].pixels:
            raise RecipeError(
                f"No pixel has a class in the truth and in the mask: all of {options.truth[0]} is "
                "void, or the masks have no data there."
            )
        store, folder = (
            (Store(location), f"{FOLDER}/") if options.out is None else (Store(options.out), "")
        )
        evaluation = Evaluation(
            result, tuple(_notes(output, run.left, pairs, result)), store.uri(folder).rstrip("/")
        )
        picture = _picture(evaluation, terms, location)
        result.publish(store, folder)
        store.publish(f"{folder}evaluation.png", picture)
    return evaluation


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """A mask that cannot be read is the user's to replace; a store that fails is not."""
    try:
        yield
    except Unavailable as error:
        raise StoreError(f"{error}. Check the store, then run the same command again.") from error
    except ImageError as error:
        raise RecipeError(str(error)) from error


def _truths(given: Sequence[str], output: str) -> list[str]:
    try:
        found = discover(given, output, {}).sources
    except RecipeError as error:
        raise RecipeError(f"--truth: {str(error).removeprefix('inputs: ')}") from error
    absent = [source.uri for source in found if source.version == ABSENT]
    if absent:
        raise RecipeError(f"--truth: {absent[0]!r} does not exist. Check its name.")
    return [source.uri for source in found]


def _terms(output: Output, options: Options, numbered: bool) -> EvaluationOptions:
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


def _subjects(
    output: Output, masks: Sequence[RunMask], pairs: MaskPairs, terms: EvaluationOptions
) -> Iterator[EvaluatedImage]:
    for file, group in itertools.groupby(masks, lambda mask: mask.file):
        own = list(group)
        objects = (
            output.object_tables(file, [mask.image_id for mask in own]) if terms.numbered else {}
        )
        classes = {} if terms.numbered else output.class_tables(file)
        for mask in own:
            place = (
                mask.image_id,
                mask.uri,
                output.store.uri(mask.mask_uri),
                pairs.truth_of[mask.uri],
            )
            if terms.numbered:
                known = objects[mask.image_id]
                yield EvaluatedImage(*place, known.classes, known.others, known.scores)
            else:
                yield EvaluatedImage(*place, classes[mask.image_id], VOID)


def _watched(
    subjects: Iterable[EvaluatedImage], count: int, watch: Literal["progress", "quiet"]
) -> Iterator[EvaluatedImage]:
    """The subjects, with a bar on a terminal and a line every 30 seconds elsewhere."""
    if watch == "quiet":
        yield from subjects
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(subjects, "evaluate", count, console=Console(stderr=True), transient=True)
    else:
        told = time.monotonic()
        for done, subject in enumerate(subjects):
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                sys.stderr.write(f"evaluate: {done}/{count} images\n")
            yield subject


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
        yield f"No error-adjusted areas: no truth lies where the masks have {', '.join(absent)}."


def _figure(value: float) -> str:
    """Three digits, or a dash where the measure is not defined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _few(uris: Sequence[str]) -> str:
    names = [uri.rsplit("/", 1)[-1] for uri in uris[:3]]
    return ", ".join(names) + (", ..." if len(uris) > 3 else "")


def _picture(evaluation: Evaluation, terms: EvaluationOptions, location: str) -> bytes:
    result = evaluation.result
    worst = sorted((each for each in result.scores if each.confusion.pixels), key=_quality)[:_WORST]
    strips = []
    for rank, each in enumerate(worst, 1):
        figures = f"accuracy {each.confusion.accuracy:.3f}"
        if each.objects is not None:
            matched, false, missed = each.objects.tallies[:, 0].sum(axis=0).tolist()
            figures += f", {matched} objects matched, {false} false, {missed} missed"
        strips.append(
            make_strip(
                each,
                terms,
                f"{rank}. of the worst: {each.subject.image_id} · {figures}",
                _photo(each, terms),
            )
        )
    confusion, boundary, _ = result.total
    return draw(
        Heading(f"Evaluation of {location}", evaluation.summary),
        ClassTable.of(result.classes.names),
        (confusion, boundary),
        strips,
    )


def _quality(each: Score) -> tuple[float, float]:
    """Low where an image went badly: by its objects, then by its pixels."""
    accuracy = each.confusion.accuracy
    if each.objects is None:
        return accuracy, accuracy
    counts = each.objects.tallies[:, 0].sum(axis=0)
    # Without objects on either side all is as it should be.
    return float(counts[0] / counts.sum()) if counts.any() else 1.0, accuracy


def _photo(each: Score, terms: EvaluationOptions) -> NDArray[np.uint8] | None:
    """The pixels of the tile that is shown; None where the image is gone, has changed or is read in
    another way.
    """
    uri = each.subject.image_uri
    try:
        spec = FORMATS[formats.format_of(uri, StoredFile.of(uri).head())].describe(uri, "")
        if spec.shape != MaskFile.describe(each.subject.mask).spec.shape:
            return None
        with FORMATS[spec.format].open(spec) as reader:
            pixels, valid = reader.read(terms.grid(spec.shape)[each.worst].core)
    except (ImageError, StoreError):
        return None
    return photo_of(pixels, valid)
