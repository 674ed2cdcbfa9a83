"""Section: sizes of objects, and the largest ones as crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskloom.flows.report import charts
from maskloom.flows.report.collect import LargeObject
from maskloom.flows.report.crops import crop_of
from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject
from maskloom.segcore.ground.amounts import amount


def _values(subject: RunSubject) -> dict[str, Any] | None:
    sums = subject.collected.objects
    if not sums.counts:
        return None
    colour = dict(subject.key)
    units: dict[str, dict[tuple[str, int], int]] = {}
    for (unit, name, each), number in sums.bins.items():
        units.setdefault(unit, {})[name, each] = number
    return {
        "histograms": [
            {
                "text": f"Sizes of {sum(bins.values()):,} objects, on a logarithmic axis.",
                "chart": charts.histogram(bins, subject.collected.classes, unit),
            }
            for unit, bins in units.items()
        ],
        "counts": [
            (name, colour.get(name, charts.OTHER), f"{number:,}")
            for name, number in sums.counts.most_common()
        ],
        "largest": _largest(subject, sums.largest, colour),
    }


def _largest(
    subject: RunSubject, objects: Sequence[LargeObject], colour: dict[str, str]
) -> list[dict[str, Any]]:
    # A recipe that keeps pictures out of the page keeps out crops as well.
    wanted = bool(subject.pictures[0])
    found = []
    for each in objects:
        x0, y0, x1, y1 = each.box
        found.append(
            {
                "colour": colour.get(each.class_name, charts.OTHER),
                "class_name": each.class_name,
                "number": each.object_id,
                "image": each.image_id,
                "size": amount(each.area, each.unit),
                "at": f"x {x0:,} to {x1:,}, y {y0:,} to {y1:,}",
                "score": "" if each.score is None else f"{each.score:.2f}",
                "src": crop_of(subject.output, each) if wanted else "",
            }
        )
    return found


SECTION = Section("run/objects.html", "Objects", "Objects", _values)
