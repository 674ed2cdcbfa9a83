"""Odd and broken files: the format is what name and content agree on, and bad content ends as an
`ImageError`, nothing else.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from maskloom.segcore.errors import FormatError, ImageError, ReadError
from maskloom.segcore.formats import format_of, suffixes
from maskloom.segcore.formats.content import kind_of
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, FileKind

DATA = os.environ.get("MASKLOOM_TEST_DATA")
TIFF_HEAD, PNG_HEAD, JPEG_HEAD = (
    b"II*\0" + bytes(60),
    b"\x89PNG\r\n\x1a\n" + bytes(56),
    b"\xff\xd8\xff\xe0" + bytes(60),
)


def test_suffix_and_content_agree_on_the_format() -> None:
    assert format_of("s3://bucket/a.TIF", TIFF_HEAD) == "tiff"
    assert format_of("https://host/a.btf?token=x.png#y", b"MM\0+" + bytes(60)) == "tiff"
    assert format_of("/data/a.b.jpe", JPEG_HEAD) == "picture"
    assert format_of("/data/a.webp", b"RIFF\x10\0\0\0WEBPVP8 ") == "picture"
    assert format_of("/data/scan.dat", PNG_HEAD, "picture") == "picture"
    assert format_of("/data/cells.lsm", TIFF_HEAD) == "tiff", (
        "what no format claims by its suffix is known by its content"
    )
    assert format_of("/data/photo", JPEG_HEAD) == "picture"
    assert format_of("/data/a.jpg", PNG_HEAD, "picture") == "picture", (
        "who names the format need not rename the file"
    )


@pytest.mark.parametrize(
    ("location", "head", "explicit", "message"),
    [
        (
            "a.jpg",
            PNG_HEAD,
            None,
            (
                r"a\.jpg is JPEG by its suffix \.jpg, but its content is PNG\. "
                r"Rename it to end in \.png, or set"
            ),
        ),
        (
            "a.tif",
            JPEG_HEAD,
            None,
            r"but its content is JPEG\. Rename it to end in \.jpg, or set `format: picture`",
        ),
        (
            "a.tif",
            b"latitude,longitude\n",
            None,
            r"a\.tif is TIFF by its suffix \.tif, but its content is text\. Put the image itself",
        ),
        ("a.png", b"", None, r"a\.png is PNG by its suffix \.png, but it is empty \(0 bytes\)"),
        ("a.tif", b"\x89HDF\r\n\x1a\n", None, "its content is HDF5"),
        ("a.bmp", b"\0\1\2\3", None, "its content is unknown data"),
        (
            "a.xyz",
            b"GIF89a",
            None,
            (
                r"no format claims the suffix \.xyz, and its content is GIF\. "
                r"maskloom does not read this format"
            ),
        ),
        (
            "v.mnc.gz",
            b"\x1f\x8b" + bytes(20),
            None,
            r"no format claims the suffix \.mnc\.gz, and its content is gzip",
        ),
        ("a.2024.gz", b"\x1f\x8b" + bytes(20), None, r"no format claims the suffix \.gz, and"),
        ("folder.d/name", b"x", None, "its name has no suffix, and its content is text"),
        ("a.dat", b"", None, r"no format claims the suffix \.dat, and it is empty \(0 bytes\)"),
        (
            "a.tif",
            TIFF_HEAD,
            "picture",
            (
                "should be PNG or JPEG or BMP or WebP for the format 'picture', "
                "but its content is TIFF"
            ),
        ),
        ("a.tif", TIFF_HEAD, "tif", "no format 'tif'. Known: "),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    location: str, head: bytes, explicit: str | None, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        format_of(location, head, explicit)


def foreign_files() -> dict[str, tuple[bytes, str]]:
    """Names of formats that maskloom does not read, with a file of each made by another library or
    after its specification, and its suffix.
    """
    import gzip

    import h5py
    import scipy.io

    picture = Image.fromarray(data.astronaut()[:32, :32])
    made = {}
    for name, kind in (("GIF", "GIF"), ("PDF", "PDF"), ("JPEG 2000", "JPEG2000"), ("AVIF", "AVIF")):
        out = io.BytesIO()
        picture.save(out, kind)
        made[name] = out.getvalue()
    made["Netpbm"] = b"P6 32 32 255\n" + b"A" * 3072
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["x"] = np.zeros(3)
    made["HDF5"] = out.getvalue()
    out = io.BytesIO()
    file = scipy.io.netcdf_file(out, "w")
    file.createDimension("x", 3)
    file.flush()
    made["NetCDF"] = out.getvalue()
    made["gzip"] = gzip.compress(b"plain")
    made |= {
        "a web page (HTML)": b"\n<!DOCTYPE HTML><title>Sign in",
    }
    made["a pointer of Git LFS"] = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )
    return {name: (content, ".xyz") for name, content in made.items()}


@pytest.mark.parametrize("name", foreign_files())
def test_other_formats_are_named_and_nobody_is_told_to_rename_them(name: str) -> None:
    content, suffix = foreign_files()[name]
    for location in (f"scan{suffix}", "scan.tif", "scan.png"):
        with pytest.raises(FormatError) as refusal:
            format_of(location, content[:512])

        assert f"its content is {name}." in str(refusal.value)
        assert "ename it" not in str(refusal.value)


def test_a_format_that_is_added_is_known_by_its_own_signatures(monkeypatch):
    import gzip

    nifti = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(200)
    packed = gzip.compress(nifti)
    kinds = (
        FileKind("NIfTI", (".nii",), ((344, b"n+1\0"),)),
        FileKind("NIfTI in gzip", (".nii.gz",)),
    )
    monkeypatch.setitem(FORMATS._loaded, "nifti", SimpleNamespace(kinds=kinds, mask="cog"))
    assert format_of("a.nii", nifti) == "nifti"
    assert format_of("a.b.NII.GZ", packed) == "nifti"
    assert format_of("a.dat", packed) == "nifti"
    with pytest.raises(
        FormatError,
        match=r"NIfTI in gzip by its suffix \.nii\.gz, but its content is NIfTI\. "
        r"Rename it to end in \.nii",
    ):
        format_of("a.nii.gz", nifti)
    # Two formats may claim one suffix; the content decides.
    other = (FileKind("a stack", (".nii",), ((0, b"STACK"),)),)
    monkeypatch.setitem(FORMATS._loaded, "stack", SimpleNamespace(kinds=other, mask="cog"))
    assert format_of("a.nii", b"STACK" + bytes(60)) == "stack"
    assert format_of("a.nii", nifti) == "nifti"
    with pytest.raises(FormatError, match=r"a\.nii is NIfTI or a stack by its suffix"):
        format_of("a.nii", TIFF_HEAD)
    # And two may share a signature; then the suffix decides.
    shared = (FileKind("scan", (".scan",), ((0, b"II*\0"),)),)
    monkeypatch.setitem(FORMATS._loaded, "wide", SimpleNamespace(kinds=shared, mask="cog"))
    assert format_of("a.scan", TIFF_HEAD) == "wide"
    assert format_of("a.tif", TIFF_HEAD) == format_of("a.xyz", TIFF_HEAD) == "tiff"
    assert format_of("a.tif", TIFF_HEAD, "wide") == "wide"


@pytest.mark.parametrize(
    "head",
    [
        b"P4\t8 8\n",
        b"P5\n# by a camera\n8 8\n",
        b"P1\n8 8\n",
        b"P7\nWIDTH 8\n",
        b"Pf\n8 8\n-1.0\n",
        b"PF\n8 8\n",
    ],
)
def test_netpbm_is_known_by_its_first_letters(head: bytes) -> None:
    assert kind_of(head) == "Netpbm"
    assert kind_of(b"P6 is text, and Plain") == "text"


@pytest.mark.parametrize(
    ("code", "name"),
    [(34712, "JPEG 2000"), (33005, "JPEG 2000 (of Aperio slides)"), (60001, "compression 60001")],
)
def test_a_compression_without_a_decoder_is_named(tmp_path: Path, code: int, name: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32), np.uint8))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["Compression"].overwrite(code)
    with pytest.raises(FormatError) as refusal:
        FORMATS["tiff"].describe(str(path), "")
    assert f"compressed with {name}, for which there is no decoder here. Convert it" in str(
        refusal.value
    )


def test_a_jpeg_that_lacks_only_its_end_marker_is_refused_for_that(tmp_path: Path) -> None:
    content, path = SAMPLES["a.jpg"], tmp_path / "a.jpg"
    for cut, words in (
        (1, "ends before its end marker"),
        (2, "ends before its end marker"),
        (40, "pixels would be guessed"),
    ):
        path.write_bytes(content[:-cut])
        with pytest.raises(ReadError, match=words):
            read_all(path)


@pytest.mark.parametrize("name", ["tiff", "picture"])
@pytest.mark.parametrize("content", [b"", b"x", b"plain text", bytes(100)])
def test_headers_check_the_content_themselves(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.tif"):
        FORMATS[name].describe(str(path), "")


def test_nothing_lies_beside_a_url_with_a_query() -> None:
    source = StoredFile("https://host/a.tif", None, "https://host/a.tif?sig=1")  # type: ignore[arg-type]  # a store would fail if asked
    assert source.beside(f"{source.path}.msk") is None


@pytest.mark.parametrize("name", ["tiff", "picture"])
def test_folders_pipes_and_absent_files_are_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    for path in (tmp_path, tmp_path / "pipe.tif"):
        with pytest.raises(FormatError, match="no regular file"):
            FORMATS[name].describe(str(path), "")
    with pytest.raises(ImageError, match=r"absent\.tif"):
        FORMATS[name].describe(str(tmp_path / "absent.tif"), "")


def samples() -> dict[str, bytes]:
    import io

    photo, found = data.astronaut()[:64, :64], {}
    for name, kind in [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.bmp", "BMP"), ("a.webp", "WebP")]:
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, kind)
        found[name] = buffer.getvalue()
    for compression in (None, "zlib", "lzw", "jpeg", "packbits"):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, photo, photometric="rgb", compression=compression, tile=(32, 32))
        found[f"{compression}.tif"] = buffer.getvalue()
    return found


SAMPLES = samples()


def read_all(path: Path) -> np.ndarray:
    image_format = FORMATS[format_of(str(path), path.read_bytes()[:64])]
    spec = image_format.describe(str(path), "")
    # A damaged header may claim anything; what it claims must be readable box by box.
    with image_format.open(spec) as reader:
        return reader.read(Box.whole(spec.shape) & Box((0, 0), (256, 256)))[0]


@given(name=st.sampled_from(sorted(SAMPLES)), part=st.floats(0, 1, exclude_max=True))
def test_truncated_files_never_pass_as_whole(
    tmp_path_factory: pytest.TempPathFactory, name: str, part: float
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    content = SAMPLES[name]
    path.write_bytes(content[: int(len(content) * part)])
    try:
        pixels, message = read_all(path), name
    except (FormatError, ReadError) as error:
        pixels, message = None, str(error)
    assert name in message
    if pixels is not None:
        # The last bytes of some formats are padding or an end mark.
        path.write_bytes(content)
        np.testing.assert_array_equal(pixels, read_all(path))


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, damage: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged_{name}"
    content = bytearray(SAMPLES[name])
    for place, value in damage:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    message = path.name
    try:
        read_all(path)
    except ImageError as error:
        message = str(error)
    assert path.name in message


CHILD = textwrap.dedent(
    """
    import json, resource, sys
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    import warnings
    warnings.simplefilter("error")
    from maskloom.segcore.errors import ImageError
    from maskloom.segcore.formats import format_of
    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.raster.spec import FORMATS
    for path in sys.stdin.read().splitlines():
        print(path, end="\\t", flush=True)
        try:
            with open(path, "rb") as file:
                name = format_of(path, file.read(64))
            spec = FORMATS[name].describe(path, "")
            with FORMATS[name].open(spec) as reader:
                for tile in Grid(spec.shape, (1024, 1024)):
                    reader.read(tile.core)
            print(json.dumps(["ok", ""]), flush=True)
        except ImageError as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)
    """
)


@pytest.mark.skipif(DATA is None, reason="needs MASKLOOM_TEST_DATA")
@pytest.mark.timeout(120)
def test_real_odd_and_broken_files_in_a_process_with_little_memory() -> None:
    folders = [
        Path(str(DATA)) / name
        for name in ("broken", "odd_valid", "wsi/broken_or_tiny", "geotiff/images/rasterio")
    ]
    known = {suffix for name in FORMATS for suffix in suffixes(name)}
    paths = [str(p) for folder in folders for p in sorted(folder.rglob("*")) if p.suffix in known]
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    results = dict(line.split("\t") for line in child.stdout.splitlines())
    assert child.returncode == 0, f"{child.stdout.splitlines()[-1]}: {child.stderr}"
    assert child.stderr == "", "nothing reaches the terminal"
    assert list(results) == paths
    outcomes = {path: json.loads(result) for path, result in results.items()}
    for path, (outcome, message) in outcomes.items():
        assert outcome == "ok" or (
            outcome in ("FormatError", "ReadError") and Path(path).name in message
        )
        if "odd_valid" in path:
            # Pages of which nothing is said and animations are refused; see test_tiff_pages.py and
            # test_picture_reader.py.
            several = (
                "multipage" in path and " pages, and does not say" in message
            ) or " frames (an animation)" in message
            assert outcome == "ok" or several, f"{path}: {message}"
    refused = [path for path, (outcome, _) in outcomes.items() if outcome != "ok"]
    assert {
        "truncated_jpeg.jpg",
        "corrupt.tif",
        "libtiff_segfault.tif",
        "reallybig.bmp",
        "broken.png",
    } <= {Path(p).name for p in refused}
