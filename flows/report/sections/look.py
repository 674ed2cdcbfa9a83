"""Section: what a person should look at first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from maskloom.flows.report.document import Section
from maskloom.flows.report.notable import ODD
from maskloom.flows.report.subject import RunSubject
from maskloom.flows.terminal import count


def _values(subject: RunSubject) -> dict[str, Any]:
    findings, cards = subject.findings, subject.cards
    return {
        "reasons": [asdict(each) for each in findings.reasons],
        "odd": cards.of(findings.odd),
        "odd_text": (
            f"{count(findings.odd_count, 'image is', 'images are')} more than {ODD} robust "
            "standard deviations from the median share of a class. Odd is not wrong: look."
        ),
        "unsure": cards.of(findings.unsure),
        "empty": cards.of(findings.empty),
        "warnings": findings.warnings,
        "images": len(subject.collected.images.ids),
    }


SECTION = Section("run/look.html", "What needs a look", "What needs a look", _values)
