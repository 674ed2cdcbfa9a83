"""Section: shares of the classes over images and over time."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np

from maskloom.flows.report import charts
from maskloom.flows.report.collect import Collected
from maskloom.flows.report.document import Section
from maskloom.flows.report.subject import RunSubject
from maskloom.flows.terminal import count

_FEWEST_DATES = 3


def _values(subject: RunSubject) -> dict[str, Any] | None:
    shares = subject.collected.images.shares
    known = shares[~np.isnan(shares).any(axis=1)] if shares.size else shares
    if len(known) < 2:
        return None
    largest = int(known.mean(axis=0).argmax())
    ordered = known[np.argsort(-known[:, largest], kind="stable")]
    classes = subject.collected.classes
    return {
        "text": (
            f"{count(len(known), 'image')}, sorted by the share of "
            f"{classes.names[largest]}, which is the largest on average. Neighbours are drawn "
            "together where there are many."
        ),
        "chart": charts.stacked_shares(
            ordered, classes, f"Shares of the classes in {len(known):,} images"
        ),
        "key": subject.key,
        **_over_time(subject.collected),
    }


def _over_time(collected: Collected) -> dict[str, Any]:
    images = collected.images
    nothing = {"over_time": "", "over_time_text": ""}
    if not images.dates_from or not images.shares.size:
        return nothing
    known = np.asarray(~np.isnan(images.shares).any(axis=1))
    by_date: dict[dt.date, list[int]] = {}
    for i, date in enumerate(images.dates):
        if date is not None and known[i]:
            by_date.setdefault(date, []).append(i)
    if len(by_date) < _FEWEST_DATES:
        return nothing
    dates = sorted(by_date)
    shares = np.array([images.shares[by_date[date]].mean(axis=0) for date in dates])
    text = (
        f"Mean shares on {len(dates)} dates from {dates[0]} to {dates[-1]}, in their order. "
        f"The dates are from {images.dates_from}."
    )
    chart = charts.stacked_shares(shares, collected.classes, text)
    return {"over_time": chart, "over_time_text": text}


SECTION = Section("run/shares.html", "Shares", "Shares over images", _values)
