"""How far the runs of an output are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store, not_empty
from maskloom.tasks.clean import (
    Unfinished,
    read_unfinished,
    require_output,
    results_of,
    results_scanned,
    runs_without_manifest,
)
from maskloom.tasks.commits.log import AREAS, IMAGES
from maskloom.tasks.commits.presence import Process, processes
from maskloom.tasks.image_rows import SCORES_COLUMNS
from maskloom.tasks.last_run import read_head

_ROW = (
    "uri",
    "image_id",
    "status",
    "error",
    "error_type",
    "mask_uri",
    "source_version",
    "fingerprint",
)


@dataclass(frozen=True, slots=True)
class Status:
    """How much of an output is done."""

    done: int
    failed: int
    left: int
    """Images that the next run of the recipe has to do: those of an interrupted or running run, and
    those with a lost mask.
    """
    finished_run: str | None
    """The last finished run."""
    open_runs: tuple[str, ...]
    """Runs that were planned and have not finished."""
    failures: tuple[tuple[str, str, str], ...]
    """URI, error type and message of each failure."""
    lost: tuple[str, ...]
    """Masks, scores, and files of the table `areas` with the images in them, that were written and
    are now missing or empty.
    """
    processes: tuple[Process, ...] = ()
    """The processes that are at work, or that have shown no sign of life for a while; those of this
    machine that were killed are not among them.
    """

    @property
    def stopped_runs(self) -> tuple[str, ...]:
        """Runs that have not finished and of which no process is known."""
        at_work = {process.run_id for process in self.processes}
        return tuple(run for run in self.open_runs if run not in at_work)


def status(output: str) -> Status:
    """Read an output's tables and plans. Masks and the table of areas are listed, but not opened.

    Raises `RecipeError` if there is no output, and `DamagedRecord`.
    """
    store = Store(output)
    require_output(store)
    # Rows are read before masks are listed, so that the masks of all these rows exist by then.
    # A million rows take a fifth as much memory in Arrow's columns as in Python.
    tables = {
        name: read_table(store, name, _ROW, SCORES_COLUMNS)
        for name in store.names(IMAGES, ".parquet")
    }
    lost = _lost_files(store, tables)
    head = read_head(store)
    runs = (read_unfinished(store, name) for name in runs_without_manifest(store))
    open_runs = [run for run in runs if run.parent == head.run_id]
    failures = tuple(
        (row["uri"], row["error_type"], row["error"])
        for table in tables.values()
        for row in table.filter(pc.equal(table["status"], "failed")).to_pylist()
    )
    return Status(
        done=sum(map(len, tables.values())) - len(failures) - len(set(lost.values())),
        failed=len(failures),
        left=len(_waiting(open_runs, tables.values()).union(lost.values())),
        finished_run=head.run_id,
        open_runs=tuple(run.run_id for run in open_runs),
        failures=failures,
        lost=tuple(sorted(lost)),
        processes=tuple(each for each in processes(store) if each.alive is not False),
    )


def _lost_files(store: Store, tables_by_file: Mapping[str, pa.Table]) -> dict[str, str]:
    """URIs of images by their missing or empty file: a mask, scores, or a file of the table
    `areas`.
    """
    results, tables = not_empty(results_scanned(store)), not_empty(store.scanned(AREAS))
    lost: dict[str, str] = {}
    for name, table in tables_by_file.items():
        done = table.filter(pc.equal(table["status"], "ok")).to_pylist()
        lost.update(
            (found, row["uri"]) for row in done for found in results_of(row) if found not in results
        )
        areas = f"{AREAS}/{name.rpartition('/')[2]}"
        if areas not in tables:
            lost.update((f"{areas} ({row['image_id']})", row["uri"]) for row in done)
    return lost


def _waiting(open_runs: Sequence[Unfinished], tables: Iterable[pa.Table]) -> set[str]:
    """URIs of the images of these runs that are not committed."""
    committed = {
        row
        for table in (tables if open_runs else ())
        for row in zip(
            *(table[name].to_pylist() for name in ("uri", "source_version", "fingerprint")),
            strict=True,
        )
    }
    return {
        uri
        for run in open_runs
        for _, uri, version in run.images
        if (uri, version, run.fingerprint) not in committed
    }
