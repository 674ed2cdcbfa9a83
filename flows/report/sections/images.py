"""Section: all images, to sort, to filter and to open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskloom.flows.report import charts
from maskloom.flows.report.cards import size_of
from maskloom.flows.report.document import Section
from maskloom.flows.report.notable import ODD
from maskloom.flows.report.subject import RunSubject
from maskloom.segcore.raster.colours import hexadecimal

_CARDS = 60
"""Cards in plain HTML, which work without a script."""


def _values(subject: RunSubject) -> dict[str, Any]:
    images, shown, place = subject.collected.images, subject.shown, subject.place
    first = [int(i) for i in subject.findings.order if int(i) in place][:_CARDS]
    return {
        "sample": _sample(len(images.ids), len(shown)),
        "dates": bool(images.dates_from),
        "unsure": bool(subject.findings.unsure),
        "class_names": subject.collected.classes.names,
        "shown": f"{len(shown):,} of {len(shown):,} images",
        "cards": [subject.cards.plain(i) for i in first],
    }


def _sample(images: int, shown: int) -> str:
    if images == shown:
        return ""
    return (
        f"This page shows {shown:,} of {images:,} images: those that need a look, up to half of "
        "them, and an even sample of the others. All sums are over all images."
    )


def rows_of(subject: RunSubject) -> dict[str, Any]:
    """The columns by which the page sorts, filters and describes images."""
    collected, findings, shown = subject.collected, subject.findings, subject.shown
    images, chosen = collected.images, np.array(shown, np.int64)
    rows = images.rows.take(chosen) if len(chosen) else images.rows
    total = images.column("total_pixels")[chosen]
    nodata = np.divide(
        images.column("nodata_pixels")[chosen], total, out=np.zeros(len(total)), where=total > 0
    )
    shares = np.nan_to_num(images.shares[chosen] * 10_000, nan=-1).round().astype(int)
    rank = np.empty(len(images.ids), np.int64)
    rank[findings.order] = np.arange(len(images.ids))
    columns = {
        name: rows[name].to_pylist()
        for name in ("image_id", "uri", "error", "error_type", "warning", "mask_uri")
    }
    score = findings.score[chosen]
    sizes = [size_of(row) for row in rows.select(["width", "height", "depth"]).to_pylist()]
    return {
        "pictures": bool(subject.pictures[0]),
        "classes": list(
            zip(
                collected.classes.names,
                map(hexadecimal, collected.classes.colours),
                map(hexadecimal, charts.safe(collected.classes)),
                strict=True,
            )
        ),
        "limit": ODD,
        "id": columns["image_id"],
        "uri": columns["uri"],
        "failed": images.failed[chosen].astype(int).tolist(),
        "error": _sparse(columns["error"]),
        "type": _sparse(columns["error_type"]),
        "warning": _sparse(columns["warning"]),
        "mask": columns["mask_uri"],
        "size": sizes,
        "tiny": _sparse(
            [
                int(max(w or 0, h or 0) <= 80) or None
                for w, h in zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)
            ]
        ),
        "pixels": total.astype(np.int64).tolist(),
        "seconds": images.column("seconds")[chosen].round(2).tolist(),
        "nodata": nodata.round(4).tolist(),
        "odd": (np.floor(np.float64(findings.distance[chosen]) * 10) / 10).tolist(),
        "score_name": findings.score_name,
        "score": [None if np.isnan(each) else round(float(each), 3) for each in score],
        "date": [
            None if images.dates[i] is None else images.dates[i].isoformat()  # type: ignore[union-attr]
            for i in shown
        ],
        "objects": [collected.objects.of_image.get(each, 0) for each in columns["image_id"]],
        "rank": rank[chosen].tolist(),
        "shares": shares.T.tolist(),
    }


def _sparse(values: Sequence[Any]) -> dict[str, Any]:
    """A column that is mostly null, by number."""
    return {str(i): value for i, value in enumerate(values) if value is not None}


SECTION = Section("run/images.html", "Images", "Images", _values)
