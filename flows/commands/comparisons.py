"""Commands that compare masks: audit, compare, change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from maskloom.flows.commands.messages import (
    CANNOT_CONTINUE,
    SOME_FAILED,
    errors_as_messages,
    location_of,
)
from maskloom.flows.commands.options import (
    Changes,
    QuietFlag,
    RecipePath,
    Workers,
    segmenter_kinds,
    takes_flags,
)
from maskloom.flows.signals import end_process
from maskloom.flows.terminal import escaped, line
from maskloom.segcore.errors import RecipeError

MostPixels = Annotated[
    int,
    typer.Option(
        "--pixels", min=1, help="Most pixels to audit, from the middle of the first image."
    ),
]
TileSide = Annotated[
    int | None,
    typer.Option(
        "--tile",
        min=16,
        help="Side of the tiles in pixels. Default: at least three across the region.",
        show_default=False,
    ),
]
Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="The image: a file or fsspec URI, or a folder with one image or DICOM series.",
    ),
]
Picture = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="PICTURE.png", help="File for the picture."),
]
Segmenters = Annotated[
    list[str] | None,
    typer.Option(
        "--segmenter",
        "-s",
        metavar="SEGMENTER",
        help=(
            "A kind, or a section of a recipe, e.g. '{kind: kmeans, clusters: 3}'. Repeatable. "
            "Default: all classical ones."
        ),
        autocompletion=segmenter_kinds,
    ),
]
Later = Annotated[
    str | None,
    typer.Argument(
        metavar="OUTPUT_B", help="The later output; none with --by-date.", show_default=False
    ),
]
Earlier = Annotated[
    str, typer.Argument(metavar="OUTPUT_A", help="The earlier output: a folder or fsspec URI.")
]
PairedBy = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="RULE",
        help="Which images are pairs: those with the same id, or on the same grid (place).",
    ),
]
ByDate = Annotated[
    bool,
    typer.Option(
        "--by-date", help="Compare each image of one output with the next one of its place by date."
    ),
]
PlaceKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="REGEX",
        help=(
            "For --by-date: images are of one place if this finds the same text (of its first "
            "group) in their ids. Default: the same grid."
        ),
        show_default=False,
    ),
]
Warp = Annotated[
    bool,
    typer.Option(
        "--warp",
        help="Resample a mask of OUTPUT_B to the grid of its partner if it has another one.",
    ),
]
SpreadClass = Annotated[
    str | None,
    typer.Option(
        "--spread",
        metavar="CLASS",
        help="Measure how this class spread, e.g. burned: hectares and metres a day by direction.",
        show_default=False,
    ),
]
Days = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="N",
        help="For --spread: days between both images. Default: from their dates.",
        show_default=False,
    ),
]
ChangeFolder = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Folder for the results. Default: OUTPUT_B/change."
    ),
]


@dataclass(frozen=True, slots=True)
class ChangeFlags:
    """Options of `maskloom change`."""

    by: PairedBy = "id"
    by_date: ByDate = False
    key: PlaceKey = None
    warp: Warp = False
    spread: SpreadClass = None
    days: Days = None
    out: ChangeFolder = None
    workers: Workers = None
    quiet: QuietFlag = False


def audit(
    recipe: RecipePath,
    pixels: MostPixels = 2_000_000,
    tile: TileSide = None,
    changes: Changes = None,
) -> None:
    """Check that tiling does not change the result. Segments a region whole and in tiles, and
    compares the masks. Exit code 1 if a segmenter that is exact gives different masks.
    """
    from maskloom.flows.audit import audit as run_audit
    from maskloom.flows.recipes import run as recipes

    with errors_as_messages():
        loaded = recipes.load(recipe, changes or [])
        found = run_audit(loaded, pixels, tile, quiet=False, break_off=end_process)
        for each in found.lines:
            typer.echo(line(each))
        if found.broken:
            typer.echo(
                "The segmenter is declared exact, but its result depends on the tiling. Please "
                "report this.",
                err=True,
            )
            raise typer.Exit(CANNOT_CONTINUE)


def compare(image: Image, output: Picture, segmenters: Segmenters = None) -> None:
    """Draw the results of several segmenters side by side. Shows one image with the boundaries that
    each segmenter finds.
    """
    from maskloom.flows.compare import compare as draw
    from maskloom.flows.recipes import yaml_files

    with errors_as_messages():
        sections = [
            yaml_files.read_value(text, f"-s {yaml_files.shown(text)}") for text in segmenters or []
        ]
        draw(image, sections or None, output, quiet=False, break_off=end_process)
        typer.echo(f"Look at {output}")


@takes_flags(ChangeFlags)
def change(output_a: Earlier, output_b: Later = None, *, flags: ChangeFlags) -> None:
    """Show what changed between two outputs, or by date inside one. Writes tables of transitions
    and objects, change masks and a picture; with --spread, how a class such as a fire spread.
    """
    from maskloom.flows import change as flow
    from maskloom.flows.evaluation.options import cluster_of

    with errors_as_messages():
        if flags.by not in ("id", "place"):
            raise RecipeError(f"--by: expected id or place; got {flags.by!r}.")
        if flags.by_date == (output_b is not None):
            raise RecipeError("expected either a second output or --by-date.")
        if flags.key is not None and not flags.by_date:
            raise RecipeError("--key: it is for --by-date.")
        if flags.days is not None and not flags.days > 0:
            raise RecipeError(f"--days: expected a number above 0; got {flags.days:g}.")
        found = flow.change(
            location_of(output_a),
            None if output_b is None else location_of(output_b),
            flow.ChangeRequest(
                by="place" if flags.by == "place" else "id",
                key=flags.key,
                warp=flags.warp,
                spread=flags.spread,
                days=flags.days,
                out=None if flags.out is None else location_of(flags.out),
                cluster=None if flags.workers is None else cluster_of(flags.workers),
            ),
            quiet=flags.quiet,
        )
        for note in found.notes:
            typer.echo(line(note), err=True)
        for table in (found.table, found.spread_table):
            if table:
                typer.echo(escaped(table))
        typer.echo(
            f"{found.summary}. Look at {line(found.folder)}/change.png; masks and tables are "
            "beside it."
        )
        if found.failed:
            raise typer.Exit(SOME_FAILED)
