"""The log of a training, one row for each epoch: a CSV file and, if asked for, TensorBoard's."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.filesystems import filesystem, is_local

if TYPE_CHECKING:
    from maskloom.segcore.storage.store import Store

NAME = "training_log.csv"
FOLDER = "tensorboard"


def log_of(history: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> bytes:
    """The history as CSV, a column for each number; those of a list are named after the classes."""
    rows = [dict(_numbers(record, classes)) for record in history]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def require_tensorboard(output: str) -> None:
    """Raise `RecipeError` unless curves for TensorBoard can be written below this output."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError(
            "training.tensorboard needs the package tensorboard: pip install "
            "'maskloom[tensorboard]'."
        )
    if not is_local(output):
        raise RecipeError(
            f"training.tensorboard: TensorBoard's files are written to local folders only, and "
            f"`output` is {output}. Set it to false; {NAME} has the same numbers."
        )


def write_curves(store: Store, record: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Add the numbers of an epoch to the files of TensorBoard."""
    from tensorboard.summary import Writer

    writer = Writer(str(Path(filesystem(store.root)[1]) / FOLDER))
    for name, value in _numbers(record, classes):
        if name != "epoch" and value is not None:
            writer.add_scalar(name, value, record["epoch"])
    writer.close()


def _numbers(
    record: Mapping[str, Any], classes: Sequence[str]
) -> Iterator[tuple[str, float | None]]:
    """The numbers of a record, with their names."""
    for name, value in record.items():
        if isinstance(value, list):
            yield from zip((f"{name}_{each}" for each in classes), value, strict=False)
        else:
            yield name, value
