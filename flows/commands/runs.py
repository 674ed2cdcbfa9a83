"""Commands that run a recipe, or show what a run would do: run, segment, plan, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maskloom.flows.commands.messages import CANNOT_CONTINUE, errors_as_messages, first_line
from maskloom.flows.commands.options import (
    Changes,
    NoPrefect,
    QuietFlag,
    RecipePath,
    RunFlags,
    segmenter_kinds,
    takes_flags,
)
from maskloom.flows.commands.results import run_and_print
from maskloom.flows.importing import collector_off
from maskloom.flows.terminal import line
from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INPUTS_RECORDED = 20
"""Number of inputs of `maskloom segment` that Prefect's record shows."""

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="Files, globs, folders or list files; local or fsspec URIs."
    ),
]
NewOutput = Annotated[
    str,
    typer.Option("--output", "-o", metavar="OUTPUT", help="Folder or fsspec URI for the results."),
]
SegmenterKind = Annotated[
    str,
    typer.Option(
        "--segmenter",
        "-s",
        metavar="KIND",
        help="Segmenter: see `maskloom list segmenters`.",
        autocompletion=segmenter_kinds,
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        "-p",
        metavar="KEY=VALUE",
        help="Parameter of the segmenter, e.g. clusters=4. Repeatable.",
    ),
]
Fit = Annotated[
    Literal["image", "collection"],
    typer.Option(help="Fit one model to each image, or one to all of them."),
]
DemoFolder = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the demo.")]


@takes_flags(RunFlags)
def run(recipe: RecipePath, *, flags: RunFlags) -> None:
    """Segment all images of a recipe, or those that are left. The same command resumes an
    interrupted run and does nothing if all inputs are unchanged.
    """
    with errors_as_messages():
        first_line(f"Reading {recipe}", flags.quiet)
        from maskloom.flows.commands.log_file import written_to
        from maskloom.flows.orchestration.server import started_early

        with (
            started_early(not flags.no_prefect) as server,
            written_to(flags.log_file, f"run {recipe}"),
        ):
            with collector_off():
                from maskloom.flows.recipes import run as recipes

            loaded = recipes.load(recipe, flags.changes or [])
            run_and_print(loaded, flags, str(recipe.resolve()), server)


@takes_flags(RunFlags)
def segment(
    inputs: Inputs,
    output: NewOutput,
    kind: SegmenterKind,
    parameters: Parameters = None,
    fit: Fit = "collection",
    *,
    flags: RunFlags,
) -> None:
    """Segment images without a recipe file. The options make the recipe; the run is the same."""
    with errors_as_messages():
        first_line(f"Reading {', '.join(_abbreviated(inputs, 3))}", flags.quiet)
        from maskloom.flows.commands.log_file import written_to
        from maskloom.flows.orchestration.server import started_early

        with (
            started_early(not flags.no_prefect) as server,
            written_to(flags.log_file, f"segment -o {output} -s {kind}"),
        ):
            with collector_off():
                from maskloom.flows.recipes import run as recipes

            document = {
                "name": "segment",
                "inputs": inputs,
                "output": output,
                "segmenter": _segmenter(kind, parameters or []),
                "fit": fit,
            }
            loaded = recipes.make(document, Path.cwd(), flags.changes or [])
            shown = {**document, "inputs": _abbreviated(inputs, _INPUTS_RECORDED)}
            run_and_print(loaded, flags, shown, server)


def plan(recipe: RecipePath, changes: Changes = None) -> None:
    """Show what a run would do, without doing it. Reads headers only; shows images, tiles, shards,
    bytes to read, and the estimated peak memory of a worker.
    """
    with errors_as_messages():
        first_line(f"Reading {recipe}")
        from maskloom.flows.dry_run import dry_run
        from maskloom.flows.recipes import run as recipes

        typer.echo(dry_run(recipes.load(recipe, changes or [])))


def demo(
    output: DemoFolder = Path("maskloom-demo"),
    no_prefect: NoPrefect = False,
    quiet: QuietFlag = False,
) -> None:
    """Show what maskloom does, in a minute. Counts nuclei in fluorescence, and maps the land cover
    of a satellite scene in km2 and that of a mosaic of 268 megapixels without seams, in a run
    recorded by Prefect.

    Nothing is downloaded. The last lines name the files to look at, and what to type next.
    """
    with errors_as_messages():
        first_line(f"Making the demo in {output}", quiet)
        from maskloom.flows.demo.demonstrate import demo as show
        from maskloom.flows.orchestration.prefect import Prefect
        from maskloom.flows.run import RunOptions
        from maskloom.flows.signals import end_process
        from maskloom.flows.stages import Plain

        recorded = {"recipe": str((output / "landcover.yaml").resolve())}
        shown = show(
            output,
            Plain() if no_prefect else Prefect(recorded),
            lambda note: typer.echo(line(note), err=True),
            RunOptions(quiet, break_off=end_process),
        )
        for row in shown.table():
            typer.echo(line(row))
        typer.echo(line(f"Open      {shown.first_to_open}"))
        if not no_prefect:
            typer.echo("Recorded  by Prefect, to look at: prefect server start")
        for number, command in enumerate(shown.next_commands()):
            typer.echo(line(f"{'' if number else 'Next':8}  {command}"))
        if shown.differing:
            raise typer.Exit(CANNOT_CONTINUE)


def _segmenter(kind: str, parameters: Sequence[str]) -> dict[str, Any]:
    """The section `segmenter` of a recipe, from `-s` and `-p`."""
    from maskloom.flows.recipes import yaml_files

    section: dict[str, Any] = {"kind": kind}
    for parameter in parameters:
        key, equals, text = parameter.partition("=")
        if not equals:
            raise RecipeError(f"-p: expected KEY=VALUE, got {parameter!r}.")
        section[key] = yaml_files.read_value(text, f"-p {yaml_files.shown(parameter)}")
    return section


def _abbreviated(inputs: list[str], kept: int) -> list[str]:
    more = len(inputs) - kept
    return inputs if more <= 0 else [*inputs[:kept], f"... and {more} more"]
