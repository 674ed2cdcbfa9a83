"""The `maskloom` command.

Parses, calls and prints; nothing else. Messages for people go to standard error, results to
standard output. Exit codes: 0 all images done, 1 the run could not continue, 2 wrong usage or
recipe, 3 finished but some images failed.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import maskloom
from maskloom.flows.options import (
    Changes,
    NoPrefect,
    Output,
    QuietFlag,
    RecipePath,
    RunFlags,
    TrainingPath,
    takes_run_flags,
)
from maskloom.flows.terminal import EscapingFormatter, count, escaped, failure, line
from maskloom.segcore.errors import MaskloomError, RecipeError
from maskloom.segcore.storage.addresses import written

if TYPE_CHECKING:
    from maskloom.flows.inventory import Inventory
    from maskloom.flows.recipes.run import RunRecipe
    from maskloom.flows.run import RunResult
    from maskloom.flows.segment import Outcome

DONE, CANNOT_CONTINUE, WRONG_USAGE, SOME_FAILED = 0, 1, 2, 3
_FAILURES_SHOWN = 5
_INPUTS_RECORDED = 20
"""Inputs of `maskloom segment` that Prefect's record shows."""

app = typer.Typer(
    name="maskloom",
    help=(
        "Segment large image collections in batch: masks, previews and tables of true areas, "
        "resumable at any moment."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maskloom {maskloom.__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
@takes_run_flags
def run(recipe: RecipePath, flags: RunFlags) -> None:
    """Run a recipe: the whole batch, or what is left of it. The same command resumes an interrupted
    run and does nothing on unchanged inputs.
    """
    from maskloom.flows.recipes import run as recipes

    with _messages():
        loaded = recipes.load(recipe, flags.changes or [])
        _run(loaded, flags, str(recipe.resolve()))


@app.command()
@takes_run_flags
def segment(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Files, globs, folders or lists, local or fsspec URIs."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="OUTPUT", help="Folder or fsspec URI for the results."
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--segmenter", "-s", metavar="KIND", help="Segmenter: see `maskloom list segmenters`."
        ),
    ],
    flags: RunFlags,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="KEY=VALUE",
            help="Parameter of the segmenter, e.g. clusters=4. Repeatable.",
        ),
    ] = None,
    fit: Annotated[
        Literal["image", "collection"],
        typer.Option(help="One model for each image, or one for all of them."),
    ] = "collection",
) -> None:
    """Segment images without a recipe file: the same run, the recipe made from flags."""
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.recipes import yaml_files

    with _messages():
        section: dict[str, Any] = {"kind": kind}
        for parameter in parameters or []:
            key, equals, text = parameter.partition("=")
            if not equals:
                raise RecipeError(f"-p {parameter!r}: expected KEY=VALUE.")
            section[key] = yaml_files.read_value(text, f"-p {yaml_files.shown(parameter)}")
        document = {
            "name": "segment",
            "inputs": inputs,
            "output": output,
            "segmenter": section,
            "fit": fit,
        }
        loaded = recipes.make(document, Path.cwd(), flags.changes or [])
        _run(loaded, flags, {**document, "inputs": _abbreviated(inputs)})


@app.command()
def plan(recipe: RecipePath, changes: Changes = None) -> None:
    """Show what a run would do, reading headers only: images, tiles, shards, bytes to read,
    projected peak memory of a worker.
    """
    from maskloom.flows.dry_run import dry_run
    from maskloom.flows.recipes import run as recipes

    with _messages():
        typer.echo(dry_run(recipes.load(recipe, changes or [])))


@app.command()
def demo(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the demo.")] = Path(
        "maskloom-demo"
    ),
    no_prefect: NoPrefect = False,
    quiet: QuietFlag = False,
) -> None:
    """Run k-means on nine photographs that come with the installed packages, and name the files to
    look at.
    """
    from maskloom.flows.demo import prepare
    from maskloom.flows.recipes import run as recipes

    with _messages():
        path = prepare(output)
        recipe = recipes.load(path)
        _run(recipe, RunFlags(no_prefect=no_prefect, quiet=quiet), str(path.resolve()))
        previews = sorted(Path(recipe.output, "previews").glob("*.png"))
        typer.echo("Open these: " + "\n            ".join(str(preview) for preview in previews))
        typer.echo(f"The recipe to play with: {path}")


