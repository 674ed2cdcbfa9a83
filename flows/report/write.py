"""Writes the report of an output. A run never fails for its report."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from functools import partial

from maskloom.flows.report.collect import collect
from maskloom.flows.report.evaluation import evaluation_page, is_evaluation
from maskloom.flows.report.notable import find
from maskloom.flows.report.page import page
from maskloom.flows.report.series import is_series, series_page
from maskloom.flows.report.subject import Ending, RunSubject
from maskloom.flows.report.training import is_training, training_page
from maskloom.flows.terminal import recordable, told
from maskloom.segcore.errors import MaskloomError, RecipeError, StoreError
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.clean import require_output
from maskloom.tasks.output import Output
from maskloom.tasks.status import status

log = logging.getLogger("maskloom.run")

NAME = "report.html"
EVALUATION = "evaluation/"
"""Folder of an evaluation below an output."""


def write_reports(location: str) -> list[str]:
    """Write the reports of an output: of its masks and their evaluation, of an evaluation in a
    folder of its own, of a training, or of a series of trainings; return their locations.

    Raises `RecipeError` if there is none of these, `DamagedRecord` and `StoreError`.
    """
    store = Store(location)
    if is_training(store):
        return [_published(store, NAME, training_page(store))]
    if is_series(store):
        return [_published(store, NAME, series_page(store))]
    if is_evaluation(store):
        return [_published(store, NAME, evaluation_page(store))]
    found = [write_report(location)]
    if is_evaluation(store, EVALUATION):
        found.append(_published(store, f"{EVALUATION}{NAME}", evaluation_page(store, EVALUATION)))
    return found


def write_of_training(location: str) -> str:
    """Write the report of a training, or a series of them, that has just ended. Raises as
    `write_reports`.
    """
    store = Store(location)
    content = training_page(store) if is_training(store) else series_page(store)
    written = _published(store, NAME, content)
    # The training is alone in its folder, and leaves it tidy.
    store.remove(STAGING)
    return written


def write_report(location: str, why: str = "") -> str:
    """Write the report of an output of masks; return its location. `why`: why the run stopped that
    has just ended; empty if it did not. Raises as `write_reports`.
    """
    output = Output.open(location)
    found = status(location)
    collected = collect(output, found.open_runs)
    at_work = not why and bool({each.run_id for each in found.processes} & {*found.open_runs})
    ending = Ending(found.left, at_work, why, _finished(output.store))
    content = page(RunSubject(output, collected, find(collected), ending))
    return _published(output.store, NAME, content)


def write_of_stopped(location: str, error: MaskloomError) -> str | None:
    """Write the report of an output whose run an error has stopped; return its location. None: the
    run had not planned its images yet, or the report could not be written.
    """
    try:
        require_output(Store(location))
    except (RecipeError, StoreError):
        return None
    return try_to_write(location, partial(write_report, why=recordable(str(error))))


def try_to_write(
    location: str, write: Callable[[str], str | list[str]] = write_report
) -> str | None:
    """The location of the report, or of the last of several. None: it could not be written, which
    a warning says.
    """
    try:
        written = write(location)
        return written if isinstance(written, str) else written[-1]
    except Exception as error:  # noqa: BLE001
        log.warning("The report could not be written: %s", told(error) or type(error).__name__)
        return None


def _published(store: Store, name: str, content: bytes) -> str:
    store.publish(name, content)
    return store.uri(name)


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
