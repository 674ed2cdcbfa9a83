"""A mask on the grid of another one: the value of each pixel is that of the pixel which contains
its centre (nearest neighbour), read by GDAL while it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from maskloom.segcore.errors import ReadError, RecipeError
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff.dataset import TiffDataset, errors, reason
from maskloom.segcore.ground.lonlat import is_located

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import RasterSpec

_EXACT = 1e-9
"""Largest error of positions in pixels. With 0, rasterio opens nothing."""


@dataclass(frozen=True, slots=True)
class WarpedMask:
    """An open mask as it is on another grid; a `LabelReader`."""

    location: str
    dataset: TiffDataset
    warped: Any

    @classmethod
    def open(cls, mask: RasterSpec, onto: RasterSpec) -> WarpedMask:
        """Raises `RecipeError` if one of them has no place on earth, and `ReadError`."""
        import rasterio
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        for each in (mask, onto):
            if not can_be_warped(each):
                raise RecipeError(
                    f"--warp: {each.location} is no GeoTIFF with a CRS and a transform, so it "
                    "cannot be resampled to another grid."
                )
        affine = onto.space.affine
        assert affine is not None
        height, width = onto.shape
        try:
            dataset = TiffDataset.open(StoredFile.of(mask.location))
            warped = dataset.run(
                WarpedVRT,
                dataset.raw,
                crs=onto.space.crs,
                transform=rasterio.Affine(*affine),
                width=width,
                height=height,
                resampling=Resampling.nearest,
                tolerance=_EXACT,
                # 0 is data in masks of objects, which have no nodata label.
                add_alpha=dataset.raw.nodata is None,
            )
        except errors() as error:
            raise ReadError(f"{mask.location} cannot be warped: {reason(error)}.") from error
        return cls(mask.location, dataset, warped)

    def read(self, box: Box) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Values and which of them are known, both in the box's shape. Raises `ReadError`."""
        from rasterio.windows import Window

        (top, left), (height, width) = box.start, box.shape
        window = Window(left, top, width, height)
        try:
            bands = self.dataset.run(self.warped.read, window=window)
        except errors() as error:
            raise ReadError(f"{self.location} cannot be read: {reason(error)}.") from error
        known = bands[1] != 0 if len(bands) > 1 else bands[0] != self.warped.nodata
        return bands[0], known

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dataset.run(self.warped.close)
        self.dataset.close()


def can_be_warped(mask: RasterSpec) -> bool:
    """Whether a mask is a GeoTIFF that says where its pixels are."""
    return mask.format == "tiff" and is_located(mask.space)
