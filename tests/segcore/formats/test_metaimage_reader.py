"""MetaImage, written here after the documentation of MetaIO."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from volumes_support import describe, pixels_of

from maskloom.segcore.errors import FormatError, ReadError

VOLUME = np.random.default_rng(0).integers(-900, 900, (4, 5, 6), np.int16)
"""(z, y, x)"""
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    # x runs to posterior, y to superior, z to the right.
    "TransformMatrix": "0 1 0 0 0 1 -1 0 0",
    "Offset": "-10 20 30",
    "ElementSpacing": "0.5 0.75 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
}


def save(
    path: Path, content: bytes = VOLUME.tobytes(), data: str = "LOCAL", **lines: str | None
) -> Path:
    kept = {key: value for key, value in {**HEADER, **lines}.items() if value is not None}
    text = "".join(f"{key} = {value}\n" for key, value in {**kept, "ElementDataFile": data}.items())
    path.write_bytes(text.encode() + (content if data == "LOCAL" else b""))
    return path


def test_the_rows_of_the_matrix_are_the_directions_of_the_axes(tmp_path: Path) -> None:
    spec = describe(save(tmp_path / "a.mha"))
    assert spec.space.frame is not None
    affine = np.array(spec.space.frame.affine).reshape(3, 4)
    # Left and posterior of ITK are right and anterior with the other sign.
    np.testing.assert_array_equal(affine @ [0, 0, 0, 1], [10, -20, 30])
    np.testing.assert_array_equal(affine[:, 0], [0, -0.5, 0])
    np.testing.assert_array_equal(affine[:, 1], [0, 0, 0.75])
    np.testing.assert_array_equal(affine[:, 2], [3, 0, 0])
    assert spec.space.metric is not None
    assert spec.space.metric.spacing == (3, 0.75, 0.5)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("MET_UCHAR", "u1"),
        ("MET_CHAR", "i1"),
        ("MET_USHORT", "u2"),
        ("MET_LONG", "i4"),
        ("MET_ULONG_LONG", "u8"),
        ("MET_FLOAT", "f4"),
        ("MET_DOUBLE", "f8"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("detached", [False, True])
def test_numbers_of_every_type_order_and_packing_are_read(
    tmp_path: Path, kind: str, dtype: str, order: str, packed: bool, detached: bool
) -> None:
    stored = (VOLUME % 99).astype(order + dtype)
    content = zlib.compress(stored.tobytes()) if packed else stored.tobytes()
    (tmp_path / "voxels").mkdir()
    (tmp_path / "voxels" / "a.raw").write_bytes(content)
    path = save(
        tmp_path / "a.mhd",
        content,
        "voxels/a.raw" if detached else "LOCAL",
        ElementType=kind,
        CompressedData=str(packed),
        BinaryDataByteOrderMSB=str(order == ">"),
    )
    pixels = pixels_of(path)
    assert pixels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(pixels[..., 0], stored)


def test_channels_time_and_images(tmp_path: Path) -> None:
    channels = np.stack([VOLUME, VOLUME + 1, VOLUME + 2], axis=-1)
    path = save(tmp_path / "a.mha", channels.tobytes(), ElementNumberOfChannels="3")
    np.testing.assert_array_equal(pixels_of(path), channels)
    series = np.stack([VOLUME, VOLUME * 2])
    path = save(
        tmp_path / "b.mha",
        series.tobytes(),
        NDims="4",
        DimSize="6 5 4 2",
        ElementSpacing="1 2 3 0.5",
        TransformMatrix=None,
        Offset=None,
    )
    np.testing.assert_array_equal(pixels_of(path, "t0002")[..., 0], series[1])
    spec = describe(path, "t0001")
    assert spec.space.metric is not None
    assert spec.space.metric.spacing == (3, 2, 1)
    path = save(
        tmp_path / "c.mha",
        VOLUME[0].tobytes(),
        NDims="2",
        DimSize="6 5",
        ElementSpacing="0.5 0.25",
        TransformMatrix="1 0 0 1",
        Offset="3 4",
    )
    spec = describe(path)
    assert (spec.shape, spec.space.unit) == ((5, 6), "mm2")
    assert spec.space.metric is not None
    assert spec.space.metric.size == 0.125


def test_sizes_without_a_spacing_are_unknown(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mha", ElementSpacing=None, TransformMatrix=None)
    assert describe(path).space.unit == "px"
    path = save(tmp_path / "b.mha", ElementSpacing=None, ElementSize="1 2 3")
    assert describe(path).space.unit == "mm3"
    path = save(tmp_path / "c.mha", ElementSpacing="1 0 3")
    assert describe(path).space.unit == "px"
    assert "sizes are in px" in describe(path).notes[0]


def test_a_header_before_raw_numbers_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"x" * 33 + VOLUME.tobytes())
    for size in ("33", "-1"):
        path = save(tmp_path / "a.mhd", data="a.raw", HeaderSize=size)
        np.testing.assert_array_equal(pixels_of(path)[..., 0], VOLUME)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"DimSize": "6 5 400"}, "ends early"),
        ({"DimSize": "6 0 4"}, "is empty"),
        ({"DimSize": "6 -5 4"}, "is empty"),
        ({"DimSize": "6 5.5 4"}, "expected whole numbers for dimsize, got '6 5.5 4'"),
        ({"DimSize": "six"}, "expected numbers"),
        ({"NDims": "2"}, "NDims '2' and DimSize '6 5 4'"),
        ({"ElementType": "MET_STRING"}, "expected one of MET_CHAR"),
        ({"BinaryData": "False"}, "as text"),
        ({"ElementSpacing": "1 2"}, "expected 3 numbers for elementspacing"),
        ({"TransformMatrix": "1 0 0"}, "expected 9 numbers"),
        ({"CompressedData": "True", "DimSize": "6 5 40000"}, "it can have at most"),
        ({"HeaderSize": "-7"}, "headersize"),
        ({"ElementNumberOfChannels": "0"}, "is empty"),
        ({"DimSize": "1e400 1 1"}, "whole numbers|cannot"),
    ],
)
def test_a_damaged_header_is_refused_with_its_reason(
    tmp_path: Path, lines: dict[str, str], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        describe(save(tmp_path / "a.mha", **lines))


def test_what_is_named_must_be_there_and_below_the_header(tmp_path: Path) -> None:
    (tmp_path / "other.raw").write_bytes(VOLUME.tobytes())
    (tmp_path / "scan").mkdir()
    for data, message in (
        ("../other.raw", "not in its folder"),
        ("/etc/passwd", "not in its folder"),
        ("none.raw", "is missing: none.raw"),
        ("LIST", "in several files"),
        ("a%03d.raw 1 4 1", "in several files"),
    ):
        with pytest.raises(FormatError, match=message):
            describe(save(tmp_path / "scan" / "a.mhd", data=data))


def test_damaged_content_is_no_image(tmp_path: Path) -> None:
    packed = zlib.compress(VOLUME.tobytes())
    for content in (packed[:-9], packed[:60] + bytes(9) + packed[69:]):
        path = save(tmp_path / "a.mha", content, CompressedData="True")
        with pytest.raises(ReadError, match="damaged or cut off"):
            pixels_of(path)
    path = save(tmp_path / "b.mha")
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile", b"ElementDataFiles"))
    with pytest.raises(FormatError, match="no line `ElementDataFile`"):
        describe(path)
