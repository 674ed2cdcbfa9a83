"""The log file of a command (`--log-file`): its own lines and the warnings of libraries, with time.

Nothing is shown twice: the terminal keeps its messages and progress, and the file has what somebody
who comes later must know.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import maskloom
from maskloom.flows.terminal import count, failure, line
from maskloom.segcore.errors import MaskloomError, RecipeError
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from maskloom.flows.run import RunResult

log = logging.getLogger("maskloom.run")

JSON_LINES = ".jsonl"
"""Ending of the names of log files with a JSON object in each line."""


class _Lines(logging.Formatter):
    """A line for each record, with the time in UTC, without secrets of addresses and tracebacks."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        text = line(redacted(record.getMessage()))
        if self._as_json:
            level = record.levelname.lower()
            return json.dumps({"time": time, "level": level, "message": text})
        return f"{time} {record.levelname.lower()}: {text}"


@contextmanager
def written_to(path: Path | None, what: str) -> Iterator[None]:
    """Append what happens in the block to a file. None: no file. `what` names the command.

    Raises `RecipeError` if the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RecipeError(f"--log-file: cannot write {path}: {error.strerror}.") from error
    handler.setFormatter(_Lines(as_json=path.suffix == JSON_LINES))
    ours, root = logging.getLogger("maskloom"), logging.getLogger()
    before = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        log.info(
            "maskloom %s on %s, process %d: %s",
            maskloom.__version__,
            platform.node(),
            os.getpid(),
            what,
        )
        yield
    except BaseException as error:
        # For the file alone: the terminal gets the message of the command.
        told = "" if isinstance(error, MaskloomError) else f"{type(error).__name__}: "
        if type(error).__name__ != "Exit":
            handler.handle(_error(f"{told}{error}"))
        raise
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)
        handler.close()


def log_result(result: RunResult) -> None:
    """Log how a run has ended."""
    outcome = result.outcome
    if outcome is None:
        log.info("nothing to do: %s unchanged", count(result.unchanged, "image"))
        return
    for uri, reason in outcome.failures:
        log.info("failed: %s", failure(uri, reason.error_type, reason.error))
    log.info(
        "%s done, %d failed, %d unchanged, %.1f %s in %.1f s",
        count(outcome.done, "image"),
        outcome.failed,
        result.unchanged,
        outcome.pixels / 1e6,
        outcome.unit,
        result.seconds,
    )


def _error(text: str) -> logging.LogRecord:
    return logging.LogRecord(log.name, logging.ERROR, __file__, 0, "%s", (text,), None)
