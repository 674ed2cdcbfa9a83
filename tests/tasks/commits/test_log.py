"""The commit protocol: every order in which the steps of overlapping runs can come, with a crash at
any of them.

The code under test is the product's `CommitLog`; what is replaced is the store below it. For each
state a process is run again from the beginning of its round, with the results that its steps have
had so far, up to the next step. So every step of every process is tried in every state that can be
reached. Steps on files that no other process knows yet are taken at once, since their order does
not matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest

from maskloom.segcore.storage.conditional import Move
from maskloom.segcore.storage.store import Artefact
from maskloom.tasks.commits import log as commits
from maskloom.tasks.commits.log import IMAGES, CommitLog

Files = dict[str, tuple[bytes, int]]
"""Content of each file, and a number that is new with every write."""
AREAS = "tables/areas"


class NextStep(BaseException):
    """A process has come to a step whose result is not known yet."""

    def __init__(self, step: tuple[Any, ...], *, private: bool) -> None:
        self.step, self.private = step, private


class ReplayedStore:
    """The part of `Store` that commits use, for one process: results of earlier steps, then
    `NextStep`.
    """

    def __init__(self, name: str, results: tuple[Any, ...], moves: str) -> None:
        self.name, self._results, self._moves = name, results, moves
        self._taken, self._next = 0, None

    def step(self, *step: Any, private: bool = False) -> Any:
        if self._next is not None:
            raise self._next
        if self._taken == len(self._results):
            self._next = NextStep(step, private=private)
            raise self._next
        result = self._results[self._taken]
        self._taken += 1
        if result is FileNotFoundError:
            raise FileNotFoundError(step[1])
        return result

    def names(self, folder: str, suffix: str) -> list[str]:
        return list(self.step("names", folder, suffix))

    def read(self, name: str) -> bytes:
        return self.step("read", name)

    def exists(self, name: str) -> bool:
        return self.step("exists", name)

    def remove(self, folder: str) -> None:
        self.step("remove", folder)

    def publish(self, name: str, content: bytes) -> None:
        self.step("write", name, content, private=True)

    def publish_new(self, name: str, content: bytes) -> bool:
        return self.step("create", name, content)

    @contextmanager
    def writing(self, name: str):
        buffer = BytesIO()
        out = SimpleNamespace(write=buffer.write, artefact=Artefact(name, 0, name))
        yield out
        self.publish(name, buffer.getvalue())

    def bases(self, names: list[str]) -> list[int | None]:
        # One step for all: where something changes between them, the claim that follows fails.
        return (
            list(self.step("versions", *names))
            if names and self._moves == "swap"
            else [None] * len(names)
        )

    def move(self, each: Move) -> None:
        if self._moves == "rename":
            self.step("rename", each.staged, each.name)
            return
        try:
            content = self.read(each.staged)
        except FileNotFoundError:
            return
        if self._moves == "swap":
            self.step("swap", each.name, content, each.base)
        else:
            self.step("write", each.name, content)
        self.step("remove", each.staged)


@cache
def rows_of(content: bytes) -> tuple[tuple[str, str], ...]:
    """Images of a table's file and the runs that wrote their rows."""
    return tuple(json.loads(content).items())


def take(files: Files, step: tuple[Any, ...], number: int) -> tuple[Files, Any]:
    """The files after one step, and its result."""
    kind, name, *rest = step
    if kind in {"names", "read", "exists", "versions"}:
        return files, look(files, kind, name, rest)
    versions = {each: version for each, (_, version) in files.items()}
    after, result = dict(files), None
    if kind == "remove":
        after = {
            each: value
            for each, value in files.items()
            if each != name and not each.startswith(f"{name}/")
        }
    elif kind == "rename":
        if name in after:
            after[rest[0]] = (after.pop(name)[0], number)
    else:
        result = {
            "write": True,
            "create": name not in files,
            "swap": versions.get(name) == rest[-1],
        }[kind]
        if result:
            after[name] = (rest[0], number)
    return after, result


def look(files: Files, kind: str, name: str, rest: list[Any]) -> Any:
    """The result of a step that changes nothing."""
    if kind == "names":
        return tuple(
            sorted(each for each in files if each.startswith(f"{name}/") and each.endswith(rest[0]))
        )
    if kind == "read":
        return files[name][0] if name in files else FileNotFoundError
    if kind == "exists":
        return name in files
    return tuple(files[each][1] if each in files else None for each in (name, *rest))


