"""A segmenter that does nothing, so that a run costs what the pipeline costs.

Workers find it by the name of this module: import it, or run a benchmark beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.models.protocols import MODELS, SEGMENTERS, Exactness, Requirements
from maskloom.segcore.raster.spec import Labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maskloom.segcore.raster.spec import Block, RasterSpec


@MODELS.register("no_op")
@dataclass(frozen=True, slots=True)
class NoOpModel:
    """Every pixel is of class 0."""

    classes: tuple[str, ...] = ("nothing", "something")

    exactness: ClassVar[Exactness] = Exactness.EXACT

    @property
    def requirements(self) -> Requirements:
        """No halo."""
        return Requirements(bytes_per_pixel=8)

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The first band."""
        return spec.select((1,))

    def segment(self, block: Block) -> Labels:
        """Zeros."""
        return Labels(np.zeros(block.valid.shape, np.uint8))

    def provenance(self) -> Mapping[str, Any]:
        """Nothing was fitted."""
        return {}


@SEGMENTERS.register("no_op")
@dataclass(frozen=True, slots=True)
class NoOp:
    """Every pixel is of class 0; see `NoOpModel`."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    units: ClassVar[str] = "no label changes"
    volumes: ClassVar[str] = "exact"

    def start(self) -> NoOpModel:
        """The model, which needs no fit."""
        return NoOpModel()
