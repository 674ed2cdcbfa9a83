"""Reading the records and tables of an output. A damaged one raises an error that names the file
and the remedy.

A full disk may truncate a record, a machine crash may leave it empty, and another program may
replace it. All commands read records through this module, so they all report the same error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from maskloom.segcore.errors import DamagedRecord, MaskloomError
from maskloom.segcore.storage.parquet import read_parquet
from maskloom.segcore.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

_LONGEST_REASON = 200
_AGAIN = "then run the recipe again"
_REMEDIES = {
    "plan.json": (
        f"Remove it and plan.parquet beside it, {_AGAIN}: an unfinished run is planned anew, a "
        "finished one needs its plan no longer."
    ),
    "plan.parquet": (
        f"Remove it and plan.json beside it, {_AGAIN}: an unfinished run is planned anew, a "
        "finished one needs its plan no longer."
    ),
    "manifest.json": f"Remove it, {_AGAIN}.",
    "head.json": f"Remove it, {_AGAIN}: it is made anew from the manifests of the runs.",
    "choices.json": (
        "Restore it from a copy (`runs/recipes` and other runs of the recipe hold the same file), "
        "or remove it, "
        f"{_AGAIN}: engines are chosen anew."
    ),
    "model.json": (
        "Restore it from a copy (`runs/recipes` and other runs of the recipe hold the same file). "
        "Without a copy, run the recipe "
        "with a new output: a model that is fitted anew may give its classes another meaning."
    ),
}


def read_json(store: Store, name: str, load: Callable[[Any], T]) -> T:
    """Read a JSON record and convert it by `load`.

    Raises `FileNotFoundError`, `StoreError`, and `DamagedRecord`, also if `load` misses a key.
    """
    return parse_json(store, name, store.read(name), load)


def parse_json(store: Store, name: str, content: bytes, load: Callable[[Any], T]) -> T:
    """As `read_json`, from bytes already read."""
    with record_errors(store, name):
        return load(json.loads(content))


def read_table(
    store: Store,
    name: str,
    columns: Sequence[str] | None = None,
    newer: Sequence[str] = (),
) -> pa.Table:
    """Read a Parquet table, or some of its columns. Those in `newer`, which tables of earlier
    versions lack, are then null.

    Raises `FileNotFoundError`, `StoreError`, and `DamagedRecord`, also if a column is missing.
    """
    return parse_table(store, name, store.read(name), columns, newer)


def parse_table(
    store: Store,
    name: str,
    content: bytes,
    columns: Sequence[str] | None = None,
    newer: Sequence[str] = (),
) -> pa.Table:
    """As `read_table`, from bytes already read."""
    with record_errors(store, name):
        return read_parquet(content, columns, newer)


def damaged_record(store: Store, name: str, reason: object = None) -> DamagedRecord:
    """The error for a damaged record, with the remedy. `reason` None: the record is missing."""
    text = " ".join(str(reason).split()).rstrip(".")[:_LONGEST_REASON]
    fault = "is missing" if reason is None else f"is damaged, or no file of maskloom: {text}"
    return DamagedRecord(f"{store.uri(name)} {fault}. {remedy(store, name)}")


def remedy(store: Store, name: str) -> str:
    """How to recover from a damaged or missing record or table."""
    folder, _, file = name.rpartition("/")
    if folder.startswith("tables"):
        return (
            f"Remove {file} from all folders of {store.uri('tables')}, {_AGAIN}: it does the "
            "images of this file anew."
        )
    return _REMEDIES.get(file, f"Remove it, {_AGAIN}.")


@contextlib.contextmanager
def record_errors(store: Store, name: str) -> Iterator[None]:
    """Turn any error in the content of a record into a `DamagedRecord`, also a missing file if it
    is opened in the block.
    """
    try:
        yield
    except MaskloomError:
        raise
    except FileNotFoundError as error:
        raise damaged_record(store, name) from error
    except KeyError as error:
        # The argument is a key if a mapping raised it, a sentence if Arrow did.
        said = str(error.args[0])
        raise damaged_record(store, name, said if " " in said else f"it has no {said!r}") from error
    # Parsers raise nearly any error on damaged content: wrong values and types, errors of Arrow, a
    # truncated zstd stream, too deep nesting.
    except Exception as error:
        raise damaged_record(store, name, error or type(error).__name__) from error
