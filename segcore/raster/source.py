"""The input files of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

ABSENT = "absent"
"""Version of a file that is named and does not exist."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    uri: str
    image_id: str
    version: str
    """Changes when its bytes change."""
    size: int
    """Bytes."""
    address: str | None = field(default=None, repr=False, compare=False)
    """Where its bytes are read, if not at `uri` (see `segcore.storage.addresses`). It goes with
    jobs, and is never written.
    """
