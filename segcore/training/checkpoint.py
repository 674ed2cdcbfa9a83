"""Checkpoints: all that a training needs to go on as if nothing had happened.

A checkpoint is one file that is put in place in one step, so whoever is killed finds the last one
whole. The best weights lie in a file of their own, named by their epoch, which is written before
the checkpoint that speaks of it and removed after one that speaks of another. So that this holds,
one process at a time has the folder.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.storage.canonical import frozen
from maskloom.segcore.storage.store import filesystem, is_local

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Store

FOLDER = "checkpoint"
_LAST = f"{FOLDER}/last.npz"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """How far a training is."""

    step: int = 0
    """Steps done of the epoch at hand."""
    losses: tuple[float, ...] = ()
    """Loss of each of these steps."""
    seconds: float = 0.0
    """Spent so far, over all runs."""
    history: tuple[dict[str, Any], ...] = ()
    """A record for each finished epoch."""
    plans: tuple[tuple[int, int], ...] = ()
    """(steps done before, epochs wanted from there on): more than one where it was lengthened and
    its rates are not those of one plan.
    """

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def scores(self) -> tuple[float, ...]:
        """Score of each finished epoch."""
        return tuple(record["score"] for record in self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch, from 1, that no other surpasses. 0: none is finished."""
        scores = self.scores
        return scores.index(max(scores)) + 1 if scores else 0


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keeps other processes from training into the same folder. Raises `RunError` where one does
    already.

    On an object store nobody can be kept out.
    """
    if not is_local(store.root):
        yield
        return
    folder = Path(filesystem(store.root)[1])
    folder.mkdir(parents=True, exist_ok=True)
    # The folder itself is locked, so that nothing is left behind; the lock ends with the process,
    # however that ends.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, store)
        yield
    finally:
        os.close(descriptor)


def write(store: Store, standing: TrainingState, variables: Sequence[NDArray[Any]]) -> None:
    """Put a checkpoint in place of the last one. Raises `StoreError`."""
    content = json.dumps(asdict(standing)).encode()
    store.publish(_LAST, _packed([np.frombuffer(content, np.uint8), *variables]))


def exists(store: Store) -> bool:
    """Whether there is a checkpoint."""
    return store.exists(_LAST)


def read(store: Store) -> tuple[TrainingState, list[NDArray[Any]]] | None:
    """The last checkpoint; None where there is none. Raises `RunError` where it is broken, or the
    best weights beside it are.
    """
    if not exists(store):
        return None
    content, *variables = _unpacked(store, _LAST)
    try:
        record = json.loads(content.tobytes())
        standing = TrainingState(**{key: frozen(value) for key, value in record.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise _broken(store, _LAST, error) from error
    if standing.best_epoch:
        read_best(store, standing.best_epoch)
    return standing, variables


def write_best(store: Store, epoch: int, weights: Sequence[NDArray[Any]]) -> None:
    """Keep the weights of an epoch beside those that were best before."""
    store.publish(_best(epoch), _packed(weights))


def read_best(store: Store, epoch: int) -> list[NDArray[Any]]:
    """The weights of an epoch. Raises `RunError` where they are broken."""
    return _unpacked(store, _best(epoch))


def forget_all_but(store: Store, epoch: int) -> None:
    """Remove best weights that no checkpoint speaks of any more."""
    for name in store.names(FOLDER, ".npz"):
        if name not in (_LAST, _best(epoch)):
            store.remove(name)


def _best(epoch: int) -> str:
    return f"{FOLDER}/best-{epoch}.npz"


def _packed(arrays: Sequence[NDArray[Any]]) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{f"{i:05}": array for i, array in enumerate(arrays)})
    return out.getvalue()


def _unpacked(store: Store, name: str) -> list[NDArray[Any]]:
    try:
        with np.load(io.BytesIO(store.read(name)), allow_pickle=False) as file:
            return [file[key] for key in sorted(file.files)]
    except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _broken(store, name, error) from error


def _broken(store: Store, name: str, error: Exception) -> RunError:
    return RunError(
        f"The checkpoint {store.uri(name)} is broken or of another version: {error}. Put back a "
        "copy of it, or remove the folder "
        f"{store.uri(FOLDER)} to start again."
    )


def _lock(descriptor: int, store: Store) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"Another process is training into {store.root}. Wait until it has ended, or name "
            "another folder in `output`."
        ) from error
    except OSError:
        # A file system without locks, such as some network drives: as on an object store.
        return
