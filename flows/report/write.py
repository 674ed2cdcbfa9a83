"""Writes the report of an output. A run never fails for its report."""

from __future__ import annotations

import datetime as dt
import logging

from maskloom.flows.report.collect import collect
from maskloom.flows.report.notable import find
from maskloom.flows.report.page import page
from maskloom.flows.terminal import told
from maskloom.segcore.storage.store import Store
from maskloom.tasks.inspect import status
from maskloom.tasks.output import Output

log = logging.getLogger("maskloom.run")

NAME = "report.html"


def write_report(location: str) -> str:
    """Write the report of an output; return its location. Raises `RecipeError` if there is no
    output, `DamagedRecord` and `StoreError`.
    """
    output = Output.open(location)
    collected = collect(output)
    left = status(location).left
    content = page(output, collected, find(collected), left, _finished(output.store))
    output.store.publish(NAME, content)
    return output.store.uri(NAME)


def try_to_write(location: str) -> str | None:
    """The location of the report. None: it could not be written, which a warning says."""
    try:
        return write_report(location)
    except Exception as error:  # noqa: BLE001
        log.warning("The report could not be written: %s", told(error) or type(error).__name__)
        return None


def _finished(store: Store) -> str:
    """When the last run of an output ended, by the clock of its store. Empty: unknown."""
    times = [
        listed.modified
        for name, listed in store.listed("runs").items()
        if name.endswith("/manifest.json") and listed.modified is not None
    ]
    if not times:
        return ""
    return dt.datetime.fromtimestamp(max(times), dt.UTC).strftime("%-d %B %Y, %H:%M UTC")
