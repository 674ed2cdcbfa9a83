"""Features on disk, looked up by place: an R*Tree of SQLite, with the group of each feature as its
third dimension.

A group is what belongs together: the features of a file, or those of one image in it. Bounds are
kept in 32 bits, rounded outwards, so that a search finds all features that it should, and perhaps
a few more.
"""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Bounds = tuple[float, float, float, float]
"""Least x, least y, greatest x, greatest y."""
Row = tuple[int, Bounds, int, int, bytes]
"""Number, bounds, group, class id and well-known binary of a feature."""
_TABLE = (
    "CREATE VIRTUAL TABLE features USING "
    "rtree(number, west, east, south, north, low, high, +class INTEGER, +shape BLOB)"
)
_INSIDE = "FROM features WHERE low <= ? AND high >= ?"
_NEAR = " AND east >= ? AND west <= ? AND north >= ? AND south <= ?"


@dataclass(frozen=True, slots=True)
class Feature:
    """A polygon of a store."""

    number: int
    """Its position among all features, from 1."""
    class_id: int
    shape: bytes
    """Well-known binary."""


def new_store() -> str:
    """The path of a new store, which is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="maskloom-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "features.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(_TABLE)
    connection.close()
    return str(path)


def add_features(path: str, rows: Iterable[Row]) -> None:
    """Add features."""
    connection = sqlite3.connect(path)
    # It is a temporary file: what a crash leaves of it is of no use.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = OFF")
    with connection:
        connection.executemany(
            "INSERT INTO features VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (number, west, east, south, north, group, group, class_id, shape)
                for number, (west, south, east, north), group, class_id, shape in rows
            ),
        )
    connection.close()


class StoreReader:
    """An open store."""

    def __init__(self, path: str) -> None:
        # It may be opened in one thread and used in another, never in two at once.
        self._connection = sqlite3.connect(
            f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )

    def near(self, group: int, bounds: Bounds | None) -> Iterator[Feature]:
        """The features of a group whose bounds meet these, by number. None: all."""
        query, values = self._query(group, bounds)
        columns = f"SELECT number, class, shape {query} ORDER BY number"
        for number, class_id, shape in self._connection.execute(columns, values):
            yield Feature(number, class_id, shape)

    def numbers_near(self, group: int, bounds: Bounds | None) -> list[int]:
        """The numbers of these features."""
        query, values = self._query(group, bounds)
        return [row[0] for row in self._connection.execute(f"SELECT number {query}", values)]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @staticmethod
    def _query(group: int, bounds: Bounds | None) -> tuple[str, tuple[float, ...]]:
        if bounds is None:
            return _INSIDE, (group, group)
        west, south, east, north = bounds
        return _INSIDE + _NEAR, (group, group, west, east, south, north)
