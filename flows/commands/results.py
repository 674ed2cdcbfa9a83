"""The result of a run: printed for users, and its parameters for Prefect's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from maskloom.flows.commands.messages import SOME_FAILED
from maskloom.flows.importing import collector_off
from maskloom.flows.signals import end_process
from maskloom.flows.terminal import count, duration, failure, line, recordable
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from maskloom.flows.commands.options import RunFlags
    from maskloom.flows.inventory import Inventory
    from maskloom.flows.orchestration.server import EmbeddedServer
    from maskloom.flows.outcome import ClassRow, Outcome
    from maskloom.flows.recipes.run import RunRecipe
    from maskloom.flows.run import RunResult

_CLASSES_SHOWN = 12
_FAILURES_SHOWN = 5


def run_and_print(
    recipe: RunRecipe,
    flags: RunFlags,
    source: str | Mapping[str, Any],
    server: EmbeddedServer | None,
) -> None:
    """Run a recipe and print the result. `source`: the recipe as Prefect's record shows it, a path
    or the document. `server`: the one that records it, if it was started already.
    """
    with collector_off():
        from maskloom.flows.commands.log_file import log_result
        from maskloom.flows.orchestration.prefect import Prefect
        from maskloom.flows.run import RunOptions, run
        from maskloom.flows.stages import Plain

    parameters = {
        "recipe": recordable(source),
        "changes": recordable(flags.changes or []),
        "keep_other_recipes": flags.keep_other_recipes,
        "sole_writer": flags.sole_writer,
    }
    options = RunOptions(
        flags.quiet, flags.keep_other_recipes, flags.sole_writer, break_off=end_process
    )
    orchestrator = Plain() if flags.no_prefect else Prefect(parameters, server)
    result = run(recipe, options, orchestrator, lambda note: typer.echo(note, err=True))
    log_result(result)
    print_result(result)
    if result.some_failed:
        raise typer.Exit(SOME_FAILED)


def print_result(result: RunResult) -> None:
    """Print the total areas of the classes, how many images are done and failed, and where the
    results are.
    """
    outcome = result.outcome
    if outcome is not None:
        _print_failures(result.output, outcome)
    _print_removed(result.inventory)
    if outcome is not None:
        for row in _table(outcome.classes):
            typer.echo(row)
    took = f" in {duration(result.seconds)}" if outcome is not None else ""
    typer.echo(f"{result}{took}.")
    failed = outcome.failed if outcome is not None else result.inventory.failed_before
    reasons = f" (why images failed: maskloom status {result.output})" if failed else ""
    typer.echo(f"Results: {result.output}{reasons}")
    if result.report is not None:
        typer.echo(f"Report: {line(redacted(result.report))}")


def _table(rows: Sequence[ClassRow]) -> list[str]:
    """The largest classes with their areas, in columns; empty without any."""
    if not rows:
        return []
    more = len(rows) - _CLASSES_SHOWN
    cells = [("class", rows[0].kind, "share")]
    cells += [(line(row.name), row.size, f"{row.share:.1%}") for row in rows[:_CLASSES_SHOWN]]
    name, size, share = (max(len(row[i]) for row in cells) for i in range(3))
    lines = [f"{row[0]:{name}}  {row[1]:>{size}}  {row[2]:>{share}}" for row in cells]
    return [*lines, f"... and {count(more, 'more class', 'more classes')}"] if more > 0 else lines


def _print_failures(output: str, outcome: Outcome) -> None:
    for uri, reason in outcome.failures[:_FAILURES_SHOWN]:
        typer.echo(f"failed: {failure(uri, reason.error_type, reason.error)}", err=True)
    if outcome.failed > _FAILURES_SHOWN:
        typer.echo(
            f"... and {outcome.failed - _FAILURES_SHOWN} more: maskloom status {output}",
            err=True,
        )


def _print_removed(inventory: Inventory) -> None:
    if inventory.removed:
        typer.echo(
            f"{count(inventory.removed, 'image of earlier runs is', 'images of earlier runs are')} "
            "no longer among the inputs; the masks and rows stay.",
            err=True,
        )
