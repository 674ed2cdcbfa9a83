"""Commands that let a Prefect server start recipes: serve, deploy."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskloom.flows.commands.messages import errors_as_messages
from maskloom.flows.commands.options import Changes, RecipePath
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.orchestration import SyncPrefectClient

    from maskloom.flows.orchestration.deployments import Deployed

Recipes = Annotated[
    list[Path],
    typer.Argument(metavar="RECIPE.yaml", help="Recipes, with or without a `schedule`."),
]
Pool = Annotated[
    str, typer.Option("--pool", metavar="NAME", help="Work pool that executes the runs.")
]
Image = Annotated[
    str | None,
    typer.Option(
        "--image", metavar="IMAGE", help="Container image with maskloom. Default: the pool's."
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="PATH",
        help="Path of the recipe where its runs are executed, e.g. in the image. Default: here.",
    ),
]


def serve(recipes: Recipes, changes: Changes = None) -> None:
    """Register recipes with the Prefect server and execute their runs, until Ctrl-C or SIGTERM.
    Runs start by the recipe's `schedule`, by an event, or by hand.
    """
    with errors_as_messages():
        deployed = [_checked(path, changes or []) for path in recipes]
        twice = [
            name for name, times in Counter(each.name for each in deployed).items() if times > 1
        ]
        if twice:
            raise RecipeError(
                f"Two recipes are named {twice[0]}. Give them different names: the key `name`."
            )
        _import_prefect()
        import asyncio

        from maskloom.flows.orchestration.deployments import connected, register
        from maskloom.flows.orchestration.service import Service

        with connected() as client:
            _warn(client)
            deployments = {}
            for each in deployed:
                deployments.update(register(client, each))
                _say(each)
            url = redacted(str(client.api_url))
            typer.echo(f"Runs of {url} start here until Ctrl-C or SIGTERM.", err=True)
        asyncio.run(Service(deployments).serve())


def deploy(
    recipe: RecipePath,
    pool: Pool,
    image: Image = None,
    at: At = None,
    changes: Changes = None,
) -> None:
    """Register a recipe with the Prefect server for a work pool, whose workers execute its runs.
    Runs start by the recipe's `schedule`, by an event, or by hand.
    """
    with errors_as_messages():
        deployed = _checked(recipe, changes or [], at)
        _import_prefect()
        from maskloom.flows.orchestration.deployments import Place, connected, register, work_pool

        with connected() as client:
            found = work_pool(client, pool, image)
            _warn(client)
            register(client, deployed, Place(pool, image))
            _say(deployed)
            typer.echo(
                f"Workers of {pool} execute the runs: prefect worker start --pool {pool} "
                f"--type {found.type}",
                err=True,
            )


def _checked(path: Path, changes: Sequence[str], at: str | None = None) -> Deployed:
    """A recipe to deploy, once all of it is checked. Raises `RecipeError`."""
    from maskloom.flows.orchestration.deployments import Deployed
    from maskloom.flows.recipes import run as recipes

    recipe = recipes.load(path, changes)
    for change in changes:
        if redacted(change) != change:
            raise RecipeError(
                f"--set {redacted(change)}: the server stores changes as plain text, so they must "
                "hold no signature. Put the address into the recipe."
            )
    return Deployed(recipe.name, at or str(path.resolve()), tuple(changes), recipe.schedule)


def _import_prefect() -> None:
    """Import Prefect; its errors are shown in one line."""
    from maskloom.flows.orchestration.server import import_prefect

    import_prefect()
    for handler in logging.getLogger("prefect").handlers:
        handler.setFormatter(_OneLine())


class _OneLine(logging.Formatter):
    """Shows an error without its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The message and its error, in one line."""
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        return " ".join(f"{text} ({error!r})".split()) if error is not None else text


def _warn(client: SyncPrefectClient) -> None:
    from maskloom.flows.orchestration.deployments import warnings_about

    for line in warnings_about(client):
        typer.echo(f"maskloom: {line}", err=True)


def _say(recipe: Deployed) -> None:
    typer.echo(f"{recipe.name}: {recipe.schedule or 'no schedule'}; and on events")
