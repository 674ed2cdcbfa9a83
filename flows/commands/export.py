"""The command that writes masks for other programs: export."""

from __future__ import annotations

import pkgutil
from typing import Annotated

import typer

from maskloom.flows.commands.messages import errors_as_messages, location_of
from maskloom.flows.commands.options import Output
from maskloom.flows.terminal import line
from maskloom.tasks.export import targets


def kinds(incomplete: str) -> list[str]:
    """Targets that begin so, for the completion of shells."""
    from maskloom.tasks.export.request import TARGETS

    return [kind for kind in TARGETS if kind.startswith(incomplete)]


# Each file has the name of its target: they are imported only where one is written.
_KINDS = ", ".join(sorted(module.name for module in pkgutil.iter_modules(targets.__path__)))
Wanted = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="KIND",
        autocompletion=kinds,
        help=f"{_KINDS}, or one of a plug-in. See docs/vectors.md.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Folder for the files. Default: OUTPUT/export or, for stac, OUTPUT/stac.",
    ),
]
PerImage = Annotated[bool, typer.Option("--per-image", help="A file per image.")]


def export(output: Output, to: Wanted, target: Target = None, per_image: PerImage = False) -> None:
    """Write masks of classes and objects as outlines for other programs. They follow the edges of
    pixels exactly, so that drawing them gives the mask again.
    """
    from maskloom.tasks.export.request import export as write
    from maskloom.tasks.output import Output as Read

    with errors_as_messages():
        folder = None if target is None else location_of(target)
        done = write(Read.open(location_of(output)), to, folder, per_image=per_image)
        for note in done.notes:
            typer.echo(line(note), err=True)
        typer.echo(line(f"{done.summary}: {done.location}"))
