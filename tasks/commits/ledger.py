"""The ledger: the row of each image in the tables of an output, updated with the commits of all
runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore import errors
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store, not_empty
from maskloom.tasks.commits.log import IMAGES, CommitLog

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 1000

_COLUMNS = [
    "uri",
    "image_id",
    "source_version",
    "fingerprint",
    "run_id",
    "status",
    "error_type",
    "mask_uri",
    "crs",
]
_NEWER = ["scores_uri"]


NOT_OF_IMAGES = ("tables/alerts/", "tables/change/")
"""Tables whose files are not those of the table `images`."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The row of one image in the table `images`."""

    uri: str
    image_id: str
    version: str
    fingerprint: str
    run_id: str
    ok: bool
    needs_no_retry: bool
    """The image is done, or failed in a way that the same bytes would repeat."""
    file: str
    """Name of the table file that contains the row."""
    mask_uri: str | None = None
    """Name of the mask below the output. None: no mask."""
    error_type: str | None = None
    """Class name of the error. None: the image has not failed."""
    located: bool = False
    """Whether the image has a CRS."""
    scores_uri: str | None = None
    """Name of the scores below the output. None: not kept."""


class RowsByFile(Mapping[str, Sequence[Committed]]):
    """Rows by the URI of the file, folder or series that each image is in. Only those of parts are
    listed: most files are one image, and there may be a million.
    """

    def __init__(self, rows: Mapping[str, Committed]) -> None:
        """`rows` by URI."""
        self._rows = rows
        self._parts: dict[str, list[Committed]] = {}
        for row in rows.values():
            place, part, _ = split_part(row.uri)
            if part:
                self._parts.setdefault(place, []).append(row)

    def __getitem__(self, place: str) -> Sequence[Committed]:
        whole, parts = self._rows.get(place), self._parts.get(place, ())
        if whole is None and not parts:
            raise KeyError(place)
        return (*([] if whole is None else [whole]), *parts)

    def __iter__(self) -> Iterator[str]:
        for place in self._rows:
            if not split_part(place)[1]:
                yield place
        yield from (place for place in self._parts if place not in self._rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Ledger:
    """The images in the tables of an output.

    Raises `StoreError` if a table cannot be read, and `DamagedRecord` if it is not a table.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = CommitLog(store)
        self._of_file: dict[str, tuple[Committed, ...]] = {}
        self._words: dict[str | None, str | None] = {}
        self.rows: dict[str, Committed] = {}
        """By URI."""
        self.uris: dict[str, str] = {}
        """URI of each image id."""
        self.sizes: dict[str, int] = {}
        """Bytes of the files of all tables together, by file name. Files that other runs have
        written since the ledger was read are missing or have their former size.
        """
        self._parts: dict[str, set[str]] = defaultdict(set)
        """URIs of the parts of each file that holds several images, of past and present ones."""
        self.superseded: dict[str, set[str] | None] = {}
        """Superseded rows, left by earlier versions of maskloom or a lost file: image ids by the
        file to remove them from. None: all rows of a file that the table `images` lacks.
        """

    @classmethod
    def read(cls, store: Store, tables: Sequence[str] = ()) -> Ledger:
        """The ledger of an output; writes nothing.

        `tables` are the names of the tables with rows for every image. An image without rows there
        needs a retry.
        """
        ledger = cls(store)
        # An empty mask counts as removed.
        masks = not_empty(store.scanned("masks")) | not_empty(store.scanned("scores"))
        listed = store.listed("tables")
        whole = {name for name, found in listed.items() if found.size}
        for name, found in listed.items():
            file = name.rpartition("/")[2]
            ledger.sizes[file] = ledger.sizes.get(file, 0) + found.size
        for name in store.names(IMAGES, ".parquet"):
            file = name.rpartition("/")[2]
            lacking = any(f"tables/{table}/{file}" not in whole for table in tables)
            ledger._take(name, set() if lacking else masks)
        ledger.find_superseded()
        return ledger

    @classmethod
    def open(cls, store: Store, tables: Sequence[str] = ()) -> Ledger:
        """The ledger for a run that will commit. First completes a commit that a killed run left
        incomplete.
        """
        log = CommitLog(store)
        log.skip_to_end()
        ledger = cls.read(store, tables)
        ledger.log = log
        return ledger

    def refresh(self) -> list[Committed]:
        """Read the commits since the last call. Returns their rows."""
        by = {name: commit.run_id for commit in self.log.read_new() for name in commit.changed}
        return [
            row
            for name, run_id in by.items()
            for row in self._take(name, None)
            if row.run_id == run_id
        ]

    def _take(self, name: str, masks: set[str] | None) -> tuple[Committed, ...]:
        """Read one file of the table again. `masks`: names of the existing masks and scores. None:
        all exist.
        """
        file = name.rpartition("/")[2]
        for row in self._of_file.get(file, ()):
            if self.rows.get(row.uri) == row:
                del self.rows[row.uri]
        try:
            table = read_table(self.store, name, _COLUMNS, _NEWER)
            found = tuple(self._read_rows(table, file, masks))
        except FileNotFoundError:
            found = ()
        self._of_file[file] = found
        for row in found:
            self.rows[row.uri] = row
            self.uris[row.image_id] = row.uri
            place, part, _ = split_part(row.uri)
            if part:
                self._parts[place].add(row.uri)
        return found

    def files_with_room(self, images: int, most: int, size: int) -> Iterator[str]:
        """Names of the table files that may take so many more images, the fullest first: they then
        have at most `most`, and now have at most `size` bytes in all tables together.
        """
        held = {file: len(rows) for file, rows in self._of_file.items()}
        yield from sorted(
            (
                file
                for file, number in held.items()
                if 0 < number <= most - images and self.sizes.get(file, size + 1) <= size
            ),
            key=lambda file: (-held[file], file),
        )

    def rows_of(self, file: str) -> tuple[Committed, ...]:
        """The rows of a file of the table `images`."""
        return self._of_file.get(file, ())

    def _read_rows(self, table: pa.Table, file: str, masks: set[str] | None) -> Iterator[Committed]:
        for batch in table.to_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                # The same in most rows, so in memory once.
                for name in ("run_id", "fingerprint", "error_type"):
                    row[name] = self._words.setdefault(row[name], row[name])
                yield _committed(row, file, masks)

    def images_of(self, place: str) -> list[Committed]:
        """The rows of a file, folder or series: of it as one image, and of its parts."""
        uris = (place, *sorted(self._parts.get(place, ())))
        return [self.rows[uri] for uri in uris if uri in self.rows]

    def _all_rows(self) -> Iterator[Committed]:
        return (row for of_file in self._of_file.values() for row in of_file)

    def find_superseded(self) -> None:
        """Find rows without an image, and images with rows in several files. Of an image's rows,
        the one that matches the mask is kept, or the newest if none does.
        """
        # Hardly ever is there one, so rows are listed by image only where there are several.
        once: set[str] = set()
        several: dict[str, list[Committed]] = {}
        for row in self._all_rows():
            if row.image_id in once:
                several[row.image_id] = []
            once.add(row.image_id)
        for row in self._all_rows() if several else ():
            if row.image_id in several:
                several[row.image_id].append(row)
        superseded: dict[str, set[str]] = {}
        for same in several.values():
            kept = _best(self.store, same)
            self.rows[kept.uri] = kept
            for row in same:
                if row.file != kept.file:
                    superseded.setdefault(row.file, set()).add(row.image_id)
        # A copied file, or a file that the table `images` has lost, belongs to no image.
        stray = {
            name.rpartition("/")[2]
            for name in self.store.names("tables", ".parquet")
            if not name.startswith(NOT_OF_IMAGES)
        } - self._of_file.keys()
        self.superseded = {**superseded, **dict.fromkeys(sorted(stray))}


def _committed(row: Mapping[str, Any], file: str, masks: set[str] | None) -> Committed:
    ok = row["status"] == "ok"
    return Committed(
        row["uri"],
        row["image_id"],
        row["source_version"],
        row["fingerprint"],
        row["run_id"],
        ok,
        # A removed mask is made again.
        masks is None or masks.issuperset({row["mask_uri"], row["scores_uri"] or row["mask_uri"]})
        if ok
        else bool(getattr(getattr(errors, row["error_type"] or "", None), "permanent", False)),
        file,
        row["mask_uri"],
        row["error_type"],
        row["crs"] is not None,
        row["scores_uri"],
    )


def _best(store: Store, rows: list[Committed]) -> Committed:
    ranked = sorted(rows, key=lambda row: (row.ok, row.run_id, row.file))
    masks = {row.file: _recorded_digest(store, row) for row in ranked}
    if len(set(masks.values())) == 1:
        return ranked[-1]
    found = set(_digests(store, ranked[-1].image_id))
    fitting = [row for row in ranked if masks[row.file] in found]
    return (fitting or ranked)[-1]


def _recorded_digest(store: Store, row: Committed) -> str | None:
    """SHA-256 of the mask of a row. None: no mask."""
    columns = ["image_id", "mask_sha256"]
    table = read_table(store, f"{IMAGES}/{row.file}", columns)
    found: dict[str, str | None] = dict(
        zip(*(table[name].to_pylist() for name in columns), strict=True)
    )
    return found.get(row.image_id)


def _digests(store: Store, image_id: str) -> Iterator[str]:
    """Digests of the possible masks of an image: files and folders with its name and a suffix."""
    stem = f"masks/{image_id}."
    names = store.names(stem.rpartition("/")[0], "")
    found = (name for name in names if name.startswith(stem))
    for mask in dict.fromkeys(stem + name[len(stem) :].partition("/")[0] for name in found):
        yield store.sha256(mask)
