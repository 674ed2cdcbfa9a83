"""Models: segmenters that are ready to run, and fitters that must observe data first.

A `Segmenter` gives every pixel a class. An `ObjectSegmenter` finds objects, which may extend over
several tiles: it works on each tile, then joins the fragments of all tiles (`fragments.py`).

A `Fitter` is a fold whose result is the next fitter or the segmenter, so fitting is

    while isinstance(model, Fitter):
        model = model.finish(observe_all(model, blocks))

A fixed threshold needs no round, Otsu one, Otsu on floats two (first the range, then the
histogram). Fitters and segmenters are frozen values: they pickle, they compare, and their fields
are their whole state.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from maskloom.segcore.errors import ModelMismatch, NothingToFit
from maskloom.segcore.registry import Registry
from maskloom.segcore.values import CheckedOnce

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape
    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary
    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.raster.colours import Colour
    from maskloom.segcore.raster.spec import Block, Labels, RasterSpec


class Exactness(Enum):
    """How the output under tiling relates to the output on the whole image."""

    EXACT = "exact"
    """Every pixel equal, for any tiling."""
    EXACT_IF_SMALLER_THAN_HALO = "exact if smaller than halo"
    """Every pixel of objects smaller than the halo equal."""
    APPROXIMATE = "approximate"
    """Close, by blending."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """A model's requirements on tiling, memory and device."""

    halo: int | Shape = 0
    """Pixels that it needs around a tile's core for an exact core: one number for all axes, or one
    per axis.
    """
    bytes_per_pixel: int = 16
    """Peak memory for one pixel of a block, its input included."""
    cost: int = 1
    """Time per pixel relative to a threshold. Determines how large an image must be before several
    workers share it.
    """
    process_bytes: int = 0
    """Further peak memory, independent of the block: the libraries of a network, its weights and
    the current patch.
    """
    planar: bool = False
    """Whether it works on single planes: volumes are cut into tiles one plane deep, without a halo
    across planes (`models.planes`).
    """
    device: Literal["any", "gpu"] = "any"
    """gpu: it uses a GPU where a worker has one."""


