"""Engine selections are found and made wherever they are inside a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from maskloom.segcore.models.protocols import Exactness, Requirements
from maskloom.segcore.models.selection import pending_selections, with_selections
from maskloom.segcore.segmenters.ensemble import EnsembleModel
from maskloom.segcore.segmenters.threshold import ThresholdModel


@dataclass(frozen=True, slots=True)
class Chooses:
    """A segmenter with an open choice of this name."""

    name: str
    made: str | None = None

    requirements: ClassVar[Requirements] = Requirements()
    classes: ClassVar[tuple[str, ...]] = ("a", "b")
    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def pending_selection(self) -> str | None:
        return self.name if self.made is None else None

    def select(self, spec: Any) -> Any:
        return spec

    def provenance(self) -> Mapping[str, Any]:
        return {}

    def select_engine(self, block: Any) -> Mapping[str, Any]:
        return {"engine": "fast"}

    def with_selection(self, choice: Mapping[str, Any]) -> Chooses:
        return replace(self, made=choice["engine"])


PLAIN = ThresholdModel((1.0,), ("a", "b"))
NESTED = EnsembleModel((PLAIN, Chooses("x"), Chooses("x"), Chooses("y")), ("a", "b"), "vote")


def test_a_choice_that_is_open_twice_is_made_once():
    assert list(pending_selections(NESTED)) == ["x", "y"]
    assert pending_selections(PLAIN) == {}


def test_choices_are_made_in_place_and_others_stay_open():
    made = with_selections(NESTED, {"x": {"engine": "fast"}, "z": {"engine": "none"}})
    assert made.members == (PLAIN, Chooses("x", "fast"), Chooses("x", "fast"), Chooses("y"))
    assert list(pending_selections(made)) == ["y"]


def test_a_model_without_choices_is_left_as_it_is():
    assert with_selections(PLAIN, {"x": {"engine": "fast"}}) is PLAIN
