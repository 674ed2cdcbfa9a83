"""Commands that measure how right masks are: sample, evaluate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from maskloom.flows.commands.messages import SOME_FAILED, errors_as_messages, location_of
from maskloom.flows.commands.options import EvaluationFlags, Output, QuietFlag, takes_flags
from maskloom.flows.signals import end_process
from maskloom.flows.terminal import escaped, line
from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    from maskloom.flows.evaluation.options import EvaluationRequest

PerClass = Annotated[
    int, typer.Option(min=2, metavar="N", help="Samples of each class, or the least number of it.")
]
SampleSize = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Samples of all classes, in proportion to their pixels; at least --per-class of each.",
        show_default=False,
    ),
]
Interval = Annotated[
    float | None,
    typer.Option(
        min=1e-4,
        max=0.5,
        metavar="HALF",
        help=(
            "In place of --size: the wanted overall accuracy ± HALF, e.g. 0.03 for a 95 % interval "
            "from 0.87 to 0.93."
        ),
        show_default=False,
    ),
]
Expected = Annotated[
    list[str] | None,
    typer.Option(
        "--expect",
        metavar="CLASS=SHARE",
        help="For --interval: the expected user's accuracy of a class (0.8). Repeatable.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Another seed gives another sample.")]
SampleFolder = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Folder for the files. Default: OUTPUT/samples."),
]
SamplePictures = Annotated[
    bool,
    typer.Option("--pictures/--no-pictures", help="Whether each sample gets a picture."),
]
Truth = Annotated[
    list[str] | None,
    typer.Option(
        "--truth",
        "-t",
        metavar="GLOB",
        help=(
            "Truth: masks, or polygons as GeoJSON, GeoPackage or GeoParquet. Files, quoted globs, "
            "folders or list files. Repeatable."
        ),
        show_default=False,
    ),
]
MoreTruth = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TRUTH",
        help="More truth masks: the files of a glob that the shell has expanded.",
        show_default=False,
    ),
]


def sample(
    output: Output,
    per_class: PerClass = 50,
    size: SampleSize = None,
    interval: Interval = None,
    expect: Expected = None,
    seed: Seed = 0,
    out: SampleFolder = None,
    pictures: SamplePictures = True,
    quiet: QuietFlag = False,
) -> None:
    """Draw reference samples of a run for people to label. Writes a table with an empty column
    `label`, and a picture of each pixel; the classes of the map are the strata.

    Fill the column, then: maskloom evaluate OUTPUT --samples OUTPUT/samples/samples.csv
    """
    from maskloom.flows.sampling import SampleRequest
    from maskloom.flows.sampling import sample as draw

    with errors_as_messages():
        expected = dict(map(_expected, expect or []))
        folder = None if out is None else location_of(out)
        request = SampleRequest(per_class, size, interval, expected, seed, folder, pictures)
        drawn = draw(location_of(output), request, quiet=quiet)
        for note in drawn.notes:
            typer.echo(line(note), err=True)
        typer.echo(escaped(drawn.table))
        typer.echo(
            f"Label the samples in {line(drawn.folder)}/samples.csv; pictures are beside it."
        )


def _expected(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not name or not 0 <= value <= 1:
        raise RecipeError(f"--expect: expected CLASS=SHARE with a share from 0 to 1; got {text!r}.")
    return name, value


@takes_flags(EvaluationFlags)
def evaluate(
    output: Output, truth: Truth = None, more: MoreTruth = None, *, flags: EvaluationFlags
) -> None:
    """Compare the masks of a run with truth. Writes tables and a picture: IoU, Dice, precision,
    recall, boundary F, measures of objects, and error-adjusted areas. With --samples: accuracies
    and areas with 95 % intervals (Olofsson 2014, Stehman 2014).

    With --truth, the intervals of the areas assume that the truth's pixels are a random sample of
    each mapped class, drawn one by one. For fully labelled images, whose neighbouring pixels are
    alike, they are too narrow.
    """
    with errors_as_messages():
        named = (*(truth or []), *(more or []))
        if bool(named) == (flags.samples is not None):
            raise RecipeError("expected either --truth or --samples.")
        if flags.samples is not None:
            _evaluate_samples(output, flags)
        else:
            _evaluate_masks(output, _evaluation_request(named, flags), flags)


def _evaluate_samples(output: str, flags: EvaluationFlags) -> None:
    from maskloom.flows.evaluation.from_samples import evaluate_samples

    found = evaluate_samples(
        location_of(output),
        location_of(str(flags.samples)),
        flags.attribute or "label",
        None if flags.out is None else location_of(flags.out),
    )
    for note in found.notes:
        typer.echo(line(note), err=True)
    typer.echo(escaped(found.table))
    typer.echo(f"{found.summary}. Look at {line(found.folder)}/accuracy.json.")


def _evaluate_masks(output: str, request: EvaluationRequest, flags: EvaluationFlags) -> None:
    from maskloom.flows.evaluation import evaluate as flow
    from maskloom.flows.report.write import try_to_write, write_reports

    place = location_of(output)
    found = flow.evaluate(place, request, quiet=flags.quiet, break_off=end_process)
    for note in found.notes:
        typer.echo(line(note), err=True)
    typer.echo(escaped(found.table))
    typer.echo(f"{found.summary}. Look at {found.folder}/evaluation.png; tables are beside it.")
    report = try_to_write(found.folder, write_reports)
    if report is not None:
        typer.echo(f"Report: {line(report)}")
    if found.failures:
        raise typer.Exit(SOME_FAILED)


def _evaluation_request(truth: tuple[str, ...], flags: EvaluationFlags) -> EvaluationRequest:
    from maskloom.flows.evaluation.options import EvaluationRequest, PolygonOptions, cluster_of
    from maskloom.segcore.annotations.pairing import NameSuffixes

    if flags.overlap not in ("last", "class"):
        raise RecipeError(f"--overlap: expected last or class; got {flags.overlap!r}.")
    return EvaluationRequest(
        truth=truth,
        polygons=PolygonOptions(
            attribute=flags.attribute,
            of=flags.of,
            outside=flags.outside,
            overlap="last" if flags.overlap == "last" else "class",
            all_touched=flags.all_touched,
            layer=flags.layer,
            image=flags.image_attribute,
            pixels=flags.pixels,
        ),
        values=tuple(flags.values or ()),
        colours=flags.colours,
        void=tuple(flags.void or ()),
        suffixes=NameSuffixes(flags.truth_suffix, flags.image_suffix),
        tolerance=flags.tolerance,
        objects="auto" if flags.objects is None else "yes" if flags.objects else "no",
        out=None if flags.out is None else location_of(flags.out),
        cluster=None if flags.workers is None else cluster_of(flags.workers),
    )
