"""Picture reading: colours, depth, orientation and transparency as people see them. Oracles: PIL,
imagecodecs, arithmetic.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import fsspec
import imagecodecs
import numpy as np
import pytest
from pictures_support import chunk
from PIL import Image, ImageOps
from skimage import data

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, RasterSpec

PICTURE = FORMATS["picture"]
DATA = os.environ.get("MASKLOOM_TEST_DATA")
with_data = pytest.mark.skipif(DATA is None, reason="needs MASKLOOM_TEST_DATA")
PHOTO = data.astronaut()[:50, :80].copy()


def read(path: Path) -> tuple[np.ndarray, np.ndarray, RasterSpec]:
    spec = PICTURE.describe(str(path), "v")
    with PICTURE.open(spec) as reader:
        return *reader.read(Box.whole(spec.shape)), spec


def png(
    rows: np.ndarray, depth: int, colour: int, *, transparent: bytes = b"", palette: bytes = b""
) -> bytes:
    """A PNG from whole rows of packed big-endian bytes, without any library."""
    width = rows.shape[1] * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    extra = (chunk(b"PLTE", palette) if palette else b"") + (
        chunk(b"tRNS", transparent) if transparent else b""
    )
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PHOTO).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    pixels, _, spec = read(path)
    assert spec.shape == expected.shape[:2] == spec.chunks
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_any_depth_with_its_transparent_value(tmp_path: Path, depth: int) -> None:
    levels = 2**depth - 1
    values = np.arange(64).reshape(8, 8) * levels // 63
    packed = (
        values.astype(">u2").view(np.uint8)
        if depth == 16
        else np.packbits(
            (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1, axis=-1, bitorder="big"
        ).reshape(8, 8, -1)
    )
    if depth < 8:
        bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(8, -1), axis=-1)
    key = int(values[3, 3])
    path = tmp_path / "a.png"
    path.write_bytes(png(packed.reshape(8, -1), depth, 0, transparent=struct.pack(">H", key)))
    pixels, valid, spec = read(path)
    assert (spec.bands, spec.dtype, spec.interpretation) == (
        (1,),
        "uint16" if depth == 16 else "uint8",
        "bands",
    )
    np.testing.assert_array_equal(
        pixels[..., 0], values if depth >= 8 else values * (255 // levels)
    )
    np.testing.assert_array_equal(valid, values != key)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_keeps_all_bits(tmp_path: Path, colour: int, channels: int) -> None:
    values = np.random.default_rng(colour).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    values[4, 4, -1] = 0
    path = tmp_path / "a.png"
    key = values[2, 2].astype(">u2").tobytes() if colour == 2 else b""
    path.write_bytes(
        png(values.astype(">u2").view(np.uint8).reshape(9, -1), 16, colour, transparent=key)
    )
    pixels, valid, spec = read(path)
    assert spec.dtype == "uint16"
    np.testing.assert_array_equal(pixels, values[..., : spec.channels])
    gone = [[2, 2]] if colour == 2 else [[4, 4]]
    assert np.argwhere(~valid).tolist() == gone


def test_a_transparent_colour_needs_all_channels(tmp_path: Path) -> None:
    rows = np.array([[1, 2, 3, 1, 2, 4, 9, 2, 3]], np.uint8)
    (tmp_path / "a.png").write_bytes(png(rows, 8, 2, transparent=struct.pack(">3H", 1, 2, 3)))
    assert read(tmp_path / "a.png")[1].tolist() == [[False, True, True]]


def test_a_palette_is_read_as_colours_and_its_transparency_as_no_data(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 7]], np.uint8)
    index = np.array([[0, 1, 2, 1]], np.uint8)
    (tmp_path / "a.png").write_bytes(
        png(index, 8, 3, palette=colours.tobytes(), transparent=bytes([255, 0, 128]))
    )
    pixels, valid, spec = read(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, colours[index])
    assert valid.tolist() == [[True, False, True, False]]
    assert spec.interpretation == "rgb"


def test_alpha_zero_is_no_data_and_half_transparent_is(tmp_path: Path) -> None:
    alpha = np.full(PHOTO.shape[:2], 255, np.uint8)
    alpha[:5], alpha[5:9] = 0, 1
    for name in ("a.png", "a.webp"):
        Image.fromarray(np.dstack([PHOTO, alpha])).save(tmp_path / name, lossless=True, exact=True)
        pixels, valid, spec = read(tmp_path / name)
        assert spec.channels == 3
        np.testing.assert_array_equal(valid, alpha != 0)
        np.testing.assert_array_equal(pixels, PHOTO)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_jpeg_colour_models(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PHOTO).convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB" if mode == "CMYK" else mode))
    pixels, _, spec = read(path)
    assert spec.channels == (1 if mode == "L" else 3)
    np.testing.assert_array_equal(pixels, expected.reshape(pixels.shape))


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_animations_are_refused_and_one_frame_is_a_picture(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    frames[0].save(
        tmp_path / name, save_all=True, append_images=frames[1:], lossless=True, duration=100
    )
    with pytest.raises(
        FormatError, match=r"holds 2 frames \(an animation\).*Write each into a file of its own"
    ):
        PICTURE.describe(str(tmp_path / name), "")
    frames[0].save(tmp_path / name, save_all=True, lossless=True)
    np.testing.assert_array_equal(read(tmp_path / name)[0], PHOTO)


def write_mpo(path: Path, kind: int, head: bytes = b"") -> None:
    """A JPEG with a second picture of this kind, which Pillow leaves undefined; `head` stands in a
    segment of the second.
    """
    second = io.BytesIO()
    Image.fromarray(255 - PHOTO).save(second, "JPEG", comment=head)
    Image.fromarray(PHOTO).save(
        path, "MPO", save_all=True, append_images=[Image.open(second)], quality=95
    )
    content = path.read_bytes()
    # Pillow's entries of 16 bytes begin at byte 50 of the index, with the kind.
    at = content.index(b"MPF\0") + 4 + 50 + 16
    path.write_bytes(content[:at] + struct.pack("<I", kind) + content[at + 4 :])


@pytest.mark.parametrize("kind", [0x020001, 0x020002, 0x020003, 0])
def test_a_jpeg_of_several_views_is_refused(tmp_path: Path, kind: int) -> None:
    write_mpo(tmp_path / "a.jpg", kind)
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    with pytest.raises(FormatError, match=r"holds 2 pictures \(MPO\)"):
        PICTURE.describe(str(tmp_path / "a.jpg"), "")


@pytest.mark.parametrize("kind", [0x010001, 0x010002])
def test_the_previews_of_a_camera_are_no_pictures_of_their_own(tmp_path: Path, kind: int) -> None:
    write_mpo(tmp_path / "a.jpg", kind)
    pixels, _, spec = read(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(pixels, np.asarray(image))
    assert spec.notes == ()


def test_a_gain_map_is_no_picture_of_its_own_and_that_is_said(tmp_path: Path) -> None:
    write_mpo(tmp_path / "a.jpg", 0, b"http://ns.adobe.com/hdr-gain-map/1.0/ hdrgm:Version")
    pixels, _, spec = read(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(pixels, np.asarray(image))
    assert "gain map" in spec.notes[0]


def test_a_broken_index_of_further_pictures_is_said(tmp_path: Path) -> None:
    write_mpo(tmp_path / "a.jpg", 0)
    content = tmp_path.joinpath("a.jpg").read_bytes()
    at = content.index(b"MPF\0II*\0") + 8
    (tmp_path / "a.jpg").write_bytes(content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :])
    assert "index of further pictures is broken" in read(tmp_path / "a.jpg")[2].notes[0]


def test_headers_are_read_without_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(data.astronaut()).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    spec = PICTURE.describe(str(path), "")
    assert spec.shape == (512, 512)
    with pytest.raises(ReadError, match=r"a\.png.*incomplete"):
        PICTURE.open(spec)


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.jpg", "a.bmp", "a.webp"])
def test_truncated_files_are_refused_wherever_they_end(
    tmp_path: Path, name: str, remote: bool
) -> None:
    image = data.astronaut()[:100, :100]
    if name == "deep.png":
        content = cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes()
    else:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, name.replace("jpg", "jpeg").split(".")[1])
        content = buffer.getvalue()
    location = f"memory://truncated/{name}" if remote else f"file://{tmp_path}/{name}"
    for fraction in (0.001, 0.01, 0.05, 0.3, 0.6, 0.9, 0.99):
        with fsspec.open(location, "wb") as file:
            file.write(content[: max(1, int(len(content) * fraction))])
        with pytest.raises((FormatError, ReadError), match=name.replace(".", r"\.")):
            PICTURE.open(PICTURE.describe(location, ""))


def test_a_damaged_png_is_refused_even_where_its_pixels_decode(tmp_path: Path) -> None:
    content = bytearray(png(np.zeros((8, 8), np.uint8), 8, 0))
    content[-13] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ReadError, match="checksum of the chunk IDAT"):
        read(tmp_path / "a.png")


def header_only(width: int, height: int) -> bytes:
    return (
        png(np.zeros((1, 1), np.uint8), 8, 0)[:8]
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )


def test_bombs_are_refused_by_the_header_and_only_by_our_own_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(header_only(2**14, 2**14))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PICTURE.describe(str(path), "").pixels == 2**28
    path.write_bytes(header_only(2**14, 2**14 + 1))
    with pytest.raises(
        FormatError, match=r"the limit is 268435456 pixels\. Convert it to a tiled TIFF"
    ):
        PICTURE.describe(str(path), "")


def test_webp_has_the_same_limit(tmp_path: Path) -> None:
    """By the header of a lossless picture: 14 bits each for width and height, less one. Whether its
    pixels are there is not looked at.
    """
    before, path = Image.MAX_IMAGE_PIXELS, tmp_path / "a.webp"

    def write(chunk: bytes) -> None:
        path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)

    Image.fromarray(PHOTO).save(path, lossless=True)
    content = path.read_bytes()[12:]
    write(content[:9] + struct.pack("<I", 16381 | 11999 << 14) + content[13:])
    assert PICTURE.describe(str(path), "").shape == (12000, 16382)
    # A canvas of 20,000 x 20,000, which only the extended header can say.
    write(
        b"VP8X"
        + struct.pack("<II", 10, 2)
        + struct.pack("<I", 19999)[:3]
        + struct.pack("<I", 19999)[:3]
        + content
    )
    with pytest.raises(FormatError, match=r"a\.webp .*limit of 268435456 pixels"):
        PICTURE.describe(str(path), "")
    assert before == Image.MAX_IMAGE_PIXELS, "PIL's own limit is left as it was"


def test_nothing_is_printed_about_odd_pictures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    deep = png(np.zeros((4, 24), np.uint8), 16, 2)
    # libpng talks about wrong profiles and gammas.
    path.write_bytes(
        deep[:33]
        + chunk(b"gAMA", bytes(4))
        + chunk(b"sRGB", b"\x09")
        + chunk(b"cHRM", bytes(32))
        + deep[33:]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path)
    assert capfd.readouterr() == ("", "")


@with_data
def test_pngsuite_is_what_pil_and_imagecodecs_see() -> None:
    compared = 0
    for path in sorted((Path(str(DATA)) / "odd_valid" / "pngsuite").glob("*.png")):
        content = path.read_bytes()
        pixels, valid, spec = read(path)
        if content[24] == 16:
            # Grey and colour, each with alpha last where the file has it or a transparent colour.
            expected = imagecodecs.png_decode(content).reshape(*spec.shape, -1)
            alpha = expected[..., spec.channels :]
        else:
            with Image.open(path) as image:
                seen = np.asarray(image.convert("RGBA"))
                expected = seen if spec.channels == 3 else np.asarray(image.convert("L"))[..., None]
                # PIL compares the transparent colour of 2 and 4 bits with spread values; checked
                # above without PIL.
                trusted = content[24] == 8 or spec.channels == 3
                alpha = seen[..., 3:] if trusted else np.empty((*spec.shape, 0))
        np.testing.assert_array_equal(pixels, expected[..., : spec.channels], err_msg=path.name)
        if alpha.shape[-1]:
            np.testing.assert_array_equal(valid, alpha[..., 0] != 0, err_msg=path.name)
        compared += 1
    assert compared > 150


@with_data
def test_real_pictures_are_upright_as_pil_has_them() -> None:
    folder = Path(str(DATA)) / "odd_valid" / "pillow"
    for path in [
        *folder.glob("hopper_orientation_*"),
        *folder.glob("xmp_tags_orientation*.png"),
        folder / "pil_sample_cmyk.jpg",
    ]:
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read(path)[0], expected, err_msg=path.name)
