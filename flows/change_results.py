"""The results of a comparison: its tables and figures, for files and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.terminal import count
from maskloom.segcore.ground.amounts import amount
from maskloom.tasks.change import ComparedPair, PairFailure
from maskloom.tasks.change_pairs import Pair

if TYPE_CHECKING:
    from maskloom.segcore.change.legend import Legend
    from maskloom.segcore.change.spread import Spread

_MOST_LINES = 30
_HECTARE = 1e4


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """The results, and where they are."""

    legend: Legend
    pairs: tuple[Pair, ...]
    results: Mapping[int, ComparedPair | PairFailure]
    folder: str
    notes: tuple[str, ...] = ()
    spread: str | None = None
    days: float | None = None
    dated: bool = False
    """Whether the pairs are those of one output by date, which share images."""

    @property
    def compared(self) -> dict[int, ComparedPair]:
        """The pairs that were compared, by number."""
        return {i: each for i, each in self.results.items() if isinstance(each, ComparedPair)}

    @property
    def failed(self) -> dict[int, str]:
        """Why the other pairs were not, by number."""
        problems = {i: pair.problem for i, pair in enumerate(self.pairs) if pair.problem}
        broken = {
            i: each.reason for i, each in self.results.items() if isinstance(each, PairFailure)
        }
        return dict(sorted((problems | broken).items()))

    @property
    def table(self) -> str:
        """Gain, loss and net change of each class where both have data, as text."""
        unit, sums = self._sums
        heads: tuple[str, ...] = ("class", "before", "after", "gain", "loss", "net")
        rows: list[tuple[str, ...]] = []
        for i, name in enumerate(self.legend.classes.names):
            before, after, same = sums[i].sum(), sums[:, i].sum(), sums[i, i]
            net = after - before
            sign = "+" if net > 0 else "-" if net < 0 else ""
            sizes = (before, after, after - same, before - same)
            rows.append(
                (name, *(amount(float(n), unit) for n in sizes), sign + amount(abs(net), unit))
            )
        if self.dated:
            # An image is the later one of a pair and the earlier one of the next.
            heads, rows = (heads[0], *heads[3:]), [(row[0], *row[3:]) for row in rows]
        return _aligned(heads, rows)

    @property
    def spread_table(self) -> str:
        """The spread of a pair by direction, or of each of several pairs; empty without one."""
        rows = [
            (
                pair.name,
                each.sector,
                f"{each.area / _HECTARE:,.2f}",
                _number(_per_day(each.area / _HECTARE, days), 2),
                _number(each.greatest, 0),
                _number(_per_day(each.greatest, days), 0),
                _number(_per_day(each.mean, days), 0),
            )
            for pair, days, each in self._spreads()
            if len(self.compared) == 1 or each.sector == "all"
        ][:_MOST_LINES]
        heads = ("pair", "to", "ha", "ha/day", "max m", "max m/day", "mean m/day")
        return _aligned(heads, rows) if rows else ""

    @property
    def summary(self) -> str:
        """The main figures in one line."""
        unit, sums = self._sums
        changed, total = sums.sum() - np.trace(sums), sums.sum()
        share = f" ({changed / total:.1%})" if total else ""
        text = f"{count(len(self.compared), 'pair')}: {amount(float(changed), unit)}{share} changed"
        events = Counter[str]()
        for each in self.compared.values():
            events.update(each.events or {})
        said = ", ".join(f"{number} {event}" for event, number in sorted(events.items()))
        return f"{text}; objects: {said}" if said else text

    @property
    def _sums(self) -> tuple[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """The unit, and areas by class before and after; in pixels if units differ."""
        number = len(self.legend.classes.names)
        sums = np.zeros((number, number))
        changes = [each.change for each in self.compared.values()]
        units = {each.unit for each in changes}
        for each in changes:
            known = (each.before >= 0) & (each.after >= 0)
            sizes = each.areas if len(units) == 1 else each.pixels
            np.add.at(sums, (each.before[known], each.after[known]), sizes[known])
        return units.pop() if len(units) == 1 else "px", sums

    def _spreads(self) -> Iterator[tuple[Pair, float | None, Spread]]:
        for i, each in self.compared.items():
            for spread in each.change.spread:
                yield self.pairs[i], self.days_of(self.pairs[i]), spread

    def days_of(self, pair: Pair) -> float | None:
        """Days between both images of a pair. None: they are not known."""
        return pair.days if self.days is None else self.days

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the tables but `objects`, which workers write."""
        names = (*self.legend.classes.names, None)
        found: dict[str, list[dict[str, Any]]] = {"pairs": [], "change": [], "spread": []}
        failed = self.failed
        for i, pair in enumerate(self.pairs):
            result, run = self.results.get(i), pair.after.run_id if pair.after else None
            head = {"run_id": run, "pair": pair.name}
            change = result.change if isinstance(result, ComparedPair) else None
            found["pairs"].append(
                {
                    **head,
                    "image_a": pair.before.image_id,
                    "image_b": pair.after.image_id if pair.after else None,
                    "run_id_a": pair.before.run_id,
                    "status": "failed" if change is None else "ok",
                    "error": failed.get(i),
                    "acquired_a": pair.before.acquired,
                    "acquired_b": pair.after.acquired if pair.after else None,
                    "days": self.days_of(pair),
                    "warped": change and change.warped,
                    "mask_uri": change and change.mask,
                    "changed_area": change and change.changed,
                    "area_unit": change and change.unit,
                }
            )
            if change is None:
                continue
            for a, b, pixels, area in zip(
                *(each.tolist() for each in (change.before, change.after)),
                change.pixels.tolist(),
                change.areas.tolist(),
                strict=True,
            ):
                found["change"].append(
                    {
                        **head,
                        "from_class": names[a],
                        "to_class": names[b],
                        "pixel_count": pixels,
                        "area": area,
                        "area_unit": change.unit,
                    }
                )
            found["spread"] += [
                {**head, "class_name": self.spread, **_spread_row(each, self.days_of(pair))}
                for each in change.spread
            ]
        return found


def _spread_row(each: Spread, days: float | None) -> dict[str, Any]:
    return {
        "sector": each.sector,
        "pixel_count": each.pixels,
        "area": each.area,
        "area_unit": "m2",
        "days": days,
        "hectares_per_day": _per_day(each.area / _HECTARE, days),
        "max_advance_m": each.greatest,
        "mean_advance_m": each.mean,
        "max_metres_per_day": _per_day(each.greatest, days),
        "mean_metres_per_day": _per_day(each.mean, days),
        "front_length_m": each.front,
    }


def _per_day(amount: float | None, days: float | None) -> float | None:
    return None if amount is None or days is None or days <= 0 else amount / days


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text with aligned columns, numbers at the right."""
    wide = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    padded = []
    for first, *cells in (heads, *rows):
        numbers = [cell.rjust(n) for cell, n in zip(cells, wide[1:], strict=True)]
        padded.append("  ".join([first.ljust(wide[0]), *numbers]))
    return "\n".join(padded)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
