"""Intensity: the one value per pixel that a threshold is compared with, a band or the luminance.

The luminance of colours is Rec. 601 in the image's own type: exactly the integers of `cv2.cvtColor`
for 8 and 16 bits, float32 otherwise. An image with one band is its own luminance.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import in_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import Block, RasterSpec

Band = int | Literal["luminance"] | None
Source = Band | tuple[int, ...]
"""The band or bands to threshold; three bands are red, green and blue."""


def select_source(spec: RasterSpec, band: Source) -> RasterSpec:
    """The image with the selected band, or the bands of the luminance.

    Raises `ModelMismatch` if the image lacks such a band.
    """
    if isinstance(band, tuple):
        return spec.select(band)
    if band is None:
        band = "luminance" if spec.interpretation == "rgb" else spec.bands[0]
    if band == "luminance":
        return spec.select((1,)) if spec.file_bands == 1 else spec.select((1, 2, 3))
    return spec.select((band,))


def intensity(pixels: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    """One value per pixel of a (y, x, band) or (z, y, x, band) array: the only band, or the
    Rec. 601 luminance of three.

    8- and 16-bit luminance are those of `cv2.cvtColor(RGB2GRAY)`; other types give float32. Raises
    `ModelMismatch` for other numbers of bands.
    """
    if pixels.shape[-1] == 1:
        return pixels[..., 0]
    if pixels.shape[-1] != 3:
        raise ModelMismatch(
            f"{where}: a threshold needs 1 band, or 3 for luminance; it got {pixels.shape[-1]}. "
            "Set `band`."
        )
    if pixels.dtype in (np.uint8, np.uint16):
        import cv2

        rows = np.ascontiguousarray(in_rows(pixels, 3))
        gray: NDArray[np.generic] = cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY)
        return gray.reshape(pixels.shape[:-1])
    # cv2 rounds floats by the pixel's place in its vectors, so that tiles would differ from the
    # whole in the last bit.
    red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
    red *= np.float32(0.299)
    green *= np.float32(0.587)
    blue *= np.float32(0.114)
    red += green
    red += blue
    return red


def core_intensity(block: Block) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """The intensity of the block's core and its validity, both (y, x). Raises as `intensity`."""
    pixels, valid = block.tile.trim(block.pixels), block.tile.trim(block.valid)
    return intensity(pixels, block.spec.location), valid


def exceeds(values: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Whether each value exceeds a threshold: an exact comparison in the values' own type."""
    if values.dtype.kind in "iu":
        # An integer exceeds a threshold if it exceeds the floor of the threshold.
        return np.asarray(values > math.floor(threshold))
    if values.dtype.kind == "b" or values.dtype.itemsize > 4:
        return np.asarray(values > np.float64(threshold))
    below = values.dtype.type(threshold)
    if float(below) > threshold:
        below = np.nextafter(below, values.dtype.type(-np.inf))
    return np.asarray(values > below)
