"""When a DICOM file was acquired."""

from __future__ import annotations

import re

from maskloom.segcore.formats.dicom.header import Header, text
from maskloom.segcore.raster.dates import from_tag

_MOMENTS = ("Acquisition", "Content", "Series", "Study")
"""What has a date and a time, the closest to the acquisition first."""
_DATE_AND_TIME = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})(?:(\d{2}):?(\d{2}):?(\d{2})?)?")
_ZONE = re.compile(r"[+-]\d{4}$")


def acquired(header: Header) -> str | None:
    """The time as text in UTC (`segcore.raster.dates`); None if the file states none.

    DA, TM and DT as in PS3.5, 6.2; a time without a zone has that of TimezoneOffsetFromUTC.
    """
    elements = header.elements
    zone = text(elements, "TimezoneOffsetFromUTC")
    said = [text(elements, "AcquisitionDateTime")]
    said += [text(elements, f"{each}Date") + text(elements, f"{each}Time") for each in _MOMENTS]
    for moment in said:
        found = _DATE_AND_TIME.match(moment)
        if found is None:
            continue
        year, month, day, *clock = (each or "00" for each in found.groups())
        own = _ZONE.search(moment)
        told = from_tag(f"{year}:{month}:{day} {':'.join(clock)}", own[0] if own else zone)
        if told is not None:
            return told
    return None
