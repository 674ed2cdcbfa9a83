"""A series of trainings: the trials of a sweep, the folds of a cross-validation, or both.

    <output>/<trial>/         each training, as `maskloom train` writes it
    <output>/sweep.csv        one row for each training, and of folds their mean and spread;
    <output>/sweep.parquet    `folds.csv` and `folds.parquet` without a sweep
    <output>/sweep.png        the curves of all trainings
    <output>/report.html      both, as a page that leads to those of the trainings

The trainings follow each other in one process. Table and picture are written after each of them;
the same command continues the one that was interrupted and passes over those that are finished.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.flows import train
from maskloom.flows.recipes.sweeps import Trial
from maskloom.flows.report.measures import WHOLE_IMAGES
from maskloom.flows.report.series import MEAN, SPREAD
from maskloom.flows.stopping import BreakOff
from maskloom.flows.terminal import told
from maskloom.segcore.errors import MaskloomError, RecipeError, RunError, Stopped, StoreError
from maskloom.segcore.figures.training import Curve, curves
from maskloom.segcore.raster.colours import PALETTE
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.segcore.training.run import TrainingResult

HISTORY = "training_history.json"
_MOST_CURVES = 12
_MEASURES = ("iou", "dice", "ap50")
"""Measures of classes that are in the table."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trial that has ended."""

    trial: Trial
    result: TrainingResult | None
    """None: it failed."""
    error: str = ""
    """Why it failed."""

    @property
    def score(self) -> float:
        """Its score; below all others if it failed."""
        return self.result.score[1] if self.result is not None else -1.0


@dataclass(frozen=True, slots=True)
class Setting:
    """The trainings of one combination of values: one, or its folds."""

    trained: tuple[Trained, ...]

    @property
    def score(self) -> float:
        """Its score, the mean of its folds; below all others if one of them failed."""
        scores = [each.score for each in self.trained]
        return statistics.fmean(scores) if min(scores) >= 0 else -1.0


@dataclass(frozen=True, slots=True)
class Series:
    """The trials of a series that have ended, in their order."""

    output: str
    trained: tuple[Trained, ...]

    @property
    def settings(self) -> list[Setting]:
        """By the values of the swept keys."""
        found: dict[str, list[Trained]] = {}
        for each in self.trained:
            found.setdefault(each.trial.setting, []).append(each)
        return [Setting(tuple(trained)) for trained in found.values()]

    @property
    def best(self) -> Setting:
        """The setting with the highest score; of equal ones the first."""
        return max(self.settings, key=lambda setting: setting.score)

    @property
    def failed(self) -> int:
        """How many trainings failed."""
        return sum(each.result is None for each in self.trained)

    @property
    def name(self) -> str:
        """Of its table and picture, without their suffix."""
        return "sweep" if self.trained[0].trial.named else "folds"


def run(
    trials: Sequence[Trial],
    output: str,
    quiet: bool,
    tell: Callable[[str], None],
    *,
    break_off: BreakOff | None = None,
) -> Series:
    """Train all trials, or continue a series; `tell` shows lines to the user. `break_off`: see
    `stoppable`.

    A trial that fails, for example because its loss is no number, does not stop the others. Raises
    `RecipeError` if the first trial is refused or none succeeds, `Stopped`, and `StoreError`.
    """
    ended: list[Trained] = []
    for number, trial in enumerate(trials, 1):
        tell(f"{number} of {len(trials)}: {trial.title}")
        try:
            ended.append(Trained(trial, train.run(trial.run, quiet, break_off=break_off)))
        except (Stopped, StoreError):
            raise
        except (RecipeError, RunError) as error:
            if isinstance(error, RecipeError) and not ended:
                # Most likely wrong in all of them.
                raise
            ended.append(Trained(trial, None, told(error)))
            tell(f"{trial.title} failed: {told(error)}")
        _forget_networks()
        series = Series(output, tuple(ended))
        write(series)
    Store(output).remove(STAGING)
    if all(each.result is None for each in ended):
        raise RunError(f"All {len(ended)} trainings failed. The first: {ended[0].error}")
    return series


def _forget_networks() -> None:
    """Free what keras keeps of the last network."""
    import keras

    keras.backend.clear_session()


