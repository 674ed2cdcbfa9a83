"""Finds and removes what killed runs left in an output, and nothing that a live run may still need.

    a temporary file            removed if its process, which its name contains, has ended on this
                                machine; a file of another machine must be idle
    the folder of a process     as a temporary file
    staging of a finished run   removed: the run's manifest exists
    staging of another run      kept if the next run can resume the run; otherwise it must be idle
    a mask, scores or preview   removed if no image in the tables has it, a run planned it, and all
                                such runs cannot be resumed and are idle
    an unfinished upload        removed if it began long enough ago; the file has no other trace

Idle means that nothing of it, nor of its run, has been written for a day by the store's own clock.
A process at work, on any machine, gives a sign of life there every minute.
No clock decides about results: a run that pauses for longer and wakes up misses a file, ends with a
message, and continues when it is started again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from maskloom.segcore.errors import DamagedRecord, RecipeError
from maskloom.segcore.masks import mask_names, names_beside
from maskloom.segcore.masks.scores import FOLDER as SCORES
from maskloom.segcore.masks.scores import score_names
from maskloom.segcore.storage.atomic import is_writer_alive, remove_temporary
from maskloom.segcore.storage.filesystems import is_local
from maskloom.segcore.storage.records import damaged_record, read_json, read_table
from maskloom.segcore.storage.store import STAGING, Listed, Store
from maskloom.segcore.storage.uploads import Upload, abort, unfinished_uploads
from maskloom.tasks.commits.log import IMAGES, incomplete_folder
from maskloom.tasks.commits.presence import PROCESSES, processes, sweep
from maskloom.tasks.last_run import read_head

IDLE_HOURS = 24.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that was planned and has no manifest: it was interrupted, is at work, or was overtaken
    by another run.
    """

    run_id: str
    parent: str | None
    """The finished run that it follows. The run can be resumed if this is the last one."""
    fingerprint: str
    images: tuple[tuple[str, str, str], ...]
    """Id, URI and version of each image."""
    files: frozenset[str]
    """Names of the files that it writes, in the folder of each table."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that a killed run may have left."""

    name: str
    """Name below the output, or the path of a temporary file outside it."""
    why: str
    """Why it is not needed."""
    kept: str | None = None
    """Why it is kept nevertheless. None: it can be removed."""
    temporary: Path | None = None
    """The path of a temporary file. None: something else."""
    seen: Listed | None = None
    """A mask, scores or preview as it was listed; one that has changed since is not removed."""
    upload: Upload | None = None
    """An unfinished upload to an object store."""


def require_output(store: Store) -> None:
    """Raise `RecipeError` if no run has planned or committed anything."""
    if not store.names("runs", "/plan.json") and not store.names(IMAGES, ".parquet"):
        raise RecipeError(
            f"{store.root} is not an output of maskloom: it holds no run. Give the folder that a "
            "recipe names as its `output`."
        )


def runs_without_manifest(store: Store) -> list[str]:
    """Ids of the runs that were planned and not finished."""
    plans, finished = (
        {name.split("/")[1] for name in store.names("runs", file)}
        for file in ("/plan.json", "/manifest.json")
    )
    return sorted(plans - finished)


def read_unfinished(store: Store, run: str) -> Unfinished:
    """A run from its plan, without the headers of its images. Raises `DamagedRecord`."""
    parent, fingerprint = read_json(
        store, f"runs/{run}/plan.json", lambda plan: (plan["parent"], plan["fingerprint"])
    )
    name = f"runs/{run}/plan.parquet"
    try:
        rows = read_table(store, name, ("image_id", "uri", "version", "shard"))
    except FileNotFoundError as error:
        raise damaged_record(store, name) from error
    ids, uris, versions, files = (rows[column].to_pylist() for column in rows.column_names)
    return Unfinished(
        run, parent, fingerprint, tuple(zip(ids, uris, versions, strict=True)), frozenset(files)
    )


