"""Exit codes and error messages of the commands.

Messages go to standard error, results to standard output.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from maskloom.flows.terminal import EscapingFormatter, escaped
from maskloom.segcore.errors import MaskloomError, RecipeError
from maskloom.segcore.storage.addresses import redacted

DONE, CANNOT_CONTINUE, WRONG_USAGE, SOME_FAILED = 0, 1, 2, 3
"""All images are done; the run cannot continue; wrong usage or recipe; finished, but some images
failed.
"""


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turn maskloom's own errors into a line on standard error and an exit code. Other errors are
    bugs and show their traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    # A log file has more lines than the terminal.
    handler.setLevel(logging.WARNING)
    handler.setFormatter(EscapingFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        yield
    except MaskloomError as error:
        typer.echo(escaped(redacted(f"maskloom: {error}")), err=True)
        code = WRONG_USAGE if isinstance(error, RecipeError) else CANNOT_CONTINUE
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        typer.echo("maskloom: stopped. Run the same command again to continue.", err=True)
        raise typer.Exit(CANNOT_CONTINUE) from None


def location_of(output: str) -> str:
    """An output as users name it, as an absolute path or a URI without a slash at its end."""
    return output.rstrip("/") if "://" in output else str(Path(output).resolve())
