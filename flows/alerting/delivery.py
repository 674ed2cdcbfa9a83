"""Telling people: webhooks, and what Prefect ships (events, mail, chat)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from maskloom.flows.alerting.events import Event

log = logging.getLogger("maskloom.alerts")

_SECONDS = 10.0
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Channel:
    """Where events are sent: one of both."""

    webhook: str = ""
    """Address that gets a POST with the event as JSON."""
    block: str = ""
    """Name of a notification block of Prefect, such as slack-webhook/fire."""

    @property
    def name(self) -> str:
        """For messages. The path of a webhook is often its secret."""
        if self.webhook:
            return f"webhook at {urlsplit(self.webhook).hostname}"
        return f"block {self.block}"

    def send(self, event: Event, output: str) -> None:
        """Send an event. Raises whatever the other side or the network does."""
        if self.webhook:
            _post(self.webhook, event, output)
        else:
            _notify(self.block, event, output)


def payload(event: Event, output: str) -> dict[str, Any]:
    """The event as JSON has it."""
    values = asdict(event)
    values |= {"at": event.at.isoformat(), "date": event.date and event.date.isoformat()}
    return {**values, "text": event.text, "output": redacted(output)}


def send(event: Event, channels: Sequence[Channel], output: str) -> list[str]:
    """Send an event to all channels; what went wrong, by channel."""
    faults = []
    for channel in channels:
        for attempt in range(1, _TRIES + 1):
            try:
                channel.send(event, output)
                break
            except Exception as error:  # noqa: BLE001  no fault of others may fail a run
                if attempt == _TRIES:
                    faults.append(f"{channel.name}: {_reason(error)}")
    return faults


def _reason(error: Exception) -> str:
    """What went wrong, without the address, which the messages of libraries hold."""
    answer = getattr(error, "response", None)
    return f"it answered {answer.status_code}" if answer is not None else type(error).__name__


def _post(address: str, event: Event, output: str) -> None:
    import httpx

    answer = httpx.post(
        address,
        json=payload(event, output),
        headers={"Idempotency-Key": event.event_id},
        timeout=_SECONDS,
    )
    answer.raise_for_status()


def _notify(block: str, event: Event, output: str) -> None:
    from prefect.blocks.core import Block

    found: Any = Block.load(block)
    found.notify(f"{event.text}\n{redacted(output)}", f"maskloom: {event.alert} {event.state}")
