"""The commit log of an output: results of all runs are put in place by one commit after the other.

Several runs may work on one output at a time, on several machines. Each commits its images a shard
at a time:

1. Read the numbered records below `runs/commits/` up to the last, N. If commit N is incomplete,
   complete it (step 5). Earlier commits are complete, since every run does so.
2. Read the tables. Images that another run has committed meanwhile leave the shard.
3. Draft: stage the new content of each table file that changes. An image with rows keeps its file,
   and a new one goes into a file that has room or into the shard's own, so no two files hold the
   same image.
4. Claim: write record N+1, which must not exist. If it exists, another run was faster: drop the
   draft and begin again at 1.
5. Complete: move masks and previews, then the tables, `images` last, to their final names, each at
   most once (`segcore/storage/conditional.py`).

A process that dies before step 4 has changed nothing. If it dies later, the next process completes
its commit: all files to move are staged, and the record names them. A commit is complete when none
of its files is staged any more. No lock is held and no clock is read.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, cast

from maskloom.segcore.storage.conditional import Move, move, require_movable, versions_of
from maskloom.segcore.storage.filesystems import current_version
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import Artefact, Store

COMMITS = "runs/commits"
"""Folder of the records."""
IMAGES = "tables/images"
"""The table that records which images are done."""
AREAS = "tables/areas"
_FILES = "files.json"


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of one commit."""

    number: int
    run_id: str
    folder: str
    """The folder in which its files are or were staged."""
    tables: tuple[tuple[str, str | None, str], ...]
    """Name, version of the replaced file, and SHA-256 of each table file; files of `images` are
    last.
    """

    @property
    def moves(self) -> tuple[Move, ...]:
        """The table files, in the order in which they are moved."""
        return tuple(Move(f"{self.folder}/{name}", name, base) for name, base, _ in self.tables)

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the files of the table `images` that the commit wrote."""
        return tuple(name for name, _, _ in self.tables if name.startswith(f"{IMAGES}/"))

    def to_json(self) -> bytes:
        """The record as JSON."""
        return json.dumps(
            {
                "number": self.number,
                "run_id": self.run_id,
                "folder": self.folder,
                "tables": self.tables,
            },
            indent=1,
        ).encode()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Commit:
        """The commit from the record of `to_json`."""
        return cls(
            record["number"],
            record["run_id"],
            record["folder"],
            tuple(tuple(entry) for entry in record["tables"]),
        )


class CommitLog:
    """The commits of an output, up to the last one read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.number = 0
        """Number of the last commit read."""

    def skip_to_end(self) -> None:
        """Go to the last commit without reading all records, for a caller that then reads the
        tables.
        """
        names = self.store.names(COMMITS, ".json")
        if names:
            self.number = _number(names[-1]) - 1
            self.read_new()

    def read_new(self) -> list[Commit]:
        """The commits since the last call, all of them completed."""
        found: list[Commit] = []
        while (commit := read_commit(self.store, self.number + 1)) is not None:
            found.append(commit)
            self.number += 1
        if found and is_incomplete(self.store, found[-1]):
            self._complete(found[-1], None)
        return found

    @contextlib.contextmanager
    def draft(self, run_id: str, folder: str) -> Iterator[Draft]:
        """A commit to fill and to claim, staged below this process's folder. Its staged files are
        removed unless it is claimed.
        """
        draft = Draft(self.store, run_id, f"{folder}/commits/{uuid.uuid4().hex}")
        try:
            yield draft
        finally:
            if not draft.claimed:
                self.store.remove(draft.folder)

    def claim(self, draft: Draft) -> bool:
        """Make the draft the next commit and complete it. Returns False if another run's commit
        came first: call `read_new` and draft again.

        Raises `StoreError` if a file is too large to move, or if the store fails.
        """
        require_movable(
            self.store,
            [draft.folder, *_outermost(draft.files.values())],
        )
        # The table `images` records which images are done, so it comes last.
        names = sorted(draft.tables, key=lambda name: name.startswith(f"{IMAGES}/"))
        bases = zip(names, versions_of(self.store, names), strict=True)
        tables = tuple((name, base, draft.tables[name].sha256) for name, base in bases)
        commit = Commit(self.number + 1, draft.run_id, draft.folder, tables)
        finals = list(draft.files)
        moves = [
            Move(draft.files[name], name, base)
            for name, base in zip(finals, versions_of(self.store, finals), strict=True)
        ] + self._removals(draft)
        listed = [[each.staged, each.name, each.base] for each in moves]
        self.store.publish(f"{draft.folder}/{_FILES}", json.dumps(listed).encode())
        # If the store's reply is lost, the record may exist, and a process that finds it needs the
        # staged files.
        draft.claimed = True
        draft.claimed = self.store.publish_new(_record(commit.number), commit.to_json())
        if draft.claimed:
            self._complete(commit, moves)
        return draft.claimed

    def _removals(self, draft: Draft) -> list[Move]:
        """Moves that remove the files of the draft's folders that their new content lacks, and the
        files of images that no longer exist or have failed since.

        A reader of a mask of many files must not find blocks of the previous one.
        """
        old = {name for folder in draft.folders for name in self.store.listed(f"{folder}/")}
        old |= {name for former in draft.removed for name in self.store.listed(former)}
        return [
            Move(None, name, current_version(self.store.uri(name)))
            for name in sorted(old - draft.files.keys())
        ]

    def _complete(self, commit: Commit, moves: list[Move] | None) -> None:
        """Move the staged files of a commit. `moves`: those of masks and previews; None: read them
        from the draft.
        """
        if moves is None:
            try:
                moves = read_json(
                    self.store,
                    f"{commit.folder}/{_FILES}",
                    lambda found: [Move(*entry) for entry in found],
                )
            except FileNotFoundError:
                # Another process has just completed it.
                return
        move(self.store, moves)
        for each in commit.moves:
            # One at a time, so that `images` is last even after a power failure.
            move(self.store, [each])
        self.store.remove(commit.folder)


