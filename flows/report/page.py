"""The page `report.html` of an output of masks, as bytes.

Names and messages are foreign text: the templates escape all of it, and the page forbids every
script but its own.
"""

from __future__ import annotations

from typing import Any

from maskloom.flows.report.document import Head, Section, base64_of, document, embedded, fact
from maskloom.flows.report.sections import (
    accuracy,
    alerts,
    areas,
    images,
    look,
    model,
    objects,
    repeat,
    shares,
    tables,
)
from maskloom.flows.report.subject import KINDS, RunSubject
from maskloom.flows.terminal import count, duration, pixels
from maskloom.segcore.ground.amounts import amount

SECTIONS: tuple[Section[RunSubject], ...] = (
    areas.SECTION,
    alerts.SECTION,
    accuracy.SECTION,
    look.SECTION,
    images.SECTION,
    shares.SECTION,
    objects.SECTION,
    model.SECTION,
    repeat.SECTION,
    tables.SECTION,
)
"""In their order on the page. A new one is a module with its template, and a line here."""


def page(subject: RunSubject) -> bytes:
    """The page of a run's output."""
    thumbnails, pairs = subject.pictures
    place = subject.place
    return document(
        _head(subject),
        subject.collected.classes,
        SECTIONS,
        subject,
        "run.html",
        rows=embedded(images.rows_of(subject)),
        thumbs=embedded({str(place[i]): base64_of(each) for i, each in thumbnails.items()}),
        pairs=embedded(
            {str(place[i]): [base64_of(each) for each in both] for i, both in pairs.items()}
        ),
    )


def _head(subject: RunSubject) -> Head:
    name = (
        subject.written.get("document", {}).get("name")
        or subject.root.rstrip("/").rpartition("/")[2]
    )
    kind, state = _state(subject)
    unfinished = kind == "stopped"
    return Head(
        f"{name}: maskloom report",
        name,
        kind,
        state,
        _lead(subject),
        _facts(subject),
        _notice(subject) if unfinished else "",
        subject.command if unfinished else "",
    )


def _state(subject: RunSubject) -> tuple[str, str]:
    """The colour of the state, and the state in words."""
    left, failed = subject.ending.left, int(subject.collected.images.failed.sum())
    if subject.ending.at_work and left:
        return "partly", f"in progress: {left:,} left"
    if left or subject.ending.why:
        return "stopped", "stopped" + (f": {left:,} left" if left else "")
    if failed:
        return "partly", f"done, {failed:,} failed"
    return "done", "done"


def _notice(subject: RunSubject) -> str:
    """What is not done, and why."""
    left = subject.ending.left
    done = len(subject.collected.images.ids)
    todo = (
        f"{count(left, 'image is', 'images are')} not done; the {done:,} below are whole. "
        if left and done
        else f"{count(left, 'image is', 'images are')} not done. "
        if left
        else ""
    )
    why = f"{subject.ending.why} " if subject.ending.why else ""
    return f"{todo}{why}To go on from there:" if subject.command else f"{todo}{why}".strip()


def _lead(subject: RunSubject) -> list[str]:
    collected, settings, when = subject.collected, subject.settings, subject.ending.when
    kind, done = subject.kind, int((~collected.images.failed).sum())
    if not done:
        return ["No image is done yet." if subject.ending.left else "No image could be segmented."]
    classes = count(len(collected.classes.names), "class", "classes")
    fitted = {
        "collection": ", one model for all images",
        "image": ", a model for each image",
    }.get(settings.get("fit", ""), "")
    by = f" by {KINDS.get(kind, kind)}{fitted}" if kind else ""
    machine = f", on {settings['machine']} with Python {settings['python']}" if settings else ""
    worked = float(collected.images.column("seconds").sum())
    return [
        f"{count(done, 'image was', 'images were')} segmented into {classes}{by}.",
        f"Finished {when}{machine}; the workers spent {duration(worked)} on it in all."
        if when
        else f"The workers spent {duration(worked)} on it in all.",
    ]


def _facts(subject: RunSubject) -> list[dict[str, Any]]:
    collected, left = subject.collected, subject.ending.left
    images = collected.images
    failed, done = int(images.failed.sum()), int((~images.failed).sum())
    ok = ~images.failed
    total, worked = images.column("total_pixels"), float(images.column("seconds")[ok].sum())
    volumes = bool(done) and bool((images.column("depth")[ok] > 1).all())
    unit = "megavoxels" if volumes else "megapixels"
    unprocessed = float(images.column("unprocessed_pixels").sum())
    sums: dict[str, float] = {}
    for (_, area_unit), size in collected.areas.items():
        sums[area_unit] = sums.get(area_unit, 0.0) + size
    facts = [
        fact("images done", f"{done:,}"),
        fact("failed", f"{failed:,}", bad=bool(failed)),
        fact("segmented", pixels(float(total[ok].sum()), unit)),
        *(
            fact("volume" if name == "mm3" else "area", amount(size, name))
            for name, size in sums.items()
            if name != "px"
        ),
        fact("unprocessed", f"{unprocessed / total.sum():.1%}" if total.sum() else "–"),
        fact("classes", f"{len(collected.classes.names):,}"),
    ]
    if left:
        facts.insert(2, fact("left", f"{left:,}", bad=True))
    if collected.objects.counts:
        facts.append(fact("objects", f"{sum(collected.objects.counts.values()):,}"))
    if worked:
        speed = pixels(float(total[ok].sum()) / worked, unit)
        facts.append(fact("speed of a worker", f"{speed}/s"))
    return facts