@app.command()
def audit(
    recipe: RecipePath,
    pixels: Annotated[
        int, typer.Option(min=1, help="Largest region to audit: the middle of the first image.")
    ] = 2_000_000,
    tile: Annotated[
        int | None,
        typer.Option(min=16, help="Side of the tiles. Default: at least three across the region."),
    ] = None,
    changes: Changes = None,
) -> None:
    """Prove that tiled equals untiled: segment a region whole and in tiles, and compare. Exit code
    1 where an exact segmenter differs.
    """
    from maskloom.flows.audit import audit as run_audit
    from maskloom.flows.recipes import run as recipes

    with _messages():
        found = run_audit(recipes.load(recipe, changes or []), pixels, tile, quiet=False)
        for each in found.lines:
            typer.echo(line(each))
        if found.broken:
            typer.echo(
                "The segmenter says that it is exact, and is not. Please report this.", err=True
            )
            raise typer.Exit(CANNOT_CONTINUE)


@app.command()
def compare(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="An image: a file or folder, or its URI.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PICTURE.png", help="Where to put the picture."),
    ],
    segmenters: Annotated[
        list[str] | None,
        typer.Option(
            "--segmenter",
            "-s",
            help=(
                "A kind, or a section such as '{kind: kmeans, clusters: 3}'. Repeatable. Default: "
                "all classical ones."
            ),
        ),
    ] = None,
) -> None:
    """Draw what several segmenters make of one image side by side, with their boundaries."""
    from maskloom.flows.compare import compare as draw
    from maskloom.flows.recipes import yaml_files

    with _messages():
        sections = [
            yaml_files.read_value(text, f"-s {yaml_files.shown(text)}") for text in segmenters or []
        ]
        draw(image, sections or None, output, quiet=False)
        typer.echo(f"Look at {output}")


@app.command()
def train(recipe: TrainingPath, changes: Changes = None, quiet: QuietFlag = False) -> None:
    """Train a network on images and masks. The same command continues an interrupted training
    and does nothing on a finished one.

    With more training.epochs, or another training.patience, a finished one continues too.
    """
    from maskloom.flows import train as flow
    from maskloom.flows.recipes import training

    with _messages():
        order = training.load(recipe, changes or [])
        learned = flow.run(order, quiet)
        typer.echo(
            f"{'Nothing to do: trained before. ' if learned.before else ''}{learned.model}: "
            f"{learned.score[0]} {learned.score[1]:.4f}, "
            f"of epoch {learned.epoch}, the best of {learned.epochs} trained in "
            f"{learned.minutes:.1f} minutes. Use it:\n"
            f"  {flow.usage(order, learned)}"
        )


@app.command()
def evaluate(
    output: Output,
    truth: Annotated[
        list[str],
        typer.Option(
            "--truth",
            "-t",
            metavar="GLOB",
            help="Truth masks: files, globs in quotes, folders or lists. Repeatable.",
        ),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRUTH",
            help="More truth masks, as a shell expands a glob without quotes.",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--values",
            "-v",
            metavar="VALUE=CLASS",
            help="What a value of the truth means: 255=inside, a colour '#3C1098=building', or a "
            "range such as 4..6=roof or 1..=nucleus, each "
            "value of which is an object. Repeatable, or with commas. Default: class ids, and ids "
            "of objects if the run has objects.",
        ),
    ] = None,
    colours: Annotated[
        Path | None,
        typer.Option(
            metavar="CLASSES.yaml",
            help='The same as a file: a line `building: "#3C1098"` a class; lists give several.',
        ),
    ] = None,
    void: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VALUE",
            help="Value, range or colour of the truth to leave out, e.g. 255. Repeatable.",
        ),
    ] = None,
    truth_suffix: Annotated[
        str, typer.Option(metavar="END", help="End of the truth's names to leave out, e.g. _mask.")
    ] = "",
    image_suffix: Annotated[
        str, typer.Option(metavar="END", help="End of the images' names to leave out, e.g. _sat.")
    ] = "",
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="Pixels between boundaries that still agree, for boundary F."
        ),
    ] = 2.0,
    objects: Annotated[
        bool | None,
        typer.Option(
            "--objects/--no-objects",
            help="Compare objects too: panoptic quality and AP. Of a class given by one value, "
            "they are its connected parts. "
            "Default: if the run's masks hold ids of objects.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Where to put the results. Default: OUTPUT/evaluation."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Worker processes. Default: none for few pixels, otherwise one per core.",
            show_default=False,
        ),
    ] = None,
    quiet: QuietFlag = False,
) -> None:
    """Compare the masks of a run with truth: IoU, Dice, precision, recall, boundary F, objects, and
    error-adjusted areas; tables and a picture.

    The 95 % intervals of the areas (Olofsson 2014) hold where the truth's pixels are a random
    sample of each mapped class, drawn one by one. For fully labelled images, whose pixels resemble
    their neighbours, they are too narrow.
    """
    from maskloom.flows import evaluate as flow
    from maskloom.segcore.annotations.pairing import NameSuffixes

    with _messages():
        options = flow.Options(
            truth=(*truth, *(more or [])),
            values=tuple(values or ()),
            colours=colours,
            void=tuple(void or ()),
            suffixes=NameSuffixes(truth_suffix, image_suffix),
            tolerance=tolerance,
            objects="auto" if objects is None else "yes" if objects else "no",
            out=None if out is None else _location(out),
            cluster=None if workers is None else flow.cluster_of(workers),
        )
        found = flow.evaluate(_location(output), options, quiet=quiet)
        for note in found.notes:
            typer.echo(line(note), err=True)
        typer.echo(escaped(found.table))
        typer.echo(f"{found.summary}. Look at {found.folder}/evaluation.png, tables lie beside it.")
        if found.failures:
            raise typer.Exit(SOME_FAILED)


