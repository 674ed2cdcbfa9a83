"""Commands that print what recipes may contain: list, schema."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from maskloom.flows.commands.messages import errors_as_messages

Registry = Annotated[
    Literal["segmenters", "formats", "statistics", "networks", "clusters"],
    typer.Argument(help="What to list."),
]
RecipeKind = Annotated[
    Literal["run", "train"],
    typer.Argument(help="The command that reads the recipe: `maskloom run` or `maskloom train`."),
]


def list_(what: Registry) -> None:
    """List segmenters, formats, statistics, networks or clusters. Shows their parameters with
    defaults, and how exact segmenters are in tiles.
    """
    with errors_as_messages():
        from maskloom.flows.catalogue import catalogue

        typer.echo(catalogue(what))


def schema(of: RecipeKind = "run") -> None:
    """Print the JSON Schema of recipes."""
    with errors_as_messages():
        if of == "train":
            from maskloom.flows.recipes.training import schema as schema_of
        else:
            from maskloom.flows.recipes.run_file import schema as schema_of
        typer.echo(json.dumps(schema_of(), indent=2))
