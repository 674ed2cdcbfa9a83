"""NRRD, compared with pynrrd and with the definition of its spaces."""

from __future__ import annotations

import bz2
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volumes_support import describe, pixels_of

from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.formats.unpacking import MOST_RATIO
from maskloom.segcore.raster.spec import RasterSpec

nrrd = pytest.importorskip("nrrd")
VOLUME = np.random.default_rng(0).integers(-900, 900, (4, 5, 6), np.int16)
"""(z, y, x)"""
LPS: dict[str, Any] = {
    "space": "left-posterior-superior",
    "space directions": [[0.75, 0, 0], [0, -0.5, 0.25], [0, 0, 6.5]],
    "space origin": [-99.5, 99.25, -77],
}
NONE = [np.nan] * 3
DATA = Path(os.environ.get("MASKLOOM_TEST_DATA", "absent"))


def save(path: Path, pixels: np.ndarray = VOLUME, **header: Any) -> Path:
    nrrd.write(str(path), pixels, header, index_order="C")
    return path


def affine_of(spec: RasterSpec) -> np.ndarray:
    assert spec.space.frame is not None
    return np.array(spec.space.frame.affine).reshape(3, 4)


def lines(path: Path, *changes: tuple[bytes, bytes]) -> Path:
    """Change the text of a header."""
    content = path.read_bytes()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<f4", "<f8", "<u4", "<i8"])
def test_numbers_are_those_of_pynrrd(
    tmp_path: Path, encoding: str, detached: bool, dtype: str
) -> None:
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    save(path, (VOLUME % 99).astype(dtype), encoding=encoding, **LPS)
    pixels = pixels_of(path)
    assert pixels.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(pixels[..., 0], nrrd.read(str(path), index_order="C")[0])


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_spaces_of_the_body_become_right_anterior_superior(
    tmp_path: Path, space: str, signs: tuple[int, ...]
) -> None:
    spec = describe(save(tmp_path / "a.nrrd", **{**LPS, "space": space}))
    vectors = np.array(LPS["space directions"]).T
    for index in np.random.default_rng(1).integers(0, 4, (5, 3)):
        place = vectors @ index + LPS["space origin"]
        np.testing.assert_allclose(affine_of(spec) @ [*index, 1], place * signs)
    assert spec.space.metric is not None
    # Sheared: the determinant, not the product of distances.
    assert spec.space.metric.size == pytest.approx(0.75 * 0.5 * 6.5)


def test_units_of_the_space(tmp_path: Path) -> None:
    micrometres = {**LPS, "space units": ["um", "um", "um"]}
    spec = describe(save(tmp_path / "a.nrrd", **micrometres))
    assert spec.space.metric is not None
    assert spec.space.metric.size == pytest.approx(0.75 * 0.5 * 6.5 * 1e-9)
    assert spec.space.frame is not None
    assert spec.space.frame.affine[3] == pytest.approx(99.5e-3)
    mixed = {**LPS, "space units": ["um", "mm", "um"]}
    with pytest.raises(FormatError, match="different units"):
        describe(save(tmp_path / "b.nrrd", **mixed))


def test_without_a_space_of_the_body_nothing_is_guessed(tmp_path: Path) -> None:
    plain = describe(save(tmp_path / "a.nrrd"))
    assert (plain.space.unit, plain.space.frame, plain.notes) == ("px", None, ())
    spaced = describe(save(tmp_path / "b.nrrd", spacings=[0.5, 0.5, 2]))
    assert spaced.space.unit == "px"
    assert "no unit of length" in spaced.notes[0]
    known = describe(save(tmp_path / "c.nrrd", spacings=[0.5, 0.5, 2], units=["mm", "mm", "mm"]))
    assert known.space.metric is not None
    assert known.space.metric.spacing == (2, 0.5, 0.5)
    other = describe(save(tmp_path / "d.nrrd", **{**LPS, "space": "3D-right-handed"}))
    assert (other.space.unit, other.space.frame) == ("px", None)
    assert "3D-right-handed" in other.notes[0]


def test_vectors_are_bands_and_lists_are_images(tmp_path: Path) -> None:
    bands = np.stack([VOLUME, VOLUME + 1], axis=-1)
    with_band = {**LPS, "space directions": [NONE, *LPS["space directions"]]}
    path = save(
        tmp_path / "a.nrrd", bands, kinds=["vector", "domain", "domain", "domain"], **with_band
    )
    np.testing.assert_array_equal(pixels_of(path), bands)
    last = {**LPS, "space directions": [*LPS["space directions"], NONE]}
    series = np.stack([VOLUME, VOLUME * 2, VOLUME * 3])
    for name, kind in (("list", "list"), ("time", "time")):
        path = save(
            tmp_path / f"{name}.nrrd",
            series,
            kinds=["domain", "domain", "domain", kind],
            **last,
        )
        np.testing.assert_array_equal(pixels_of(path, "t0003")[..., 0], series[2])
    first = np.moveaxis(series, 0, -1)
    path = save(
        tmp_path / "first.nrrd", first, kinds=["list", "domain", "domain", "domain"], **with_band
    )
    np.testing.assert_array_equal(pixels_of(path, "t0002")[..., 0], series[1])