def write(series: Series) -> None:
    """Write table and picture of the trainings so far. Raises `StoreError`."""
    store, table = Store(series.output), rows(series)
    columns = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    store.publish(f"{series.name}.csv", text.getvalue().encode())
    with store.writing(f"{series.name}.parquet") as out:
        pq.write_table(
            pa.table({name: _column([row.get(name) for row in table]) for name in columns}),
            out,
            compression="zstd",
        )
    picture = _picture(series)
    if picture is not None:
        store.publish(f"{series.name}.png", picture)


def rows(series: Series) -> list[dict[str, Any]]:
    """The table: a row for each training and, of folds, one for their mean and one for their
    spread.
    """
    table = []
    for setting in series.settings:
        own = [_row(each) for each in setting.trained]
        table += own
        numbers = [
            name
            for name in own[0]
            if name not in (*setting.trained[0].trial.named, "epochs", "epoch")
            and all(isinstance(row.get(name), float) for row in own)
        ]
        if "fold" in own[0] and len(own) > 1:
            kept = {key: own[0][key] for key in setting.trained[0].trial.named}
            for name, of in ((MEAN, statistics.fmean), (SPREAD, statistics.stdev)):
                measures = {each: round(of([row[each] for row in own]), 6) for each in numbers}
                table.append({**kept, "fold": name, **measures})
    return table


def summary(series: Series) -> str:
    """The line that says which setting is best, or what the folds gave."""
    settings, best = series.settings, series.best
    results = [each.result for each in best.trained if each.result is not None]
    scores = [result.score[1] for result in results]
    said = f"{results[0].score[0]} {statistics.fmean(scores):.4f}"
    if best.trained[0].trial.fold is None:
        said += f" at epoch {results[0].epoch}"
    elif len(scores) > 1:
        said += (
            f" over {len(scores)} folds, from {min(scores):.4f} to {max(scores):.4f}, standard "
            f"deviation {statistics.stdev(scores):.4f}"
        )
    if not best.trained[0].trial.named:
        return said
    return f"Best of {len(settings)}: {best.trained[0].trial.setting}: {said}"


def _row(each: Trained) -> dict[str, Any]:
    """A training in the table."""
    trial, result = each.trial, each.result
    row: dict[str, Any] = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in trial.named.items()
    }
    if trial.fold is not None:
        row["fold"] = str(trial.fold)
    if result is None:
        return {**row, "error": each.error}
    return {
        **row,
        "score": result.score[1],
        "epoch": result.epoch,
        "epochs": result.epochs,
        "minutes": result.minutes,
        **dict(_measures(trial)),
        "model": result.model,
    }


def _measures(trial: Trial) -> Iterator[tuple[str, float]]:
    """The measures on the validation images, from the card."""
    metrics = train.metrics(trial.run.recipe)
    for name, value in metrics.items():
        if isinstance(value, float):
            yield name, value
    for name, value in metrics.get(WHOLE_IMAGES, {}).items():
        if isinstance(value, float):
            yield f"{WHOLE_IMAGES}_{name}", value
    for name, measures in metrics.get("classes", {}).items():
        for measure in _MEASURES:
            if isinstance(measures.get(measure), float):
                yield f"{measure}_{name}", measures[measure]


def _column(values: Sequence[Any]) -> pa.Array:
    """A column of numbers, or else of text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        floats = any(isinstance(value, float) for value in known)
        return pa.array(values, pa.float64() if floats else pa.int64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _picture(series: Series) -> bytes | None:
    """The curves of the best trainings; None without any."""
    there = [each for each in series.trained if each.result is not None]
    shown = sorted(there, key=lambda each: -each.score)[:_MOST_CURVES]
    losses, scores = [], []
    for i, each in enumerate(each for each in there if each in shown):
        try:
            epochs = read_json(Store(each.trial.run.recipe.output), HISTORY, dict)["epochs"]
        except MaskloomError:
            continue
        colour = PALETTE[i % len(PALETTE)]
        width = 3 if each is shown[0] else 2
        losses.append(Curve(each.trial.title, [row["loss"] for row in epochs], colour, width))
        scores.append(Curve(each.trial.title, [row["score"] for row in epochs], colour, width))
    if not losses:
        return None
    return curves(losses, scores, None, Store(series.output).root.rpartition("/")[2])
