"""Models around models: a semantic segmenter is fitted as if it were alone, and another model is
built around the result.

A recipe that holds the recipe of another segmenter (connected parts, watershed) is an `Outer`.
`start_around` gives what it starts with: the model itself where nothing is to be fitted, else a
`Composed` fitter, which hands every step on to the inner one and builds the model when the last
round is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from maskloom.segcore.errors import FitError, RecipeError
from maskloom.segcore.models.protocols import (
    Fitter,
    Model,
    ObjectSegmenter,
    Requirements,
    SegmenterRecipe,
    concluded,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from maskloom.segcore.models.protocols import Segmenter
    from maskloom.segcore.raster.spec import Block, RasterSpec


class Outer(Protocol):
    """What builds a model around a semantic segmenter: a frozen value that pickles."""

    @property
    def parts(self) -> tuple[str, ...] | None:
        """Names of the classes that it takes from the inner model. None: it takes what there is."""
        ...

    def around(self, segmenter: Segmenter) -> Model:
        """The model around a segmenter that is ready. Raises `RecipeError` where the two do not
        suit.
        """
        ...

    def classes_around(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outer model's classes, by class id, for an inner model of these classes.
        Raises `RecipeError` likewise.
        """
        ...


@dataclass(frozen=True, slots=True)
class Composed:
    """A fitter that fits the inner one and ends with the model around it."""

    inner: Fitter
    outer: Outer

    @property
    def requirements(self) -> Requirements:
        """The inner fitter's."""
        return self.inner.requirements

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of the outer model's classes; empty where the inner ones are found by fitting."""
        inner = self.inner.expected_classes
        return self.outer.classes_around(inner) if inner else ()

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands that the inner fitter wants."""
        return self.inner.select(spec)

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """What images must have in common for the inner fitter."""
        return self.inner.kind_of(spec)

    def observe(self, block: Block, /) -> Any:
        """What one block says to the inner fitter."""
        return self.inner.observe(block)

    def merge(self, a: Any, b: Any, /) -> Any:
        """What two observations say together."""
        return self.inner.merge(a, b)

    def finish(self, total: Any, /) -> Fitter | Model:
        """The inner fitter's next round, or the model around its result. Raises `FitError` where
        what was found does not suit `outer`.
        """
        try:
            return _around(concluded(self.inner, total, self.outer.parts or ()), self.outer)
        except RecipeError as error:
            # How many classes `auto` finds is a matter of the images, not of the recipe.
            raise FitError(str(error)) from error


def start_around(recipe: SegmenterRecipe, outer: Outer) -> Fitter | Model:
    """What `outer` around the segmenter of `recipe` starts with.

    Raises `RecipeError` where that segmenter finds objects rather than classes, or where its
    classes do not suit.
    """
    started = _around(recipe.start(), outer)
    if isinstance(started, Composed):
        # Asked for now so that names that do not suit are found before any work.
        _ = started.expected_classes
    return started


def _around(inner: Fitter | Model, outer: Outer) -> Fitter | Model:
    if isinstance(inner, ObjectSegmenter | Composed):
        name = type(inner.outer if isinstance(inner, Composed) else inner).__name__
        raise RecipeError(
            f"{type(outer).__name__} works on a segmenter that gives every pixel a class; {name} "
            "finds objects by "
            "itself. Give a semantic segmenter (threshold, kmeans, mixture ...) as `of`, or run "
            "the inner one alone."
        )
    return Composed(inner, outer) if isinstance(inner, Fitter) else outer.around(inner)
