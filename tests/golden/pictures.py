"""The images of the golden runs, made of whole numbers alone: the same on every machine, with every
version of every library.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

SCENE = "scene.tif"
"""RGB in UTM, larger than 1,024 pixels on one axis."""
PICTURE = "picture.png"
"""RGB, a few hundred pixels."""
BANDS = "bands.tif"
"""Four bands of 16 bits in degrees, nodata 0."""
HEIGHTS = "heights.tif"
"""One band of float32 in UTM, nodata -9999."""
MANY = "many.tif"
"""Two bands of 16 bits with more pixels than a sample has (2**18). What is drawn depends on the
version of the file, which is its time and size.
"""
SQUARES = "squares.png"
"""Bright squares on black."""
CELLS = "cells.png"
"""Bright discs on dark, in the manner of fluorescence."""

_TIME = 1_700_000_000


def write_pictures(folder: Path) -> None:
    """Write all of them, losslessly."""
    folder.mkdir(parents=True, exist_ok=True)
    _tiff(
        folder / SCENE,
        _colours(700, 1100),
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_300_000, 10, 10),
    )
    Image.fromarray(_colours(290, 410)).save(folder / PICTURE)
    four = np.concatenate([_colours(280, 330), _colours(280, 330)[::-1, :, 1:2]], axis=2)
    wide = four.astype(np.uint16) * 37 + 11
    wide[40:95, 120:260] = 0
    _tiff(
        folder / BANDS,
        wide,
        crs="EPSG:4326",
        transform=from_origin(11.0, 48.5, 0.001, 0.001),
        nodata=0,
    )
    heights = _colours(270, 300)[..., :1].astype(np.float32) / 4 - 20
    heights[100:160, 30:70] = -9999
    _tiff(
        folder / HEIGHTS,
        heights,
        crs="EPSG:32633",
        transform=from_origin(400_000, 5_200_000, 30, 30),
        nodata=-9999,
    )
    many = _colours(530, 510)[..., :2].astype(np.uint16) * 51
    many[..., 0] += _noise(*np.mgrid[:530, :510].astype(np.int64), 30).astype(np.uint16)
    _tiff(folder / MANY, many)
    os.utime(folder / MANY, (_TIME, _TIME))
    Image.fromarray(squares(240, 330)).save(folder / SQUARES)
    Image.fromarray(_cells(260, 330)).save(folder / CELLS)


def _tiff(path: Path, pixels: np.ndarray, **profile: object) -> None:
    height, width, bands = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=bands,
        dtype=pixels.dtype,
        **profile,
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))


def _noise(y: np.ndarray, x: np.ndarray, salt: int) -> np.ndarray:
    """0 to 255 by place: coordinates, multiplied, folded and multiplied again."""
    mixed = (y * 73_856_093 + x * 19_349_663 + salt * 83_492_791) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 15)) & 0xFF


def _colours(height: int, width: int) -> np.ndarray:
    """Fields of 60 x 80 pixels with one colour each, discs that touch and cross them, a ramp and
    noise: (y, x, 3) uint8.
    """
    y, x = np.mgrid[:height, :width].astype(np.int64)
    field_y, field_x = (y + x // 7) // 60, (x + y // 5) // 80
    disc = _discs(y, x)
    bands = []
    for band in range(3):
        ground = 40 + _noise(field_y, field_x, band) % 4 * 35
        value = np.where(disc, 225 - 45 * band, ground)
        bands.append(value + y * 24 // height + _noise(y, x, 20 + band) % 13)
    return np.clip(np.stack(bands, axis=-1), 0, 255).astype(np.uint8)


def _discs(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    near_y, near_x = y % 48 - 24, x % 44 - 22
    radius = 10 + _noise(y // 48, x // 44, 9) % 14
    return np.asarray(near_y * near_y + near_x * near_x < radius * radius)


def squares(height: int, width: int) -> np.ndarray:
    """Squares of 16 pixels whose corners are multiples of 16: (y, x, 3) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    bright = (y // 16 % 3 == 1) & (x // 16 % 4 == 2) & (_noise(y // 48, x // 64, 5) < 170)
    return np.repeat((bright * 255).astype(np.uint8)[..., None], 3, axis=2)


def _cells(height: int, width: int) -> np.ndarray:
    """(y, x, 3) uint8, grey."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    grey = 8 + 90 * _discs(y, x) + _noise(y, x, 7) % 9
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