class Ready(Protocol):
    """The common part of all models that are ready to run."""

    @property
    def requirements(self) -> Requirements:
        """The requirements on tiling and memory."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes, by class id."""
        ...

    @property
    def exactness(self) -> Exactness:
        """How its output under tiling relates to that on the whole image."""
        ...

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands that the model wants. Raises `ModelMismatch` where the image
        does not suit.
        """
        ...

    def provenance(self) -> Mapping[str, Any]:
        """The fitted or selected parameters (thresholds, centres, number of clusters), as JSON
        values for the tables.
        """
        ...


@runtime_checkable
class Segmenter(Ready, Protocol, metaclass=CheckedOnce):
    """A model that gives every pixel a class."""

    def segment(self, block: Block) -> Labels:
        """A label for every pixel of the block's core, in an array with the shape of
        `block.valid`.
        """
        ...


@runtime_checkable
class Scorer(Segmenter, Protocol, metaclass=CheckedOnce):
    """A segmenter that also gives probabilities. Where only some models of a class have any, its
    attribute `gives_scores` says whether this one does.
    """

    def scores(self, block: Block) -> NDArray[np.float32]:
        """Probability of each class for every pixel of the block, (y, x, class) or (z, y, x,
        class), with sums of 1.

        The array belongs to the caller.
        """
        ...


@runtime_checkable
class LabellingScorer(Scorer, Protocol, metaclass=CheckedOnce):
    """A scorer that finds labels and scores together, in the time of one of them."""

    def segment_and_score(self, block: Block) -> tuple[Labels, NDArray[np.float32]]:
        """What `segment` and `scores` return."""
        ...


@runtime_checkable
class ObjectSegmenter(Ready, Protocol, metaclass=CheckedOnce):
    """A model that finds objects. Class 0 is background."""

    def fragment(self, block: Block) -> Fragments:
        """The fragments of objects in the block's core, as far as the block alone determines
        them.
        """
        ...

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> Sequence[Equivalences]:
        """Which fragments of all tiles are one object, from the boundaries of all tiles in the
        order of the grid: the equivalences of each tile.
        """
        ...


@runtime_checkable
class Fitter(Protocol, metaclass=CheckedOnce):
    """A model that must observe data first: a fold over blocks."""

    @property
    def requirements(self) -> Requirements:
        """The requirements on tiling and memory."""
        ...

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands that the model wants. Raises `ModelMismatch` where the image
        does not suit.
        """
        ...

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of its classes, by class id; empty if their number is found by fitting."""
        ...

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """A value that is equal for images that can be fitted together (such as the number of
        bands). Constant if all can.
        """
        ...

    def observe(self, block: Block, /) -> Any:
        """The observation of one block: exact, order-independent state that pickles."""
        ...

    def merge(self, a: Any, b: Any, /) -> Any:
        """Merge two observations."""
        ...

    def finish(self, total: Any, /) -> Fitter | Model:
        """The next round, or the model. Raises `FitError` if the data do not allow one (such as no
        valid pixel).
        """
        ...


@runtime_checkable
class EngineSelector(Ready, Protocol, metaclass=CheckedOnce):
    """A model whose engine and precision are selected once per run, on the machine that runs it.

    Until then it runs with defaults that all machines have.
    """

    @property
    def pending_selection(self) -> str | None:
        """Key of the selection, equal for models that would select alike. None: not pending."""
        ...

    def select_engine(self, block: Block) -> Mapping[str, Any]:
        """Select the best engine for this machine on a block of the collection.

        Returns JSON values. Raises `WeightsError` if no engine is suitable.
        """
        ...

    def with_selection(self, choice: Mapping[str, Any]) -> Self:
        """Return the model with the selection made."""
        ...


@runtime_checkable
class ImageDependent(Protocol, metaclass=CheckedOnce):
    """A model whose halo or memory depends on the image, such as on the size of its pixels. Its
    `requirements` have the largest halo.
    """

    def requirements_of(self, spec: RasterSpec) -> Requirements:
        """The requirements for an image. Equal for a volume and its planes."""
        ...


@runtime_checkable
class Cautious(Ready, Protocol, metaclass=CheckedOnce):
    """A model that can warn about its result."""

    def caution(self, spec: RasterSpec, shares: Mapping[str, float]) -> str | None:
        """A warning about the result on this image; `shares` are the fractions of its valid pixels
        by class name. None: no warning.
        """
        ...


@runtime_checkable
class CautiousOfObjects(Protocol, metaclass=CheckedOnce):
    """A part of a model that can warn about the objects found with it."""

    def caution_of_objects(self, spec: RasterSpec, typical: TypicalObjects) -> str | None:
        """A warning about the typical objects of this image. None: no warning."""
        ...


@runtime_checkable
class Coloured(Ready, Protocol, metaclass=CheckedOnce):
    """A model that knows how its classes look."""

    def mean_colours(self, spec: RasterSpec) -> tuple[Colour, ...] | None:
        """The mean colour of each class as pictures show the bands of an image like this. None: it
        is not known.
        """
        ...


Model = Segmenter | ObjectSegmenter
"""A model that is ready to run."""

FIRST_CLASSES = ("cluster_0",)
"""The class that every clustering has, whatever their number."""


@dataclass(frozen=True, slots=True)
class Blank:
    """The result of a fitter that has observed no valid pixel: a segmenter for images without one,
    whose masks are all nodata.
    """

    fitter: Fitter
    classes: tuple[str, ...]

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """The fitter's."""
        return self.fitter.requirements

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands that the fitter wants."""
        return self.fitter.select(spec)

    def segment(self, block: Block) -> Labels:
        """Labels without a meaning. Raises `ModelMismatch` where the block has a valid pixel (of
        such as infinite values).
        """
        import numpy as np

        from maskloom.segcore.raster.spec import Labels

        if block.tile.trim(block.valid).any():
            raise ModelMismatch(
                f"{block.spec.location} has valid pixels, but none that a model could be fitted to."
            )
        return Labels(np.zeros(block.valid.shape, np.uint8))

    def provenance(self) -> Mapping[str, Any]:
        """That there was nothing to see."""
        return {"pixels": 0}


def concluded(fitter: Fitter, total: Any, names: Sequence[str] = ()) -> Fitter | Model:
    """The fitter's next round or its model; a `Blank` if it has observed no valid pixel.

    If the fitter does not know its number of classes in advance, a blank has `FIRST_CLASSES` and
    `names`. Raises `FitError`.
    """
    try:
        return fitter.finish(total)
    except NothingToFit:
        return Blank(
            fitter, fitter.expected_classes or tuple(dict.fromkeys((*FIRST_CLASSES, *names)))
        )


def gives_scores(model: Fitter | Model) -> bool:
    """Whether a model gives probabilities that deserve the name, or a fitter ends with one that
    does (its attribute `gives_scores`).
    """
    return bool(getattr(model, "gives_scores", isinstance(model, Scorer)))


def finds_objects(model: Fitter | Model) -> bool:
    """Whether a model finds objects, or a fitter ends with one that does (its attribute
    `finds_objects`).
    """
    return bool(getattr(model, "finds_objects", isinstance(model, ObjectSegmenter)))


def fits_each_image(model: Fitter | Model) -> bool:
    """Whether a fitter is for one image at a time, whatever the recipe's `fit` says (its attribute
    `of_each_image`).
    """
    return bool(getattr(model, "of_each_image", False))


def labels_and_scores(model: Model, block: Block) -> tuple[Labels, NDArray[np.float32]]:
    """What `Model.segment` and `Scorer.scores` return for a block. Raises `TypeError` for a model
    without scores.
    """
    if isinstance(model, LabellingScorer):
        return model.segment_and_score(block)
    if not isinstance(model, Scorer):
        raise TypeError(f"{type(model).__name__} has no scores")
    return model.segment(block), model.scores(block)


def requirements_of(model: Fitter | Model, spec: RasterSpec) -> Requirements:
    """What a model requires for an image."""
    return model.requirements_of(spec) if isinstance(model, ImageDependent) else model.requirements


def is_blank(model: Any) -> bool:
    """Whether a model is a `Blank`, or built around one; it is then of no use for images with valid
    pixels.
    """
    if isinstance(model, Blank):
        return True
    return is_dataclass(model) and any(
        is_blank(getattr(model, field.name)) for field in fields(model)
    )


def caution_of(
    models: Iterable[Ready], spec: RasterSpec, shares: Mapping[str, float]
) -> str | None:
    """The warnings of these models about the result on an image, each once. None: no warning."""
    cautions = (model.caution(spec, shares) for model in models if isinstance(model, Cautious))
    return "; ".join(dict.fromkeys(filter(None, cautions))) or None


def caution_of_objects(model: Any, spec: RasterSpec, typical: TypicalObjects) -> str | None:
    """The warnings of a model, or of those that it is built around, about the typical objects of an
    image, each once. None: no warning.
    """
    if isinstance(model, CautiousOfObjects):
        return model.caution_of_objects(spec, typical)
    parts: Iterable[Any] = ()
    if isinstance(model, tuple):
        parts = model
    elif is_dataclass(model):
        parts = (getattr(model, field.name) for field in fields(model))
    cautions = (caution_of_objects(part, spec, typical) for part in parts)
    return "; ".join(dict.fromkeys(filter(None, cautions))) or None


@runtime_checkable
class SegmenterRecipe(Protocol, metaclass=CheckedOnce):
    """The parameters of a segmenter, as users set them: a frozen dataclass. A field of this type
    holds another segmenter. A class variable `gives_scores` says that its models are `Scorer`s.
    """

    def start(self) -> Fitter | Model:
        """A model, or a fitter if data must be observed first."""
        ...


SEGMENTERS: Registry[type[SegmenterRecipe]] = Registry("segmenter", "maskloom.segcore.segmenters")
"""Recipes of segmenters by kind: frozen dataclasses whose fields are the parameters that users set.
A class variable `units` describes the effect of a change of the bands' units, and `volumes` how
volumes are processed, for users.
"""

MODELS: Registry[type[Model]] = Registry("fitted model", "maskloom.segcore.segmenters")
"""Fitted segmenters by kind, so that a model file can be read back (`manifest.dump_model`,
`manifest.load_model`).
"""
