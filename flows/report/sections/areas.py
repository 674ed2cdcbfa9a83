"""Section: the total area of each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from maskloom.flows.report import charts
from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject
from maskloom.segcore.ground.amounts import amount


def _values(subject: RunSubject) -> dict[str, Any]:
    """A table and a bar for each unit of area."""
    areas = subject.collected.areas
    names = subject.collected.classes.names
    found = []
    for unit in dict.fromkeys(unit for _, unit in areas):
        sizes = {name: areas.get((name, unit), 0.0) for name in names}
        whole = sum(sizes.values())
        rows = [
            {
                "name": name,
                "colour": charts.css(number),
                "unit": unit,
                "size": sizes[name],
                "area": amount(sizes[name], unit),
                "share": f"{sizes[name] / whole:.1%}" if whole else "–",
                "width": round(100 * sizes[name] / whole, 3) if whole else 0,
                "count": subject.collected.pixels.get(name, 0),
                "pixels": f"{subject.collected.pixels.get(name, 0):,}",
            }
            for number, name in enumerate(names)
        ]
        rows.sort(key=lambda row: -float(str(row["width"])))
        label = "Shares: " + ", ".join(f"{row['name']} {row['share']}" for row in rows[:12])
        kind = "volume" if unit == "mm3" else "area"
        found.append({"rows": rows, "label": label, "kind": kind})
    return {"areas": found, "csv": _csv(found)}


def _csv(tables: Sequence[Mapping[str, Any]]) -> str:
    """The tables with plain numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", "area", "unit", "pixels"])
    for row in (row for table in tables for row in table["rows"]):
        writer.writerow([row["name"], repr(float(row["size"])), row["unit"], row["count"]])
    return out.getvalue()


SECTION = Section("run/areas.html", "Area", "Area by class", _values)
