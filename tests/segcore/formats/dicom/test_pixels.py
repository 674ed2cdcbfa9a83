"""Pixels: transfer syntaxes, rescaling, padding, colours, and files that are broken or hostile."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_support import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    encoded,
    enhanced,
    items_of,
    slice_of,
    stack_of,
)
from pydicom.encaps import encapsulate
from skimage import data

from maskloom.segcore.errors import FormatError, ImageError, ReadError
from maskloom.segcore.formats.dicom import files
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.source import Member
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

DICOM, OPTIONS = FORMATS["dicom"], ReadOptions()
GREY = data.camera()[100:140:, 200:264]
DEEP = (GREY.astype(np.uint16) << 4) + 7
COLOURS = data.astronaut()[100:140, 200:264]


def read(path: Path | str, part: str = "") -> tuple[np.ndarray, np.ndarray]:
    spec = DICOM.describe_image(StoredImage(str(path), "1", part), OPTIONS)
    with DICOM.open(spec) as reader:
        pixels, valid = reader.read(Box.whole(spec.shape))
    assert pixels.dtype == spec.dtype
    return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels), valid


def stored(tmp_path: Path, dataset: pydicom.Dataset, name: str = "x.dcm") -> Path:
    path = tmp_path / name
    path.write_bytes(encoded(dataset))
    return path


def compressed(pixels: np.ndarray, content: bytes, syntax: str, **elements: object):
    made = slice_of(pixels, syntax=syntax, **elements)
    made.PixelData = encapsulate([content])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return made


JPEG_2000, JPEG_LS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"
LOSSLESS = {
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", imagecodecs.ljpeg_encode),
    "JPEG-LS": (JPEG_LS, imagecodecs.jpegls_encode),
    "JPEG 2000": (JPEG_2000, lambda p: imagecodecs.jpeg2k_encode(p, codecformat="J2K", level=0)),
}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("pixels", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_lossless_compression_gives_the_numbers_back(tmp_path, kind, pixels):
    syntax, encode = LOSSLESS[kind]
    path = stored(tmp_path, compressed(pixels, encode(pixels), syntax))
    np.testing.assert_array_equal(read(path)[0], pixels)


@pytest.mark.parametrize("kind", ["JPEG-LS", "JPEG 2000"])
def test_signed_numbers_keep_their_sign_whatever_the_stream_says(tmp_path, kind):
    signed = DEEP.astype(np.int16) - 2000
    syntax, encode = LOSSLESS[kind]
    # As some archives write it: 13 bits of a signed number in an unsigned stream.
    stream = encode((signed & 0x1FFF).astype(np.uint16))
    made = compressed(signed, stream, syntax, BitsStored=13, HighBit=12)
    np.testing.assert_array_equal(read(stored(tmp_path, made))[0], signed)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_colours_of_jpeg_are_those_that_the_header_says(tmp_path, photometric):
    space = "RGB" if photometric == "RGB" else "YCBCR"
    content = imagecodecs.jpeg8_encode(COLOURS, level=98, colorspace="RGB", outcolorspace=space)
    syntax = "1.2.840.10008.1.2.4.50"
    made = compressed(COLOURS, content, syntax, PhotometricInterpretation=photometric)
    found = read(stored(tmp_path, made))[0].astype(int)
    assert np.abs(found - COLOURS).mean() < 4


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, files.DEFLATED])
def test_byte_orders_and_deflation(tmp_path, syntax):
    made = slice_of(DEEP, syntax=syntax)
    if syntax == BIG_ENDIAN:
        made.PixelData = DEEP.byteswap().tobytes()
    np.testing.assert_array_equal(read(stored(tmp_path, made))[0], DEEP)


@pytest.mark.parametrize("pixels", [GREY, DEEP, COLOURS], ids=["8 bits", "16 bits", "colours"])
def test_run_lengths_and_planes_of_colours(tmp_path, pixels):
    made = slice_of(pixels)
    made.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    np.testing.assert_array_equal(read(stored(tmp_path, made))[0], pixels)
    if pixels is COLOURS:
        planes = slice_of(pixels, PlanarConfiguration=1)
        planes.PixelData = np.moveaxis(pixels, -1, 0).tobytes()
        np.testing.assert_array_equal(read(stored(tmp_path, planes, "p.dcm"))[0], pixels)


@pytest.mark.parametrize(
    ("slope", "intercept", "pixels", "dtype"),
    [
        (1, 0, DEEP, "uint16"),
        (1, -1024, (DEEP & 0xFFF), "int32"),
        (2, -100, GREY, "int16"),
        (0.5, 3.25, DEEP, "float32"),
        (0, 7, GREY, "uint16"),
        (1, 0, GREY.astype(np.int8), "int8"),
    ],
)
def test_rescaling_and_the_type_that_holds_it(tmp_path, slope, intercept, pixels, dtype):
    made = slice_of(pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    found = read(stored(tmp_path, made))[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels.astype(float) * (slope or 1) + intercept)


def test_twelve_bits_and_rescaling_are_16_bits(tmp_path):
    made = slice_of(DEEP, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024)
    found = read(stored(tmp_path, made))[0]
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, DEEP.astype(int) - 1024)


def test_unused_bits_are_no_part_of_the_numbers(tmp_path):
    made = slice_of(DEEP | 0x8000, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(stored(tmp_path, made))[0], DEEP & 0xFFF)


def test_slices_with_scales_of_their_own_are_values_of_one_scale(tmp_path):
    slices = stack_of(np.stack([GREY, GREY, GREY]))
    for number, dataset in enumerate(slices):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.1 * (number + 1), 0
    paths = [stored(tmp_path, each, f"{i}.dcm") for i, each in enumerate(slices)]
    image = StoredImage(str(tmp_path / "whole"), "1", files=tuple(map(str, paths)))
    members = [Member(str(path), "1", 1) for path in paths]
    [series] = DICOM.group(members, DICOM.headers(members, OPTIONS), OPTIONS).series
    image = StoredImage(series.uri, "1", files=image.files)
    spec = DICOM.describe_image(image, OPTIONS)
    with DICOM.open(spec) as reader:
        found = reader.read(Box((1, 3, 5), (3, 20, 60)))[0][..., 0]
    expected = np.stack([GREY * 0.2, GREY * 0.3])[:, 3:20, 5:60].astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_a_table_of_the_modality_takes_the_place_of_a_slope(tmp_path):
    table = np.random.default_rng(1).integers(0, 60000, 200, np.uint16)
    made = slice_of(GREY, RescaleSlope=5, RescaleIntercept=1)
    made.ModalityLUTSequence = items_of(
        LUTDescriptor=[200, 20, 16], LUTData=table.tobytes(), ModalityLUTType="US"
    )
    expected = table[np.clip(GREY.astype(int) - 20, 0, 199)]
    np.testing.assert_array_equal(read(stored(tmp_path, made))[0], expected)


def test_padding_is_no_data(tmp_path):
    signed = DEEP.astype(np.int16) - 1000
    made = slice_of(signed, PixelPaddingValue=-2000)
    signed[:5] = -2000
    made.PixelData = signed.tobytes()
    np.testing.assert_array_equal(read(stored(tmp_path, made))[1], signed != -2000)
    made.PixelPaddingRangeLimit = -900
    np.testing.assert_array_equal(read(stored(tmp_path, made))[1], signed > -900)


def test_low_is_bright_is_kept_and_said(tmp_path):
    path = stored(tmp_path, slice_of(DEEP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(read(path)[0], DEEP)
    [note] = DICOM.describe(str(path), "1").notes
    assert "MONOCHROME1" in note


def test_palettes_are_colours_and_ybr_is_rgb(tmp_path):
    palette = np.random.default_rng(2).integers(0, 256, (3, 256), np.uint8)
    made = slice_of(GREY, PhotometricInterpretation="PALETTE COLOR")
    for name, values in zip(("Red", "Green", "Blue"), palette, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(made, f"{name}PaletteColorLookupTableData", values.tobytes())
    path = stored(tmp_path, made)
    np.testing.assert_array_equal(read(path)[0], palette.T[GREY])
    assert DICOM.describe(str(path), "1").interpretation == "rgb"

    ybr = pydicom.pixels.convert_color_space(COLOURS.copy(), "RGB", "YBR_FULL")
    path = stored(tmp_path, slice_of(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(read(path)[0].astype(int) - COLOURS).max() <= 2


def test_files_without_preamble_are_read(tmp_path):
    made = encoded(slice_of(DEEP))
    bare = made[128 + 4 :]
    (tmp_path / "meta.dcm").write_bytes(bare)
    group = struct.unpack_from("<I", bare, 8)[0]
    (tmp_path / "nothing.dcm").write_bytes(bare[12 + group :])
    for name in ("meta.dcm", "nothing.dcm"):
        np.testing.assert_array_equal(read(tmp_path / name)[0], DEEP)


def test_only_the_slices_of_a_box_are_read(tmp_path, monkeypatch):
    from maskloom.segcore.formats.dicom import reader as module

    path = stored(tmp_path, enhanced(np.stack([DEEP] * 6)))
    spec = DICOM.describe(str(path), "1")
    seen = []
    original = module.read_frame
    monkeypatch.setattr(module, "read_frame", lambda *a: (seen.append(a[2]), original(*a))[1])
    with DICOM.open(spec) as reader:
        reader.read(Box((2, 0, 0), (4, 9, 9)))
        reader.read(Box((3, 9, 0), (5, 18, 9)))
    assert seen == [2, 3, 4]


def test_slices_of_a_slab_are_decoded_once_while_they_fit(tmp_path, monkeypatch):
    from maskloom.segcore.formats.dicom import reader as module

    volume = np.stack([DEEP + k for k in range(6)])
    spec = DICOM.describe(str(stored(tmp_path, enhanced(volume))), "1")
    scaled = volume + 100 * np.arange(6)[:, None, None]
    size = DEEP.size * np.dtype(spec.dtype).itemsize
    monkeypatch.setattr(module, "_KEPT_BYTES", 3 * size)
    seen = []
    original = module.read_frame
    monkeypatch.setattr(module, "read_frame", lambda *a: (seen.append(a[2]), original(*a))[1])
    with DICOM.open(spec) as reader:
        for z, y in ((0, 0), (0, 20), (3, 0), (3, 20), (1, 0)):
            box = Box((z, y, 0), (min(6, z + 4), y + 20, 64))
            np.testing.assert_array_equal(reader.read(box)[0][..., 0], scaled[box.slices])
    # The fourth of the first slab is decoded for each box of it; the second slab fits.
    assert seen == [0, 1, 2, 3, 3, 3, 4, 5, 1, 2]


# ---- broken and hostile


@pytest.mark.parametrize("kind", ["native", "jpeg", *LOSSLESS])
def test_pixels_that_are_cut_off_are_an_error_and_no_grey(tmp_path, kind):
    if kind == "native":
        whole = encoded(slice_of(DEEP))
        path = tmp_path / "cut.dcm"
        path.write_bytes(whole[:-1000])
    else:
        syntax, encode = LOSSLESS.get(kind, ("1.2.840.10008.1.2.4.50", imagecodecs.jpeg8_encode))
        content = encode(GREY)
        path = stored(tmp_path, compressed(GREY, content[: len(content) // 2], syntax))
    with pytest.raises(ReadError, match=r"x?\.dcm .*InstanceNumber 1.*(cut off|ends within)"):
        read(path)


def test_a_stream_that_is_larger_than_its_header_is_not_decoded(tmp_path, monkeypatch):
    bomb = imagecodecs.jpegls_encode(np.zeros((3000, 3000), np.uint8))
    path = stored(tmp_path, compressed(GREY, bomb, JPEG_LS))
    monkeypatch.setattr(imagecodecs, "jpegls_decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ReadError, match=r"announce \(3000, 3000, 1\)"):
        read(path)


def test_too_many_pixels_and_unread_syntaxes_are_refused(tmp_path):
    huge = slice_of(GREY)
    huge.Rows = huge.Columns = 65000
    with pytest.raises(FormatError, match="65000 x 65000"):
        read(stored(tmp_path, huge))
    video = compressed(GREY, b"1234", "1.2.840.10008.1.2.4.102")
    with pytest.raises(FormatError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.102"):
        read(stored(tmp_path, video))


def test_deflated_bombs_and_damage_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_INFLATED", 2**16)
    head = encoded(slice_of(GREY, syntax=files.DEFLATED))
    _, begin = files.transfer_syntax(head)
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = deflate.compress(bytes(2**22)) + deflate.flush()
    path = tmp_path / "bomb.dcm"
    path.write_bytes(head[:begin] + bomb)
    with pytest.raises(FormatError, match="larger than 65536 bytes"):
        read(path)
    path.write_bytes(head[:begin] + b"\xff" * 500)
    with pytest.raises(FormatError, match=r"deflated data of .* is damaged"):
        read(path)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_a_failed_image_and_nothing_else(tmp_path, seed):
    generator = np.random.default_rng(seed)
    content = bytearray(encoded(enhanced(np.stack([DEEP] * 3)) if seed % 2 else slice_of(DEEP)))
    for place in generator.integers(132, min(len(content), 1500), 12):
        content[place] = generator.integers(256)
    path = tmp_path / "damaged.dcm"
    path.write_bytes(bytes(content))
    members = [Member(str(path), "1", len(content))]
    DICOM.group(members, DICOM.headers(members, OPTIONS), OPTIONS)
    try:
        for part in DICOM.parts(StoredImage(str(path), str(seed)), OPTIONS) or ("",):
            read(path, part)
    except ImageError as error:
        assert str(path) in str(error)


# ---- archives


def archive(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in contents.items():
            made.writestr(name, content)
    return path


def test_an_archive_holds_series_and_leads_nowhere(tmp_path):
    volume = np.stack([DEEP, DEEP + 1, DEEP + 2])
    contents = {f"../../{i}": encoded(each) for i, each in enumerate(stack_of(volume)[::-1])}
    other = {f"b/{i}": encoded(each) for i, each in enumerate(stack_of(volume[:2], series="B"))}
    path = archive(tmp_path / "scans.zip", {**contents, "README": b"text", **other})
    members = [Member(str(path), "1", 1)]

    found = DICOM.group(members, DICOM.headers(members, OPTIONS), OPTIONS)

    assert len(found.series) == 2
    specs = [
        DICOM.describe_image(StoredImage(each.uri, "1", files=(str(path),)), OPTIONS)
        for each in found.series
    ]
    assert sorted(spec.shape[0] for spec in specs) == [2, 3]
    whole = next(spec for spec in specs if spec.shape[0] == 3)
    assert whole.location.startswith(f"{path}/series-")
    with DICOM.open(whole) as reader:
        np.testing.assert_array_equal(reader.read(Box.whole(whole.shape))[0][..., 0], volume)
    assert list(tmp_path.iterdir()) == [path]


def test_archives_without_scans_are_passed_over_and_broken_ones_fail(tmp_path):
    plain = archive(tmp_path / "plain.zip", {"a.txt": b"text"})
    bomb = archive(tmp_path / "bomb.zip", {f"{i}": bytes(2**26) for i in range(5)})
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive(tmp_path / "x.zip", {"a": encoded(slice_of(DEEP))}).read_bytes()[:-30])
    (tmp_path / "x.zip").unlink()
    locked = tmp_path / "locked.zip"
    content = bytearray(archive(tmp_path / "y.zip", {"a": b"b"}).read_bytes())
    for place in (6, content.index(b"PK\1\2") + 8):
        content[place] |= 1
    locked.write_bytes(content)
    members = [Member(str(path), "1", 1) for path in (plain, bomb, cut, locked)]

    found = DICOM.group(members, DICOM.headers(members, OPTIONS), OPTIONS)

    assert found.passed_over == {str(plain): "ZIP without DICOM images"}
    assert {each.uri for each in found.series} == {str(bomb), str(cut), str(locked)}
    for path, expected in ((bomb, "more than scans can"), (cut, "damaged"), (locked, "encrypted")):
        with pytest.raises(FormatError, match=expected):
            DICOM.parts(StoredImage(str(path), "1", files=(str(path),)), OPTIONS)


def test_a_damaged_file_in_an_archive_hides_no_series_and_is_reported(tmp_path):
    good = {str(i): encoded(each) for i, each in enumerate(stack_of(np.stack([DEEP] * 3)))}
    damaged = bytes(128) + b"DICM" + b"\2\0\0\0XX" + b"\xff" * 400
    path = archive(tmp_path / "scans.zip", {**good, "bad": damaged})
    members = [Member(str(path), "1", 1)]

    found = DICOM.group(members, DICOM.headers(members, OPTIONS), OPTIONS)

    assert len(found.series) == 2
    series = next(each for each in found.series if each.uri != str(path))
    spec = DICOM.describe_image(StoredImage(series.uri, "1", files=(str(path),)), OPTIONS)
    assert spec.shape[0] == 3


def test_the_command_that_installs_the_library_is_named(tmp_path, monkeypatch):
    import sys

    from maskloom.segcore.processes.quiet_pydicom import pydicom as library

    path = stored(tmp_path, slice_of(DEEP))
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(FormatError, match=r"pip install 'maskloom\[medical\]'"):
        DICOM.describe(str(path), "1")
    members = [Member(str(path), "1", 1)]
    [series] = DICOM.group(members, DICOM.headers(members, OPTIONS), OPTIONS).series
    assert series.uri == str(path), "it becomes a failed row"
