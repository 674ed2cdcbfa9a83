"""The result of a run: printed for users, and its parameters for Prefect's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from maskloom.flows.commands.messages import SOME_FAILED
from maskloom.flows.terminal import count, escaped, failure
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from maskloom.flows.commands.options import RunFlags
    from maskloom.flows.inventory import Inventory
    from maskloom.flows.recipes.run import RunRecipe
    from maskloom.flows.run import RunResult
    from maskloom.flows.segment import Outcome

_CLASSES_SHOWN = 6
_FAILURES_SHOWN = 5


def run_and_print(recipe: RunRecipe, flags: RunFlags, source: str | Mapping[str, Any]) -> None:
    """Run a recipe and print the result. `source`: the recipe as Prefect's record shows it, a path
    or the document.
    """
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
    options = RunOptions(flags.quiet, flags.keep_other_recipes, flags.sole_writer)
    orchestrator = Plain() if flags.no_prefect else Prefect(parameters)
    result = run(recipe, options, orchestrator, lambda note: typer.echo(note, err=True))
    log_result(result)
    print_result(recipe, result)
    if result.some_failed:
        raise typer.Exit(SOME_FAILED)


def recordable(value: Any) -> Any:
    """A JSON value that a server may store: signatures of addresses are masked, and characters that
    UTF-8 cannot encode are escaped.
    """
    if isinstance(value, str):
        return escaped(redacted(value))
    if isinstance(value, Mapping):
        return {key: recordable(item) for key, item in value.items()}
    return [recordable(item) for item in value] if isinstance(value, list) else value


def print_result(recipe: RunRecipe, result: RunResult) -> None:
    """Print how many images are done, failed and unchanged, and where the results are."""
    if result.outcome is None:
        _print_nothing_to_do(recipe, result)
    else:
        _print_outcome(recipe, result, result.outcome)


def _print_nothing_to_do(recipe: RunRecipe, result: RunResult) -> None:
    _print_removed(result.inventory)
    failed = result.inventory.failed_before
    note = f", {failed} of them failed before (see maskloom status)" if failed else ""
    images = count(result.unchanged, "image is", "images are")
    typer.echo(f"Nothing to do: {images} unchanged{note}. Results: {recipe.output}")


def _print_outcome(recipe: RunRecipe, result: RunResult, outcome: Outcome) -> None:
    _print_failures(recipe, outcome)
    _print_removed(result.inventory)
    if areas := _areas(outcome.areas):
        typer.echo(areas)
    unchanged = f", {result.unchanged} unchanged" if result.unchanged else ""
    typer.echo(
        f"{count(outcome.done, 'image')} done, {outcome.failed} failed{unchanged}, "
        f"{outcome.pixels / 1e6:.1f} {outcome.unit} in {result.seconds:.1f} s. "
        + (
            f"Look at {recipe.output}/previews; masks and tables are beside it."
            if outcome.done
            else f"See maskloom status {recipe.output}"
        )
    )


def _areas(areas: Mapping[tuple[str, str], float]) -> str:
    """A line on the total areas, or volumes, of the largest classes; empty without any."""
    found = sorted(((size, *key) for key, size in areas.items() if size), reverse=True)
    if not found:
        return ""
    kind = "Volumes" if {unit for *_, unit in found} == {"mm3"} else "Areas"
    named = [f"{escaped(name)} {amount(size, unit)}" for size, name, unit in found[:_CLASSES_SHOWN]]
    more = len(found) - len(named)
    return f"{kind}: {', '.join(named)}{f' and {more} more classes' if more else ''}"


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
            "no longer among the inputs; the masks and rows stay.",
            err=True,
        )
