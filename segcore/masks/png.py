"""Masks as PNG: how the masks of photos and other plain pictures are written.

A pixel's value is its class id. Up to 255 classes make a palette PNG that any viewer shows in the
legend's colours; more classes, and object masks, make a 16-bit greyscale PNG. The names of the
classes stand in the text chunk `classes`.

PNG stores rows from edge to edge, so the file is written one row of tiles at a time.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError, RunError
from maskloom.segcore.raster.spec import EncodedBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Sink

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class PalettePngMasks:
    """Writes masks as palette PNGs, or as 16-bit greyscale where 8 bits do not hold the labels."""

    suffix: str = ".png"

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_size: int
    ) -> list[EncodedBlock]:
        """The compressed labels of one tile; see `segcore.raster.spec.Format.encode`."""
        import imagecodecs

        if labels.dtype.name not in ("uint8", "uint16", "uint32"):
            raise ValueError(
                f"Labels must be uint8, uint16 or uint32; tile {tile.index} of {spec.location} has "
                f"{labels.dtype}."
            )
        row, column = (start // tile_size for start in tile.core.start)
        return [
            EncodedBlock(
                0,
                row,
                column,
                bytes(imagecodecs.deflate_encode(labels.tobytes(), level=1, raw=False)),
            )
        ]

    def assemble(
        self,
        pieces: Iterable[EncodedBlock],
        spec: RasterSpec,
        legend: ClassTable,
        out: Sink,
        tile_size: int,
    ) -> None:
        """Write the mask from the pieces of all tiles; see `segcore.raster.spec.Format.assemble`.

        Raises `RunError` where a piece is missing or does not belong to the image, and
        `FormatError` where an object mask has more objects than 16 bits can number.
        """
        # The readers of such pictures hold them whole, so their compressed labels are small beside
        # that.
        payloads: dict[tuple[int, int], bytes] = {}
        for piece in pieces:
            payload = payloads.setdefault((piece.row, piece.column), piece.payload)
            if payload != piece.payload:
                raise RunError(
                    f"Tile {(piece.row, piece.column)} of the mask of {spec.location} came with "
                    "two contents."
                )
        rows, columns = (-(-n // tile_size) for n in spec.shape)
        expected = {(row, column) for row in range(rows) for column in range(columns)}
        if payloads.keys() != expected:
            wrong = min(payloads.keys() ^ expected)
            raise RunError(
                f"The mask of {spec.location} has {len(payloads)} of {len(expected)} tiles; tile "
                f"{wrong} is missing or does not "
                "belong to it. Run the same command again."
            )
        # Run lengths suit labels: about the size of zlib's level 4 at the speed of level 1, and
        # steady on noisy masks.
        compressor = zlib.compressobj(strategy=zlib.Z_RLE)
        for row in range(rows):
            band = np.hstack(
                [
                    _decode(payloads[row, column], (row, column), spec, tile_size)
                    for column in range(columns)
                ]
            )
            if row == 0:
                out.write(_head(band.dtype.name, spec, legend))
            out.write(_chunk(b"IDAT", compressor.compress(_scan_lines(band, spec))))
        out.write(_chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b""))


def _decode(
    payload: bytes, place: tuple[int, int], spec: RasterSpec, tile_size: int
) -> NDArray[np.integer]:
    height, width = (
        min(tile_size, n - i * tile_size) for n, i in zip(spec.shape, place, strict=True)
    )
    values = zlib.decompress(payload)
    kinds = {
        height * width * np.dtype(name).itemsize: name for name in ("uint8", "uint16", "uint32")
    }
    if len(values) not in kinds:
        raise RunError(
            f"Tile {place} of the mask of {spec.location} has {len(values)} bytes; expected one of "
            f"{sorted(kinds)}."
        )
    return np.frombuffer(values, kinds[len(values)]).reshape(height, width)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
    )


def _head(dtype: str, spec: RasterSpec, legend: ClassTable) -> bytes:
    """Signature and all chunks before the pixels."""
    if dtype not in ("uint32", legend.dtype):
        raise RunError(
            f"The mask of {spec.location} came as {dtype}; its {len(legend.names)} classes ask for "
            f"{legend.dtype}."
        )
    height, width = spec.shape
    depth, colour_type = (8, 3) if dtype == "uint8" else (16, 0)
    head = _SIGNATURE + _chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    )
    if dtype == "uint8":
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(legend.colours)] = np.array(legend.colours, np.uint8).reshape(-1, 3)
        head += _chunk(b"PLTE", palette.tobytes()) + _chunk(b"tRNS", b"\xff" * 255 + b"\0")
    if dtype == "uint16":
        head += _chunk(b"tRNS", struct.pack(">H", legend.nodata))
    names = json.dumps({str(i): name for i, name in enumerate(legend.names)})
    return head + (
        _chunk(b"tEXt", b"classes\0" + names.encode("ascii")) if dtype != "uint32" else b""
    )


def _scan_lines(band: NDArray[np.integer], spec: RasterSpec) -> bytes:
    """Rows as PNG compresses them: big-endian, each after the number of its filter (0: none)."""
    if band.dtype == np.uint32 and band.max() > 65535:
        raise FormatError(
            f"The mask of {spec.location} has more objects than a 16-bit PNG can number "
            f"({band.max()}; at most 65535). "
            "Raise `min_size`, or convert the image to GeoTIFF."
        )
    pixels = band if band.dtype == np.uint8 else band.astype(">u2")
    lines = pixels.view(np.uint8).reshape(len(band), -1)
    return np.pad(lines, ((0, 0), (1, 0))).tobytes()
