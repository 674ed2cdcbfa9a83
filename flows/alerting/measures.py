"""What conditions of alerts are about: areas, shares, objects and growth of classes by image, by
zone, and of the collection, from the tables of an output.

Where images have dates, zones and the collection are what they were on the last one (a day in UTC),
and `growth` is the change since the date before, per day. Without dates they are sums over all
images, and growth is not known.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from maskloom.flows.alerting.quantities import UNITS, Quantity

if TYPE_CHECKING:
    from maskloom.flows.alerting.rules import Measured, Rule
    from maskloom.tasks.output import Output

    Date = dt.date | None

_COLUMNS = ("image_id", "class_name", "pixel_count", "area", "area_unit")


@dataclass(frozen=True, slots=True)
class Case:
    """One image, zone or collection, and what is known of it."""

    subject: str
    """Id of the image, number of the zone, or empty."""
    values: Measured
    unknown: Mapping[tuple[str, str], str]
    """Why a value is not known."""
    date: Date = None


@dataclass(slots=True)
class _Sums:
    """Sums of one class."""

    area: float = 0.0
    pixels: float = 0.0
    objects: int = 0
    largest: float = 0.0
    unit: str = ""


_Classes = defaultdict[str, _Sums]


def cases(output: Output, rule: Rule) -> Iterator[Case]:
    """The cases of a rule, in order. Raises `DamagedRecord`, `StoreError`."""
    images = output.images()
    dates = _dates(images.filter(pc.equal(images["status"], "ok")))
    wanted = {name for name, _ in rule.needs()}
    found = {"image": _of_images, "zone": _of_zones, "collection": _of_all}[rule.of]
    yield from found(output, rule, dates, wanted)


def _of_images(
    output: Output, rule: Rule, dates: Mapping[str, Date], wanted: set[str]
) -> Iterator[Case]:
    objects = _objects(output, rule)
    for table in output.tables("areas", _COLUMNS):
        for image_id, sums in sorted(_by(table.to_pylist(), "image_id").items()):
            if image_id in dates:
                _add_objects(sums, objects.get(image_id, {}))
                yield _case(image_id, sums, wanted, dates[image_id])


def _of_zones(
    output: Output,
    rule: Rule,  # noqa: ARG001  as the others
    dates: Mapping[str, Date],
    wanted: set[str],
) -> Iterator[Case]:
    series: dict[str, dict[Date, _Classes]] = defaultdict(dict)
    for table in output.tables("zones"):
        for row in table.to_pylist():
            if row["image_id"] in dates and row["class_name"] is not None:
                of_zone = series[str(row["zone"])]
                sums = of_zone.setdefault(dates[row["image_id"]], defaultdict(_Sums))
                _add(sums[row["class_name"]], row["area"], row["pixels"], row["area_unit"])
    for zone in sorted(series, key=int):
        yield _last(zone, series[zone], wanted)


def _of_all(
    output: Output, rule: Rule, dates: Mapping[str, Date], wanted: set[str]
) -> Iterator[Case]:
    whole: dict[Date, _Classes] = {}
    for table in output.tables("areas", _COLUMNS):
        for row in table.to_pylist():
            if row["image_id"] in dates:
                sums = whole.setdefault(dates[row["image_id"]], defaultdict(_Sums))
                _add(sums[row["class_name"]], row["area"], row["pixel_count"], row["area_unit"])
    for image_id, found in _objects(output, rule).items():
        if image_id in dates:
            _add_objects(whole[dates[image_id]], found)
    if whole:
        yield _last("", whole, wanted)


def _dates(images: pa.Table) -> dict[str, Date]:
    """The date of each image."""
    ids = images["image_id"].to_pylist()
    if "acquired" not in images.column_names:
        return dict.fromkeys(ids)
    times = images["acquired"].to_pylist()
    return {
        image_id: None if time is None else time.astimezone(dt.UTC).date()
        for image_id, time in zip(ids, times, strict=True)
    }


def _by(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, _Classes]:
    found: dict[str, _Classes] = defaultdict(lambda: defaultdict(_Sums))
    for row in rows:
        sums = found[row[key]][row["class_name"]]
        _add(sums, row["area"], row["pixel_count"], row["area_unit"])
    return found


def _objects(output: Output, rule: Rule) -> dict[str, dict[str, tuple[int, float]]]:
    """Number and largest area of the objects of each image and class, if the rule needs them."""
    if not any(measure in ("objects", "largest") for _, measure in rule.needs()):
        return {}
    found: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
    for table in output.tables("objects", ("image_id", "class_name", "area")):
        sums = table.group_by(["image_id", "class_name"], use_threads=False).aggregate(
            [("area", "count"), ("area", "max")]
        )
        for row in sums.to_pylist():
            number, largest = found[row["image_id"]].get(row["class_name"], (0, 0.0))
            found[row["image_id"]][row["class_name"]] = (
                number + row["area_count"],
                max(largest, row["area_max"] or 0.0),
            )
    return found


def _add(sums: _Sums, area: float, pixels: float, unit: str) -> None:
    sums.area += area
    sums.pixels += pixels
    sums.unit = unit if sums.unit in ("", unit) else "px"


def _add_objects(sums: _Classes, found: Mapping[str, tuple[int, float]]) -> None:
    for name, (number, largest) in found.items():
        sums[name].objects += number
        sums[name].largest = max(sums[name].largest, largest)


def _last(subject: str, series: Mapping[Date, _Classes], wanted: set[str]) -> Case:
    """The case on the last date, with its growth since the date before."""
    dated = sorted(date for date in series if date is not None)
    if not dated:
        return _case(subject, series[None], wanted, None)
    case = _case(subject, series[dated[-1]], wanted, dated[-1])
    if len(dated) == 1:
        return case
    before = _case(subject, series[dated[-2]], wanted, dated[-2])
    days = (dated[-1] - dated[-2]).days
    growth = {}
    for name in wanted:
        ours, theirs = case.values[name, "area"], before.values[name, "area"]
        if ours.dimension == theirs.dimension:
            rate = (ours.value - theirs.value) / days
            growth[name, "growth"] = Quantity(rate, (*ours.dimension[:2], -1))
    unknown = {key: why for key, why in case.unknown.items() if key not in growth}
    return Case(subject, {**case.values, **growth}, unknown, case.date)


def _case(subject: str, sums: _Classes, wanted: set[str], date: Date) -> Case:
    values: dict[tuple[str, str], Quantity] = {}
    unknown: dict[tuple[str, str], str] = {}
    total = sum(each.area for each in sums.values())
    unit = next((each.unit for each in sums.values() if each.unit), "px")
    for name in wanted:
        found = sums[name]
        size = UNITS[unit]
        values[name, "area"] = Quantity(found.area * size.value, size.dimension)
        values[name, "largest"] = Quantity(found.largest * size.value, size.dimension)
        values[name, "pixels"] = Quantity(found.pixels)
        values[name, "objects"] = Quantity(float(found.objects))
        if total:
            values[name, "share"] = Quantity(found.area / total)
        else:
            unknown[name, "share"] = "nothing has a class"
        unknown[name, "growth"] = (
            "there is no earlier date" if date is not None else "the images have no dates"
        )
    return Case(subject, values, unknown, date)
