"""The `maskloom` command: registers the commands of `flows.commands`, and ends the process.

Exit codes: 0 all images done, 1 the run cannot continue, 2 wrong usage or recipe, 3 finished but
some images failed.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated, NoReturn

import typer

import maskloom
from maskloom.flows.commands.accuracy import evaluate, sample
from maskloom.flows.commands.alerts import alerts
from maskloom.flows.commands.checks import doctor
from maskloom.flows.commands.comparisons import audit, change, compare
from maskloom.flows.commands.conversion import convert
from maskloom.flows.commands.export import export
from maskloom.flows.commands.messages import DONE
from maskloom.flows.commands.outputs import clean, report, status, verify
from maskloom.flows.commands.reference import list_, schema
from maskloom.flows.commands.runs import demo, plan, run, segment
from maskloom.flows.commands.schedules import deploy, serve
from maskloom.flows.commands.starting import init, try_
from maskloom.flows.commands.training import train
from maskloom.flows.commands.view import view

app = typer.Typer(
    name="maskloom",
    help=(
        "Segment large image collections in batch. Writes masks, previews and tables of true "
        "areas. A run can be interrupted and resumed at any moment."
    ),
    no_args_is_help=True,
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


for command in (run, segment, plan, demo, audit, compare, train, sample, evaluate, change, export):
    app.command()(command)
app.command()(convert)
app.command()(init)
app.command(name="try")(try_)
for command in (view, status, report, alerts, verify, clean, doctor):
    app.command()(command)
app.command(name="list")(list_)
app.command()(schema)
for command in (serve, deploy):
    app.command()(command)


def main() -> NoReturn:
    """Entry point of the console script."""
    try:
        app()
    except SystemExit as ended:
        from maskloom.tasks.fanout.serial import threads_left_behind

        if threads_left_behind():
            # Native code that still runs in these threads would abort the process at its exit.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else DONE)
        raise
    finally:
        # As it ends, the interpreter looks for garbage among all that was imported, several times:
        # half a second after a run.
        gc.freeze()
    sys.exit(DONE)


if __name__ == "__main__":
    main()
