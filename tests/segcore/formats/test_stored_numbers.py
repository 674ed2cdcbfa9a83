"""Images opened for their numbers as stored, as masks are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from maskloom.segcore import formats
from maskloom.segcore.errors import ReadError
from maskloom.segcore.geometry import Box

LABELS = np.random.default_rng(1).integers(0, 4, (37, 53), np.uint8)
COLOURS = np.random.default_rng(2).integers(0, 256, (256, 3), np.uint8)


def stored(path: Path) -> tuple[np.ndarray, np.ndarray]:
    spec = formats.describe(str(path))
    with formats.open_stored(spec) as reader:
        return reader.read(Box.whole(spec.shape))


def palette(path: Path, **options: object) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette(COLOURS.ravel().tolist())
    image.save(path, **options)


def tiff(path: Path, **options: object) -> None:
    height, width = LABELS.shape
    colours = options.pop("colours", None)
    profile = {"width": width, "height": height, "count": 1, "dtype": "uint8", **options}
    with rasterio.open(path, "w", driver="GTiff", **profile) as file:
        if colours is not None:
            file.write_colormap(1, {i: (*map(int, c), 255) for i, c in enumerate(colours)})
        file.write(LABELS, 1)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("palette.png", palette),
        ("few.png", lambda p: palette(p, bits=2)),
        ("palette.bmp", palette),
        ("grey.png", lambda p: Image.fromarray(LABELS).save(p)),
        ("palette.tif", lambda p: tiff(p, photometric="palette", colours=COLOURS)),
        ("grey.tif", tiff),
    ],
)
def test_indices_and_grey_are_what_the_file_holds(tmp_path, name, write):
    write(tmp_path / name)
    values, valid = stored(tmp_path / name)
    np.testing.assert_array_equal(values, LABELS[..., None])
    assert valid.all()


def test_white_as_zero_is_not_turned_round(tmp_path):
    tiff(tmp_path / "a.tif", photometric="MINISWHITE")
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(stored(tmp_path / "a.tif")[0][..., 0], file.read(1))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_grey_levels_are_not_spread(tmp_path, depth):
    import struct
    import zlib

    values = LABELS % 2**depth
    bits = np.unpackbits(values[..., None], axis=-1)[..., -depth:].reshape(len(values), -1)
    lines = np.pad(np.packbits(bits, axis=-1), ((0, 0), (1, 0))).tobytes()
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(stored(tmp_path / "a.png")[0][..., 0], values)


def test_black_and_white_of_a_bmp_are_0_and_1(tmp_path):
    Image.fromarray(LABELS % 2 * np.uint8(255)).convert("1").save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(stored(tmp_path / "a.bmp")[0][..., 0], LABELS % 2)


def test_transparent_entries_are_not_valid_and_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    palette(tmp_path / "a.png", transparency=bytes([255, 0, 255, 255]), exif=exif)
    values, valid = stored(tmp_path / "a.png")
    np.testing.assert_array_equal(values[..., 0], np.rot90(LABELS, -1))
    np.testing.assert_array_equal(valid, np.rot90(LABELS, -1) != 1)


def test_colours_stay_colours(tmp_path):
    picture = np.random.default_rng(3).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(stored(tmp_path / "a.png")[0], picture)


def test_a_damaged_palette_picture_is_a_read_error(tmp_path):
    palette(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[-30] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ReadError, match="checksum"):
        stored(tmp_path / "a.png")
