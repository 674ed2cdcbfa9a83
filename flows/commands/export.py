"""The command that writes masks for other programs: export."""

from __future__ import annotations

from typing import Annotated

import typer

from maskloom.flows.commands.messages import errors_as_messages, location_of
from maskloom.flows.commands.options import Output
from maskloom.flows.terminal import line

Wanted = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="KIND",
        help="geojson (longitude and latitude, or pixels), gpkg or geoparquet (CRS of the image), "
        "qupath (a file per image), coco, or stac (a static catalog of the masks).",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Folder for the files. Default: OUTPUT/export, or OUTPUT/stac.",
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
        if to == "stac":
            _write_stac(location_of(output), folder)
            return
        done = write(Read.open(location_of(output)), to, folder, per_image=per_image)
        if done.passed_over:
            some = ", ".join(done.passed_over[:5])
            typer.echo(line(f"{len(done.passed_over)} images left out: {some}."), err=True)
        typer.echo(line(f"{done.features} polygons of {done.images} images: {done.location}"))


def _write_stac(output: str, target: str | None) -> None:
    from maskloom.tasks.output import Output as Read
    from maskloom.tasks.stac import write_stac

    done = write_stac(Read.open(output), target)
    if done.left_out:
        typer.echo(line(f"{_number(done.left_out, 'image')} without a mask left out."), err=True)
    if done.unplaced:
        items = _number(done.unplaced, "item")
        typer.echo(line(f"{items} without a geometry: no place on a map is known."), err=True)
    typer.echo(line(f"{_number(done.items, 'item')}: {done.location}"))


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
