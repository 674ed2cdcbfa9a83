"""The typical objects of an image, by which a model warns of images that do not suit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TypicalObjects:
    """Medians over the objects of an image by class name, of classes with objects."""

    sizes: Mapping[str, float] = field(default_factory=dict)
    """In pixels."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """0 to 1, to four digits; of classes whose objects have scores."""
