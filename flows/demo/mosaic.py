"""A large mosaic of a small scene; its true mask is that of the scene, mirrored likewise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from maskloom.tasks.output import Output

_BLOCK = 240
"""Side of the mosaic's blocks: a multiple of 16 that divides two mirrored scenes."""
_ROWS = 1024


def write(scene: Path, target: Path, side: int) -> None:
    """Write a square TIFF of the scene and its mirror images.

    Its blocks repeat after two mirrored scenes, so only those are stored: all others share their
    bytes, as TIFF allows, and a mosaic of 2.1 GB takes 12 MB of the disk and no time.
    """
    import rasterio
    import tifffile

    with rasterio.open(scene) as file:
        pixels, crs, transform = file.read(), file.crs, file.transform
    pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]], axis=2)
    period = np.tile(pixels, (1, 2, 2)).transpose(1, 2, 0).astype("<u2")
    part = target.with_suffix(".part")
    with rasterio.open(
        part,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=period.shape[2],
        dtype="uint16",
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        interleave="pixel",
        SPARSE_OK=True,  # the blocks follow
        ENDIANNESS="LITTLE",
        crs=crs,
        transform=transform,
    ):
        pass
    with tifffile.TiffFile(part) as tiff:
        tags = tiff.pages.first.tags
        offsets, sizes = tags["TileOffsets"], tags["TileByteCounts"]
    stored, across = len(period) // _BLOCK, -(-side // _BLOCK)
    size = _BLOCK * _BLOCK * period.shape[2] * period.itemsize
    row, column = np.divmod(np.arange(across * across), across)
    with part.open("r+b") as file:
        end = file.seek(0, 2)
        for block in _blocks_of(period):
            file.write(block.tobytes())
        number = row % stored * stored + column % stored
        for tag, values in ((offsets, end + size * number), (sizes, np.full_like(number, size))):
            file.seek(tag.valueoffset)
            file.write(values.astype(f"<u{tag.valuebytecount // tag.count}").tobytes())
    part.replace(target)


def _blocks_of(period: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for y in range(0, len(period), _BLOCK):
        for x in range(0, len(period), _BLOCK):
            yield period[y : y + _BLOCK, x : x + _BLOCK]


def compare(output: Output, scene_id: str, mosaic_id: str, quiet: bool) -> tuple[int, int]:
    """Number of pixels of the mosaic's mask, and of those that are not the mirror image of one in
    the scene's mask, which was made in one piece.
    """
    with output.mask(scene_id) as scene:
        height, width = scene.spec.shape
        true, _ = scene.read(Box((0, 0), (height, width)))
    with output.mask(mosaic_id) as mask, display(quiet) as shown:
        rows, columns = mask.spec.shape
        across = _mirrored(np.arange(columns), width)
        strips = range(0, rows, _ROWS)
        progress, differing = ItemProgress(shown, "compare", "strips", len(strips)), 0
        for number, top in enumerate(strips, 1):
            bottom = min(top + _ROWS, rows)
            found, _ = mask.read(Box((top, 0), (bottom, columns)))
            down = _mirrored(np.arange(top, bottom), height)
            differing += int(np.count_nonzero(found != true[np.ix_(down, across)]))
            progress(number)
    return rows * columns, differing


def _mirrored(place: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The row, or column, in the scene of each row of the mosaic."""
    inside = place % (2 * side)
    return np.minimum(inside, 2 * side - 1 - inside)
