"""The report of an evaluation: measures as text, notes and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.flows.terminal import count
from maskloom.segcore.annotations.pairing import names_for_series
from maskloom.segcore.figures.evaluation import ClassMeasures, Heading, draw, make_strip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.pairing import MaskPairs
    from maskloom.segcore.evaluation.run_tables import Output
    from maskloom.segcore.evaluation.scoring import Score, TileView
    from maskloom.segcore.evaluation.tables import Result
    from maskloom.tasks.evaluate import ImageFailure

_FAILURES_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All images compared, with those that the picture shows."""

    result: Result
    failures: tuple[ImageFailure, ...]
    """Images that could not be compared."""
    worst: Sequence[Score]
    """The images with the most errors, the worst first."""
    views: Mapping[str, TileView]
    """A tile of each of the worst images, by `image_id`."""
    volumes: bool = False
    """Whether the masks are those of volumes."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The results, and where they are."""

    result: Result
    failures: tuple[ImageFailure, ...]
    """Images that could not be compared."""
    notes: tuple[str, ...]
    """Lines for users: what was left out, and what limits the results."""
    folder: str
    """URI or path of the folder with the tables and the picture."""
    volumes: bool = False
    """Whether the masks are those of volumes."""

    @property
    def table(self) -> str:
        """Measures of each class, as text with aligned columns; for objects also the means over
        images that papers give.
        """
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
        text = _aligned("class", names, columns)
        if objects is None:
            return text
        means = list(self.result.means())
        shown = {
            "Dice": "dice",
            "PQ": "pq",
            "AP (DSB2018) @0.5": "ap_dsb2018_50",
            "@0.5-0.95": "ap_dsb2018",
        }
        by_image = {head: [row[key] for row in means] for head, key in shown.items()}
        return f"{text}\n{_aligned('mean of images', names, by_image)}"

    @property
    def summary(self) -> str:
        """The main figures in one line."""
        (row,) = (row for row in self.result.rows()["images"] if row["image_id"] is None)
        unit = "megavoxels" if self.volumes else "megapixels"
        text = (
            f"{count(len(self.result.scores), 'image')}, {row['pixels'] / 1e6:.2f} {unit}: "
            f"accuracy {_figure(row['accuracy'])} "
            f"(majority {_figure(row['majority_baseline'])}), mean IoU {_figure(row['mean_iou'])}"
        )
        if "pq" in row:
            text += f", PQ {_figure(row['pq'])}, AP (DSB2018) @0.5 {_figure(row['ap_dsb2018_50'])}"
        if self.result.reliability is not None:
            text += f", calibration error {_figure(self.result.reliability.error)}"
        return text


def _aligned(
    first: str, names: Sequence[str], columns: Mapping[str, Sequence[float] | NDArray[np.float64]]
) -> str:
    """A table as text, headings and numbers aligned at the right; `first` heads the names."""
    wide = max(map(len, (*names, first)))
    cells = [[head, *map(_figure, column)] for head, column in columns.items()]
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in cells]
    return "\n".join(
        "  ".join([name.ljust(wide), *row])
        for name, *row in zip((first, *names), *padded, strict=True)
    )


def notes(
    output: Output, left: int, pairs: MaskPairs, compared: Comparison, passed_over: str
) -> Iterator[str]:
    """The notes of an evaluation. `left`: images that the run still has to do; `passed_over`: a
    sentence about files that were not used as truth masks, empty if all were.
    """
    yield from _notes_on_run(output, left)
    yield from _notes_on_pairs(pairs)
    if output.failed:
        failed = count(
            output.failed, "image of the run failed and has", "images of the run failed and have"
        )
        yield f"{failed} no mask."
    yield from _notes_on_places(compared.result)
    yield from _notes_on_pixels(compared.result)
    yield from _notes_on_failures(compared.failures)
    if passed_over:
        yield f"--truth: {passed_over}"


def _notes_on_run(output: Output, left: int) -> Iterator[str]:
    if left:
        unfinished = count(left, "image is", "images are")
        yield (
            f"The run is not finished, {unfinished} left; the masks that it has are evaluated. Run "
            "its recipe again to finish it."
        )
    recipes = len({mask.fingerprint for mask in output.masks})
    if recipes > 1:
        yield (
            f"The masks were made by {recipes} recipes (images that are no longer inputs keep "
            "theirs); figures and areas include all of them."
        )


def _notes_on_pairs(pairs: MaskPairs) -> Iterator[str]:
    if pairs.without_truth:
        without = count(
            len(pairs.without_truth),
            "image has no truth and is not evaluated",
            "images have no truth and are not evaluated",
        )
        images = (*pairs.truth_of, *pairs.without_truth)
        names = names_for_series(pairs.without_truth, images)
        yield f"{without} ({_few(pairs.without_truth)}). {names}".rstrip()
    if pairs.without_image:
        yield (
            f"{count(len(pairs.without_image), 'truth file belongs', 'truth files belong')} to no "
            f"image of the run ({_few(pairs.without_image)})."
        )


def _notes_on_places(result: Result) -> Iterator[str]:
    unplaced = [each.truth for each in result.scores if each.one_place]
    if unplaced:
        few = _few(unplaced)
        yield (
            f"{count(len(unplaced), 'image', 'images')}: of truth and mask only one says where its "
            f"voxels are; they are compared in the order of the files, unchecked ({few})."
        )


def _notes_on_pixels(result: Result) -> Iterator[str]:
    confusion = result.total[0]
    if confusion.void:
        share = confusion.void / (confusion.void + int(confusion.counts.sum()))
        yield (
            f"{confusion.void} pixels ({share:.1%}) are void or no data in the truth and are not "
            "counted."
        )
    if confusion.unpredicted:
        yield (
            f"{confusion.unpredicted} pixels have a class in the truth and no data in the mask; "
            "they are counted separately (unpredicted)."
        )
    rows = result.rows()["areas"]
    if "adjusted_area" not in rows[0]:
        absent = [
            row["class_name"] for row in rows if row["mapped_area"] and not row["sample_pixels"]
        ]
        yield f"No error-adjusted areas: the truth has no pixels of mask class {', '.join(absent)}."


def _notes_on_failures(failures: Sequence[ImageFailure]) -> Iterator[str]:
    for each in failures[:_FAILURES_SHOWN]:
        yield f"failed: {each.image_id}: {each.reason}"
    if len(failures) > _FAILURES_SHOWN:
        yield f"... and {len(failures) - _FAILURES_SHOWN} more images failed."


def draw_picture(evaluation: Evaluation, compared: Comparison, location: str) -> bytes:
    """The picture of an evaluation as PNG: measures of the classes, and a tile of each of the worst
    images.
    """
    result = evaluation.result
    table = result.classes.table
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


def _figure(value: float) -> str:
    """Three decimals, or a dash if the measure is not defined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _few(uris: Sequence[str]) -> str:
    names = [uri.rsplit("/", 1)[-1] for uri in uris[:3]]
    return ", ".join(names) + (", ..." if len(uris) > 3 else "")
