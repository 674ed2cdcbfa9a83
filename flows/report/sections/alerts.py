"""Section: alerts that are raised now, and those that ended."""

from __future__ import annotations

from typing import Any

from maskloom.flows.alerting.events import states
from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject
from maskloom.flows.terminal import count

_SHOWN = 200


def _values(subject: RunSubject) -> dict[str, Any] | None:
    found = sorted(states(subject.output.store).values(), key=lambda event: event.at, reverse=True)
    found.sort(key=lambda event: event.state != "raised")
    if not found:
        return None
    rows = [
        {
            "alert": event.alert,
            "state": event.state,
            "subject": event.subject or "all images",
            "of": event.of,
            "condition": event.condition,
            "reason": event.reason,
            "at": f"{event.at:%Y-%m-%d %H:%M} UTC",
        }
        for event in found[:_SHOWN]
    ]
    raised = sum(1 for event in found if event.state == "raised")
    return {"rows": rows, "raised": count(raised, "alert is", "alerts are"), "all": len(found)}


SECTION = Section("run/alerts.html", "Alerts", "Alerts", _values)
