"""Clean: what dead runs left in an output, and how it is known that no living one may still write
it.

    a temporary file            its name says whose it is: of this machine, then the process is
                                asked for; of another one, then it must be idle
    the folder of a process     as for a temporary file
    staging of a finished run   nobody needs it: its manifest is there
    staging of another run      the next run may go on with it where it follows the last finished
                                run; else it must be idle
    a mask or preview           no image in the tables has it, and a run planned it: none that may
                                still go on, or one that is idle

Idle means that nothing of it, nor of its run, was written for a day by the store's own clock. No
clock decides what is right: where a run that has slept for so long wakes up again, it misses a
file, ends with a message, and goes on when it is started again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from maskloom.segcore.errors import DamagedRecord, RecipeError
from maskloom.segcore.masks import beside_endings, mask_endings
from maskloom.segcore.storage.atomic import is_writer_alive, remove_temporary
from maskloom.segcore.storage.filesystems import is_local
from maskloom.segcore.storage.records import damaged_record, read_json, read_table
from maskloom.segcore.storage.store import STAGING, Listed, Store
from maskloom.tasks.commits.log import IMAGES, folder_under_way
from maskloom.tasks.commits.presence import PROCESSES, sweep
from maskloom.tasks.plan import read_head

IDLE_HOURS = 24.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that was planned and has no manifest: interrupted, at work, or overtaken by another
    one.
    """

    run_id: str
    parent: str | None
    """The finished run that it follows. It may go on where this is the last one."""
    fingerprint: str
    images: tuple[tuple[str, str, str], ...]
    """Image id, URI and version of each."""
    files: frozenset[str]
    """Names of the files that it writes, in the folder of each table."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a dead run may have left."""

    name: str
    """Its name below the output; the path of a temporary file outside of it."""
    why: str
    """Why nobody needs it."""
    kept: str | None = None
    """Why it is left alone all the same. None: it may go."""
    temporary: Path | None = None
    seen: Listed | None = None
    """A mask or preview as it was listed."""


def require_output(store: Store) -> None:
    """Raise `RecipeError` where no run has planned or committed anything."""
    if not store.names("runs", "/plan.json") and not store.names(IMAGES, ".parquet"):
        raise RecipeError(
            f"{store.root} holds no run of maskloom. Give the folder that a recipe names as its "
            "`output`."
        )


def runs_without_manifest(store: Store) -> list[str]:
    """Ids of the runs that were planned and not finished."""
    plans, finished = (
        {name.split("/")[1] for name in store.names("runs", file)}
        for file in ("/plan.json", "/manifest.json")
    )
    return sorted(plans - finished)


def read_unfinished(store: Store, run: str) -> Unfinished:
    """What the plan of a run says, its images without their headers. Raises `DamagedRecord`."""
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
    store: Store, listed: Mapping[str, Listed], masks: Mapping[str, str | None]
) -> dict[str, str]:
    """Masks and previews among the listed files that runs of this output wrote and no image in the
    tables has: image ids by name.

    `masks` are those of the images in the tables, by image id. Files of other programs are never
    among them.
    """
    committed = {image_id: mask for image_id, mask in masks.items() if mask is not None}
    used = {name + ending for name in committed.values() for ending in ("", *beside_endings())}
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


def leftovers(output: str, idle_hours: float = IDLE_HOURS) -> list[Leftover]:
    """What dead runs left in an output. Raises `RecipeError` where there is none, and
    `DamagedRecord`.
    """
    store = Store(output)
    require_output(store)
    ages = _Ages(store, idle_hours)
    # What is written is listed first: what is planned and committed later than that counts as
    # known.
    listed = store.listed("masks") | store.listed("previews")
    staged = store.listed(STAGING)
    unfinished = {run: read_unfinished(store, run) for run in runs_without_manifest(store)}
    head = read_head(store).run_id
    overtaken = {run for run, plan in unfinished.items() if plan.parent != head}
    planners: dict[str, set[str]] = {}
    for run, plan in unfinished.items():
        for image_id, *_ in plan.images:
            planners.setdefault(image_id, set()).add(run)
    alone = {
        name: planners.get(image_id, set())
        for name, image_id in orphans(store, listed, _masks(store)).items()
        if planners.get(image_id, set()) <= overtaken
    }
    written = {
        run: [
            *(each.modified for each in store.listed(f"runs/{run}").values()),
            *(
                each.modified
                for name, each in staged.items()
                if name.startswith(f"{STAGING}/{run}/")
            ),
            *(listed[name].modified for name, runs in alone.items() if run in runs),
        ]
        for run in overtaken
    }

    def kept(runs: Iterable[str]) -> str | None:
        reasons = (
            ages.kept(written[run], f"its run {run} has no manifest and") for run in sorted(runs)
        )
        return next(filter(None, reasons), None)

    return [
        *_temporaries(store, ages),
        *(
            Leftover(
                f"{STAGING}/{run}", "staged by a run that will not go on", kept({run} & overtaken)
            )
            for run in sorted(
                {name.split("/")[1] for name in staged if name.count("/") > 1}
                - {PROCESSES.rpartition("/")[2]}
            )
            if run not in unfinished or run in overtaken
        ),
        *_processes(store, staged, ages),
        *(
            Leftover(name, "no image in the tables has it", kept(runs), seen=listed[name])
            for name, runs in alone.items()
        ),
    ]


