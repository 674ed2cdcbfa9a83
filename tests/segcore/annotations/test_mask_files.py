"""Masks of every kind are read as the numbers that they hold, from a disk and from a store."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import rasterio
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maskloom.segcore.annotations.label_mapping import By
from maskloom.segcore.annotations.masks import holds_object_ids, open_mask
from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.formats import describe
from maskloom.segcore.geometry import Box

COLOURS = np.array([(0, 0, 0), (60, 16, 152), (132, 41, 246), (110, 193, 228)], np.uint8)


def labels(shape: tuple[int, int] = (40, 33)) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 4, shape).astype(np.uint8)


def read(location: str, by: By, box: Box | None = None) -> tuple[np.ndarray, np.ndarray]:
    spec = describe(location)
    with open_mask(spec, by) as reader:
        return reader.read(box or Box.whole(spec.shape))


def palette_png(path: str, values: np.ndarray, **options: object) -> str:
    image = Image.fromarray(values)
    image.putpalette(COLOURS.ravel().tolist())
    image.save(path, **options)
    return path


def test_a_palette_is_read_by_index_and_by_colour(tmp_path: Path) -> None:
    path = palette_png(f"{tmp_path}/a.png", labels())
    values, known = read(path, "index")
    np.testing.assert_array_equal(values, labels())
    assert known.all()
    packed = COLOURS[labels()].astype(int) @ [65536, 256, 1]
    np.testing.assert_array_equal(read(path, "colour")[0], packed)
    # A part is a part of the whole.
    np.testing.assert_array_equal(
        read(path, "index", Box((3, 5), (20, 30)))[0], labels()[3:20, 5:30]
    )


def test_transparent_entries_are_not_known(tmp_path: Path) -> None:
    path = palette_png(f"{tmp_path}/a.png", labels(), transparency=bytes([0, 255, 0, 255]))
    np.testing.assert_array_equal(read(path, "index")[1], labels() % 2 == 1)
    path = palette_png(f"{tmp_path}/b.png", labels(), transparency=1)
    np.testing.assert_array_equal(read(path, "index")[1], labels() != 1)
    # What shines through is there.
    path = palette_png(f"{tmp_path}/c.png", labels(), transparency=bytes([1, 0, 128, 255]))
    np.testing.assert_array_equal(read(path, "index")[1], labels() != 1)


def test_a_palette_is_turned_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = palette_png(
        f"{tmp_path}/a.png", labels(), exif=exif, transparency=bytes([0, 255, 255, 255])
    )
    assert describe(path).shape == labels().T.shape
    values, known = read(path, "index")
    np.testing.assert_array_equal(values, np.rot90(labels(), -1))
    np.testing.assert_array_equal(known, values != 0)


def test_ids_of_objects_are_told_from_many_classes(tmp_path: Path) -> None:
    """Both are grey pictures of 16 bits; masks of classes have their names with them."""
    values = labels().astype(np.uint16)
    Image.fromarray(values).save(f"{tmp_path}/ids.png")
    names = PngInfo()
    names.add_text("classes", "a, b, c, d")
    Image.fromarray(values).save(f"{tmp_path}/classes.png", pnginfo=names)
    assert holds_object_ids(describe(f"{tmp_path}/ids.png"))
    assert not holds_object_ids(describe(f"{tmp_path}/classes.png"))
    assert not holds_object_ids(describe(palette_png(f"{tmp_path}/few.png", labels())))


def test_black_and_white_of_one_bit_is_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(labels() > 1).save(f"{tmp_path}/a.png")
    np.testing.assert_array_equal(read(f"{tmp_path}/a.png", "index")[0], labels() > 1)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_read_as_stored(tmp_path: Path, bits: int) -> None:
    # Not through PIL, which would read and write the spread values.
    height, width = labels().shape
    packed = np.zeros((height, -(-width * bits // 8)), np.uint8)
    for x in range(width):
        shift = 8 - bits - x * bits % 8
        packed[:, x * bits // 8] |= labels()[:, x] << shift
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(read(f"{tmp_path}/a.png", "index")[0], labels())


def test_a_palette_of_a_bmp_is_read_by_index(tmp_path: Path) -> None:
    path = palette_png(f"{tmp_path}/a.bmp", labels())
    np.testing.assert_array_equal(read(path, "index")[0], labels())
    packed = COLOURS[labels()].astype(int) @ [65536, 256, 1]
    np.testing.assert_array_equal(read(path, "colour")[0], packed)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_and_grey_as_colours(tmp_path: Path, dtype: type) -> None:
    values = labels().astype(dtype) * 60
    Image.fromarray(values).save(f"{tmp_path}/a.png")
    np.testing.assert_array_equal(read(f"{tmp_path}/a.png", "index")[0], values)
    if dtype == np.uint8:
        np.testing.assert_array_equal(
            read(f"{tmp_path}/a.png", "colour")[0], values.astype(int) * 0x010101
        )
        Image.fromarray(values).convert("RGB").save(f"{tmp_path}/b.png")
        np.testing.assert_array_equal(read(f"{tmp_path}/b.png", "index")[0], values)
    else:
        with pytest.raises(FormatError, match="uint16"):
            read(f"{tmp_path}/a.png", "colour")


def test_colours_where_indices_are_expected_are_named(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[labels()]).save(f"{tmp_path}/a.png")
    with pytest.raises(FormatError, match=r"#3C1098.*--colours"):
        read(f"{tmp_path}/a.png", "index")


def tiff(path: str, values: np.ndarray, **profile: object) -> str:
    size = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": values.dtype}
    with rasterio.open(
        path, "w", driver="GTiff", tiled=True, blockxsize=16, blockysize=16, **size, **profile
    ) as file:
        file.write(values, 1)
        if values.dtype == np.uint8:
            file.write_colormap(
                1, {i: (*map(int, colour), 255) for i, colour in enumerate(COLOURS)}
            )
    return path


def test_tiffs_with_a_palette_are_read_by_index(tmp_path: Path) -> None:
    path = tiff(f"{tmp_path}/a.tif", labels(), nodata=3)
    values, known = read(path, "index", Box((7, 2), (31, 29)))
    np.testing.assert_array_equal(values, labels()[7:31, 2:29])
    np.testing.assert_array_equal(known, labels()[7:31, 2:29] != 3)
    np.testing.assert_array_equal(
        read(path, "colour")[0][labels() < 3],
        (COLOURS[labels()].astype(int) @ [65536, 256, 1])[labels() < 3],
    )


def test_numbers_beyond_16_bits_and_floats(tmp_path: Path) -> None:
    large = labels().astype(np.uint32) * 70_000
    np.testing.assert_array_equal(read(tiff(f"{tmp_path}/a.tif", large), "index")[0], large)
    whole = labels().astype(np.float32)
    whole[0, 0] = np.nan
    values, known = read(tiff(f"{tmp_path}/b.tif", whole), "index")
    assert not known[0, 0]
    np.testing.assert_array_equal(values[known], labels()[known])
    with pytest.raises(FormatError, match="fractions"):
        read(tiff(f"{tmp_path}/c.tif", whole + 0.5), "index")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_from_a_store(tmp_path: Path, suffix: str) -> None:
    local = (
        palette_png(f"{tmp_path}/a.png", labels())
        if suffix == "png"
        else tiff(f"{tmp_path}/a.tif", labels())
    )
    fs = fsspec.filesystem("memory")
    fs.put(local, f"/evaluated/a.{suffix}")
    np.testing.assert_array_equal(read(f"memory://evaluated/a.{suffix}", "index")[0], labels())


def test_a_cut_palette_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    palette_png(str(path), labels((300, 300)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReadError, match=r"a\.png"):
        read(str(path), "index")
