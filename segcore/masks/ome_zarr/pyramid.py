"""The levels of a mask as OME-Zarr: their shapes, chunks and factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.ground.space import MILLIMETRES, Lattice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec

_CHUNK_PIXELS = 2**20
"""Labels compress well: of smaller chunks, a store would hold mostly names of files."""
_FLAT = 1.5
"""Slices that are farther apart than this many pixels are not halved."""
_UNITS = {
    "m": "meter",
    "cm": "centimeter",
    "mm": "millimeter",
    "um": "micrometer",
    "nm": "nanometer",
}


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a mask."""

    chunk: Shape
    """Shape of the chunks of all levels."""
    factors: Shape
    """How many times smaller each level is than the one before, along each axis: 1 or 2."""
    shapes: tuple[Shape, ...]
    """Shape of each level, full resolution first; the last fits into one chunk along all axes that
    become smaller.
    """

    @classmethod
    def of(cls, spec: RasterSpec, tile_shape: Shape) -> Pyramid:
        """The levels of the mask of an image in tiles of this shape."""
        chunk, factors = chunk_shape(tile_shape), _factors(spec)
        shapes = [spec.shape]
        while any(
            factor == 2 and n > side
            for n, side, factor in zip(shapes[-1], chunk, factors, strict=True)
        ):
            shapes.append(tuple(-(-n // f) for n, f in zip(shapes[-1], factors, strict=True)))
        return cls(chunk, factors, tuple(shapes))

    def in_tiles(self, tile_shape: Shape) -> int:
        """Number of levels whose chunks are each inside one tile."""
        levels = 1
        while levels < len(self.shapes) and all(
            side % (chunk * factor**levels) == 0
            for side, chunk, factor in zip(tile_shape, self.chunk, self.factors, strict=True)
        ):
            levels += 1
        return levels

    def reduced(self, labels: NDArray[np.integer]) -> NDArray[np.integer]:
        """Labels (y, x) or (z, y, x) at the resolution of the next level."""
        from maskloom.segcore.kernels.overviews import halve, halve_volume

        if labels.ndim == 2:
            return halve(labels)
        if self.factors[0] == 2:
            return halve_volume(labels)
        return np.stack([halve(plane) for plane in labels])


def chunk_shape(tile_shape: Shape) -> Shape:
    """Shape of the chunks: that of a tile, its longest side halved until the chunk is small."""
    chunk = list(tile_shape)
    while math.prod(chunk) > _CHUNK_PIXELS:
        longest = max(range(len(chunk)), key=chunk.__getitem__)
        if chunk[longest] % 2:
            break
        chunk[longest] //= 2
    return tuple(chunk)


def _factors(spec: RasterSpec) -> Shape:
    """The factors between levels. Slices count as close if nothing is known of their distance."""
    spacing = spec.space.metric.spacing if spec.space.metric else lattice_of(spec).scale
    flat = spacing[0] > _FLAT * max(spacing[-2:])
    return (1, 2, 2) if len(spec.shape) > 2 and flat else (2,) * len(spec.shape)


def lattice_of(spec: RasterSpec) -> Lattice:
    """The coordinates of the mask: those of the source, or else the size of its pixels."""
    axes, metric = len(spec.shape), spec.space.metric
    if spec.space.lattice is not None:
        return spec.space.lattice
    if metric is None:
        return Lattice((1.0,) * axes, (0.0,) * axes, ("",) * axes)
    assert metric.unit in MILLIMETRES
    return Lattice(metric.spacing, (0.0,) * axes, (_UNITS[metric.unit],) * axes)
