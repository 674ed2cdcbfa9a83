"""The section `schedule` of a run recipe."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import available_timezones

import pydantic

from maskloom.flows.recipes.messages import did_you_mean
from maskloom.flows.recipes.yaml_files import shown

_CRON_FIELDS = 5
_ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)
_MINUTES = {"m": 1, "h": 60, "d": 24 * 60, "w": 7 * 24 * 60}
_DAY = timedelta(days=1)


def _interval(text: str) -> timedelta:
    """The interval of a text like 6h. Raises `ValueError` if it is none that a calendar can hold:
    36 hours would be neither elapsed time nor days.
    """
    match = re.fullmatch(r"([1-9]\d{0,5}) ?([mhdw])", text.strip())
    if match is None:
        raise ValueError(
            f"expected a whole number and a unit (m, h, d or w), e.g. 6h, got {shown(text)}"
        )
    interval = timedelta(minutes=int(match[1]) * _MINUTES[match[2]])
    if interval > _DAY and interval % _DAY:
        raise ValueError(f"expected up to 24 hours or whole days, got {shown(text)}")
    return interval


class Schedule(pydantic.BaseModel):
    """When `maskloom serve` or a work pool runs the recipe: either `cron` or `interval`. `maskloom
    run` checks it and runs the recipe at once.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "if": {"required": ["cron"]},
            "then": {"not": {"required": ["interval"]}},
            "else": {"required": ["interval"]},
        },
    )

    cron: str = ""
    """Five fields: minute, hour, day of the month, month, day of the week."""
    interval: str = ""
    """A whole number and a unit: m, h, d or w; e.g. 6h. Counted from midnight, on a Monday for
    weeks. Below a day in elapsed time, from a day on in days of the calendar.
    """
    timezone: str = "UTC"
    """Name in the IANA time zone database, e.g. Europe/Vienna."""

    @property
    def every(self) -> timedelta | None:
        """The interval. None: there is a cron."""
        return _interval(self.interval) if self.interval else None

    def __str__(self) -> str:
        return f"{self.cron or f'every {self.interval}'}, {self.timezone}"

    @pydantic.field_validator("cron")
    @classmethod
    def _happens(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError

        wanted = (
            "expected five fields (minute, hour, day of the month, month, day of the week), e.g. "
            "'0 3 * * *'"
        )
        # CronSim would read a sixth field as seconds.
        if len(value.split()) != _CRON_FIELDS:
            raise ValueError(f"{wanted}, got {shown(value)}")
        try:
            next(CronSim(value, _ANY_TIME))
        except CronSimError as error:
            raise ValueError(f"{wanted}, got {shown(value)}: {str(error).lower()}") from error
        except StopIteration:
            raise ValueError(f"{shown(value)} never happens") from None
        return value

    @pydantic.field_validator("interval")
    @classmethod
    def _is_regular(cls, value: str) -> str:
        _interval(value)
        return value

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> Schedule:
        if bool(self.cron) == bool(self.interval):
            raise ValueError("expected either cron or interval")
        return self

    @pydantic.field_validator("timezone")
    @classmethod
    def _exists(cls, value: str) -> str:
        zones = available_timezones()
        if value not in zones:
            raise ValueError(
                "expected a time zone, e.g. Europe/Vienna, got "
                f"{shown(value)}.{did_you_mean(value, zones)}"
            )
        return value
