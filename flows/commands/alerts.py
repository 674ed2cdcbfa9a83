"""The command that shows what alerts would say: alerts."""

from __future__ import annotations

import typer

from maskloom.flows.commands.messages import errors_as_messages
from maskloom.flows.commands.options import Changes, RecipePath
from maskloom.flows.terminal import count, line


def alerts(recipe: RecipePath, changes: Changes = None) -> None:
    """Show which alerts a recipe would raise or end on what its output holds now. Nothing is
    recorded or sent.
    """
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.watching import foreseen
    from maskloom.segcore.errors import RecipeError

    with errors_as_messages():
        loaded = recipes.load(recipe, changes or [])
        if not loaded.alerts:
            raise RecipeError("the recipe has no `alerts`.")
        found = foreseen(loaded.output, loaded.alerts)
        for event in found:
            typer.echo(line(event.text))
        typer.echo(f"{count(len(found), 'event')} that a run would record")
