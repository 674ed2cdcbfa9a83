"""Commands that look at or clean up an output: status, verify, clean."""

from __future__ import annotations

from typing import Annotated

import typer

from maskloom.flows.commands.messages import CANNOT_CONTINUE, errors_as_messages, location_of
from maskloom.flows.commands.options import Output
from maskloom.flows.terminal import failure, line

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")
]
IdleHours = Annotated[
    float,
    typer.Option(
        "--idle",
        metavar="HOURS",
        min=0,
        help=(
            "Files that another machine may still be writing are removed once nothing has been "
            "written for this time."
        ),
    ),
]


def status(output: Output) -> None:
    """Show what is done, failed and left in an output."""
    from maskloom.tasks.inspect import status as read_status

    with errors_as_messages():
        found = read_status(location_of(output))
        typer.echo(f"done {found.done}\nfailed {found.failed}\nleft {found.left}")
        for uri, error_type, error in found.failures:
            typer.echo(f"failed: {failure(uri, error_type, error)}")
        for mask in found.lost:
            typer.echo(f"lost: {line(mask)}: missing or empty")
        if found.lost:
            typer.echo("Run the recipe again to make lost files again.", err=True)
        if found.open_runs:
            runs = ", ".join(found.open_runs)
            typer.echo(f"Not finished: {runs}. Run the recipe again to continue.", err=True)


def verify(output: Output) -> None:
    """Check that an output is as it was written. Compares digests of masks, tables and records, and
    checks the sums in the tables. Exit code 1 if something is wrong.
    """
    from maskloom.tasks.inspect import verify as find_faults

    with errors_as_messages():
        faults = list(find_faults(location_of(output)))
        for fault in faults:
            typer.echo(line(fault))
        if faults:
            raise typer.Exit(CANNOT_CONTINUE)
        typer.echo("All masks, tables and sums are as they were written.")


def clean(output: Output, dry_run: DryRun = False, idle: IdleHours = 24.0) -> None:
    """Remove what killed runs left in an output. These are temporary and staged files, and masks
    and previews of images that are not in the tables.

    Files that a running run on any machine may still need stay; they are listed with the reason.
    """
    from maskloom.tasks.clean import leftovers, remove

    with errors_as_messages():
        location = location_of(output)
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
