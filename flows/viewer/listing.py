"""The list of images of an output: searched, sorted, a page at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from maskloom.flows.viewer.classes import classes_of

if TYPE_CHECKING:
    from maskloom.tasks.output import Output

_COLUMNS = (
    *("image_id", "status", "error", "error_type"),
    *("total_pixels", "nodata_pixels", "unprocessed_pixels"),
)
_WAITING = "The run {run} was planned with it, and has not finished. Run the recipe again."
ORDERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "name": (("image_id", "ascending"),),
    "problems": (("rank", "ascending"), ("missing", "descending"), ("image_id", "ascending")),
    "largest": (("total_pixels", "descending"), ("image_id", "ascending")),
}
"""The ways to sort."""


class UnknownImage(LookupError):
    """The output has no image with this id."""


@dataclass(slots=True)
class Listing:
    """The images of an output: done, failed, and those that a run has not come to."""

    output: Output
    _rows: pa.Table | None = None
    _sorted: dict[str, pa.Table] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> None:
        """Read the list of images again: runs may have added some."""
        rows = _listed(self.output)
        with self._lock:
            self._rows, self._sorted = rows, {"name": rows}

    @property
    def images(self) -> pa.Table:
        """One row per image, by id."""
        if self._rows is None:
            self.refresh()
        assert self._rows is not None
        return self._rows

    def __len__(self) -> int:
        return len(self.images)

    def __contains__(self, image_id: str) -> bool:
        return bool(pc.index(self.images["image_id"], image_id).as_py() >= 0)

    def page(self, start: int, count: int, search: str = "", order: str = "name") -> dict[str, Any]:
        """Some rows of the list, and the numbers of images: of those with a text in their name, and
        of those that failed or were not processed.
        """
        found = self._found(search, order)
        rows = found.slice(start, count).drop_columns(["rank", "missing"]).to_pylist()
        shares = self._shares([row["image_id"] for row in rows if row["status"] == "ok"])
        states = self.images["status"]
        return {
            "total": len(found),
            "failed": _count(states, "failed"),
            "unprocessed": _count(states, "unprocessed"),
            "images": [{**row, "shares": shares.get(row["image_id"], [])} for row in rows],
        }

    def around(self, image_id: str, search: str = "", order: str = "name") -> dict[str, Any]:
        """The place of an image in the list, and the images before and after it. Raises
        `UnknownImage`.
        """
        if image_id not in self:
            raise UnknownImage(f"no such image: {image_id}")
        found = self._found(search, order)["image_id"]
        place = pc.index(found, image_id).as_py()
        if place < 0:
            # The search does not find it: its neighbours are those of the whole list.
            found = self._found("", order)["image_id"]
            place = pc.index(found, image_id).as_py()
        return {
            "image_id": image_id,
            "place": place,
            "count": len(found),
            "before": found[place - 1].as_py() if place > 0 else None,
            "after": found[place + 1].as_py() if place + 1 < len(found) else None,
        }

    def state(self, image_id: str) -> dict[str, Any]:
        """The row of an image in the list. Raises `UnknownImage`."""
        place = pc.index(self.images["image_id"], image_id).as_py()
        if place < 0:
            raise UnknownImage(f"no such image: {image_id}")
        row: dict[str, Any] = self.images.slice(place, 1).to_pylist()[0]
        return row

    def _found(self, search: str, order: str) -> pa.Table:
        images = self.images
        with self._lock:
            if order not in self._sorted:
                self._sorted[order] = images.sort_by(list(ORDERS[order]))
            found = self._sorted[order]
        if not search:
            return found
        return found.filter(pc.match_substring(found["image_id"], search, ignore_case=True))

    def _shares(self, image_ids: Sequence[str]) -> dict[str, list[Any]]:
        """Colour and share of each class with pixels, by image."""
        if not image_ids:
            return {}
        table = self.output.areas(None, of=set(image_ids))
        if not table.num_columns:
            return {}
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            rows.setdefault(row["image_id"], []).append(row)
        return {
            image_id: [
                (each["colour"], each["fraction"])
                for each in classes_of(of_image).rows
                if each["fraction"]
            ]
            for image_id, of_image in rows.items()
        }


def _listed(output: Output) -> pa.Table:
    done = output.images(_COLUMNS)
    waiting = output.unprocessed()
    reasons = [_WAITING.format(run=run) for run in waiting.values()]
    added = pa.table(
        {
            "image_id": pa.array(waiting, pa.string()),
            "status": pa.array(["unprocessed"] * len(waiting), pa.string()),
            "error": pa.array(reasons, pa.string()),
        }
    )
    tables = [done, added] if done.num_columns else [added]
    rows = pa.concat_tables(tables, promote_options="permissive").sort_by("image_id")
    for name in _COLUMNS:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), pa.string()))
    rank = pc.index_in(rows["status"], pa.array(["failed", "unprocessed", "ok"]))
    missing = pa.nulls(len(rows), pa.float64())
    if done.num_columns:
        lost = pc.add(rows["nodata_pixels"], rows["unprocessed_pixels"])
        missing = pc.divide(pc.cast(lost, pa.float64()), rows["total_pixels"])
    return rows.append_column("rank", rank).append_column("missing", missing)


def _count(states: pa.ChunkedArray, state: str) -> int:
    return int(pc.sum(pc.equal(states, state)).as_py() or 0)
