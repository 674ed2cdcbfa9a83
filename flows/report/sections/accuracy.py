"""Section: accuracy and corrected areas, where labelled samples have been evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from maskloom.flows.report import charts
from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject
from maskloom.segcore.evaluation.areas import NORMAL_95
from maskloom.segcore.ground.amounts import amount

ACCURACY = "evaluation/accuracy.json"
"""What `maskloom evaluate --samples` has written."""


def _values(subject: RunSubject) -> dict[str, Any] | None:
    store = subject.output.store
    if not store.exists(ACCURACY):
        return None
    found = json.loads(store.read(ACCURACY))
    numbers = {name: number for number, name in enumerate(subject.collected.classes.names)}
    rows = [
        {
            "name": each["name"],
            "colour": charts.css(numbers[each["name"]]) if each["name"] in numbers else "#888",
            "area": amount(each["area"]["value"], found["unit"]),
            "interval": _interval(each["area"], found["unit"]),
            "users": _share(each["users"]),
            "producers": _share(each["producers"]),
        }
        for each in found["classes"]
    ]
    overall = _share(found["overall"])
    return {"rows": rows, "samples": found["samples"], "overall": overall, "notes": found["notes"]}


def _interval(figure: Mapping[str, float], unit: str) -> str:
    half = NORMAL_95 * figure["standard_error"]
    return "–" if math.isnan(half) else f"± {amount(half, unit)}"


def _share(figure: Mapping[str, float]) -> str:
    value, half = figure["value"], NORMAL_95 * figure["standard_error"]
    if math.isnan(value):
        return "–"
    return f"{value:.1%}" if math.isnan(half) else f"{value:.1%} ± {half:.1%}"


SECTION = Section("run/accuracy.html", "Accuracy", "Accuracy and corrected areas", _values)
