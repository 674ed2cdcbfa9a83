"""The images that a person should look at first, each with the number that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.flows.report.collect import MARGIN, Collected, Images

if TYPE_CHECKING:
    from numpy.typing import NDArray

ODD = 3.5
"""Robust standard deviations from which an image is odd (Iglewicz and Hoaglin, 1993)."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution with a median absolute deviation of 1."""
_LEAST_DEVIATION = 0.01
"""A share is not odd by less than a few hundredths, however alike the images are."""
_FEWEST = 8
"""Images of which one can be odd."""
_SHOWN = 12
_EMPTY = 0.5
_EXAMPLES = 5

REMEDIES = {
    "FormatError": (
        "The file is not what its name says, or is damaged. Save or copy it again, or take it out "
        "of the inputs."
    ),
    "NotInstalled": "Install the package that the message names; the next run tries again.",
    "Incomplete": "Put the missing file beside it; the next run tries again.",
    "ReadError": "The header is right, the pixels are damaged. Copy the file again.",
    "ModelMismatch": (
        "The image does not suit the segmenter. Choose its bands in the recipe, or take the image "
        "out of the inputs."
    ),
    "Missing": "Put the file in its place, or take its name out of the inputs.",
    "Unavailable": "The store or its network failed. Run the recipe again: it tries these again.",
    "SourceChanged": "The file changed during the run. Run the recipe again.",
    "WorkerDied": (
        "A process died on this image alone. Run the recipe again; if it dies again, take the "
        "image out and report it."
    ),
    "TimedOut": "Raise `limits` in the recipe, or check the store; the next run tries again.",
    "OutOfMemory": (
        "Give each worker more memory (`cluster`), or make tiles smaller (`tiling.tile`)."
    ),
    "FitError": "There are too few different values to fit. Check the image and its nodata value.",
    "NothingToFit": "The image has no valid pixel. Check its nodata value.",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Images that failed in the same way."""

    error_type: str
    count: int
    remedy: str
    examples: Sequence[tuple[str, str]]
    """Id and message of the first."""


@dataclass(frozen=True, slots=True)
class Notable:
    """An image with what is notable about it."""

    number: int
    """Its place among the images."""
    figure: str
    """The number that ranks it, in words."""
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What needs a look."""

    reasons: Sequence[Reason]
    odd: Sequence[Notable]
    odd_count: int
    unsure: Sequence[Notable]
    empty: Sequence[Notable]
    warnings: Sequence[tuple[str, int, str]]
    """Text, number of images, and the first of them."""
    distance: NDArray[np.float32]
    """(image,): robust standard deviations of its oddest share; 0 where unknown."""
    score: NDArray[np.float32]
    """(image,): mean score of its objects, or mean margin of its pixels; NaN where unknown."""
    score_name: str
    """What `score` is."""
    order: NDArray[np.int64]
    """All images, those that need a look first."""


def find(collected: Collected) -> Findings:
    """Rank the images."""
    images = collected.images
    distance, oddest = _distances(images.shares)
    score, score_name, said = _sureness(collected)
    total, nodata = images.column("total_pixels"), images.column("nodata_pixels")
    without = np.divide(nodata, total, out=np.zeros(len(total)), where=total > 0)
    warned = np.array(images.rows["warning"].is_valid())
    order = np.lexsort(
        (
            np.arange(len(images.ids)),
            np.nan_to_num(score, nan=2.0),
            ~warned,
            -np.where(distance >= ODD, distance, 0),
            ~images.failed,
        )
    )
    return Findings(
        _reasons(images),
        _odd(collected, distance, oddest),
        int((distance >= ODD).sum()),
        [
            Notable(int(i), f"{score[i]:.2f}", said)
            for i in np.argsort(score, kind="stable")[:_SHOWN]
            if not np.isnan(score[i])
        ],
        [
            Notable(int(i), f"{without[i]:.0%}", "of its pixels have no data")
            for i in np.argsort(-without, kind="stable")[:_SHOWN]
            if without[i] >= _EMPTY and not images.failed[i]
        ],
        _warnings(images),
        distance,
        score,
        score_name,
        order,
    )


def _sureness(collected: Collected) -> tuple[NDArray[np.float32], str, str]:
    """How sure the segmenter was of each image, its name, and its meaning: by the scores of
    objects, or else of pixels; NaN where unknown.
    """
    images, scores = collected.images, collected.objects.scores
    if not scores and MARGIN in images.rows.column_names:
        margin = images.rows[MARGIN].to_numpy(zero_copy_only=False).astype(np.float32)
        return margin, "mean margin", "mean margin between its two most probable classes"
    score = np.array([scores.get(each, np.nan) for each in images.ids], np.float32)
    return score, "mean score", "mean score of its objects"


def _distances(
    shares: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """For each image its largest robust distance from the median share, and the class of it."""
    known = ~np.isnan(shares).any(axis=1) if shares.size else np.zeros(len(shares), np.bool_)
    distance, oddest = np.zeros(len(shares), np.float32), np.zeros(len(shares), np.int64)
    if known.sum() < _FEWEST:
        return distance, oddest
    of_known = shares[known]
    median = np.median(of_known, axis=0)
    deviation = _NORMAL * np.median(np.abs(of_known - median), axis=0)
    each = np.abs(of_known - median) / np.maximum(deviation, _LEAST_DEVIATION)
    distance[known], oddest[known] = each.max(axis=1), each.argmax(axis=1)
    return distance, oddest


def _odd(
    collected: Collected, distance: NDArray[np.float32], oddest: NDArray[np.int64]
) -> list[Notable]:
    shares = collected.images.shares
    found = []
    for i in np.argsort(-distance, kind="stable")[:_SHOWN]:
        if distance[i] < ODD:
            break
        name, share = collected.classes.names[oddest[i]], shares[i, oddest[i]]
        usual = float(np.nanmedian(shares[:, oddest[i]]))
        text = f"{name} {share:.1%}, in the median image {usual:.1%}"
        found.append(Notable(int(i), f"{distance[i]:.1f}", text))
    return found


def _reasons(images: Images) -> list[Reason]:
    grouped: dict[str, list[tuple[str, str]]] = {}
    failed = np.flatnonzero(images.failed)
    rows = images.rows.select(["image_id", "error_type", "error"]).take(failed).to_pylist()
    for row in rows:
        grouped.setdefault(row["error_type"] or "Unknown", []).append(
            (row["image_id"], row["error"] or "")
        )
    return [
        Reason(kind, len(each), REMEDIES.get(kind, "See the message."), each[:_EXAMPLES])
        for kind, each in sorted(grouped.items(), key=lambda item: -len(item[1]))
    ]


def _warnings(images: Images) -> list[tuple[str, int, str]]:
    grouped: dict[str, list[str]] = {}
    rows = images.rows.select(["image_id", "warning"])
    for row in rows.take(np.flatnonzero(rows["warning"].is_valid())).to_pylist():
        grouped.setdefault(row["warning"], []).append(row["image_id"])
    ranked = sorted(grouped.items(), key=lambda item: -len(item[1]))
    return [(text, len(ids), ids[0]) for text, ids in ranked[:_SHOWN]]
