"""The page of an evaluation: `report.html` beside its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from maskloom.flows.report.charts import OTHER, css
from maskloom.flows.report.document import Head, Section, document, fact
from maskloom.flows.report.measures import class_rows, figure, picture_of
from maskloom.flows.terminal import count
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store

_MOST_MATRIX = 20
_WORST = 20


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """An evaluation in a folder."""

    store: Store
    folder: str
    whole: Mapping[str, Any]
    """Its row over all images."""
    images: Sequence[Mapping[str, Any]]
    classes: Sequence[Mapping[str, Any]]
    """Over all images, by id."""

    @property
    def place(self) -> str:
        """The folder as users name it."""
        return self.store.uri(self.folder).rstrip("/")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, by id."""
        return tuple(row["class_name"] for row in self.classes)

    @property
    def colours(self) -> dict[str, str]:
        """Colours of the classes in charts, by name."""
        return {name: css(number) for number, name in enumerate(self.names)}


def is_evaluation(store: Store, folder: str = "") -> bool:
    """Whether a folder below a store holds an evaluation."""
    return store.exists(f"{folder}confusion.parquet") and store.exists(f"{folder}images.parquet")


def evaluation_page(store: Store, folder: str = "") -> bytes:
    """The page of an evaluation. Raises `DamagedRecord`."""
    images = read_table(store, f"{folder}images.parquet").to_pylist()
    (whole,) = (row for row in images if row["image_id"] is None)
    classes = [
        row
        for row in read_table(store, f"{folder}classes.parquet").to_pylist()
        if row["image_id"] is None
    ]
    evaluation = _Evaluation(
        store,
        folder,
        whole,
        [row for row in images if row["image_id"] is not None],
        sorted(classes, key=lambda row: int(row["class_id"])),
    )
    # Evaluations of earlier versions have no colours.
    colours = [row.get("colour") for row in evaluation.classes]
    table = ClassTable.recorded(evaluation.names, colours)
    return document(_head(evaluation), table, SECTIONS, evaluation, "base.html")


def _head(evaluation: _Evaluation) -> Head:
    whole = evaluation.whole
    return Head(
        "maskloom evaluation",
        f"Evaluation of {_name(evaluation.place)}",
        "done",
        "done",
        [
            (
                f"The masks of {count(len(evaluation.images), 'image')} compared with their truth, "
                f"{whole['pixels'] / 1e6:,.2f} million pixels."
            )
        ],
        [
            fact("accuracy", figure(whole["accuracy"])),
            fact("if all were the largest class", figure(whole["majority_baseline"])),
            fact("mean IoU", figure(whole["mean_iou"])),
            fact("mean Dice", figure(whole["mean_dice"])),
            fact("kappa", figure(whole["kappa"])),
            *([fact("PQ", figure(whole["pq"]))] if whole.get("pq") is not None else []),
        ],
    )


def _classes(evaluation: _Evaluation) -> dict[str, Any]:
    rows = {row["class_name"]: row for row in evaluation.classes}
    return {"classes": class_rows(rows, evaluation.colours)}


def _confusion(evaluation: _Evaluation) -> dict[str, Any]:
    names = evaluation.names
    return {
        "matrix": _matrix(evaluation.store, evaluation.folder, names),
        "names": names[:_MOST_MATRIX],
        "classes": len(names),
    }


def _adjusted(evaluation: _Evaluation) -> dict[str, Any]:
    return {"areas": _areas(evaluation.store, evaluation.folder, evaluation.colours)}


def _images(evaluation: _Evaluation) -> dict[str, Any]:
    worst = sorted(
        evaluation.images, key=lambda row: (row["accuracy"] is None, row["accuracy"] or 0.0)
    )
    return {
        "worst": [
            {
                "id": row["image_id"],
                "accuracy": figure(row["accuracy"]),
                "iou": figure(row["mean_iou"]),
                "truth": row["truth_uri"],
            }
            for row in worst[:_WORST]
        ],
        "images": len(evaluation.images),
        "location": evaluation.place,
    }


def _picture(evaluation: _Evaluation) -> dict[str, Any]:
    return {"picture": picture_of(evaluation.store, f"{evaluation.folder}evaluation.png")}


SECTIONS: tuple[Section[_Evaluation], ...] = (
    Section("evaluation/classes.html", "Classes", "Classes", _classes),
    Section("evaluation/confusion.html", "Confusion", "Confusion", _confusion),
    Section("evaluation/areas.html", "Areas", "Areas", _adjusted),
    Section("evaluation/images.html", "Images", "Images", _images),
    Section("evaluation/picture.html", "Picture", "Picture", _picture),
)
"""In their order on the page."""


def _name(place: str) -> str:
    path = PurePosixPath(place)
    return path.parent.name if path.name == "evaluation" else path.name


def _matrix(store: Store, folder: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The shares of the truth's pixels by class of the truth and of the mask."""
    shares = {
        (row["truth_class"], row["predicted_class"]): row["share_of_truth"]
        for row in read_table(store, f"{folder}confusion.parquet").to_pylist()
        if row["image_id"] is None and row["predicted_class"] is not None
    }
    shown = names[:_MOST_MATRIX]
    return [
        {
            "name": truth,
            "cells": [
                {
                    "text": "–" if (share := shares.get((truth, mask))) is None else f"{share:.1%}",
                    # Light enough that text on it can be read in both schemes.
                    "depth": round(38 * (share or 0)),
                    "right": truth == mask,
                }
                for mask in shown
            ],
        }
        for truth in shown
    ]


def _areas(store: Store, folder: str, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for row in read_table(store, f"{folder}areas.parquet").to_pylist():
        unit = row["area_unit"] or "px"
        known = row["adjusted_area"] is not None
        found.append(
            {
                "name": row["class_name"],
                "colour": colours.get(row["class_name"], OTHER),
                "mapped": amount(row["mapped_area"], unit),
                "adjusted": amount(max(row["adjusted_area"], 0), unit) if known else "–",
                "interval": f"{amount(max(row['low_95'], 0), unit)} to "
                f"{amount(max(row['high_95'], 0), unit)}"
                if known
                else "–",
            }
        )
    return found
