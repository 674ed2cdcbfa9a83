"""Dates in names and in metadata."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.raster.dates import DateInName, from_iso, from_tag, utc_text

MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)).map(
    lambda moment: moment.replace(microsecond=0)
)
PATTERNS = ("%Y%m%d", "%Y-%m-%d", "%Y%j", "%Y_%b_%d", "%Y%m%dT%H%M%S", "%d.%m.%Y %H-%M-%S")


@given(MOMENTS, st.sampled_from(PATTERNS), st.sampled_from(["", "S2A_", "7x"]))
def test_a_date_is_found_as_strftime_has_written_it(moment, pattern, before):
    name = f"in/{before}{moment.strftime(pattern)}_0042.tif"
    expected = datetime.strptime(moment.strftime(pattern), pattern)
    assert DateInName(pattern).find(name) == utc_text(expected)


@given(MOMENTS, st.integers(-14 * 60, 14 * 60))
def test_a_time_with_a_zone_is_taken_to_utc(moment, minutes):
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = zoned.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert from_iso(zoned.isoformat()) == expected
    offset = zoned.isoformat()[-6:]
    assert from_tag(moment.strftime("%Y:%m:%d %H:%M:%S"), offset) == expected


@given(st.text(max_size=30))
def test_any_text_is_a_date_or_none(text):
    for found in (from_iso(text), from_tag(text), from_tag("2026:05:13 10:00:31", text)):
        assert found is None or datetime.fromisoformat(found).tzinfo is UTC


@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("LC08_L2SP_192031_20200514_20200820.tif", "%Y%m%d", "2020-05-14T00:00:00Z"),
        ("tile_20261399.tif", "%Y%m%d", None),
        ("tile_120260513.tif", "%Y%m%d", None),
        ("a/20260101/b.tif", "%Y%m%d", None),
        ("a/2026/05/13/b_20200101.tif", "%Y/%m/%d/", "2026-05-13T00:00:00Z"),
        ("scan_20260513.nii.gz#part=t20200101/9", "%Y%m%d", "2026-05-13T00:00:00Z"),
        ("https://host/a_20260513.tif?v=20200101", "%Y%m%d", "2026-05-13T00:00:00Z"),
    ],
)
def test_only_dates_are_found(name, pattern, found):
    assert DateInName(pattern).find(name) == found


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("%m%d", "with a year"),
        ("%Y%q", "got '%q'"),
        ("%Y%Y", "got '%Y' twice"),
        ("%Y%d", "a day with its month"),
        ("%Y%H", "a time with its day"),
        ("S2_", "with a year"),
    ],
)
def test_a_pattern_that_is_no_date_is_refused(pattern, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        DateInName(pattern)
