"""Events of alerts: a condition that has come true, or ended, or cannot be evaluated.

An alert is raised once and stays so until its end. Events are rows of the table `alerts`; the id of
each follows from its rule, its subject and how many came before it, so that a run that is killed
and started again finds the same ones. What has been sent is noted in a file of its own after it was
received, so every event arrives at least once, and again, with the same id, only if the process
died in between.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskloom.flows.alerting.measures import Case, cases
from maskloom.segcore.formulas import FormulaError
from maskloom.segcore.storage.records import read_table

if TYPE_CHECKING:
    from maskloom.flows.alerting.rules import Rule
    from maskloom.segcore.storage.store import Store
    from maskloom.tasks.output import Output

TABLE = "tables/alerts"
SENT = "runs/alerts"
"""Folder of notes on events that were received."""
SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("alert", pa.string()),
        ("of", pa.string()),
        ("subject", pa.string()),
        ("state", pa.string()),
        ("condition", pa.string()),
        ("reason", pa.string()),
        ("date", pa.date32()),
        ("at", pa.timestamp("us", "UTC")),
        ("sequence", pa.int64()),
        ("rule", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Event:
    """A change of an alert."""

    event_id: str
    alert: str
    of: str
    """image, zone or collection."""
    subject: str
    """Id of the image, number of the zone, or empty."""
    state: str
    """raised; ended; unknown: its condition could not be evaluated."""
    condition: str
    reason: str
    """The values that decided, or why there are none."""
    date: dt.date | None
    """Of the image, or the last one of zone or collection."""
    at: dt.datetime
    """When it was found."""
    sequence: int
    """Number of the event among those of its rule and subject."""
    rule: str
    """Digest of the rule."""

    @property
    def text(self) -> str:
        """One line for people."""
        what = {"image": self.subject, "zone": f"zone {self.subject}"}.get(self.of, "all images")
        return f"{self.alert} {self.state} for {what}: {self.condition} ({self.reason})"


def new_events(output: Output, rules: Sequence[Rule], now: dt.datetime) -> Iterator[Event]:
    """The events that the tables show and that are not on record. Raises `DamagedRecord`,
    `StoreError`.
    """
    before = states(output.store)
    for rule in rules:
        digest = _digest(asdict(rule))
        for case in cases(output, rule):
            last = before.get((digest, case.subject))
            state, condition, reason = _state(rule, case, last)
            if state is None or (last and (state, reason) == (last.state, last.reason)):
                continue
            if last and state == last.state == "raised":
                continue
            sequence = last.sequence + 1 if last else 0
            yield Event(
                _digest([digest, case.subject, sequence]),
                rule.name,
                rule.of,
                case.subject,
                state,
                condition,
                reason,
                case.date,
                now,
                sequence,
                digest,
            )


def _state(rule: Rule, case: Case, last: Event | None) -> tuple[str | None, str, str]:
    """State, condition and reason now; no state: nothing to say."""
    raised = last is not None and last.state == "raised"
    condition = rule.until if raised and rule.until else rule.when
    try:
        for key in sorted(rule.needs() & case.unknown.keys()):
            raise FormulaError(f"{'.'.join(key)} is not known: {case.unknown[key]}")
        holds = rule.holds(condition, case.values)
    except FormulaError as error:
        return "unknown", condition, str(error)
    if raised:
        ended = holds if rule.until else not holds
        return ("ended" if ended else "raised"), condition, _reason(rule, case)
    if holds:
        return "raised", condition, _reason(rule, case)
    return ("ended" if last is not None and last.state == "unknown" else None), condition, "false"


def _reason(rule: Rule, case: Case) -> str:
    """The values that the conditions name."""
    return ", ".join(
        f"{'.'.join(key)} = {_written(case.values[key])}" for key in sorted(rule.needs())
    )


def _written(quantity: Any) -> str:
    from maskloom.segcore.ground.amounts import amount

    metres, pixels, days = quantity.dimension
    per = "/day" if days == -1 else ""
    table = {2: ("m2", 1.0), 3: ("mm3", 1e9)}.get(metres, ("px", 1.0) if pixels else None)
    if table is None:
        return f"{quantity.value:.4g}{per}"
    sign = "-" if quantity.value < 0 else ""
    return f"{sign}{amount(abs(quantity.value) * table[1], table[0])}{per}"


def states(store: Store) -> dict[tuple[str, str], Event]:
    """The last event of each rule and subject."""
    found: dict[tuple[str, str], Event] = {}
    for event in recorded(store):
        key = event.rule, event.subject
        if key not in found or event.sequence > found[key].sequence:
            found[key] = event
    return found


def recorded(store: Store) -> list[Event]:
    """All events on record, each once."""
    found: dict[str, Event] = {}
    for name in store.names(TABLE, ".parquet"):
        for row in read_table(store, name).to_pylist():
            found.setdefault(row["event_id"], Event(**row))
    return sorted(found.values(), key=lambda event: (event.at, event.event_id))


def record(store: Store, events: Sequence[Event]) -> None:
    """Add events to the table. Raises `StoreError`."""
    if not events:
        return
    table = pa.Table.from_pylist([asdict(event) for event in events], SCHEMA)
    content = io.BytesIO()
    pq.write_table(table, content)
    name = _digest([event.event_id for event in events])
    store.publish(f"{TABLE}/{name}.parquet", content.getvalue())


def unsent(store: Store) -> list[Event]:
    """Events that nobody has been told of yet; unknown ones are only on record."""
    sent = {name.rpartition("/")[2] for name in store.names(SENT, ".json")}
    return [
        event
        for event in recorded(store)
        if event.state != "unknown" and f"{event.event_id}.json" not in sent
    ]


def note_sent(store: Store, event: Event, channels: Iterable[str]) -> None:
    """Note that an event was received."""
    note: Mapping[str, Any] = {"event": event.event_id, "channels": list(channels)}
    store.publish(f"{SENT}/{event.event_id}.json", json.dumps(note).encode())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
