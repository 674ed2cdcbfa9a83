"""Models around models: a semantic segmenter is fitted as usual, and another model is built around
the result.

A recipe that holds the recipe of another segmenter (connected parts, watershed) is an `Outer`.
`start_around` returns the model if nothing needs fitting, otherwise a `Composed` fitter, which
delegates every step to the inner fitter and builds the model after the last round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from maskloom.segcore.errors import FitError, RecipeError
from maskloom.segcore.models.protocols import (
    Fitter,
    Model,
    Requirements,
    SegmenterRecipe,
    concluded,
    finds_objects,
    fits_each_image,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from maskloom.segcore.models.protocols import Segmenter
    from maskloom.segcore.raster.spec import Block, RasterSpec


class Outer(Protocol):
    """A recipe that builds a model around a semantic segmenter: a frozen value that pickles."""

    @property
    def parts(self) -> tuple[str, ...] | None:
        """Names of the classes that it uses of the inner model. None: its default selection."""
        ...

    def around(self, segmenter: Segmenter) -> Model:
        """The model around a fitted segmenter. Raises `RecipeError` if the two do not match."""
        ...

    def classes_around(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the outer model's classes, by class id, for an inner model with these classes.
        Raises `RecipeError` if the two do not match.
        """
        ...


@dataclass(frozen=True, slots=True)
class Composed:
    """A fitter that delegates to the inner one and ends with the model around its result."""

    inner: Fitter
    outer: Outer

    finds_objects: ClassVar[bool] = True

    @property
    def of_each_image(self) -> bool:
        """Whether the inner fitter is for one image at a time."""
        return fits_each_image(self.inner)

    @property
    def requirements(self) -> Requirements:
        """Those of the inner fitter."""
        return self.inner.requirements

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of the outer model's classes; empty if the inner ones are found by fitting."""
        inner = self.inner.expected_classes
        return self.outer.classes_around(inner) if inner else ()

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands of the inner fitter."""
        return self.inner.select(spec)

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """The inner fitter's kind of an image."""
        return self.inner.kind_of(spec)

    def observe(self, block: Block, /) -> Any:
        """The inner fitter's observation of one block."""
        return self.inner.observe(block)

    def merge(self, a: Any, b: Any, /) -> Any:
        """Merge two observations."""
        return self.inner.merge(a, b)

    def finish(self, total: Any, /) -> Fitter | Model:
        """The next round, or the model around the inner fitter's result. Raises `FitError` if the
        result does not match `outer`.
        """
        try:
            return _around(concluded(self.inner, total, self.outer.parts or ()), self.outer)
        except RecipeError as error:
            # The number of classes that `auto` finds depends on the images, not on the recipe.
            raise FitError(str(error)) from error


def start_around(recipe: SegmenterRecipe, outer: Outer) -> Fitter | Model:
    """The fitter or model of `outer` around the segmenter of `recipe`.

    Raises `RecipeError` if that segmenter finds objects instead of classes, or if its classes do
    not match.
    """
    started = _around(recipe.start(), outer)
    if isinstance(started, Composed):
        # Called now to find wrong class names before any work.
        _ = started.expected_classes
    return started


def _around(inner: Fitter | Model, outer: Outer) -> Fitter | Model:
    if finds_objects(inner):
        raise RecipeError(
            "`of`: expected a segmenter that gives every pixel a class (threshold, kmeans, mixture "
            "...), got one that finds objects. Give another one, or run it alone."
        )
    if isinstance(inner, Fitter):
        return Composed(inner, outer)
    return outer.around(cast("Segmenter", inner))
