"""The command that checks a machine and what a recipe needs: doctor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from maskloom.flows.commands.messages import CANNOT_CONTINUE, WRONG_USAGE, errors_as_messages
from maskloom.flows.commands.options import AsJson, Changes
from maskloom.flows.terminal import line

Recipe = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE.yaml]",
        help="A recipe, to check its inputs, output and cluster too.",
        show_default=False,
    ),
]


def doctor(recipe: Recipe = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check whether runs can work here: versions, memory, disks, and the stores, the cluster and
    the Prefect server that a recipe needs. Stores are tried by writing a small file. Exit code 1 if
    a check failed, 2 if the recipe is wrong.
    """
    from maskloom.flows.doctor import examine

    with errors_as_messages():
        found = []
        for check in examine(recipe, changes or []):
            found.append(check)
            if not as_json:
                typer.echo(line(f"{check.verdict:8}{check.name}: {check.text}"))
        if as_json:
            keys = ("name", "verdict", "text")
            rows = [
                {key: value for key, value in dataclasses.asdict(check).items() if key in keys}
                for check in found
            ]
            typer.echo(json.dumps(rows, indent=2))
        if any(check.wrong_recipe for check in found):
            raise typer.Exit(WRONG_USAGE)
        if any(check.verdict == "failed" for check in found):
            raise typer.Exit(CANNOT_CONTINUE)
