"""Readers of TIFF: the pixels of a page, or of pages that are bands.

Which pixels are data (`valid`), among the bands that are read:

- a float pixel with NaN or infinity in any band is not; it is read as 0, so no method computes with
  NaN;
- a pixel that has the nodata value is not: in all bands of the file for RGB pictures (black is
  rare, one channel at 0 is not), in any selected band of other images (nodata values must not enter
  computations). Nodata that the type cannot represent is ignored. It refers to stored values:
  indices in a palette file, and numbers before inversion if 0 is white;
- a pixel of alpha 0, of a palette colour with alpha 0, or of an index without a colour, is not;
- a pixel that an internal or side-car (.msk) mask hides is not.

Integers of a file whose 0 is white (MinIsWhite) are inverted, so that larger is brighter. Pages
described as channels are bands; see `tiff.contents`. A palette becomes the three bands of its
colours. An alpha band is not a data band: band 4 of (red, green, blue, alpha, infrared) is
infrared. Other values are as GDAL reads them, without scale and offset.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import ReadError
from maskloom.segcore.formats.orientation import UPRIGHT, stored_box, turn
from maskloom.segcore.formats.pixels import drop_not_finite
from maskloom.segcore.formats.tiff.beside import SideMask
from maskloom.segcore.formats.tiff.dataset import TiffDataset, errors, reason
from maskloom.segcore.formats.tiff.layout import Layout
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import RasterSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

_STRIP_BYTES = 4 << 20
"""Bytes of the bands that are interleaved at a time; small enough for a processor's cache."""
_MERGED_BY_OPENCV = frozenset({"uint8", "uint16", "int16", "int32", "float32", "float64"})


