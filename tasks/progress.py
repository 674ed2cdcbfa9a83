"""The progress that stages report while they work. `flows.progress.run` shows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from maskloom.segcore.pipeline.jobs import Job, RunSettings
from maskloom.segcore.pipeline.records import PlannedImage


class Progress(Protocol):
    """Receives the progress of stages; called from several threads."""

    def start(self, stage: str, images: Collection[PlannedImage], settings: RunSettings) -> None:
        """A pass over these images begins."""
        ...

    def advance(self, job: Job) -> None:
        """A job of this pass is done."""
        ...

    def position(self) -> Mapping[str, Any]:
        """How far the present pass is, as JSON values; empty before the first."""
        ...


class Silent:
    """Progress that is not shown."""

    def start(self, stage: str, images: Collection[PlannedImage], settings: RunSettings) -> None:
        """Nothing is shown."""

    def advance(self, job: Job) -> None:
        """Nothing is shown."""

    def position(self) -> Mapping[str, Any]:
        """Nothing is known."""
        return {}
