"""The common part of fitters on the values of pixels: all pixels if these have at most 24 bits,
otherwise a uniform sample of 2**18 (`segcore.methods.samples`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from maskloom.segcore.methods.naming import check_bands, check_references
from maskloom.segcore.methods.samples import Samples, State
from maskloom.segcore.models.protocols import Exactness, Requirements

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from maskloom.segcore.raster.spec import Block, RasterSpec


class SampledFitter:
    """The part of a `Fitter` that does not depend on the method. Subclasses are frozen dataclasses
    with these fields, and add `finish`.
    """

    __slots__ = ()

    exactness: ClassVar[Exactness] = Exactness.EXACT

    if TYPE_CHECKING:

        @property
        def bands(self) -> tuple[int, ...] | None:
            """Bands to use, counted from 1. None: all."""

        @property
        def classes(self) -> tuple[str, ...] | Mapping[str, tuple[float, ...] | str] | None:
            """Names by class id, or names with one reference each."""

        @property
        def seed(self) -> int:
            """Determines the sample."""

    def check_common(self) -> None:
        """Raise `ValueError` for invalid bands, references or seed."""
        check_references(self.classes)
        check_bands(self.bands)
        if self.seed < 0:
            raise ValueError(f"seed: expected a number from 0 on; got {self.seed}")

    @property
    def requirements(self) -> Requirements:
        """No halo. A sample adds up to 2**18 pixels, the table that counts colours 64 MiB per
        thread.
        """
        return Requirements(bytes_per_pixel=48)

    def start(self) -> Self:
        """The fitter itself."""
        return self

    def select(self, spec: RasterSpec) -> RasterSpec:
        """The image with the selected bands."""
        return spec.select(self.bands)

    def kind_of(self, spec: RasterSpec) -> Hashable:
        """Images with the same number of bands are clustered together."""
        return spec.channels

    def observe(self, block: Block) -> State:
        """The values of the block's pixels."""
        return Samples(self.seed).observe(block)

    def merge(self, a: State, b: State) -> State:
        """The values of both states."""
        return Samples(self.seed).merge(a, b)
