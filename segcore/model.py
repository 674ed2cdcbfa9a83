"""Models: segmenters that are ready, and fitters that must see data first.

A `Fitter` is a fold whose result is the next fitter or the segmenter, so all of fitting is

    while isinstance(model, Fitter):
        model = model.finish(observe_all(model, blocks))

A fixed threshold takes no round, Otsu one, Otsu on floats two (the range first, then the histogram).
Fitters and segmenters are frozen values: they pickle, they compare, and their fields are their whole state.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from segcore.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from segcore.geometry import Shape
    from segcore.raster import Block, Labels, RasterSpec


class Exactness(Enum):
    """How the output under tiling relates to the output on the whole image."""

    EXACT = "exact"
    """Every pixel equal, for any tiling."""
    EXACT_IF_SMALLER_THAN_HALO = "exact if smaller than halo"
    """Every pixel of objects smaller than the halo equal."""
    APPROXIMATE = "approximate"
    """Close, by blending."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model asks of the tiling and of memory."""

    halo: Shape = (0, 0)
    """Pixels that it must see around a tile's core for an exact core."""
    bytes_per_pixel: int = 16
    """Peak memory for one pixel of a block, its input included."""


@runtime_checkable
class Segmenter(Protocol):
    """A model that is ready to run."""

    @property
    def footprint(self) -> Footprint:
        """What it asks of the tiling and of memory."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes, by class id."""
        ...

    @property
    def exactness(self) -> Exactness:
        """How its output under tiling relates to the whole image's."""
        ...

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands that the model wants. Raises `ModelMismatch` where the image does not suit."""
        ...

    def segment(self, block: Block) -> Labels:
        """A label for every pixel of the block."""
        ...

    def provenance(self) -> Mapping[str, Any]:
        """What was fitted or chosen (thresholds, centres, number of clusters), as JSON values for the tables."""
        ...


@runtime_checkable
class Fitter(Protocol):
    """A model that must see data first: a fold over blocks."""

    @property
    def footprint(self) -> Footprint:
        """What it asks of the tiling and of memory."""
        ...

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the bands that the model wants. Raises `ModelMismatch` where the image does not suit."""
        ...

    @property
    def expected_classes(self) -> tuple[str, ...]:
        """Names of its classes, by class id; empty where their number is found by fitting."""
        ...

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """What images must have in common to be fitted together (number of bands, say). Constant where nothing."""
        ...

    def observe(self, block: Block, /) -> Any:
        """What one block says: exact, order-free, picklable state."""
        ...

    def merge(self, a: Any, b: Any, /) -> Any:
        """What two observations say together."""
        ...

    def finish(self, total: Any, /) -> Fitter | Segmenter:
        """The next round, or the model. Raises `FitError` where the data do not allow one (no valid pixel, say)."""
        ...


SEGMENTERS: Registry[type[Fitter] | type[Segmenter]] = Registry("segmenter")
"""Recipes of segmenters by kind: frozen dataclasses whose fields are the parameters that users set."""

MODELS: Registry[type[Segmenter]] = Registry("fitted model")
"""Fitted segmenters by kind, so that a model file can be read back (`manifest.dump_model`, `manifest.load_model`)."""
