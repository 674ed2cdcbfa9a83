"""Commands that print what recipes may contain: list, schema."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from maskloom.flows.commands.messages import errors_as_messages


def _names(incomplete: str) -> list[str]:
    from maskloom.flows.catalogue import names

    return names(incomplete)


What = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help=(
            "segmenters, features, formats, statistics, networks or clusters; or the name of one, "
            "e.g. kmeans."
        ),
        autocompletion=_names,
    ),
]
RecipeKind = Annotated[
    Literal["run", "train"],
    typer.Argument(help="The command that reads the recipe: `maskloom run` or `maskloom train`."),
]


def list_(what: What) -> None:
    """List segmenters, features, formats, statistics, networks or clusters, or explain one of
    them. Shows what it does, when to use it, its parameters with defaults, and how exact it is in
    tiles.
    """
    with errors_as_messages():
        from maskloom.flows.catalogue import shown

        typer.echo(shown(what))


def schema(of: RecipeKind = "run") -> None:
    """Print the JSON Schema of recipes."""
    with errors_as_messages():
        if of == "train":
            from maskloom.flows.recipes.training import schema as schema_of
        else:
            from maskloom.flows.recipes.run_file import schema as schema_of
        typer.echo(json.dumps(schema_of(), indent=2))
