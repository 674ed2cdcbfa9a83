"""Damage that decoders forgive: no picture is `ok` where a decoder guessed pixels. Oracles: where
the damage was put, and PIL on the whole file.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from pictures_support import chunk
from PIL import Image
from skimage import data

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.errors import ReadError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS

PHOTO = data.astronaut()
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "colour in quarters": {"subsampling": 2},
}


def read(path: Path, image_format: str) -> np.ndarray:
    reading = FORMATS[image_format]
    spec = reading.describe(str(path), "v")
    with reading.open(spec) as reader:
        return reader.read(Box.whole(spec.shape))[0]


def jpeg(pixels: np.ndarray = PHOTO, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def noise(content: bytes, count: int) -> bytes:
    """The content with random bytes in its middle."""
    middle = len(content) // 2
    return content[:middle] + np.random.default_rng(0).bytes(count) + content[middle + count :]


@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_with_guessed_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    whole, path = jpeg(**KINDS[kind]), tmp_path / "a.jpg"
    for content in (
        noise(whole, 400),
        whole[: len(whole) // 2] + b"\xff\xd9",
        whole[: len(whole) // 2],
    ):
        path.write_bytes(content)
        with pytest.raises(
            ReadError, match=r"a\.jpg is damaged or incomplete \(libjpeg: .*Copy or save it again"
        ):
            read(path, "picture")
    path.write_bytes(whole[:-2])
    with pytest.raises(ReadError, match=r"a\.jpg ends before its end marker \(the bytes FF D9\)"):
        read(path, "picture")


@pytest.mark.parametrize(("progressive", "frame"), [(False, b"\xff\xc0"), (True, b"\xff\xc2")])
def test_a_jpeg_of_few_bytes_that_promises_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progressive: bool, frame: bytes
) -> None:
    content = bytearray(jpeg(PHOTO[:64, :64, 0], progressive=progressive))
    # More than the 500 MB that GDAL allows for a progressive picture, of which it would then say
    # nothing.
    struct.pack_into(">HH", content, content.index(frame) + 5, 16300, 16400)
    (tmp_path / "a.jpg").write_bytes(content)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ReadError, match="damaged"):
        read(tmp_path / "a.jpg", "picture")


def test_damage_is_seen_behind_a_whole_preview(tmp_path: Path) -> None:
    """GDAL takes the preview in the EXIF segment for a smaller version of the picture, which it is
    here.
    """
    whole = jpeg()
    preview = jpeg(PHOTO[::2, ::2])[:60000]
    tags = struct.pack("<H", 0) + struct.pack("<I", 14)
    entries = [(0x0103, 3, 6), (0x0201, 4, 14 + 2 + 3 * 12 + 4), (0x0202, 4, len(preview))]
    second = (
        struct.pack("<H", 3)
        + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
        + bytes(4)
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags + second + preview
    damaged = noise(whole, 400)
    (tmp_path / "a.jpg").write_bytes(
        damaged[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + damaged[2:]
    )
    with pytest.raises(ReadError, match="damaged"):
        read(tmp_path / "a.jpg", "picture")


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (8, 3000), (300, 257), (512, 512)])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_whole_jpegs_are_read_whatever_surrounds_their_pixels(
    tmp_path: Path, shape: tuple[int, int], mode: str
) -> None:
    image = Image.fromarray(np.resize(PHOTO, (*shape, 3))).convert(mode)
    for kind, options in KINDS.items():
        buffer = io.BytesIO()
        image.save(
            buffer,
            "jpeg",
            comment=b"\xff\xda\xff\xd9",
            icc_profile=b"no profile" * 9,
            **(options if mode == "RGB" else {}),
        )
        path = tmp_path / f"{kind}.jpg"
        path.write_bytes(buffer.getvalue() + b"what cameras add behind the picture")
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("L" if mode == "L" else "RGB"))
        np.testing.assert_array_equal(read(path, "picture"), expected.reshape(*shape, -1))


def png(depth: int, colour: int, stream: bytes, interlaced: int = 0) -> bytes:
    """A PNG of 16 x 16 pixels around compressed rows."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, colour, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(range(90, 90 + 48))) if colour == 3 else b""
    cut = len(stream) // 2
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + palette
        + chunk(b"IDAT", stream[:cut])
        + chunk(b"IDAT", stream[cut:])
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(
    ("depth", "colour", "bits"),
    [(1, 0, 1), (4, 3, 4), (8, 0, 8), (8, 2, 24), (8, 6, 32), (16, 0, 16), (16, 2, 48)],
)
def test_pngs_with_fewer_pixels_than_their_header_says_are_refused(
    tmp_path: Path, depth: int, colour: int, bits: int, interlaced: int
) -> None:
    """Checksums and compression are right: only the rows are too few, and decoders leave the rest
    black.
    """
    # Rows of zeros: an honest black picture looks the same.
    passes = (
        ((2, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16)) if interlaced else ((16, 16),)
    )
    rows = b"".join((b"\0" + bytes((columns * bits + 7) // 8)) * count for count, columns in passes)
    path = tmp_path / "a.png"
    path.write_bytes(png(depth, colour, zlib.compress(rows), interlaced))
    assert read(path, "picture").shape[:2] == (16, 16)
    for part in (rows[: len(rows) // 2], rows[:-1]):
        path.write_bytes(png(depth, colour, zlib.compress(part), interlaced))
        with pytest.raises(ReadError, match=r"a\.png"):
            read(path, "picture")


def write_tiff(path: Path, compression: str, **options: Any) -> tuple[int, int]:
    """Writes a TIFF; the first byte and the number of bytes of its second tile or strip."""
    bilevel = compression.startswith("CCITT")
    pixels = (PHOTO[..., :1] > 128).astype(np.uint8) if bilevel else PHOTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=512,
            height=512,
            count=pixels.shape[-1],
            dtype="uint8",
            compress=compression,
            **({"nbits": 1} if bilevel else {"interleave": "pixel"}),
            **options,
        ) as file:
            file.write(np.moveaxis(pixels, -1, 0))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return page.dataoffsets[1], page.databytecounts[1]


@pytest.mark.parametrize("compression", ["JPEG", "LZW", "CCITTFAX3", "CCITTFAX4", "CCITTRLE"])
@pytest.mark.parametrize(
    "tiled", [{"tiled": True, "blockxsize": 256, "blockysize": 256}, {"blockysize": 128}]
)
def test_damaged_blocks_of_a_tiff_are_refused_and_the_others_are_not(
    tmp_path: Path, compression: str, tiled: dict[str, Any]
) -> None:
    path = tmp_path / "a.tif"
    start, size = write_tiff(
        path, compression, **tiled, **({"photometric": "ycbcr"} if compression == "JPEG" else {})
    )
    before = read(path, "tiff")
    content = bytearray(path.read_bytes())
    content[start + size // 2 : start + size // 2 + 60] = np.random.default_rng(0).bytes(60)
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"a\.tif: rows 0 to 512, columns 0 to 512 cannot be read"):
        read(path, "tiff")
    spec = FORMATS["tiff"].describe(str(path), "v")
    with FORMATS["tiff"].open(spec) as reader:
        np.testing.assert_array_equal(reader.read(Box((0, 0), (128, 256)))[0], before[:128, :256])
        # Not only the first time, when the block is not yet in GDAL's cache.
        for _ in range(2):
            with pytest.raises(ReadError):
                reader.read(Box((0, 0), (256, 512)))
