"""Slides as Aperio scanners write them, made by tifffile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LABEL, MACRO, THUMBNAIL = (200, 10, 10), (10, 200, 10), (10, 10, 200)
"""Colours that no photograph or tissue is full of."""
RGB_JPEG = {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}}


def shrunk(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every so many-th pixel, sides rounded down as scanners do."""
    height, width = (side // factor for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[::factor, ::factor][:height, :width])


def describe(shape: Sequence[int], mpp: str | None = "0.5") -> str:
    """The description of a page of a slide."""
    height, width = shape[:2]
    stated = "" if mpp is None else f"|MPP = {mpp}"
    return (
        f"Aperio Image Library v12.0.15 \r\n{width}x{height} [0,0 {width}x{height}] (48x48) "
        f"JPEG/RGB Q=90|AppMag = 20|Filename = 7{stated}|Left = 25.7"
    )


def write_aperio(
    path: Path,
    pixels: np.ndarray,
    factors: Sequence[int] = (4, 7),
    mpp: str | None = "0.5",
    attached: bool = True,
    **storage: Any,
) -> None:
    """A slide with levels, thumbnail, label and macro picture, in tiles of 48 pixels."""
    tiled = {"tile": (48, 48), **(storage or RGB_JPEG)}
    plain: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    levels = {**plain, **({} if pixels.ndim == 3 else {"photometric": "minisblack"}), **tiled}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=describe(pixels.shape, mpp), **levels)
        if attached:
            file.write(_plain(60, 50, THUMBNAIL), description=describe((60, 50)), **plain)
        for factor in factors:
            level = shrunk(pixels, factor)
            file.write(level, description=describe(level.shape, mpp), **levels)
        if attached:
            text = "Aperio Image Library v12\r\n"
            file.write(
                _plain(33, 44, LABEL), description=f"{text}label 44x33", subfiletype=1, **plain
            )
            file.write(
                _plain(20, 90, MACRO), description=f"{text}macro 90x20", subfiletype=9, **plain
            )


def write_tiles(
    path: Path, pixels: np.ndarray, compression: int, absent: Sequence[int] = ()
) -> None:
    """A slide of one level in JPEG 2000: 33005, or 33003 with separate colour (YCbCr). Tiles with
    the numbers `absent` have no bytes, as for places that were not scanned.
    """
    import imagecodecs

    stored = ycbcr(pixels) if compression == 33003 else pixels

    def tiles() -> Iterator[bytes]:
        for number, (y, x) in enumerate(np.ndindex(*(-(-n // 48) for n in pixels.shape[:2]))):
            tile = np.zeros((48, 48, 3), np.uint8)
            part = stored[y * 48 : (y + 1) * 48, x * 48 : (x + 1) * 48]
            tile[: part.shape[0], : part.shape[1]] = part
            encoded = imagecodecs.jpeg2k_encode(
                tile, level=0, codecformat="J2K", mct=False, reversible=True
            )
            yield b"" if number in absent else encoded

    tifffile.imwrite(
        path,
        tiles(),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(48, 48),
        compression=compression,
        photometric="rgb",
        description=describe(pixels.shape),
        metadata=None,
        software=False,
    )


def write_philips(path: Path, pixels: np.ndarray, spacing: tuple[float, float]) -> None:
    """A slide as Philips scanners export it, which OpenSlide reads: a level, its half, the label
    and the macro picture; `spacing` (y, x) in mm.
    """
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{_spacing(spacing, 2**level)}'
        f"{_attribute('PIIM_PIXEL_DATA_REPRESENTATION_NUMBER', 'IUInt16', level)}</DataObject>"
        for level in range(2)
    )
    sequence = "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"
    image = (
        f'<DataObject ObjectType="DPScannedImage">'
        f"{_attribute('PIM_DP_IMAGE_TYPE', 'IString', 'WSI')}"
        f"{_attribute(sequence, 'IDataObjectArray', f'<Array>{levels}</Array>')}</DataObject>"
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        f"{_attribute('DICOM_MANUFACTURER', 'IString', 'PHILIPS')}{_spacing(spacing, 1)}"
        f"{_attribute('PIM_DP_SCANNED_IMAGES', 'IDataObjectArray', f'<Array>{image}</Array>')}"
        "</DataObject>"
    )
    tiled: dict[str, Any] = {"photometric": "rgb", "metadata": None, "tile": (64, 64), **RGB_JPEG}
    plain: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=text, software="Philips DP v1.0", **tiled)
        file.write(shrunk(pixels, 2), software=False, subfiletype=1, **tiled)
        file.write(_plain(33, 44, LABEL), description="Label", **plain)
        file.write(_plain(20, 90, MACRO), description="Macro", **plain)


def _attribute(name: str, kind: str, value: object) -> str:
    return (
        f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="{kind}">{value}'
        "</Attribute>"
    )


def _spacing(spacing: tuple[float, float], factor: int) -> str:
    numbers = " ".join(f"&quot;{each * factor:g}&quot;" for each in spacing)
    return _attribute("DICOM_PIXEL_SPACING", "IDoubleArray", numbers)


def ycbcr(pixels: np.ndarray) -> np.ndarray:
    """Luminance and colour differences by the matrix of JFIF."""
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    values = pixels @ matrix.T + [0, 128, 128]
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _plain(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)
