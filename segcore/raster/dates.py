"""When images were acquired: dates in metadata and in names of files.

Times are kept as text in UTC (`2026-05-13T10:20:31Z`, ISO 8601), which sorts by time and goes into
plans. A time without a zone counts as UTC, since nothing tells where it was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from maskloom.segcore.storage.addresses import without_query

_FIELDS = {
    "%Y": r"\d{4}",
    "%y": r"\d{2}",
    "%m": r"\d{2}",
    "%d": r"\d{2}",
    "%j": r"\d{3}",
    "%H": r"\d{2}",
    "%M": r"\d{2}",
    "%S": r"\d{2}",
    "%f": r"\d{1,6}",
    "%b": r"[A-Za-z]{3}",
    "%B": r"[A-Za-z]{3,9}",
    "%z": r"(?:Z|[+-]\d{2}:?\d{2})",
    "%%": "%",
}
"""The parts of a pattern, as in `datetime.strptime`, and the text that each may match."""
_FIRST_YEAR = 1800
_DIGITAL = re.compile(r"\s*(\d{4})[:\-/.](\d{2})[:\-/.](\d{2})(?:[ T]+(\d{2}):(\d{2}):(\d{2}))?")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_ISO_FRACTION = re.compile(r"(\.\d{6})\d+")
_OFFSET = re.compile(r"\s*([+-])(\d{2}):?(\d{2})\s*")


def utc_text(moment: datetime) -> str | None:
    """A time as text in UTC; None for years before 1800, which are clocks that were never set.

    >>> utc_text(datetime(2026, 5, 13, 12, 0))
    '2026-05-13T12:00:00Z'
    """
    try:
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        return None
    if moment.year < _FIRST_YEAR:
        return None
    return moment.replace(tzinfo=None).isoformat() + "Z"


def from_iso(text: object) -> str | None:
    """A date or time in ISO 8601 or RFC 3339 as text in UTC; None for anything else.

    >>> from_iso("2026-05-13T12:20:31.5+02:00"), from_iso("2026-05-13"), from_iso("now")
    ('2026-05-13T10:20:31.500000Z', '2026-05-13T00:00:00Z', None)
    """
    if not isinstance(text, str) or not _ISO_DATE.match(text.strip()):
        return None
    try:
        return utc_text(datetime.fromisoformat(_ISO_FRACTION.sub(r"\1", text.strip())))
    except ValueError:
        return None


def from_tag(text: object, offset: object = None) -> str | None:
    """A time as in TIFF and EXIF (`2026:05:13 12:20:31`), or in ISO 8601, as text in UTC; `offset`
    is its zone, as in EXIF (`+02:00`). None for anything else, as for `0000:00:00 00:00:00`.

    >>> from_tag("2026:05:13 12:20:31", "+02:00"), from_tag("    :  :     :  :  ")
    ('2026-05-13T10:20:31Z', None)
    """
    if not isinstance(text, str):
        return None
    text = text.strip("\0 \t\r\n")
    if (exact := from_iso(text)) is not None and not offset:
        return exact
    found = _DIGITAL.match(text)
    if found is None:
        return None
    zone = _OFFSET.fullmatch(offset) if isinstance(offset, str) else None
    after = f"{zone[1]}{zone[2]}:{zone[3]}" if zone else ""
    year, month, day, *clock = (each or "00" for each in found.groups())
    return from_iso(f"{year}-{month}-{day}T{':'.join(clock)}{after}")


@dataclass(frozen=True, slots=True)
class DateInName:
    """A date that names of files hold, as a pattern of `datetime.strptime`."""

    name: str
    """It is searched in the name of the file, or in the whole path if it has a slash."""

    def __post_init__(self) -> None:
        _compiled(self.name)

    def find(self, uri: str) -> str | None:
        """The first date in a URI that fits, as text in UTC; None if there is none.

        >>> DateInName("%Y%m%dT%H%M%S").find("s3://in/S2A_MSIL2A_20260513T100031_N0500.tif")
        '2026-05-13T10:00:31Z'
        >>> DateInName("%Y/%m/%d/").find("in/2026/05/13/a.tif"), DateInName("%Y%m").find("a.tif")
        ('2026-05-13T00:00:00Z', None)
        """
        path = without_query(uri.partition("#part=")[0])
        text = path if "/" in self.name else path.rstrip("/").rpartition("/")[2]
        for found in _compiled(self.name).finditer(text):
            try:
                moment = datetime.strptime(found[1], self.name)
            except ValueError:
                # Other digits of the same length: a number, or the 31st of June.
                continue
            if (said := utc_text(moment)) is not None:
                return said
        return None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern. Raises `ValueError`."""
    parts = re.findall(r"%.?|[^%]+", pattern)
    unknown = [each for each in parts if each.startswith("%") and each not in _FIELDS]
    if unknown:
        known = " ".join(each for each in _FIELDS if each != "%%")
        raise ValueError(f"expected a date made of {known} and other letters; got {unknown[0]!r}")
    fields = [each for each in parts if each.startswith("%") and each != "%%"]
    if not {"%Y", "%y"} & set(fields):
        raise ValueError("expected a date with a year, e.g. '%Y%m%d' or '%Y-%j'")
    twice = next((each for each in fields if fields.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each part of a date once; got {twice!r} twice")
    day = bool({"%d", "%j"} & set(fields))
    if ("%H" in fields and not day) or ("%d" in fields and not {"%m", "%b", "%B"} & set(fields)):
        raise ValueError("expected a day with its month, and a time with its day")
    text = "".join(_FIELDS[each] if each in _FIELDS else re.escape(each) for each in parts)
    # Digits of a longer number are no date. The lookahead finds dates that overlap.
    before = r"(?<!\d)" if parts[0] in _FIELDS else ""
    after = r"(?!\d)" if parts[-1] in _FIELDS else ""
    return re.compile(f"(?={before}({text}){after})")
