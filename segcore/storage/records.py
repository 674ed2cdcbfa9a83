"""Records and tables of an output, read back: whole and as maskloom writes them, or an error that
names the file and what to do.

A record may have been cut by a full disk, emptied by a crash of the machine, or replaced by a
foreign file. Whoever reads one does it here, so that every command says the same.
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
        "Where there is none, run the recipe "
        "with a new output: a model that is fitted anew may give its classes another meaning."
    ),
}


def read_json(store: Store, name: str, load: Callable[[Any], T]) -> T:
    """What `load` makes of a JSON record. Raises `FileNotFoundError`, `StoreError`, and
    `DamagedRecord` also where `load` misses something.
    """
    return parse_json(store, name, store.read(name), load)


def parse_json(store: Store, name: str, content: bytes, load: Callable[[Any], T]) -> T:
    """As `read_json`, from bytes that were read before."""
    with reading(store, name):
        return load(json.loads(content))


def read_table(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet table, or some of its columns. Raises `FileNotFoundError`, `StoreError`, and
    `DamagedRecord` also where a column is missing.
    """
    return parse_table(store, name, store.read(name), columns)


def parse_table(
    store: Store, name: str, content: bytes, columns: Sequence[str] | None = None
) -> pa.Table:
    """As `read_table`, from bytes that were read before."""
    with reading(store, name):
        return read_parquet(content, columns)


def damaged(store: Store, name: str, reason: object = None) -> DamagedRecord:
    """The error that says of a record what is wrong with it, and what to do. No reason: it is
    missing.
    """
    text = " ".join(str(reason).split()).rstrip(".")[:_LONGEST_REASON]
    fault = "is missing" if reason is None else f"is damaged, or no file of maskloom: {text}"
    return DamagedRecord(f"{store.uri(name)} {fault}. {remedy(store, name)}")


def remedy(store: Store, name: str) -> str:
    """What to do where a record or table is damaged or missing."""
    folder, _, file = name.rpartition("/")
    if folder.startswith("tables"):
        return (
            f"Remove {file} from all folders of {store.uri('tables')}, {_AGAIN}: it does the "
            "images of this file anew."
        )
    return _REMEDIES.get(file, f"Remove it, {_AGAIN}.")


@contextlib.contextmanager
def reading(store: Store, name: str) -> Iterator[None]:
    """Turn whatever goes wrong with the content of a record into a `DamagedRecord`. Also its
    absence, where it is opened in the block.
    """
    try:
        yield
    except MaskloomError:
        raise
    except FileNotFoundError as error:
        raise damaged(store, name) from error
    except KeyError as error:
        # That of a mapping says the key alone, that of Arrow a sentence.
        said = str(error.args[0])
        raise damaged(store, name, said if " " in said else f"it has no {said!r}") from error
    # Parsers meet damage with nearly any error: wrong values and types, Arrow's own, a zstd stream
    # that breaks off, nesting without end.
    except Exception as error:
        raise damaged(store, name, error or type(error).__name__) from error