@app.command()
def status(output: Output) -> None:
    """Show what is done, failed and left in an output."""
    from maskloom.tasks.inspect import status as read_status

    with _messages():
        found = read_status(_location(output))
        typer.echo(f"done {found.done}\nfailed {found.failed}\nleft {found.left}")
        for uri, error_type, error in found.failures:
            typer.echo(f"failed: {failure(uri, error_type, error)}")
        for mask in found.lost:
            typer.echo(f"lost: {line(mask)}: missing or empty")
        if found.lost:
            typer.echo("Run the recipe again: it makes anew what is lost.", err=True)
        if found.open_runs:
            typer.echo(
                f"Not finished: {', '.join(found.open_runs)}. Run its recipe again to continue.",
                err=True,
            )


@app.command()
def verify(output: Output) -> None:
    """Check an output again: digests of masks, tables and records, and the sums of the tables. Exit
    code 1 where something is wrong.
    """
    from maskloom.tasks.inspect import verify as find_faults

    with _messages():
        faults = list(find_faults(_location(output)))
        for fault in faults:
            typer.echo(line(fault))
        if faults:
            raise typer.Exit(CANNOT_CONTINUE)
        typer.echo("All masks, tables and sums are as they were written.")


@app.command()
def clean(
    output: Output,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")
    ] = False,
    idle: Annotated[
        float,
        typer.Option(
            metavar="HOURS",
            min=0,
            help=(
                "What another machine may still be writing counts as left when nothing was written "
                "for so long."
            ),
        ),
    ] = 24.0,
) -> None:
    """Remove what dead runs left: temporary files, staged parts, and masks and previews that no
    image in the tables has.

    Whatever a living run may still write stays, on any machine, and is named with the reason.
    """
    from maskloom.tasks.clean import leftovers, remove

    with _messages():
        location = _location(output)
        found = leftovers(location, idle)
        for each in found:
            if each.kept is not None:
                typer.echo(f"kept: {each.name}: {each.kept}", err=True)
            elif dry_run:
                typer.echo(f"would remove: {each.name}: {each.why}")
            elif remove(location, each):
                typer.echo(f"removed: {each.name}: {each.why}")
        if not found:
            typer.echo("Nothing to clean.", err=True)


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["segmenters", "formats", "statistics"], typer.Argument(help="What to list.")
    ],
) -> None:
    """List segmenters, formats or statistics with their parameters, defaults and exactness."""
    from maskloom.flows.dry_run import catalogue

    typer.echo(catalogue(what))


@app.command()
def schema(
    of: Annotated[
        Literal["run", "train"],
        typer.Argument(help="Which recipe: of `maskloom run` or of `maskloom train`."),
    ] = "run",
) -> None:
    """Print the JSON Schema of recipes, of runs or of trainings."""
    if of == "train":
        from maskloom.flows.recipes.training import schema as schema_of
    else:
        from maskloom.flows.recipes.run import schema as schema_of
    typer.echo(json.dumps(schema_of(), indent=2))


