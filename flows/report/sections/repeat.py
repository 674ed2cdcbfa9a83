"""Section: how the output was made, and the command that makes it again."""

from __future__ import annotations

from typing import Any

import yaml

import maskloom
from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject


def _values(subject: RunSubject) -> dict[str, Any]:
    document = subject.written.get("document")
    return {
        "command": subject.command,
        "recipe": yaml.safe_dump(document, sort_keys=False, allow_unicode=True) if document else "",
        "provenance": _provenance(subject),
        "versions": sorted(subject.settings.get("libraries", {}).items()),
    }


def _provenance(subject: RunSubject) -> list[tuple[str, str]]:
    manifests = subject.collected.manifests
    last = manifests[-1] if manifests else subject.collected.planned
    version = subject.settings.get("maskloom", maskloom.__version__)
    fingerprint = str(last.get("fingerprint", ""))
    found = [
        ("output", subject.root),
        ("recipe", str(subject.written.get("file", ""))),
        ("last run", subject.run_id),
        ("finished runs in this output", str(len(manifests))),
        ("fingerprint of what decides the result", fingerprint),
        ("maskloom", str(version)),
        ("machine", str(subject.settings.get("machine", ""))),
        ("Python", str(subject.settings.get("python", ""))),
        ("digests", "runs/*/manifest.json; maskloom verify compares them"),
        ("to cite", f"maskloom {version}, recipe fingerprint {fingerprint}" if fingerprint else ""),
    ]
    return [(name, value) for name, value in found if value]


SECTION = Section("run/repeat.html", "Repeat it", "How it was made, and how to repeat it", _values)
