"""Progress: what the stages tell about how far they are. Who shows it, and how, is not their
concern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from maskloom.segcore.pipeline.jobs import Job, RunSettings
from maskloom.segcore.pipeline.records import PlannedImage


class Progress(Protocol):
    """Receives the stages' progress; called from several threads."""

    def start(self, stage: str, items: Sequence[PlannedImage], order: RunSettings) -> None:
        """A pass over these images begins."""
        ...

    def advance(self, job: Job) -> None:
        """A job of this pass is done."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, stage: str, items: Sequence[PlannedImage], order: RunSettings) -> None:
        """Nothing."""

    def advance(self, job: Job) -> None:
        """Nothing."""