@dataclass(slots=True)
class Draft:
    """The files that a commit will put in place."""

    store: Store
    run_id: str
    folder: str
    """The folder in which it is staged."""
    tables: dict[str, Artefact] = field(default_factory=dict)
    """Table files by their final name."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Staged masks, previews and sidecar files: the name of the staged file, by the final name."""
    folders: frozenset[str] = frozenset()
    """Names of masks that are folders, which are replaced as a whole."""
    removed: frozenset[str] = frozenset()
    """Names of files and folders of images that no longer exist, or have failed since."""
    claimed: bool = False
    """Whether a commit record may name the staged files."""

    @contextlib.contextmanager
    def table(self, name: str) -> Iterator[IO[bytes]]:
        """A file for the new content of a table file."""
        with self.store.writing(f"{self.folder}/{name}") as out:
            yield cast("IO[bytes]", out)
        self.tables[name] = out.artefact


def read_commit(store: Store, number: int) -> Commit | None:
    """The record of a commit. None: no such commit."""
    try:
        return read_json(store, _record(number), Commit.from_record)
    except FileNotFoundError:
        return None


def is_incomplete(store: Store, commit: Commit) -> bool:
    """Whether something of the commit waits to be moved. Only the last can be under way."""
    last, *_ = commit.tables[-1]
    return store.exists(f"{commit.folder}/{last}")


def incomplete_folder(store: Store) -> str | None:
    """The folder of the last commit if that is incomplete; files of its process must not be
    removed. None: the last commit is complete.
    """
    names = store.names(COMMITS, ".json")
    commit = read_commit(store, _number(names[-1])) if names else None
    return commit.folder if commit is not None and is_incomplete(store, commit) else None


def _outermost(names: Iterable[str]) -> list[str]:
    """The folders that hold these files, without those inside another one."""
    folders: list[str] = []
    for folder in sorted({name.rpartition("/")[0] for name in names}):
        if not folders or not f"{folder}/".startswith(f"{folders[-1]}/"):
            folders.append(folder)
    return folders


def _record(number: int) -> str:
    return f"{COMMITS}/{number:08d}.json"


def _number(record: str) -> int:
    return int(record.rpartition("/")[2].partition(".")[0])
