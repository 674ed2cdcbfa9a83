"""Checkpoints: the state from which a training continues as if it had not been interrupted.

A checkpoint is one file that is replaced atomically, so that a killed process leaves the last one
whole. The best weights have separate files, named by their epoch; one is written before the
checkpoint that refers to it and removed after one that refers to another. For this, only one
process at a time may use the folder.
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
from maskloom.segcore.storage.canonical import with_tuples
from maskloom.segcore.storage.filesystems import filesystem, is_local

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Store

FOLDER = "checkpoint"
_LAST = f"{FOLDER}/last.npz"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """State of a training, except weights and optimiser."""

    step: int = 0
    """Finished steps of the current epoch."""
    losses: tuple[float, ...] = ()
    """Loss of each of these steps."""
    seconds: float = 0.0
    """Duration so far, over all runs."""
    history: tuple[dict[str, Any], ...] = ()
    """A record for each finished epoch."""
    plans: tuple[tuple[int, int], ...] = ()
    """(steps done before, epochs wanted from then on): several if the training was lengthened and
    its learning rates are not those of one plan.
    """

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def scores(self) -> tuple[float, ...]:
        """Score of each finished epoch."""
        return tuple(record["score"] for record in self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch, from 1, with the highest score. 0 before the first epoch."""
        scores = self.scores
        return scores.index(max(scores)) + 1 if scores else 0


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Lock the folder against other trainings. Raises `RunError` if another process has the lock.

    An object store cannot be locked.
    """
    if not is_local(store.root):
        yield
        return
    folder = Path(filesystem(store.root)[1])
    folder.mkdir(parents=True, exist_ok=True)
    # The folder itself is locked, so that no file is left behind; the lock ends with the process.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, store)
        yield
    finally:
        os.close(descriptor)


def write(store: Store, state: TrainingState, variables: Sequence[NDArray[Any]]) -> None:
    """Replace the last checkpoint. Raises `StoreError`."""
    content = json.dumps(asdict(state)).encode()
    store.publish(_LAST, _packed([np.frombuffer(content, np.uint8), *variables]))


def exists(store: Store) -> bool:
    """Whether there is a checkpoint."""
    return store.exists(_LAST)


def read(store: Store) -> tuple[TrainingState, list[NDArray[Any]]] | None:
    """The last checkpoint; None if none was written. Raises `RunError` if it, or the best weights
    beside it, is broken.
    """
    if not exists(store):
        return None
    content, *variables = _unpacked(store, _LAST)
    try:
        record = json.loads(content.tobytes())
        state = TrainingState(**{key: with_tuples(value) for key, value in record.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise _broken(store, _LAST, error) from error
    if state.best_epoch:
        read_best(store, state.best_epoch)
    return state, variables


def write_best(store: Store, epoch: int, weights: Sequence[NDArray[Any]]) -> None:
    """Write the best weights of an epoch, beside the previous ones."""
    store.publish(_best(epoch), _packed(weights))


def read_best(store: Store, epoch: int) -> list[NDArray[Any]]:
    """The weights of an epoch. Raises `RunError` if they are broken."""
    return _unpacked(store, _best(epoch))


def forget_all_but(store: Store, epoch: int) -> None:
    """Remove best weights of other epochs."""
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
        # A file system without locks (some network drives): treated as an object store.
        return
