"""The command `maskloom view`."""

from __future__ import annotations

from typing import Annotated

import typer

from maskloom.flows.commands.messages import errors_as_messages, first_line, location_of
from maskloom.flows.commands.options import Output

ImageId = Annotated[
    str | None,
    typer.Argument(
        metavar="[IMAGE_ID]", help="Id of the image to begin with. Default: the first one."
    ),
]
Port = Annotated[
    int,
    typer.Option(min=0, max=65535, help="Port of the page. Default: any free one."),
]
NoBrowser = Annotated[
    bool, typer.Option("--no-browser", help="Print the address, and open no browser.")
]


def view(
    output: Output, image_id: ImageId = None, port: Port = 0, no_browser: NoBrowser = False
) -> None:
    """Look at masks over their sources on a local page: pan and zoom images of any size, click
    objects, scroll through volumes. The page is served to this machine alone; Ctrl-C ends it.
    """
    first_line(f"Opening {output}")
    with errors_as_messages():
        _view(location_of(output), image_id, port, open_browser=not no_browser)


def _view(location: str, image_id: str | None, port: int, *, open_browser: bool) -> None:
    import webbrowser
    from urllib.parse import quote

    from maskloom.flows.viewer.gallery import Gallery
    from maskloom.flows.viewer.server import HOST, listening, new_token, serve
    from maskloom.segcore.errors import RecipeError
    from maskloom.tasks.output import Output as StoredOutput

    gallery = Gallery(StoredOutput.open(location))
    if not len(gallery.listing):
        raise RecipeError(f"{location} holds no image yet. Run the recipe first.")
    if image_id is not None and image_id not in gallery.listing:
        # Says which ids are near.
        gallery.output.image(image_id)
    try:
        at = listening(port)
    except OSError as error:
        raise RecipeError(
            f"port: {port} cannot be used ({error.strerror}). Choose another, or leave --port out."
        ) from error
    token = new_token()
    place = f"#{quote(image_id, safe='')}" if image_id is not None else ""
    address = f"http://{HOST}:{at.getsockname()[1]}/{token}/{place}"

    def started() -> None:
        typer.echo(address)
        typer.echo("Ctrl-C ends the page.", err=True)
        if open_browser:
            webbrowser.open(address)

    with at:
        try:
            serve(gallery, token, at, started)
        except KeyboardInterrupt:
            # The usual end. The next call has another address.
            typer.echo("The page is closed.", err=True)