def attempt(store: ReplayedStore, run: Run) -> int | None:
    """One round of a run: commit its images, as far as no run beside it has done so. The last
    commit that it knows; None: all is done.
    """
    log = CommitLog(store)  # type: ignore[arg-type]
    if run.number is None:
        log.skip_to_end()
    else:
        log.number = run.number
        log.read_new()
    rows = {
        name.rpartition("/")[2]: json.loads(store.read(name))
        for name in store.names(IMAGES, ".parquet")
    }
    file_of = {image: file for file, held in rows.items() for image in held}
    before = dict(run.before)
    wanted = [
        image
        for image in run.images
        if image not in file_of or rows[file_of[image]][image] == before.get(image)
    ]
    if not wanted:
        return None
    with log.draft(run.name, f"staging/{run.name}") as draft:
        groups: dict[str, dict[str, str]] = {}
        # A file that is there has room; the first run makes its own.
        for_new = min(rows, default=f"{run.name}.parquet") if run.fills else f"{run.name}.parquet"
        for image in wanted:
            groups.setdefault(file_of.get(image, for_new), {})[image] = run.name
        for file, new in groups.items():
            areas = json.loads(store.read(f"{AREAS}/{file}")) if file in rows else {}
            for table, old in ((AREAS, areas), (IMAGES, rows.get(file, {}))):
                with draft.table(f"{table}/{file}") as out:
                    out.write(json.dumps({**old, **new}, sort_keys=True).encode())
        draft.files = {
            f"masks/{image}": f"staging/{run.name}/{run.number}-{image}"
            for image in wanted
            if run.masks
        }
        for staged in draft.files.values():
            store.publish(staged, run.name.encode())
        log.claim(draft)
    return log.number


@dataclass(frozen=True)
class Run:
    """A process on its way."""

    name: str
    images: tuple[str, ...]
    before: tuple[tuple[str, str], ...]
    masks: bool = True
    dies: bool = True
    """Whether it may crash."""
    fills: bool = False
    """Whether its new images go into a file that is there, rather than into its own."""
    number: int | None = None
    """The last commit that it knew when this round began."""
    results: tuple[Any, ...] = ()
    """Of the steps of this round."""
    ended: str = ""
    """How: `done`, `crashed`, or not yet."""


@dataclass
class Explorer:
    """Tries every order of steps of some runs. `moves`: how files take their names: rename, swap,
    or overwrite.
    """

    moves: str
    crashes: int = 1
    seen: set[Any] = field(default_factory=set)
    ends: int = 0

    def explore(self, files: Files, runs: tuple[Run, ...]) -> None:
        waiting = [(files, runs, 0, 100)]
        while waiting:
            files, runs, crashed, number = waiting.pop()
            # Numbers of writes differ between ways to one state; which files share a number does
            # not matter, only which are equal.
            key = (
                frozenset((name, content) for name, (content, _) in files.items()),
                self._plain(files, runs),
                crashed,
            )
            if key in self.seen:
                continue
            self.seen.add(key)
            self._check(files)
            moving = [i for i, run in enumerate(runs) if not run.ended]
            if not moving:
                self._check_end(files, runs, number)
                continue
            for i in moving:
                after, run = self._advance(files, runs[i], number)
                waiting.append((after, (*runs[:i], run, *runs[i + 1 :]), crashed, number + 10))
                if crashed < self.crashes and runs[i].dies:
                    waiting.append(
                        (
                            files,
                            (*runs[:i], replace(runs[i], ended="crashed"), *runs[i + 1 :]),
                            crashed + 1,
                            number,
                        )
                    )

    def _plain(self, files: Files, runs: tuple[Run, ...]) -> Any:
        versions = {version: name for name, (_, version) in files.items()}
        return tuple(
            (run.name, run.ended, run.number, tuple(_named(each, versions) for each in run.results))
            for run in runs
        )

    def _advance(self, files: Files, run: Run, number: int) -> tuple[Files, Run]:
        """One step that others may see, and all before and after it that they may not."""
        shared = False
        while True:
            step = next_step(run, self.moves)
            if not isinstance(step, NextStep):
                if step is not None:
                    run = replace(run, number=step, results=())
                    continue
                lacking = set(run.images) - set(self._held(files, IMAGES))
                assert not lacking, f"{run.name} has ended without {lacking}"
                return files, replace(run, ended="done")
            if shared and not step.private:
                return files, run
            shared = shared or not step.private
            files, result = take(files, step.step, number)
            number += 1
            run = replace(run, results=(*run.results, result))

    def _held(self, files: Files, table: str) -> dict[str, str]:
        held: dict[str, str] = {}
        for name, (content, _) in files.items():
            if name.startswith(f"{table}/"):
                for image, by in rows_of(content):
                    assert image not in held, f"{image} is in two files of {table}"
                    held[image] = by
        return held

    def _check(self, files: Files) -> None:
        self._held(files, AREAS)
        self._held(files, IMAGES)

    def _check_end(self, files: Files, runs: tuple[Run, ...], number: int) -> None:
        """When all have ended, one more run finishes what the dead ones left, and all fits
        together.
        """
        self.ends += 1
        every = tuple(sorted({image for run in runs for image in run.images}))
        held = self._held(files, IMAGES)
        healer = Run(
            "healer",
            every,
            tuple((image, by) for run in runs for image, by in run.before if held.get(image) == by),
        )
        while not healer.ended:
            files, healer = self._advance(files, healer, number)
            number += 100
            self._check(files)
        images, areas = self._held(files, IMAGES), self._held(files, AREAS)
        assert images == areas
        assert set(every) <= set(images)
        for image in every:
            assert not runs[0].masks or files[f"masks/{image}"][0].decode() == images[image], (
                f"the mask of {image} is another run's"
            )


