"""Which bands of an image a network sees, and whether its pixels are of a type that it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.inference.files.weights import file_name
from maskloom.segcore.errors import ModelMismatch

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.raster.spec import RasterSpec

_EXAMPLE = 4095
"""Greatest value of 12 bits, which most cameras of microscopes have."""


@dataclass(frozen=True, slots=True)
class BandSelection:
    """What a network takes of an image."""

    card: Card
    location: str
    """Of the weights, for messages."""
    bands: tuple[int, ...] | None = None
    """Bands that the user chose, counted from 1. None: those of training, if the file has them; for
    a network of colours red, green and blue, or the grey of the image for all three; else all.
    """

    def select(self, spec: RasterSpec) -> RasterSpec:
        """Return the image with the network's bands.

        Raises `ModelMismatch` if it has other bands, pixels of a type that the scaling is not made
        for, or if it is an image and the network is one of volumes.
        """
        card, name = self.card, file_name(self.location)
        if len(spec.shape) < card.dimensions:
            raise ModelMismatch(
                f"{spec.location} is an image; {name} is a network of "
                "volumes. Give it volumes, or use a network that was trained with `dimensions: 2`."
            )
        bands = self.bands or self._trained(spec) or self._colours(spec)
        if bands is None and (spec.channels != card.channels or card.bands is not None):
            raise ModelMismatch(
                f"{spec.location} has {spec.channels} band(s); {name} was trained on "
                f"{self._in_words}. Choose them with `bands`, for example {self._example(spec)}."
            )
        if card.dtype and spec.dtype != card.dtype:
            raise ModelMismatch(
                f"{spec.location} has pixels of {spec.dtype}; {name} is made for "
                f"{card.dtype}, or has no card, and 8 bits are assumed. If it suits them too, "
                f"set `scaling`{self._scaling_for(spec)}."
            )
        return spec.select(bands)

    def _trained(self, spec: RasterSpec) -> tuple[int, ...] | None:
        """Bands that the network was trained on, if the file has them."""
        bands = self.card.bands
        return bands if bands is not None and max(bands) <= spec.file_bands else None

    def _colours(self, spec: RasterSpec) -> tuple[int, ...] | None:
        """Bands of an image to use as red, green and blue; None if either is not colour."""
        if self.card.interpretation != "rgb":
            return None
        if spec.interpretation == "rgb":
            return 1, 2, 3
        return (1, 1, 1) if spec.file_bands == 1 else None

    @property
    def _in_words(self) -> str:
        bands = self.card.bands
        return str(self.card.channels) if bands is None else f"the bands {list(bands)}"

    def _example(self, spec: RasterSpec) -> list[int]:
        wanted = self.card.channels
        return [1] * wanted if spec.channels == 1 else list(range(1, wanted + 1))

    def _scaling_for(self, spec: RasterSpec) -> str:
        """How whole numbers of another range are shown as those of training were, with an example.
        Micrographs of 16 bits are common, and seldom fill their range.
        """
        known = np.dtype(self.card.dtype or "float32")
        if known.kind != "u" or np.dtype(spec.dtype).kind not in "iu":
            return ": {offset: ..., factor: ...}, (value - offset) * factor"
        greatest = min(int(np.iinfo(spec.dtype).max), _EXAMPLE)
        times = greatest / int(np.iinfo(known).max)
        scaling = self.card.scaling
        offset = [float(f"{times * each:.6g}") for each in scaling.offset]
        factor = [float(f"{each / times:.6g}") for each in scaling.factor]
        return (
            f", for values of 0 to {greatest} for example {{offset: {offset}, factor: {factor}}}; "
            "where your images reach twice as far, twice the offset and half the factor"
        )
