"""Which images and pictures a page holds, within its budget of bytes, and their cards.

Pictures are left out, those of ordinary images first, rather than that no browser opens the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.report import charts
from maskloom.flows.report.collect import Collected
from maskloom.flows.report.document import base64_of
from maskloom.flows.report.notable import ODD, Findings, Notable

if TYPE_CHECKING:
    from maskloom.tasks.output import Output

MOST_BYTES = 30_000_000
_MOST_IMAGES = 20_000
_MOST_THUMBNAIL_BYTES = 17_000_000
_MOST_PAIRS = 400
_ROW_BYTES = 160


def shown_images(findings: Findings) -> list[int]:
    """The images on the page in their order: all, or those that need a look and an even sample."""
    order = findings.order
    if len(order) > _MOST_IMAGES:
        first = order[: _MOST_IMAGES // 2]
        rest = order[_MOST_IMAGES // 2 :]
        even = np.linspace(0, len(rest) - 1, _MOST_IMAGES - len(first)).astype(np.int64)
        order = np.concatenate([first, rest[even]])
    return [int(i) for i in np.sort(order)]


def pictures_of(
    output: Output, collected: Collected, findings: Findings, shown: Sequence[int]
) -> tuple[dict[int, bytes], dict[int, tuple[bytes, bytes]]]:
    """Thumbnails and pairs by the number of the image, as many as the budget allows, those of
    notable images first. At most these are in memory, and one file of the table.
    """
    rank = {int(i): number for number, i in enumerate(findings.order)}
    ids = {collected.images.ids[i]: i for i in shown}
    paired = set(sorted(shown, key=rank.__getitem__)[:_MOST_PAIRS])
    thumbnails: dict[int, bytes] = {}
    pairs: dict[int, tuple[bytes, bytes]] = {}
    for table in output.tables("pictures", ["image_id", "thumbnail", "source", "mask"]):
        for number, image_id in enumerate(table["image_id"].to_pylist()):
            i = ids.get(image_id)
            if i is None:
                continue
            thumbnails[i] = table["thumbnail"][number].as_py()
            if i in paired and table["source"][number].is_valid:
                pairs[i] = (table["source"][number].as_py(), table["mask"][number].as_py())
    small = _within(thumbnails, rank, _MOST_THUMBNAIL_BYTES)
    used = sum(map(len, small.values())) + len(shown) * _ROW_BYTES * 3 // 4
    sizes = {i: both[0] + both[1] for i, both in pairs.items()}
    kept = _within(sizes, rank, MOST_BYTES * 3 // 4 - 750_000 - used)
    return small, {i: pairs[i] for i in kept}


def _within(content: Mapping[int, bytes], rank: Mapping[int, int], most: int) -> dict[int, bytes]:
    """The first in rank whose bytes fit."""
    kept: dict[int, bytes] = {}
    for i in sorted(content, key=rank.__getitem__):
        most -= len(content[i])
        if most < 0:
            break
        kept[i] = content[i]
    return kept


class Cards:
    """The cards of images in plain HTML, which print and search find."""

    def __init__(
        self,
        collected: Collected,
        findings: Findings,
        thumbnails: Mapping[int, bytes],
        place: Mapping[int, int],
    ) -> None:
        self._collected, self._findings = collected, findings
        self._thumbnails, self._place = thumbnails, place

    def of(self, notable: Sequence[Notable]) -> list[dict[str, Any]]:
        """The cards of notable images, with what is notable."""
        return [
            {**self.plain(each.number), "flag": f"{each.figure}: {each.text}", "kind": ""}
            for each in notable
            if each.number in self._place
        ]

    def plain(self, i: int) -> dict[str, Any]:
        """The card of an image."""
        images, row = self._collected.images, self._collected.images.rows.slice(i, 1).to_pylist()[0]
        failed, thumbnail = bool(images.failed[i]), self._thumbnails.get(i)
        distance = float(self._findings.distance[i])
        kind, flag = "", size_of(row)
        if failed:
            kind, flag = "failed", f"failed: {row['error_type']}"
        elif distance >= ODD:
            kind, flag = "odd", f"odd: {distance:.1f}"
        elif row["warning"]:
            kind, flag = "odd", "has a warning"
        return {
            "i": self._place[i],
            "id": images.ids[i],
            "src": f"data:image/webp;base64,{base64_of(thumbnail)}" if thumbnail else "",
            "tiny": max(row["width"] or 0, row["height"] or 0) <= 80,
            "instead": "no mask" if failed else "no picture",
            "bar": "" if failed else self._bar(i),
            "kind": kind,
            "flag": flag,
        }

    def _bar(self, i: int) -> str:
        shares, parts, at = self._collected.images.shares[i], [], 0.0
        if np.isnan(shares).any() or not shares.size:
            return ""
        for number, share in enumerate(shares.tolist()):
            if share > 0.0005:
                parts.append(f"{charts.css(number)} {100 * at:.1f}% {100 * (at + share):.1f}%")
            at += share
        return f"linear-gradient(90deg,{','.join(parts)})" if parts else ""


def size_of(row: Mapping[str, Any]) -> str:
    """The size of an image in words."""
    if row["width"] is None:
        return ""
    depth = f" × {row['depth']}" if (row["depth"] or 1) > 1 else ""
    return f"{row['width']:,} × {row['height']:,}{depth}"
