"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from maskloom.flows.terminal import count, pixels
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.pipeline.records import Failure


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The total area, or volume, of a class."""

    name: str
    size: str
    """With its unit."""
    share: float
    """Of all classes in this unit."""
    kind: str
    """Area or volume."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    run_id: str
    done: int
    failed: int
    pixels: int
    failures: tuple[tuple[str, Failure], ...] = ()
    """URI and reason of the first failures."""
    areas: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Total area of each class in these images, by its name and the unit."""
    inputs: frozenset[str] = frozenset()
    """URIs of the files, folders and series in which its images are."""
    unit: str = "megapixels"
    """The unit for sums of its pixels: megavoxels if all images are volumes."""

    @property
    def classes(self) -> list[ClassRow]:
        """The classes that were found, the largest first."""
        totals: dict[str, float] = {}
        for (_, unit), size in self.areas.items():
            totals[unit] = totals.get(unit, 0.0) + size
        found = sorted(((size, *key) for key, size in self.areas.items() if size), reverse=True)
        return [
            ClassRow(
                name,
                amount(size, unit),
                size / totals[unit],
                "volume" if unit == "mm3" else "area",
            )
            for size, name, unit in found
        ]

    def __str__(self) -> str:
        """How many images are done and failed, and their size."""
        size = pixels(self.pixels, self.unit)
        return f"{count(self.done, 'image')} done, {self.failed} failed, {size}"
