"""Schedules of recipes as a Prefect server counts them, also on the days when clocks change; and
what is said where no server can be reached.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.flows.orchestration.deployments import connected, when
from maskloom.flows.recipes.schedule import Schedule
from maskloom.segcore.errors import RunError

ZURICH = ZoneInfo("Europe/Zurich")
SPRING, AUTUMN = "2026-03-29", "2026-10-25"
"""Days of 23 and of 25 hours: 02:00-03:00 does not exist, and comes twice."""


def runs(day: str, end: str = "", **schedule: str) -> list[str]:
    """Local times of the runs that a server schedules from midnight of a day in Zurich on, up to
    midnight of the next day or of `end`.
    """
    from prefect.server.schemas import schedules

    sent = when(Schedule(**schedule, timezone="Europe/Zurich"))
    kind = getattr(schedules, type(sent).__name__)
    received = kind.model_validate(sent.model_dump(mode="json"))
    start = datetime.fromisoformat(day).replace(tzinfo=ZURICH)
    last = datetime.fromisoformat(end or day).replace(tzinfo=ZURICH, hour=23, minute=59)
    times = asyncio.run(received.get_dates(n=100, start=start, end=last))
    return [time.astimezone(ZURICH).strftime("%d %H:%M %z") for time in times]


def test_a_daily_cron_in_the_hour_that_does_not_exist_runs_an_hour_later():
    assert runs(SPRING, cron="30 2 * * *") == ["29 03:30 +0200"]


def test_a_daily_cron_in_the_hour_that_comes_twice_runs_once():
    assert runs(AUTUMN, cron="30 2 * * *") == ["25 02:30 +0200"]


@pytest.mark.parametrize(("day", "count"), [(SPRING, 23), (AUTUMN, 24)])
def test_an_hourly_cron_follows_the_clock_on_the_wall(day, count):
    assert len(runs(day, cron="15 * * * *")) == count


@pytest.mark.parametrize(("day", "count"), [(SPRING, 23), (AUTUMN, 25)])
def test_intervals_below_a_day_are_elapsed_time(day, count):
    assert len(runs(day, interval="1h")) == count
    offsets = [datetime.strptime(time, "%d %H:%M %z") for time in runs(day, interval="30m")]
    assert {(b - a).total_seconds() for a, b in pairwise(offsets)} == {1800}


@pytest.mark.parametrize("interval", ["1d", "24h"])
def test_intervals_from_a_day_on_are_days_of_the_calendar(interval):
    assert runs("2026-03-28", "2026-03-30", interval=interval) == [
        "28 00:00 +0100",
        "29 00:00 +0100",
        "30 00:00 +0200",
    ]


def test_intervals_are_counted_from_midnight_whenever_the_service_starts():
    assert runs("2026-01-12", interval="6h") == [
        f"12 {hour:02}:00 +0100" for hour in (0, 6, 12, 18)
    ]
    assert runs("2026-01-12", "2026-01-19", interval="1w") == ["12 00:00 +0100", "19 00:00 +0100"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "No Prefect server is configured.*PREFECT_API_URL"),
        ("http://127.0.0.1:9/api", r"127\.0\.0\.1:9/api does not answer.*PREFECT_API_URL"),
    ],
)
def test_a_server_that_cannot_be_reached_is_said(url, message):
    from prefect.settings import temporary_settings

    with (
        temporary_settings({"api.url": url}),
        pytest.raises(RunError, match=message),
        connected(),
    ):
        pass


@pytest.mark.parametrize("command", [("serve",), ("deploy", "--pool", "machines")])
def test_recipes_are_checked_before_the_server_is_asked(command, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inputs: in\noutput: out\nsegmenter: threshold\nschedule: {interval: 36h}\n")
    said = CliRunner().invoke(app, [*command, str(recipe)])
    assert said.exit_code == 2
    assert "schedule.interval: expected up to 24 hours or whole days, got '36h'" in said.stderr
    recipe.write_text("inputs: in\noutput: out\nsegmenter: threshold\n")
    if command == ("serve",):
        said = CliRunner().invoke(app, ["serve", str(recipe), str(recipe)])
        assert (said.exit_code, "Two recipes are named recipe" in said.stderr) == (2, True)
    signed = "inputs=https://host/a.tif?X-Amz-Signature=c0ffee"
    said = CliRunner().invoke(app, [*command, str(recipe), "--set", signed])
    assert (said.exit_code, "c0ffee" in said.stderr) == (2, False)
    assert "stores changes as plain text" in said.stderr
