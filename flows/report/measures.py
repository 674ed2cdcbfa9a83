"""What the pages of a training and of an evaluation have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskloom.flows.report.charts import OTHER
from maskloom.flows.report.document import base64_of
from maskloom.flows.terminal import count
from maskloom.segcore.storage.store import Store

_MOST_PICTURE_BYTES = 12_000_000
_MEASURES = ("iou", "dice", "precision", "recall", "boundary_f")
WHOLE_IMAGES = "whole_images"
"""Key of the measures on whole images, in the metrics of a network's card."""
AP_BY_IMAGE = "ap_dsb2018_50_by_image"
"""Key of the mean over images of AP@0.5; the other is that of all objects together."""
_SHOWN = {
    "mean_iou": "mean IoU",
    "mean_dice": "mean Dice",
    "mean_boundary_f": "mean boundary F",
    "pq": "PQ",
    "ap_dsb2018_50": "AP@0.5",
    AP_BY_IMAGE: "mean AP@0.5 of images",
}


def on_whole_images(metrics: Mapping[str, Any]) -> str:
    """The measures of a trained network on whole images in words; empty if its card has none."""
    measures = metrics.get(WHOLE_IMAGES, {})
    known = {key: value for key, value in measures.items() if value is not None}
    shown = [f"{text} {known[key]:.4f}" for key, text in _SHOWN.items() if key in known]
    if not shown:
        return ""
    return f"On {count(measures['images'], 'whole image')}: {', '.join(shown)}."


def class_rows(
    measures: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of the table of measures, by class."""
    return [
        {
            "name": name,
            "colour": colours.get(name, OTHER),
            "figures": [figure(row.get(key)) for key in _MEASURES],
        }
        for name, row in measures.items()
    ]


def picture_of(store: Store, name: str) -> str:
    """A picture as an address that holds it. Empty: it is missing or too large."""
    if not store.exists(name):
        return ""
    content = store.read(name)
    if len(content) > _MOST_PICTURE_BYTES:
        return ""
    return f"data:image/png;base64,{base64_of(content)}"


def figure(value: Any) -> str:
    """A measure in words."""
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
