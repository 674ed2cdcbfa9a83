"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

RecipePath = Annotated[
    Path,
    typer.Argument(metavar="RECIPE.yaml", help="The recipe: a YAML file (see `maskloom schema`)."),
]
TrainingPath = Annotated[
    Path, typer.Argument(metavar="RECIPE.yaml", help="The training recipe: a YAML file.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.SUB=VALUE",
        help="Change a key of the recipe, e.g. tiling.tile=1024. Repeatable.",
    ),
]
NoPrefect = Annotated[
    bool,
    typer.Option(
        "--no-prefect",
        help="Run without Prefect: the same work, nothing recorded, a quicker start.",
    ),
]
KeepOthers = Annotated[
    bool,
    typer.Option(
        "--keep-other-recipes",
        help=(
            "Write beside images of other recipes in the same output. Group the tables by "
            "`fingerprint`."
        ),
    ),
]
SoleWriter = Annotated[
    bool,
    typer.Option(
        "--sole-writer",
        help="No other run works on the output. "
        "For stores without conditional writes, after a kill.",
    ),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="The output of a run: a folder or fsspec URI.")
]


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Options of the commands that run a recipe."""

    changes: Changes = None
    no_prefect: NoPrefect = False
    quiet: QuietFlag = False
    keep_other_recipes: KeepOthers = False
    sole_writer: SoleWriter = False


def takes_run_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `RunFlags` as options; it gets them as one value, `flags`."""
    own = inspect.signature(command, eval_str=True).parameters
    hints = typing.get_type_hints(RunFlags, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(RunFlags)
    ]

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        flags = RunFlags(**{each.name: values.pop(each.name) for each in shared})
        command(**values, flags=flags)

    parameters = [*(each for name, each in own.items() if name != "flags"), *shared]
    with_flags.__annotations__ = {each.name: each.annotation for each in parameters}
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_flags