def main() -> NoReturn:
    """Entry point of the console script."""
    try:
        app()
    except SystemExit as ended:
        from maskloom.tasks.fanout.serial import threads_left_behind

        if threads_left_behind():
            # Native code that still runs in them would abort the process on its way out.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else DONE)
        raise
    sys.exit(DONE)


@contextmanager
def _messages() -> Iterator[None]:
    """Turn our own errors into a line on standard error and an exit code; let bugs show their
    traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapingFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        yield
    except RecipeError as error:
        typer.echo(escaped(written(f"maskloom: {error}")), err=True)
        raise typer.Exit(WRONG_USAGE) from None
    except MaskloomError as error:
        typer.echo(escaped(written(f"maskloom: {error}")), err=True)
        raise typer.Exit(CANNOT_CONTINUE) from None
    except KeyboardInterrupt:
        typer.echo("maskloom: stopped. The same command continues.", err=True)
        raise typer.Exit(CANNOT_CONTINUE) from None


def _run(recipe: RunRecipe, flags: RunFlags, source: str | Mapping[str, Any]) -> None:
    """Run a recipe and print what it did; `source` is what Prefect's record shows of it."""
    from maskloom.flows.orchestration.prefect import Prefect
    from maskloom.flows.run import RunOptions, run
    from maskloom.flows.stages import Plain

    recorded = {
        "recipe": _recordable(source),
        "changes": _recordable(flags.changes or []),
        "keep_other_recipes": flags.keep_other_recipes,
        "sole_writer": flags.sole_writer,
    }
    options = RunOptions(flags.quiet, flags.keep_other_recipes, flags.sole_writer)
    orchestrator = Plain() if flags.no_prefect else Prefect(recorded)
    result = run(recipe, options, orchestrator, lambda note: typer.echo(note, err=True))
    _print_result(recipe, result)
    if result.some_failed:
        raise typer.Exit(SOME_FAILED)


def _abbreviated(inputs: list[str]) -> list[str]:
    more = len(inputs) - _INPUTS_RECORDED
    return inputs if more <= 0 else [*inputs[:_INPUTS_RECORDED], f"... and {more} more"]


def _recordable(value: Any) -> Any:
    """A JSON value that a server may store: signatures of addresses are masked, and characters that
    UTF-8 cannot hold are escaped.
    """
    if isinstance(value, str):
        return escaped(written(value))
    if isinstance(value, Mapping):
        return {key: _recordable(item) for key, item in value.items()}
    return [_recordable(item) for item in value] if isinstance(value, list) else value


def _print_result(recipe: RunRecipe, result: RunResult) -> None:
    inventory, outcome = result.inventory, result.outcome
    if outcome is None:
        _print_removed(inventory)
        failed = inventory.failed_before
        note = f", {failed} of them failed before (maskloom status tells why)" if failed else ""
        images = count(len(inventory.sources), "image is", "images are")
        typer.echo(f"Nothing to do: {images} unchanged{note}. Results: {recipe.output}")
        return
    _print_failures(recipe, outcome)
    _print_removed(inventory)
    unchanged = f", {result.unchanged} unchanged" if result.unchanged else ""
    typer.echo(
        f"{count(outcome.done, 'image')} done, {outcome.failed} failed{unchanged}, "
        f"{outcome.pixels / 1e6:.1f} megapixels in {result.seconds:.1f} s. "
        + (
            f"Look at {recipe.output}/previews, masks and tables lie beside it."
            if outcome.done
            else f"See maskloom status {recipe.output}"
        )
    )


def _print_failures(recipe: RunRecipe, outcome: Outcome) -> None:
    for uri, reason in outcome.failures[:_FAILURES_SHOWN]:
        typer.echo(f"failed: {failure(uri, reason.error_type, reason.error)}", err=True)
    if outcome.failed > _FAILURES_SHOWN:
        typer.echo(
            f"... and {outcome.failed - _FAILURES_SHOWN} more: maskloom status {recipe.output}",
            err=True,
        )


def _print_removed(inventory: Inventory) -> None:
    if inventory.removed:
        typer.echo(
            f"{count(inventory.removed, 'image of earlier runs is', 'images of earlier runs are')} "
            "no longer among the inputs; "
            "masks and rows stay.",
            err=True,
        )


def _location(output: str) -> str:
    return output.rstrip("/") if "://" in output else str(Path(output).resolve())


if __name__ == "__main__":
    main()
