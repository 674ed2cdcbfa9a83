"""Commands to begin with: init, try."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskloom.flows.commands.messages import errors_as_messages, first_line
from maskloom.flows.commands.options import Changes, QuietFlag, RecipePath
from maskloom.flows.terminal import escaped, line

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Files, globs, folders or list files, as in a recipe."),
]
NewRecipe = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="RECIPE.yaml", help="The recipe to write; it must not exist."
    ),
]
TryImage = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE",
        help="The image to try: a file, a folder or a URI. Default: the recipe's first.",
        show_default=False,
    ),
]
Crop = Annotated[
    str,
    typer.Option(
        metavar="CROP",
        help=(
            "Part of the image: auto (the liveliest of 16 places, at most 1024 x 1024 pixels), "
            "middle, or x,y,width,height."
        ),
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B,C",
        help="Draw one panel for each value of a parameter, e.g. clusters=3,5,8. Repeatable.",
    ),
]
Picture = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="PICTURE.png", help="File for the picture."),
]


def init(
    paths: Paths,
    output: NewRecipe = Path("recipe.yaml"),
    changes: Changes = None,
    quiet: QuietFlag = False,
) -> None:
    """Look at images and write a recipe for them. Reads at most 50 headers and a few pixels, prints
    what they hold, and writes a recipe whose comments say why each key has its value.
    """
    with errors_as_messages():
        first_line(f"Looking at {', '.join(paths[:3])}", quiet)
        from maskloom.flows.progress.displays import display
        from maskloom.flows.progress.run import ItemProgress
        from maskloom.flows.starting.suggest import suggest

        with display(quiet) as shown:
            progress: list[ItemProgress] = []

            def report(done: int, of: int) -> None:
                if not progress:
                    progress.append(ItemProgress(shown, "read headers", "images", of))
                progress[0](done)

            found = suggest(paths, output, changes or [], report)
        for each in found.table:
            typer.echo(line(each))
        for each in found.notes:
            typer.echo(line(each), err=True)
        typer.echo(f"Wrote {line(str(output))}. Next: maskloom try {line(str(output))}")


def try_(
    recipe: RecipePath,
    image: TryImage = None,
    crop: Crop = "auto",
    vary: Vary = None,
    output: Picture = Path("try.png"),
    changes: Changes = None,
    quiet: QuietFlag = False,
) -> None:
    """Try a recipe on a part of one image, in seconds. Draws the result, or those for several
    values of a parameter side by side. Nothing is written but the picture.
    """
    with errors_as_messages():
        first_line(f"Reading {recipe}", quiet)
        from maskloom.flows.starting.try_out import TryRequest, try_out

        found = try_out(
            TryRequest(recipe, image, crop, tuple(vary or ()), tuple(changes or ())),
            output,
            quiet=quiet,
        )
        for each in found:
            typer.echo(escaped(each))
        typer.echo(f"Look at {line(str(output))}")