@dataclass(slots=True)
class TiffReader:
    """An open page of a TIFF."""

    dataset: TiffDataset
    layout: Layout
    spec: RasterSpec
    mask: SideMask | None = None
    """The mask beside the file."""

    def __enter__(self) -> TiffReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.dataset.close()
        if self.mask is not None:
            self.mask.close()

    @property
    def stores_otherwise(self) -> bool:
        """Whether the stored numbers differ from the delivered ones: palette indices, or 0 for
        white.
        """
        return self.layout.palette is not None or self.layout.white is not None

    def as_stored(self) -> TiffReader:
        """A reader of the stored numbers, which replaces this one."""
        layout = replace(
            self.layout,
            palette=None,
            white=None,
            rgb=self.layout.rgb and self.layout.palette is None,
        )
        bands = (1,) if self.layout.palette is not None else self.spec.bands
        return replace(
            self,
            layout=layout,
            spec=replace(self.spec, bands=bands, dtype=layout.dtype, interpretation="bands"),
        )

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        orientation = self.layout.orientation
        try:
            pixels, valid = self.dataset.run(
                self._read, stored_box(box, self.spec.shape, orientation)
            )
        except errors() as error:
            raise ReadError(
                f"{self.spec.location}: rows {box.start[0]} to {box.stop[0]}, columns "
                f"{box.start[1]} to {box.stop[1]} cannot be "
                f"read: {reason(error)}. The file is damaged or incomplete; copy or write it again."
            ) from error
        return (
            (pixels, valid)
            if orientation == UPRIGHT
            else (turn(pixels, orientation), turn(valid, orientation))
        )

    def _read(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        layout, spec = self.layout, self.spec
        if box.size == 0:
            return np.empty((*box.shape, spec.channels), spec.dtype), np.ones(box.shape, np.bool_)
        stored = (1,) if layout.palette is not None else spec.bands
        bands = [layout.data[band - 1] for band in stored]
        pixels, alpha = self._interleaved(box, bands)
        valid = self._valid(box, bands, pixels, alpha)
        drop_not_finite(pixels, valid)
        if layout.white is not None:
            for channel in (i for i, band in enumerate(bands) if band == layout.data[0]):
                np.subtract(
                    pixels.dtype.type(layout.white), pixels[..., channel], out=pixels[..., channel]
                )
        if layout.palette is not None:
            index, hidden = pixels[..., 0], layout.palette[:, 3] == 0
            if hidden.any():
                valid &= ~hidden[index]
            pixels = np.take(layout.palette[:, [band - 1 for band in spec.bands]], index, axis=0)
        return pixels, valid

    def _valid(
        self, box: Box, bands: Sequence[int], pixels: NDArray[Any], alpha: NDArray[Any] | None
    ) -> NDArray[np.bool_]:
        """True for pixels that are data by nodata, alpha and masks; `pixels` are as stored."""
        layout, valid = self.layout, np.ones(box.shape, np.bool_)
        absent = self._nodata(box, bands, pixels)
        if absent is not None:
            valid &= ~absent
        if alpha is not None:
            valid &= alpha != 0
        for band in (
            layout.masks
            if len(layout.masks) == 1
            else [band for band in bands if band in layout.masks]
        ):
            valid &= self.dataset.raw.read_masks(band, window=_window(box)) != 0
        if self.mask is not None:
            valid &= self.mask.valid(bands, _window(box))
        return valid

    def _nodata(
        self, box: Box, bands: Sequence[int], pixels: NDArray[Any]
    ) -> NDArray[np.bool_] | None:
        """True for pixels with the nodata value: in all bands of the file for RGB images, otherwise
        in any selected band. None: no such pixels.
        """
        layout = self.layout
        of_band = dict(zip(layout.data, layout.nodata, strict=True))
        if layout.rgb and set(bands) != set(layout.data) and all(map(_comparable, layout.nodata)):
            bands, pixels = layout.data, self._interleaved(box, layout.data)[0]
        same = [
            pixels[..., i] == pixels.dtype.type(of_band[band])
            for i, band in enumerate(bands)
            if _comparable(of_band[band])
        ]
        if not same or (layout.rgb and len(same) < len(bands)):
            return None
        combine = np.logical_and if layout.rgb else np.logical_or
        found: NDArray[np.bool_] = combine.reduce(same)
        return found

    def _interleaved(
        self, box: Box, bands: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Pixels, channel-last, and alpha. GDAL delivers bands one after the other; they are
        interleaved in strips of a few rows.
        """
        layout, raw = self.layout, self.dataset.raw
        pixels = np.empty((*box.shape, len(bands)), layout.dtype)
        if layout.alpha is None and len(bands) == 1:
            raw.read(bands[0], window=_window(box), out=pixels[..., 0])
            return pixels, None
        alpha = None if layout.alpha is None else np.empty(box.shape, layout.dtype)
        wanted = [*bands] if layout.alpha is None else [*bands, layout.alpha]
        row_bytes = box.shape[1] * len(wanted) * pixels.itemsize
        for strip in _strips(box, layout.block[0], _STRIP_BYTES // row_bytes):
            planes = raw.read(wanted, window=_window(strip))
            rows = strip.relative_to(box).slices[0]
            _merge(planes[: len(bands)], pixels[rows])
            if alpha is not None:
                alpha[rows] = planes[-1]
        return pixels, alpha


@dataclass(slots=True)
class ChannelReader:
    """An open TIFF whose bands are pages."""

    pages: Mapping[int, TiffReader]
    """By band."""
    spec: RasterSpec

    def __enter__(self) -> ChannelReader:
        return self

    def __exit__(self, *exception: Any) -> None:
        for page in self.pages.values():
            page.__exit__(*exception)

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels, valid = (
            np.empty((*box.shape, self.spec.channels), self.spec.dtype),
            np.ones(box.shape, np.bool_),
        )
        for band, page in self.pages.items():
            plane, known = page.read(box)
            valid &= known
            for channel in (i for i, wanted in enumerate(self.spec.bands) if wanted == band):
                pixels[..., channel] = plane[..., 0]
        return pixels, valid


def _window(box: Box) -> Any:
    from rasterio.windows import Window

    return Window(box.start[1], box.start[0], box.shape[1], box.shape[0])


def _strips(box: Box, block_rows: int, rows: int) -> Iterable[Box]:
    """The box in strips of about `rows` rows that end at boundaries of blocks, so that no block is
    decoded twice.
    """
    step = block_rows * max(1, rows // block_rows)
    cuts = [box.start[0], *range((box.start[0] // step + 1) * step, box.stop[0], step), box.stop[0]]
    return [
        Box((top, box.start[1]), (bottom, box.stop[1])) for top, bottom in itertools.pairwise(cuts)
    ]


def _merge(planes: NDArray[Any], out: NDArray[Any]) -> None:
    """Write bands (band, y, x) into `out` (y, x, band)."""
    if out.dtype.name in _MERGED_BY_OPENCV and 1 < len(planes) <= 4:
        import cv2

        merged = cv2.merge(list(planes), dst=out)
        if merged is out:
            return
        out[...] = merged
        return
    for channel, plane in enumerate(planes):
        out[..., channel] = plane


def _comparable(nodata: float | None) -> bool:
    return nodata is not None and not math.isnan(nodata)
