"""The page of a training: `report.html` beside its network."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from maskloom.flows.report.charts import Series, css, lines
from maskloom.flows.report.document import Head, Section, document, fact
from maskloom.flows.report.measures import class_rows, on_whole_images, picture_of
from maskloom.flows.terminal import count, duration
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import BACKGROUND_NAMES, ClassTable
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import Store

HISTORY = "training_history.json"
_MOST_CURVES = 12


@dataclass(frozen=True, slots=True)
class _Training:
    """A finished training."""

    store: Store
    name: str
    card: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    best: int
    names: tuple[str, ...]

    @property
    def about(self) -> Mapping[str, Any]:
        """Provenance, from the card."""
        found: Mapping[str, Any] = self.card.get("about", {})
        return found


def is_training(store: Store) -> bool:
    """Whether a folder holds a finished training."""
    return store.exists(HISTORY)


def training_page(store: Store) -> bytes:
    """The page of a training. Raises `RecipeError` if its card is missing, `DamagedRecord`."""
    history = read_json(store, HISTORY, dict)
    card, name = _card(store)
    training = _Training(
        store, name, card, history["epochs"], history["best_epoch"], tuple(history["classes"])
    )
    colours: Mapping[str, str] = card.get("colours") or {}
    classes = ClassTable.recorded(training.names, map(colours.get, training.names))
    return document(_head(training), classes, SECTIONS, training, "base.html")


def use_of(store: Store, folder: str = "") -> str:
    """The command that uses the network of a training in a folder of a store. Raises `RecipeError`
    if its card is missing, `DamagedRecord`.
    """
    card, name = _card(store, folder)
    network = store.uri(posixpath.join(folder, f"{name}.keras"))
    kind = card.get("kind", "network")
    return f"maskloom segment IMAGES -o OUTPUT -s {kind} -p weights={network}"


def _head(training: _Training) -> Head:
    epochs, best, card = training.epochs, training.best, training.card
    data = training.about.get("data", {})
    score = epochs[best - 1].get("score") if epochs and best else None
    return Head(
        f"{training.name}: maskloom training",
        training.name,
        "done",
        "trained",
        [
            (
                f"A {card.get('kind', '')} network for "
                f"{count(len(training.names), 'class', 'classes')}, "
                f"trained for {count(len(epochs), 'epoch')}; the weights are those of epoch {best}."
            ),
            (
                f"Trained on {data.get('training_images', '?')} images, measured on "
                f"{data.get('validation_images', '?')} {data.get('measured_on', '')}."
            ),
            *filter(None, [on_whole_images(training.about.get("metrics", {}))]),
        ],
        [
            fact("score", f"{score:.3f}" if isinstance(score, float) else "–"),
            fact("best epoch", f"{best} of {len(epochs)}"),
            fact("time", duration(60 * float(training.about.get("minutes", 0)))),
            fact("parameters", f"{card.get('parameters', 0):,}"),
            fact("classes", f"{len(training.names)}"),
        ],
    )


def _curves(training: _Training) -> dict[str, Any]:
    epochs, best = training.epochs, training.best
    losses = [
        Series("training", _column(epochs, "loss"), "var(--accent)"),
        Series(
            "validation, cross-entropy", _column(epochs, "validation_loss"), "var(--warn)", "6 4"
        ),
    ]
    scores = [Series("mean IoU", _column(epochs, "mean_iou"), "var(--ink)", "6 4")]
    if len(training.names) <= _MOST_CURVES:
        scores += [
            Series(
                name,
                [_of(epoch.get("iou"), number) for epoch in epochs],
                # A dark line would be lost on a dark page.
                "var(--soft)" if name.lower() in BACKGROUND_NAMES else css(number),
            )
            for number, name in enumerate(training.names)
        ]
    known = any(value is not None for each in scores for value in each.values)
    return {
        "losses": lines(losses, "Loss over epochs", best=best),
        "loss_key": [(each.name, each.colour) for each in losses],
        "scores": lines(scores, "IoU over epochs, on validation images", best=best)
        if known
        else "",
        "score_key": [(each.name, each.colour) for each in scores],
    }


def _classes(training: _Training) -> dict[str, Any]:
    colours = {name: css(number) for number, name in enumerate(training.names)}
    measures = training.about.get("metrics", {}).get("classes", {})
    return {"classes": class_rows(measures, colours)}


def _examples(training: _Training) -> dict[str, Any]:
    return {"picture": picture_of(training.store, "examples.png")}


def _repeat(training: _Training) -> dict[str, Any]:
    about, card = training.about, training.card
    network = training.store.uri(f"{training.name}.keras")
    return {
        "use": use_of(training.store),
        "recipe": yaml.safe_dump(about.get("recipe", {}), sort_keys=False, allow_unicode=True),
        "provenance": [
            ("network", network),
            ("sha256", str(card.get("sha256", ""))),
            ("data, sha256", str(about.get("data", {}).get("sha256", ""))),
            ("licence", str(about.get("licence", ""))),
            ("purpose", str(about.get("purpose", ""))),
            *((key, str(value)) for key, value in about.get("versions", {}).items()),
        ],
    }


SECTIONS: tuple[Section[_Training], ...] = (
    Section("training/curves.html", "Curves", "Curves", _curves),
    Section("training/classes.html", "Classes", "Classes", _classes),
    Section("training/examples.html", "Examples", "Examples", _examples),
    Section("training/repeat.html", "Repeat it", "Use it, and repeat it", _repeat),
)
"""In their order on the page."""


def _card(store: Store, folder: str = "") -> tuple[dict[str, Any], str]:
    """The card of the network in a folder, and its name."""
    for name in store.names(folder, ".keras"):
        place, stem = posixpath.split(name.removesuffix(".keras"))
        card = posixpath.join(folder, f"{stem}.json")
        if place == folder and store.exists(card):
            return read_json(store, card, dict), stem
    raise RecipeError(f"{store.uri(folder)} has no network with its card. Train it again.")


def _column(epochs: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    return [epoch.get(name) for epoch in epochs]


def _of(values: Any, number: int) -> float | None:
    return values[number] if isinstance(values, list) and number < len(values) else None