def remove(output: str, leftover: Leftover) -> bool:
    """Remove what was left; False where it has been written anew since it was found."""
    store = Store(output)
    if leftover.temporary is not None:
        remove_temporary(leftover.temporary)
        return True
    if (
        leftover.seen is not None
        and store.listed(leftover.name).get(leftover.name) != leftover.seen
    ):
        return False
    store.remove(leftover.name)
    return True


def tidy(output: str) -> None:
    """Remove what is certainly left: staged parts of finished runs, and folders and temporary files
    of dead processes of this machine.
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
    """How long ago things were written, by the store's clock, which is asked once and only where
    something depends on it.
    """

    def __init__(self, store: Store, idle_hours: float) -> None:
        self._store, self._idle = store, idle_hours

    @cached_property
    def now(self) -> float:
        return self._store.now()

    def kept(
        self, changed: Iterable[float | None], who: str, now: float | None = None
    ) -> str | None:
        """Why what was written then is left alone; None where all of it is idle."""
        times = [when for when in changed if when is not None]
        if not times:
            return f"{who} may still be at work: the store does not say when it was written"
        hours = ((self.now if now is None else now) - max(times)) / 3600
        if hours >= self._idle:
            return None
        return (
            f"{who} may still be at work: last written {max(hours, 0):.1f} hours ago, it is left "
            f"alone for {self._idle:g}"
        )


def _temporaries(store: Store, ages: _Ages) -> Iterator[Leftover]:
    for path in store.temporaries():
        name = f"{STAGING}/{path.name}" if is_local(store.root) else str(path)
        living = is_writer_alive(path)
        if living is False:
            yield Leftover(
                name, "a process of this machine that is no more was writing it", temporary=path
            )
        elif living is None:
            with contextlib.suppress(FileNotFoundError):
                changed = path.stat().st_mtime
                now = ages.now if is_local(store.root) else time.time()
                kept = ages.kept([changed], "a process of another machine", now)
                yield Leftover(
                    name,
                    "a process of another machine, or of this one before it was started anew, was "
                    "writing it",
                    kept,
                    path,
                )


def _processes(store: Store, staged: Mapping[str, Listed], ages: _Ages) -> Iterator[Leftover]:
    """The folders of processes that are no more, or seem to be."""
    files: dict[str, list[Listed]] = {}
    for name, found in staged.items():
        if name.startswith(f"{PROCESSES}/"):
            files.setdefault("/".join(name.split("/")[:3]), []).append(found)
    states = {folder: is_writer_alive(Path(folder)) for folder in sorted(files)}
    # Asked after: what a process has claimed, it has claimed before it died.
    under_way = (folder_under_way(store) or "").split("/")[:3]
    for folder, living in states.items():
        if folder.split("/") == under_way:
            yield Leftover(
                folder,
                "a process staged a commit there",
                "the commit is not carried out: the next run does it",
            )
        elif living is False:
            yield Leftover(folder, "a process of this machine that is no more staged results there")
        elif living is None:
            kept = ages.kept(
                [found.modified for found in files[folder]], "a process of another machine"
            )
            yield Leftover(
                folder,
                "a process of another machine, or of this one before it was started anew, staged "
                "results there",
                kept,
            )


def _masks(store: Store) -> dict[str, str | None]:
    """The mask of each image in the tables, by its id; None for those that failed."""
    tables = (
        read_table(store, name, ("image_id", "mask_uri"))
        for name in store.names(IMAGES, ".parquet")
    )
    return {row["image_id"]: row["mask_uri"] for table in tables for row in table.to_pylist()}


def _planned_ids(store: Store) -> set[str]:
    """Ids of all images that runs of this output planned; without those of plans that cannot be
    read, whose files are left alone then.
    """
    ids: set[str] = set()
    for name in store.names("runs", "/plan.parquet"):
        with contextlib.suppress(DamagedRecord, FileNotFoundError):
            ids.update(read_table(store, name, ("image_id",))["image_id"].to_pylist())
    return ids


def _names_of(image_id: str) -> Iterator[str]:
    """Names under which a run may have written an image's mask, what belongs beside it, and its
    preview.
    """
    yield _preview(image_id)
    yield from (f"masks/{image_id}{ending}" for ending in mask_endings())


def _with_folders(name: str) -> tuple[str, ...]:
    """A name, and those of the folders around it: one of them may be a mask of many files."""
    return (name, *map(str, PurePosixPath(name).parents))


def _preview(image_id: str) -> str:
    return f"previews/{image_id}.png"