def orphans(
    store: Store, listed: Mapping[str, Listed], masks: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Masks, scores and previews that runs of this output wrote, but that no image in the tables
    has: image ids by name. Files of other programs are not among them.

    `listed` are the files to look at; `masks` the masks and scores of the images in the tables, by
    image id.
    """
    committed = {image_id: names for image_id, names in masks.items() if names}
    used = {
        each
        for names in committed.values()
        for name in names
        for each in (name, *names_beside(name))
    }
    used |= {_preview(image_id) for image_id in committed}
    rest = [name for name in listed if used.isdisjoint(_with_folders(name))]
    if not rest:
        return {}
    ours = {
        name: image_id
        for image_id in _planned_ids(store).union(masks)
        for name in _names_of(image_id)
    }
    return {
        name: ours[owner]
        for name in sorted(rest)
        if (owner := next((each for each in _with_folders(name) if each in ours), None))
    }


def results_scanned(store: Store) -> Iterator[tuple[str, Listed]]:
    """The masks, scores and previews of an output, one after the other."""
    for folder in ("masks", SCORES, "previews"):
        yield from store.scanned(folder)


def results_of(row: Mapping[str, str | None]) -> tuple[str, ...]:
    """The names of the mask and the scores in a row of the table `images`."""
    return tuple(name for name in (row["mask_uri"], row["scores_uri"]) if name is not None)


def leftovers(output: str, idle_hours: float = IDLE_HOURS) -> list[Leftover]:
    """Everything in an output that killed runs left. Raises `RecipeError` if there is no output,
    and `DamagedRecord`.
    """
    store = Store(output)
    require_output(store)
    ages = _Ages(store, idle_hours)
    # Files are listed before plans and tables are read, so a file of a run that begins meanwhile is
    # not taken for a leftover.
    listed = dict(results_scanned(store))
    staged = store.listed(STAGING)
    overtaken = _Overtaken.find(store, listed, staged, ages)
    return [
        *_temporary_files(store, ages),
        *overtaken.staging_folders(),
        *_process_folders(store, staged, ages),
        *overtaken.unused_files(),
        *_uploads(store, ages),
    ]


def remove(output: str, leftover: Leftover) -> bool:
    """Remove a leftover; return False if it has been written again since it was found."""
    store = Store(output)
    if leftover.temporary is not None:
        remove_temporary(leftover.temporary)
        return True
    if leftover.upload is not None:
        abort(store, leftover.upload)
        return True
    if (
        leftover.seen is not None
        and store.listed(leftover.name).get(leftover.name) != leftover.seen
    ):
        return False
    store.remove(leftover.name)
    return True


def tidy(output: str) -> None:
    """Remove what is certainly not needed: staged files of finished runs, and folders and temporary
    files of ended processes of this machine.
    """
    store = Store(output)
    finished = {name.split("/")[1] for name in store.names("runs", "/manifest.json")}
    for run in {
        name.split("/")[1] for name in store.names(STAGING, "") if name.count("/") > 1
    } & finished:
        store.remove(f"{STAGING}/{run}")
    sweep(store)
    store.sweep()


class _Ages:
    """How long ago files were written, by the store's clock, which is read at most once."""

    def __init__(self, store: Store, idle_hours: float) -> None:
        self._store, self._idle = store, idle_hours

    @cached_property
    def now(self) -> float:
        """The time of the store's clock, in seconds."""
        return self._store.now()

    def kept(
        self, changed: Iterable[float | None], who: str, now: float | None = None
    ) -> str | None:
        """Why files that were written at these times are kept; None if all are idle. `who` begins
        the sentence; `now` is the time of another clock than the store's.
        """
        times = [when for when in changed if when is not None]
        if not times:
            return f"{who} may still be at work: the store does not record when files were written"
        hours = ((self.now if now is None else now) - max(times)) / 3600
        if hours >= self._idle:
            return None
        return (
            f"{who} may still be at work: last written {max(hours, 0):.1f} hours ago, kept for "
            f"{self._idle:g} hours"
        )


@dataclass(frozen=True, slots=True)
class _Overtaken:
    """Unfinished runs that no run can resume, since another run has finished after their plan."""

    listed: Mapping[str, Listed]
    """Masks, scores and previews."""
    staged: Mapping[str, Listed]
    """Staged files."""
    ages: _Ages
    resumable: frozenset[str]
    """Unfinished runs that the next run can resume."""
    written: Mapping[str, Sequence[float | None]]
    """When the files of each overtaken run were written, by the id of the run."""
    unused: Mapping[str, frozenset[str]]
    """Masks, scores and previews of no image in the tables, with the overtaken runs that planned
    them.
    """

    @classmethod
    def find(
        cls,
        store: Store,
        listed: Mapping[str, Listed],
        staged: Mapping[str, Listed],
        ages: _Ages,
    ) -> _Overtaken:
        """The overtaken runs of an output."""
        unfinished = {run: read_unfinished(store, run) for run in runs_without_manifest(store)}
        head = read_head(store).run_id
        overtaken = {run for run, plan in unfinished.items() if plan.parent != head}
        planners: dict[str, set[str]] = {}
        for run, plan in unfinished.items():
            for image_id, *_ in plan.images:
                planners.setdefault(image_id, set()).add(run)
        unused = {
            name: frozenset(planners.get(image_id, ()))
            for name, image_id in orphans(store, listed, _masks(store)).items()
            if planners.get(image_id, set()) <= overtaken
        }
        at_work = [each for each in processes(store) if each.alive is not False]
        written = {
            run: [
                *(each.modified for each in store.listed(f"runs/{run}").values()),
                *(
                    each.modified
                    for name, each in staged.items()
                    if name.startswith(f"{STAGING}/{run}/")
                ),
                *(listed[name].modified for name, runs in unused.items() if run in runs),
                *(each.renewed for each in at_work if each.run_id == run),
            ]
            for run in overtaken
        }
        resumable = frozenset(unfinished.keys() - overtaken)
        return cls(listed, staged, ages, resumable, written, unused)

    def staging_folders(self) -> Iterator[Leftover]:
        """Staging folders of runs that are not resumed."""
        processes = PROCESSES.rpartition("/")[2]
        runs = {name.split("/")[1] for name in self.staged if name.count("/") > 1} - {processes}
        for run in sorted(runs - self.resumable):
            kept = self._kept({run} & self.written.keys())
            yield Leftover(f"{STAGING}/{run}", "staged by a run that will not continue", kept)

    def unused_files(self) -> Iterator[Leftover]:
        """Masks, scores and previews of no image in the tables."""
        for name, runs in self.unused.items():
            why = "no image in the tables has it"
            yield Leftover(name, why, self._kept(runs), seen=self.listed[name])

    def _kept(self, runs: Iterable[str]) -> str | None:
        """Why files of these runs are kept; None if all runs are idle."""
        reasons = (
            self.ages.kept(self.written[run], f"run {run} has no manifest and")
            for run in sorted(runs)
        )
        return next(filter(None, reasons), None)


def _temporary_files(store: Store, ages: _Ages) -> Iterator[Leftover]:
    for path in store.temporaries():
        name = f"{STAGING}/{path.name}" if is_local(store.root) else str(path)
        living = is_writer_alive(path)
        if living is False:
            yield Leftover(name, "an ended process of this machine was writing it", temporary=path)
        elif living is None:
            with contextlib.suppress(FileNotFoundError):
                changed = path.stat().st_mtime
                now = ages.now if is_local(store.root) else time.time()
                kept = ages.kept([changed], "a process of another machine", now)
                yield Leftover(
                    name,
                    "a process of another machine, or of this one before it was restarted, was "
                    "writing it",
                    kept,
                    path,
                )


def _uploads(store: Store, ages: _Ages) -> Iterator[Leftover]:
    for upload in unfinished_uploads(store):
        kept = ages.kept([upload.began], "a process that uploads it")
        yield Leftover(upload.name, "its upload was not finished", kept, upload=upload)


def _process_folders(store: Store, staged: Mapping[str, Listed], ages: _Ages) -> Iterator[Leftover]:
    """The folders of processes that have ended, or may have."""
    files: dict[str, list[Listed]] = {}
    for name, found in staged.items():
        if name.startswith(f"{PROCESSES}/"):
            files.setdefault("/".join(name.split("/")[:3]), []).append(found)
    states = {folder: is_writer_alive(Path(folder)) for folder in sorted(files)}
    # Read afterwards: a dead process made its claim before it died.
    incomplete = (incomplete_folder(store) or "").split("/")[:3]
    for folder, living in states.items():
        if folder.split("/") == incomplete:
            yield Leftover(
                folder,
                "a process staged a commit there",
                "the commit is incomplete: the next run completes it",
            )
        elif living is False:
            yield Leftover(folder, "an ended process of this machine staged results there")
        elif living is None:
            kept = ages.kept(
                [found.modified for found in files[folder]], "a process of another machine"
            )
            yield Leftover(
                folder,
                "a process of another machine, or of this one before it was restarted, staged "
                "results there",
                kept,
            )


def _masks(store: Store) -> dict[str, tuple[str, ...]]:
    """The mask and scores of each image in the tables, by image id; none for a failed image."""
    tables = (
        read_table(store, name, ("image_id", "mask_uri"), ("scores_uri",))
        for name in store.names(IMAGES, ".parquet")
    )
    return {row["image_id"]: results_of(row) for table in tables for row in table.to_pylist()}


def _planned_ids(store: Store) -> set[str]:
    """Ids of all images that runs of this output planned. Those of plans that cannot be read are
    missing, so their files are kept.
    """
    ids: set[str] = set()
    for name in store.names("runs", "/plan.parquet"):
        with contextlib.suppress(DamagedRecord, FileNotFoundError):
            ids.update(read_table(store, name, ("image_id",))["image_id"].to_pylist())
    return ids


def _names_of(image_id: str) -> Iterator[str]:
    """Names under which a run may have written an image's mask, the files beside it, its scores
    and its preview.
    """
    yield _preview(image_id)
    yield from mask_names(image_id)
    yield from score_names(image_id)


def _with_folders(name: str) -> tuple[str, ...]:
    """A name and the names of the folders around it, one of which may be a mask of many files."""
    return (name, *map(str, PurePosixPath(name).parents))


def _preview(image_id: str) -> str:
    return f"previews/{image_id}.png"
