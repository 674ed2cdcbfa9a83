"""What `maskloom.evaluate` and `maskloom.change` return: tables and the main figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from maskloom.flows.change_results import Changes as Compared
    from maskloom.flows.evaluation.report import Evaluation as Evaluated


@dataclass(frozen=True, eq=False)
class _Comparison:
    """What both have in common."""

    _found: Compared | Evaluated

    @property
    def summary(self) -> str:
        """The main figures in one line."""
        return self._found.summary

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, and what limits the results."""
        return self._found.notes

    @property
    def folder(self) -> str:
        """Where tables and picture are."""
        return self._found.folder


@dataclass(frozen=True, eq=False)
class Evaluation(_Comparison):
    """The masks of an output compared with truth masks. Rows without an `image_id` are those of all
    images together.
    """

    _found: Evaluated

    @cached_property
    def classes(self) -> pd.DataFrame:
        """Measures of every class: IoU, Dice, precision, recall, boundary F."""
        return self._table("classes")

    @cached_property
    def images(self) -> pd.DataFrame:
        """Measures of every image."""
        return self._table("images")

    @cached_property
    def confusion(self) -> pd.DataFrame:
        """Pixels by class of truth and mask."""
        return self._table("confusion")

    @cached_property
    def objects(self) -> pd.DataFrame:
        """Objects matched, false and missed, by class and threshold."""
        return self._table("objects")

    @cached_property
    def areas(self) -> pd.DataFrame:
        """Mapped and error-adjusted area of every class."""
        return self._table("areas")

    def __repr__(self) -> str:
        return f"<Evaluation of {self.summary}>\n{self._found.table}"

    def _repr_html_(self) -> str:
        from maskloom.door.pictures import block, paragraph, table

        columns = ["iou", "dice", "precision", "recall", "boundary_f"]
        rows = self.classes[self.classes["image_id"].isna()]
        cells = [
            (row["class_name"], *("–" if row[c] != row[c] else f"{row[c]:.3f}" for c in columns))
            for row in rows.to_dict("records")
        ]
        head = ("class", "IoU", "Dice", "precision", "recall", "boundary F")
        notes = "".join(map(paragraph, (self.summary, *self.notes)))
        return block(f"<div>{table(head, cells)}{notes}</div>")

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        from maskloom.segcore.evaluation.tables import SCHEMAS

        return pd.DataFrame(self._rows[name], columns=SCHEMAS[name].names)

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        return self._found.result.rows()


@dataclass(frozen=True, eq=False)
class Changes(_Comparison):
    """What changed, as tables; their columns are in docs/change.md."""

    _found: Compared

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The pairs of images."""
        return self._table("pairs")

    @cached_property
    def transitions(self) -> pd.DataFrame:
        """Pixels and area by pair, class before and class after."""
        return self._table("change")

    @cached_property
    def spread(self) -> pd.DataFrame:
        """The spread of a class by pair and direction; empty unless asked for."""
        return self._table("spread")

    @property
    def folder(self) -> str:
        """Where tables, masks and picture are; what became of objects is in `tables/objects`."""
        return self._found.folder

    def __repr__(self) -> str:
        return f"<Changes in {self.summary}>\n{self._found.table}"

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        from maskloom.segcore.change.tables import SCHEMAS

        return pd.DataFrame(self._rows[name], columns=SCHEMAS[name].names)

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        return self._found.rows()
