"""Exit codes and error messages of the commands.

Messages go to standard error, results to standard output.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer

from maskloom.flows.signals import STOPPED
from maskloom.flows.terminal import EscapingFormatter, line, told
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
    handler = _ToStandardError()
    # A log file, and a record of the run, have more lines than the terminal.
    handler.setLevel(logging.WARNING)
    handler.setFormatter(EscapingFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        yield
    except MaskloomError as error:
        typer.echo(f"maskloom: {told(error)}", err=True)
        code = WRONG_USAGE if isinstance(error, RecipeError) else CANNOT_CONTINUE
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        typer.echo(STOPPED, err=True)
        raise typer.Exit(CANNOT_CONTINUE) from None


def first_line(text: str, quiet: bool = False) -> None:
    """Say what a command is about to read, before its slow imports. Call this first."""
    if not quiet:
        typer.echo(line(redacted(text)), err=True)


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at that moment: while a progress bar is shown, that is a
    stream that writes above it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def location_of(output: str) -> str:
    """An output as users name it, as an absolute path or a URI without a slash at its end."""
    return output.rstrip("/") if "://" in output else str(Path(output).resolve())
