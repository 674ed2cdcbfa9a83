"""Commands that look at or clean up an output: status, verify, clean."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskloom.flows.commands.messages import CANNOT_CONTINUE, errors_as_messages, location_of
from maskloom.flows.commands.options import AsJson, Output
from maskloom.flows.terminal import at, duration, failure, line
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from maskloom.tasks.commits.presence import Process
    from maskloom.tasks.status import Status

_SILENT_SECONDS = 300.0
"""Age of the last sign of life from which a process is taken for dead: five of them are missing."""

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


def status(output: Output, as_json: AsJson = False) -> None:
    """Show what is done, failed and left in an output, and which runs are at work on it, on any
    machine.
    """
    from maskloom.tasks.status import status as read_status

    with errors_as_messages():
        found = read_status(location_of(output))
        if as_json:
            typer.echo(json.dumps(_as_json(output, found), indent=2))
            return
        for process in found.processes:
            typer.echo(_at_work(process))
        typer.echo(f"done {found.done}\nfailed {found.failed}\nleft {found.left}")
        for uri, error_type, error in found.failures:
            typer.echo(f"failed: {failure(uri, error_type, error)}")
        for mask in found.lost:
            typer.echo(f"lost: {line(mask)}: missing or empty")
        if found.lost:
            typer.echo("Run the recipe again to make lost files again.", err=True)
        if found.stopped_runs:
            runs = ", ".join(found.stopped_runs)
            typer.echo(f"Not finished: {runs}. Run the recipe again to continue.", err=True)


def _at_work(process: Process) -> str:
    """A line on a process: how far it is, and when that was known."""
    age = _age(process)
    silent = process.alive is None and age is not None and age > _SILENT_SECONDS
    since = "" if process.started is None else f" since {process.started}"
    known = "" if age is None else f" (as of {duration(age)} ago)"
    advice = (
        ". It was killed, or its machine has lost the store; if it is gone, run the recipe again."
        if silent
        else ""
    )
    return line(
        f"{'no sign of life' if silent else 'at work'}: {process.run_id} on {process.host}, "
        f"process {process.process},{since}: {at(process.position)}{known}{advice}"
    )


def _as_json(output: str, found: Status) -> dict[str, Any]:
    return {
        "output": output,
        "done": found.done,
        "failed": found.failed,
        "left": found.left,
        "finished_run": found.finished_run,
        "open_runs": found.open_runs,
        "failures": [
            {"uri": uri, "error_type": error_type, "error": error}
            for uri, error_type, error in found.failures
        ],
        "lost": found.lost,
        "processes": [
            {
                "run_id": each.run_id,
                "host": each.host,
                "process": each.process,
                "started": each.started,
                "seconds_since_sign_of_life": _age(each),
                **each.position,
            }
            for each in found.processes
        ],
    }


def _age(process: Process) -> float | None:
    """Seconds since the last sign of life of a process."""
    return None if process.renewed is None else max(0.0, time.time() - process.renewed)


def report(output: Output) -> None:
    """Write the report of an output again: OUTPUT/report.html, one page to look at. It shows the
    whole output, whichever runs made it. OUTPUT may also be that of a training, or of an
    evaluation.
    """
    from maskloom.flows.report.write import write_reports

    with errors_as_messages():
        for written in write_reports(location_of(output)):
            typer.echo(line(redacted(written)))


def verify(output: Output) -> None:
    """Check that an output is as it was written. Compares digests of masks, tables and records, and
    checks the sums in the tables. Exit code 1 if something is wrong.
    """
    from maskloom.tasks.verify import verify as find_faults

    with errors_as_messages():
        faults = list(find_faults(location_of(output)))
        for fault in faults:
            typer.echo(line(fault))
        if faults:
            raise typer.Exit(CANNOT_CONTINUE)
        typer.echo("All masks, tables and sums are as they were written.")


def clean(output: Output, dry_run: DryRun = False, idle: IdleHours = 24.0) -> None:
    """Remove what killed runs left in an output. These are temporary and staged files, and masks,
    scores and previews of images that are not in the tables.

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
