"""The alerts of a run: found at its end, recorded, and sent."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.flows.alerting.delivery import payload, send
from maskloom.flows.alerting.events import Event, new_events, note_sent, record, unsent
from maskloom.flows.terminal import count
from maskloom.tasks.output import Output

if TYPE_CHECKING:
    from maskloom.flows.alerting.delivery import Channel
    from maskloom.flows.alerting.rules import Rule
    from maskloom.flows.stages import Stages

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Watch:
    """What the alerts of a run have come to."""

    events: tuple[Event, ...]
    """New ones."""
    faults: tuple[str, ...]
    """What could not be sent, and why."""

    @property
    def lines(self) -> list[str]:
        """Lines for users."""
        found = [f"alert: {event.text}" for event in self.events[:_SHOWN]]
        if len(self.events) > _SHOWN:
            more = count(len(self.events) - _SHOWN, "alert")
            found.append(f"... and {more} more: see the table `alerts`")
        found += [f"not sent: {fault}" for fault in self.faults[:_SHOWN]]
        if self.faults:
            found.append("the next run sends them again")
        return found


def watch(
    location: str, rules: Sequence[Rule], channels: Sequence[Channel], stages: Stages
) -> Watch:
    """Find, record and send the alerts of an output. Raises `DamagedRecord`, `StoreError`."""
    output = Output.open(location)
    events = tuple(new_events(output, rules, dt.datetime.now(dt.UTC)))
    record(output.store, events)
    faults = []
    for event in unsent(output.store):
        stages.emit(f"maskloom.alert.{event.state}", event.alert, payload(event, location))
        wrong = send(event, channels, location)
        faults += [f"{event.alert}: {each}" for each in wrong]
        if not wrong:
            note_sent(output.store, event, [channel.name for channel in channels])
    return Watch(events, tuple(faults))


def foreseen(location: str, rules: Sequence[Rule]) -> list[Event]:
    """The events that a run would find now; nothing is written or sent."""
    return list(new_events(Output.open(location), rules, dt.datetime.now(dt.UTC)))
