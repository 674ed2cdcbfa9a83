"""The page of a series of trainings, a sweep or folds: `report.html` beside their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from maskloom.flows.report.charts import Series, css, lines
from maskloom.flows.report.document import Head, Section, document, fact
from maskloom.flows.report.measures import figure
from maskloom.flows.report.training import HISTORY, use_of
from maskloom.flows.terminal import count, duration
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.storage.parquet import read_parquet
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import Store

TABLES = ("sweep.parquet", "folds.parquet")
"""The table of a sweep, and of folds without a sweep."""
MEAN, SPREAD = "mean", "spread"
"""In the column `fold`: the mean of the folds, and their standard deviation."""
_MOST_CURVES = 12
_KNOWN = ("fold", "score", "epoch", "epochs", "minutes", "model", "error")
_OF_CLASSES = ("iou_", "dice_", "ap50_")
_NAMES = {
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice",
    "ap50": "AP@0.5",
    "whole_images_mean_iou": "mean IoU, whole images",
    "whole_images_mean_dice": "mean Dice, whole images",
    "whole_images_mean_boundary_f": "mean boundary F, whole images",
    "whole_images_accuracy": "accuracy, whole images",
    "whole_images_pq": "PQ, whole images",
    "whole_images_ap_dsb2018_50": "AP@0.5, whole images",
}


@dataclass(frozen=True)
class _Series:
    """The trainings of a series, and how they went."""

    store: Store
    rows: Sequence[Mapping[str, Any]]
    """The rows of its table."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The swept keys."""
        names = list(self.rows[0])
        return tuple(names[: next(i for i, name in enumerate(names) if name in _KNOWN)])

    @cached_property
    def trainings(self) -> list[Mapping[str, Any]]:
        """The rows of single trainings."""
        return [row for row in self.rows if row.get("fold") not in (MEAN, SPREAD)]

    @property
    def ended(self) -> list[Mapping[str, Any]]:
        """The trainings that did not fail."""
        return [row for row in self.trainings if row.get("score") is not None]

    @cached_property
    def best(self) -> Mapping[str, Any] | None:
        """The row with the highest score: a training or, of folds, a mean. None: all failed."""
        means = [row for row in self.rows if row.get("fold") == MEAN]
        return max(means or self.ended, key=lambda row: row["score"], default=None)

    def title(self, row: Mapping[str, Any]) -> str:
        """The values of the swept keys, and the fold."""
        named = [f"{key} {_value(row[key])}" for key in self.keys if row[key] is not None]
        fold = row.get("fold")
        return ", ".join([*named, *([] if fold is None else [_fold(fold)])])

    def folder(self, row: Mapping[str, Any]) -> str:
        """The folder of a training below this one. Empty: it is not there."""
        places = str(row.get("model") or "").split("/")[:-1]
        # Below the folder of a setting is one for each fold. The whole series may have moved.
        names = ("/".join(places[-depth:]) for depth in (1, 2) if len(places) >= depth)
        return next((name for name in names if self.store.exists(f"{name}/{HISTORY}")), "")


def is_series(store: Store) -> bool:
    """Whether a folder holds the table of a series of trainings."""
    return any(map(store.exists, TABLES))


def series_page(store: Store) -> bytes:
    """The page of a series of trainings. Raises `DamagedRecord` and `StoreError`."""
    name = next(name for name in TABLES if store.exists(name))
    series = _Series(store, read_parquet(store.read(name)).to_pylist())
    titles = tuple(map(series.title, series.ended))
    colours = ClassTable.recorded(titles, [None] * len(titles))
    return document(_head(series), colours, SECTIONS, series, "base.html")


def _head(series: _Series) -> Head:
    failed, best = len(series.trainings) - len(series.ended), series.best
    trainings = count(len(series.trainings), "training")
    lead = [f"{trainings}{f', {failed} of them failed' if failed else ''}."]
    if best is not None and (series.keys or len(series.trainings) > 1):
        of = f"{series.title(best)}, with a score of {best['score']:.4f}"
        lead.append(f"{'The best' if series.keys else 'Together'}: {of}.")
    name = series.store.root.rpartition("/")[2]
    return Head(
        f"{name}: maskloom trainings",
        name,
        "partly" if failed else "done",
        f"{failed} failed" if failed else "trained",
        lead,
        [
            fact("trainings", str(len(series.trainings))),
            fact("failed", str(failed), bad=failed > 0),
            fact("best score", "–" if best is None else figure(best["score"])),
            fact("time", duration(60 * sum(row["minutes"] for row in series.ended))),
        ],
    )


def _compared(series: _Series) -> dict[str, Any]:
    shown = [
        name
        for name in series.rows[0]
        if name not in (*series.keys, *_KNOWN) and not name.startswith(_OF_CLASSES)
    ]
    return {
        "keys": series.keys,
        "folds": any(row.get("fold") for row in series.rows),
        "measures": [_NAMES.get(name, name.replace("_", " ")) for name in shown],
        "rows": [
            {
                "values": [_value(row[key]) for key in series.keys],
                "fold": _fold(row.get("fold")),
                "best": row is series.best,
                "score": figure(row.get("score")),
                "epoch": f"{row['epoch']} of {row['epochs']}" if row.get("epoch") else "",
                "figures": [figure(row[name]) for name in shown],
                "error": row.get("error") or "",
                "folder": (folder := series.folder(row)),
                "page": series.store.exists(f"{folder}/report.html") if folder else False,
            }
            for row in series.rows
        ],
    }


def _curves(series: _Series) -> dict[str, Any] | None:
    """The curves of the best trainings."""
    shown = sorted(series.ended, key=lambda row: -row["score"])[:_MOST_CURVES]
    losses: list[Series] = []
    scores: list[Series] = []
    for number, row in enumerate(series.ended):
        folder = series.folder(row)
        if row not in shown or not folder:
            continue
        epochs = read_json(series.store, f"{folder}/{HISTORY}", dict)["epochs"]
        title = series.title(row)
        for found, name in ((losses, "loss"), (scores, "score")):
            found.append(Series(title, [epoch.get(name) for epoch in epochs], css(number)))
    if not losses:
        return None
    return {
        "losses": lines(losses, "Loss over epochs, in training"),
        "scores": lines(scores, "Score over epochs, on validation images"),
        "key": [(each.name, each.colour) for each in losses],
        "left_out": len(series.ended) - len(losses),
    }


def _use(series: _Series) -> dict[str, Any] | None:
    """How to use the network of the best training. None: all failed, or folds have no best."""
    best = series.best
    folder = "" if best is None else series.folder(best)
    if not folder:
        return None
    try:
        return {"use": use_of(series.store, folder)}
    except RecipeError:
        # The network was removed or moved away.
        return None


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fold(fold: str | None) -> str:
    if fold is None:
        return ""
    return {MEAN: "mean of the folds", SPREAD: "spread"}.get(fold, f"fold {fold}")


SECTIONS: tuple[Section[_Series], ...] = (
    Section("series/compared.html", "Compared", "The trainings compared", _compared),
    Section("series/curves.html", "Curves", "Curves", _curves),
    Section("series/use.html", "Use it", "Use the best", _use),
)
"""In their order on the page."""
