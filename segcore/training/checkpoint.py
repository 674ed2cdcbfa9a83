"""Checkpoints: all that a training needs to go on as if nothing had happened.

A checkpoint is one file that is put in place in one step, so whoever is killed finds the last one whole. The best weights lie in a file of
their own, named by their epoch, which is written before the checkpoint that speaks of it and removed after one that speaks of another.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segcore.storage import Store

FOLDER = "checkpoint"
_LAST = f"{FOLDER}/last.npz"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a training is."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Steps done of the next one."""
    losses: tuple[float, ...] = ()
    """Loss of each of these steps."""
    best_epoch: int | None = None
    """Finished epochs when it was best. None: it has not been measured."""
    best_score: float = -1.0
    seconds: float = 0.0
    """Spent so far, over all runs."""
    over: bool = False
    """Whether training is at its end."""
    history: tuple[dict[str, Any], ...] = field(default=())
    """A record for each finished epoch."""


def write(store: Store, standing: Standing, variables: Sequence[NDArray[Any]]) -> None:
    """Put a checkpoint in place of the last one. Raises `StoreError`."""
    content = json.dumps(asdict(standing)).encode()
    store.publish(_LAST, _packed([np.frombuffer(content, np.uint8), *variables]))


def read(store: Store) -> tuple[Standing, list[NDArray[Any]]] | None:
    """The last checkpoint; None where there is none. Raises `RunError` where it is broken."""
    if not store.exists(_LAST):
        return None
    standing, *variables = _unpacked(store, _LAST)
    record = json.loads(standing.tobytes())
    return Standing(**{**record, "losses": tuple(record["losses"]), "history": tuple(record["history"])}), variables


def write_best(store: Store, epoch: int, weights: Sequence[NDArray[Any]]) -> None:
    """Keep the weights of an epoch beside those that were best before."""
    store.publish(_best(epoch), _packed(weights))


def read_best(store: Store, epoch: int) -> list[NDArray[Any]]:
    """The weights of an epoch."""
    return _unpacked(store, _best(epoch))


def forget_all_but(store: Store, epoch: int | None) -> None:
    """Remove best weights that no checkpoint speaks of any more."""
    for name in store.names(FOLDER, ".npz"):
        if name != _LAST and (epoch is None or name != _best(epoch)):
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
    except (FileNotFoundError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(
            f"The checkpoint {store.uri(name)} cannot be read: {error}. Remove the folder {store.uri(FOLDER)} to start again."
        ) from error