def test_byte_skips(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"junk" * 5 + VOLUME.tobytes())
    text = (
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n"
        "byte skip: {}\ndata file: a.raw\n"
    )
    for skip in (20, -1):
        (tmp_path / "a.nhdr").write_text(text.format(skip))
        np.testing.assert_array_equal(pixels_of(tmp_path / "a.nhdr")[..., 0], VOLUME)
    (tmp_path / "a.nhdr").write_text(text.format(-2))
    with pytest.raises(FormatError, match="skips lines"):
        describe(tmp_path / "a.nhdr")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.raw", "x/../../a.raw", "file:///etc/passwd", "link.raw", "..\\a"]
)
def test_a_header_cannot_lead_to_other_folders(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "scan"
    path = save(tmp_path / "a.nhdr", encoding="raw")
    (tmp_path / "a.raw").rename(tmp_path / "secret.raw")
    folder.mkdir()
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    moved = folder / "a.nhdr"
    path.rename(moved)
    lines(moved, (b"data file: a.raw", f"data file: {name}".encode()))
    with pytest.raises(FormatError, match="not in its folder"):
        describe(moved)


DAMAGE = {
    "a missing file": ((b"data file: a.raw", b"data file: b.raw"), r"is missing: b\.raw"),
    "several files": ((b"data file: a.raw", b"data file: a%03d.raw 1 4 1"), "in several files"),
    "a block": ((b"type: int16", b"type: block"), "holds 'block'"),
    "text": ((b"encoding: raw", b"encoding: ascii"), "encoding 'ascii'"),
    "no type": ((b"type: int16\n", b""), "without 'type'"),
    "no byte order": ((b"endian: little\n", b""), "without 'endian'"),
    "another number of sizes": ((b"sizes: 6 5 4", b"sizes: 6 5"), "cannot be right"),
    "an empty axis": ((b"sizes: 6 5 4", b"sizes: 6 0 4"), "is empty"),
    "a negative axis": ((b"sizes: 6 5 4", b"sizes: 6 -5 4"), "is empty"),
    "sizes that lie": ((b"sizes: 6 5 4", b"sizes: 6 5 400"), "ends early"),
    "sizes that are words": ((b"sizes: 6 5 4", b"sizes: six 5 4"), "cannot be right"),
    "four axes in space": (
        (b"dimension: 3\nsizes: 6 5 4", b"dimension: 4\nsizes: 6 5 2 2"),
        "cannot be right|expected two or three axes",
    ),
    "a line without a colon": ((b"type: int16", b"type int16"), "cannot be right|without"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_header_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    change, message = DAMAGE[name]
    path = save(tmp_path / "a.nhdr", encoding="raw")
    content = path.read_bytes().replace(b"sizes: 6 5 4", b"sizes: 6 5 4")
    path.write_bytes(content.replace(b"type: short", b"type: int16"))
    with pytest.raises(FormatError, match=message):
        describe(lines(path, change))


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_sizes_that_no_compression_reaches_are_refused(tmp_path: Path, encoding: str) -> None:
    path = save(tmp_path / "a.nrrd", encoding=encoding)
    with pytest.raises(FormatError, match="it can have at most"):
        describe(lines(path, (b"sizes: 6 5 4", b"sizes: 60000 50000 40000")))


def test_the_largest_ratio_of_bzip2_is_not_exceeded() -> None:
    zeros = 2**27
    assert zeros // len(bz2.compress(bytes(zeros))) < MOST_RATIO["bzip2"]


def test_damaged_content_is_no_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nrrd", np.tile(VOLUME, (9, 9, 9)), encoding="gzip", **LPS)
    whole = path.read_bytes()
    for content in (whole[:-40], whole[:-60] + bytes(60)):
        path.write_bytes(content)
        with pytest.raises(ReadError, match="damaged or cut off"):
            pixels_of(path)
        os.utime(path)
    raw = save(tmp_path / "b.nrrd", encoding="raw", **LPS)
    raw.write_bytes(raw.read_bytes()[:-1])
    with pytest.raises(FormatError, match="ends early"):
        describe(raw)


def test_without_pynrrd_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.nrrd")
    monkeypatch.setitem(__import__("sys").modules, "nrrd", None)
    with pytest.raises(FormatError, match=r"pip install 'maskloom\[medical\]'"):
        describe(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the test data")
@pytest.mark.parametrize("name", ["brain1", "breast1"])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_real_scans_are_read_as_pynrrd_reads_them(name: str, kind: str) -> None:
    path = DATA / "mri_ct_pyradiomics" / f"{kind}s" / f"{name}_{kind}.nrrd"
    spec = describe(path)
    pixels, header = nrrd.read(str(path), index_order="C")
    np.testing.assert_array_equal(pixels_of(path)[..., 0], pixels)
    determinant = abs(np.linalg.det(header["space directions"]))
    assert spec.space.metric is not None
    assert spec.space.metric.size == pytest.approx(determinant, rel=1e-12)
    np.testing.assert_allclose(
        affine_of(spec)[:, 3], header["space origin"] * [-1, -1, 1], rtol=1e-12
    )