@cache
def next_step(run: Run, moves: str) -> NextStep | int | None:
    """What the run does next; kept, since it does the same whatever the others do meanwhile. At the
    end of a round its answer: see `attempt`.
    """
    store = ReplayedStore(run.name, run.results, moves)
    commits.uuid.uuid4 = lambda: SimpleNamespace(hex=str(run.number))  # type: ignore[attr-defined]
    try:
        return attempt(store, run)
    except NextStep as step:
        return step.with_traceback(None)


def _named(result: Any, versions: dict[int, str]) -> Any:
    """A result with the names of files in place of the numbers of their versions."""
    return (
        tuple(versions.get(each, "gone") if type(each) is int else each for each in result)
        if type(result) is tuple
        else result
    )


@pytest.fixture(autouse=True)
def _modelled(monkeypatch):
    next_step.cache_clear()
    monkeypatch.setattr(commits, "uuid", SimpleNamespace(uuid4=None))
    monkeypatch.setattr(commits, "move", lambda store, moves: [store.move(each) for each in moves])
    monkeypatch.setattr(commits, "require_movable", lambda store, folders: None)
    monkeypatch.setattr(commits, "versions_of", lambda store, names: store.bases(names))


def table_files(**files: dict[str, str]) -> Files:
    """An output that earlier runs have left: rows by file."""
    found: Files = {}
    for file, rows in files.items():
        for table in (AREAS, IMAGES):
            found[f"{table}/{file}.parquet"] = (json.dumps(rows).encode(), len(found))
        for image, by in rows.items():
            found[f"masks/{image}"] = (by.encode(), len(found))
    return found


NEW = (Run("A", ("x",), ()), Run("B", ("x", "y"), ()))
"""Two runs over new images, one of them the same."""
OLD = (("x", "old"), ("y", "old"))
CHANGED = (Run("A", ("x",), OLD), Run("B", ("x", "z"), OLD))
"""Two runs over an image that has rows, in a file beside another image."""
SAME_FILE = (Run("A", ("x",), OLD), Run("B", ("y",), OLD))
"""Two runs that change one file, for different images."""
FILLED = (Run("A", ("x",), (), fills=True), Run("B", ("x", "y"), (), fills=True))
"""Two runs over new images that go into a file which is there."""


@pytest.mark.parametrize(
    ("files", "runs"),
    [
        ({}, NEW),
        (table_files(old=dict(OLD)), CHANGED),
        (table_files(old=dict(OLD)), SAME_FILE),
        (table_files(old={"o": "old"}), FILLED),
    ],
    ids=["new", "changed", "same file", "filled"],
)
def test_whatever_overlaps_and_dies_no_image_is_twice_and_none_is_lost(files, runs):
    explorer = Explorer("rename")
    explorer.explore(files, runs)
    assert explorer.ends > 20
    assert len(explorer.seen) > 300


@pytest.mark.parametrize(
    ("rows", "pair"),
    [
        pytest.param(dict(OLD), SAME_FILE, id="same file"),
        pytest.param({"o": "old"}, FILLED, id="filled", marks=pytest.mark.nightly),
    ],
)
def test_the_same_holds_for_object_stores_that_write_on_condition(rows, pair):
    """A move is three steps there. Masks go the way of tables, and which of the two runs dies does
    not matter.
    """
    runs = (replace(pair[0], masks=False), replace(pair[1], masks=False, dies=False))
    explorer = Explorer("swap")
    explorer.explore(table_files(old=rows), runs)
    assert explorer.ends > 20


def test_three_at_once_end_with_each_image_once():
    explorer = Explorer("rename", crashes=0)
    explorer.explore({}, tuple(Run(name, ("x",), (), masks=False) for name in "ABC"))
    assert explorer.ends > 20


def breaks(files: Files, runs: tuple[Run, ...], moves: str) -> Callable[[], None]:
    return lambda: Explorer(moves, crashes=1).explore(files, runs)


def test_a_store_that_overwrites_without_condition_is_found_to_be_unsafe():
    """The check can fail: a slow process puts back what a later commit has replaced. Such stores
    are refused for several writers.
    """
    with pytest.raises(AssertionError):
        breaks(table_files(old=dict(OLD)), SAME_FILE, "overwrite")()


def test_two_runs_without_a_claim_are_found_to_be_unsafe(monkeypatch):
    """The check can fail: without the numbered record both runs put one image into a file of their
    own.
    """
    create = ReplayedStore.publish_new
    monkeypatch.setattr(
        ReplayedStore,
        "publish_new",
        lambda store, name, content: create(store, f"{name}-{store.name}", content),
    )
    with pytest.raises(AssertionError, match="is in two files"):
        breaks({}, NEW, "rename")()
