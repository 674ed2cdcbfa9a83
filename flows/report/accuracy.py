"""The pages of a training and of an evaluation: `report.html` beside their files."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from maskloom.flows.report.charts import Series, hexadecimal, lines
from maskloom.flows.report.page import fact, rendered
from maskloom.flows.terminal import count, duration
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.storage.records import read_json, read_table
from maskloom.segcore.storage.store import Store

HISTORY = "training_history.json"
_MOST_PICTURE_BYTES = 12_000_000
_MOST_CURVES = 12
_MOST_MATRIX = 20
_WORST = 20
_MEASURES = ("iou", "dice", "precision", "recall", "boundary_f")


def is_training(store: Store) -> bool:
    """Whether a folder holds a finished training."""
    return store.exists(HISTORY)


def is_evaluation(store: Store, folder: str = "") -> bool:
    """Whether a folder below a store holds an evaluation."""
    return store.exists(f"{folder}confusion.parquet") and store.exists(f"{folder}images.parquet")


def training_page(store: Store) -> bytes:
    """The page of a training. Raises `RecipeError` if its card is missing, `DamagedRecord`."""
    history = read_json(store, HISTORY, dict)
    card, name = _card(store)
    about: dict[str, Any] = card.get("about", {})
    epochs: list[dict[str, Any]] = history["epochs"]
    best, names = history["best_epoch"], tuple(history["classes"])
    stated: dict[str, str] = card.get("colours", {})
    table = ClassTable.recorded(names, map(stated.get, names))
    colours = [hexadecimal(colour) for colour in table.colours]
    # A dark line would be lost on a dark page.
    drawn = [
        "var(--soft)" if each.lower() in BACKGROUND_NAMES else colour
        for each, colour in zip(names, colours, strict=True)
    ]
    scores = [Series("mean IoU", _column(epochs, "mean_iou"), "var(--ink)", "6 4")]
    if len(names) <= _MOST_CURVES:
        scores += [
            Series(each, [_of(epoch.get("iou"), i) for epoch in epochs], drawn[i])
            for i, each in enumerate(names)
        ]
    losses = [
        Series("training", _column(epochs, "loss"), "var(--accent)"),
        Series("validation", _column(epochs, "validation_loss"), "var(--warn)", "6 4"),
    ]
    data = about.get("data", {})
    score = epochs[best - 1].get("score") if epochs and best else None
    values = {
        "title": f"{name}: maskloom training",
        "heading": name,
        "state": {"kind": "done", "text": "trained"},
        "lead": [
            (
                f"A {card.get('kind', '')} network for {count(len(names), 'class', 'classes')}, "
                f"trained for {count(len(epochs), 'epoch')}; the weights are those of epoch {best}."
            ),
            (
                f"Trained on {data.get('training_images', '?')} images, measured on "
                f"{data.get('validation_images', '?')} {data.get('measured_on', '')}."
            ),
        ],
        "facts": [
            fact("score", f"{score:.3f}" if isinstance(score, float) else "–"),
            fact("best epoch", f"{best} of {len(epochs)}"),
            fact("time", duration(60 * float(about.get("minutes", 0)))),
            fact("parameters", f"{card.get('parameters', 0):,}"),
            fact("classes", f"{len(names)}"),
        ],
        "sections": [
            ("curves", "Curves"),
            ("classes", "Classes"),
            ("examples", "Examples"),
            ("repeat", "Repeat it"),
        ],
        "losses": lines(losses, "Loss over epochs", best=best),
        "loss_key": [(each.name, each.colour) for each in losses],
        "scores": lines(scores, "IoU over epochs, on validation images", best=best)
        if any(value is not None for each in scores for value in each.values)
        else "",
        "score_key": [(each.name, each.colour) for each in scores],
        "classes": _class_rows(
            about.get("metrics", {}).get("classes", {}), dict(zip(names, colours, strict=True))
        ),
        "picture": _picture(store, "examples.png"),
        "use": f"maskloom segment IMAGES -o OUTPUT -s {card.get('kind', 'network')} "
        f"-p weights={store.uri(f'{name}.keras')}",
        "recipe": yaml.safe_dump(about.get("recipe", {}), sort_keys=False, allow_unicode=True),
        "provenance": [
            ("network", store.uri(f"{name}.keras")),
            ("sha256", str(card.get("sha256", ""))),
            ("data, sha256", str(data.get("sha256", ""))),
            ("licence", str(about.get("licence", ""))),
            ("purpose", str(about.get("purpose", ""))),
            *((key, str(value)) for key, value in about.get("versions", {}).items()),
        ],
    }
    return rendered("training.html", values)


def evaluation_page(store: Store, folder: str = "") -> bytes:
    """The page of an evaluation. Raises `DamagedRecord`."""
    images = read_table(store, f"{folder}images.parquet").to_pylist()
    (whole,) = (row for row in images if row["image_id"] is None)
    each = [row for row in images if row["image_id"] is not None]
    classes = [
        row
        for row in read_table(store, f"{folder}classes.parquet").to_pylist()
        if row["image_id"] is None
    ]
    classes.sort(key=lambda row: int(row["class_id"]))
    names = tuple(row["class_name"] for row in classes)
    table = ClassTable.recorded(names, [row.get("colour") for row in classes])
    colours = dict(zip(names, map(hexadecimal, table.colours), strict=True))
    place = store.uri(folder).rstrip("/")
    worst = sorted(each, key=lambda row: (row["accuracy"] is None, row["accuracy"] or 0.0))
    values = {
        "title": "maskloom evaluation",
        "heading": f"Evaluation of {_name(place)}",
        "state": {"kind": "done", "text": "done"},
        "lead": [
            (
                f"The masks of {count(len(each), 'image')} compared with their truth, "
                f"{whole['pixels'] / 1e6:,.2f} million pixels."
            )
        ],
        "facts": [
            fact("accuracy", _figure(whole["accuracy"])),
            fact("if all were the largest class", _figure(whole["majority_baseline"])),
            fact("mean IoU", _figure(whole["mean_iou"])),
            fact("mean Dice", _figure(whole["mean_dice"])),
            fact("kappa", _figure(whole["kappa"])),
            *([fact("PQ", _figure(whole["pq"]))] if whole.get("pq") is not None else []),
        ],
        "sections": [
            ("classes", "Classes"),
            ("confusion", "Confusion"),
            ("areas", "Areas"),
            ("images", "Images"),
            ("picture", "Picture"),
        ],
        "classes": _class_rows({row["class_name"]: row for row in classes}, colours),
        "matrix": _matrix(store, folder, names),
        "names": names[:_MOST_MATRIX],
        "areas": _areas(store, folder, colours),
        "worst": [
            {
                "id": row["image_id"],
                "accuracy": _figure(row["accuracy"]),
                "iou": _figure(row["mean_iou"]),
                "truth": row["truth_uri"],
            }
            for row in worst[:_WORST]
        ],
        "images": len(each),
        "picture": _picture(store, f"{folder}evaluation.png"),
        "location": place,
    }
    return rendered("evaluation.html", values)


def _name(place: str) -> str:
    path = PurePosixPath(place)
    return path.parent.name if path.name == "evaluation" else path.name


def _card(store: Store) -> tuple[dict[str, Any], str]:
    """The card of the network in a folder, and its name."""
    for name in store.names("", ".keras"):
        stem = name.removesuffix(".keras")
        if "/" not in name and store.exists(f"{stem}.json"):
            return read_json(store, f"{stem}.json", dict), stem
    raise RecipeError(f"{store.root} has no network with its card. Train it again.")


def _column(epochs: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    return [epoch.get(name) for epoch in epochs]


def _of(values: Any, number: int) -> float | None:
    return values[number] if isinstance(values, list) and number < len(values) else None


def _class_rows(
    measures: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "colour": colours.get(name, "#888888"),
            "figures": [_figure(row.get(key)) for key in _MEASURES],
        }
        for name, row in measures.items()
    ]


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
    from maskloom.segcore.ground.amounts import amount

    found = []
    for row in read_table(store, f"{folder}areas.parquet").to_pylist():
        unit = row["area_unit"] or "px"
        known = row["adjusted_area"] is not None
        found.append(
            {
                "name": row["class_name"],
                "colour": colours.get(row["class_name"], "#888888"),
                "mapped": amount(row["mapped_area"], unit),
                "adjusted": amount(max(row["adjusted_area"], 0), unit) if known else "–",
                "interval": f"{amount(max(row['low_95'], 0), unit)} to "
                f"{amount(max(row['high_95'], 0), unit)}"
                if known
                else "–",
            }
        )
    return found


def _picture(store: Store, name: str) -> str:
    """A picture as an address that holds it. Empty: it is missing or too large."""
    if not store.exists(name):
        return ""
    content = store.read(name)
    if len(content) > _MOST_PICTURE_BYTES:
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
