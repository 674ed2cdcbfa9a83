"""What the sections of the page of a run are made from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from maskloom.flows.report import charts
from maskloom.flows.report.cards import Cards, pictures_of, shown_images
from maskloom.flows.report.collect import Collected
from maskloom.flows.report.notable import Findings
from maskloom.tasks.output import Output

KINDS = {"kmeans": "k-means", "mean_shift": "mean shift", "mixture": "a Gaussian mixture"}
"""Segmenters in a sentence."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How far the output is."""

    left: int = 0
    """Images that a run still has to do."""
    at_work: bool = False
    """Whether a run is doing them now."""
    why: str = ""
    """Why the last run stopped. Empty: it did not, or that is not known."""
    when: str = ""
    """When the last finished run ended."""


@dataclass(frozen=True)
class RunSubject:
    """An output of masks, and what was found in it."""

    output: Output
    collected: Collected
    findings: Findings
    ending: Ending

    @property
    def root(self) -> str:
        """The location of the output."""
        return self.output.store.root

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the last run recorded: of its end, or of its plan where none has ended."""
        manifests = self.collected.manifests
        found: Mapping[str, Any] = (
            manifests[-1]["settings"] if manifests else self.collected.planned.get("settings", {})
        )
        return found

    @property
    def run_id(self) -> str:
        """The id of that run."""
        manifests = self.collected.manifests
        return str((manifests[-1] if manifests else self.collected.planned).get("run_id", ""))

    @property
    def written(self) -> Mapping[str, Any]:
        """The recipe of that run, as a person wrote it."""
        return self.settings.get("written") or {}

    @property
    def kind(self) -> str:
        """The segmenter."""
        return str(self.settings.get("segmenter", {}).get("kind", ""))

    @property
    def command(self) -> str:
        """The command that repeats that run, or continues it. Empty: unknown."""
        if not self.written:
            return ""
        changes = "".join(f" --set {shlex.quote(each)}" for each in self.written.get("changes", ()))
        file = self.written.get("file")
        if file:
            return f"maskloom run {shlex.quote(file)}{changes}"
        folder = shlex.quote(str(self.written.get("folder", ".")))
        return f"cd {folder}\nmaskloom run recipe.yaml{changes}   # the recipe below, saved there"

    @cached_property
    def shown(self) -> list[int]:
        """The images on the page, in their order."""
        return shown_images(self.findings)

    @cached_property
    def place(self) -> dict[int, int]:
        """The number of each of them on the page."""
        return {image: number for number, image in enumerate(self.shown)}

    @cached_property
    def pictures(self) -> tuple[dict[int, bytes], dict[int, tuple[bytes, bytes]]]:
        """Thumbnails and pairs of source and mask, by the number of the image."""
        return pictures_of(self.output, self.collected, self.findings, self.shown)

    @cached_property
    def cards(self) -> Cards:
        """Makes cards of images."""
        return Cards(self.collected, self.findings, self.pictures[0], self.place)

    @property
    def key(self) -> list[tuple[str, str]]:
        """Names and colours of the classes."""
        return [(name, charts.css(i)) for i, name in enumerate(self.collected.classes.names)]
