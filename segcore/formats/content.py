"""The content of files, recognised by their first bytes.

Formats list the signatures of what they read (`FileKind`). This module compares them with a file,
and identifies content that no format reads, so that a message can suggest a remedy.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.source import HEAD_BYTES
from maskloom.segcore.raster.spec import FORMATS, FileKind
from maskloom.segcore.storage.addresses import without_query

_CONVERT = (
    "maskloom does not read this format. Convert it, for example with `gdal_translate FILE "
    "FILE.tif`."
)
_SLICES = "maskloom does not read this format yet. Write its slices as TIFF or PNG."
_PICTURE = "maskloom does not read this format. Convert it to PNG or TIFF."
_EXPORT = "maskloom does not read this format. Export it as TIFF or OME-TIFF."
_UNPACK = "Unpack it first."
_UNPACK_ZIP = "Unpack it first; name a ZIP of DICOM files .zip."
_PAGE = (
    "A server may have sent a page for signing in, or an error, in its place. Download it again."
)
_LEAVE_OUT = "Put the image itself in its place, or leave it out of `inputs`."


@dataclass(frozen=True, slots=True)
class _Unread:
    """A kind of content that no format reads."""

    name: str
    remedy: str
    signatures: tuple[tuple[int, bytes], ...] = ()


_UNREAD = (
    _Unread("GIF", _PICTURE, ((0, b"GIF8"),)),
    _Unread("PDF", _PICTURE, ((0, b"%PDF"),)),
    _Unread("Photoshop", _PICTURE, ((0, b"8BPS"),)),
    _Unread("JPEG 2000", _CONVERT, ((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51"))),
    _Unread("JPEG XL", _PICTURE, ((0, b"\0\0\0\x0cJXL "), (0, b"\xff\x0a"))),
    _Unread("HEIF", _PICTURE, ((4, b"ftypheic"), (4, b"ftypmif1"))),
    _Unread("AVIF", _PICTURE, ((4, b"ftypavif"),)),
    _Unread("a video (MP4)", _LEAVE_OUT, ((4, b"ftyp"),)),
    _Unread("a video (AVI)", _LEAVE_OUT, ((8, b"AVI "),)),
    _Unread("OpenEXR", _PICTURE, ((0, b"v/1\x01"),)),
    _Unread("ERDAS Imagine", _CONVERT, ((0, b"EHFA_HEADER_TAG"),)),
    _Unread("NetCDF", _CONVERT, ((0, b"CDF\x01"), (0, b"CDF\x02"))),
    _Unread("HDF5", _SLICES, ((0, b"\x89HDF\r\n\x1a\n"),)),
    _Unread("HDF4", _CONVERT, ((0, b"\x0e\x03\x13\x01"),)),
    _Unread("GRIB", _CONVERT, ((0, b"GRIB"),)),
    _Unread("FITS", _CONVERT, ((0, b"SIMPLE  ="),)),
    _Unread("MRC", _CONVERT, ((208, b"MAP "),)),
    _Unread("Zeiss CZI", _EXPORT, ((0, b"ZISRAWFILE"),)),
    _Unread("Nikon ND2", _EXPORT, ((0, b"\xda\xce\xbe\x0a"),)),
    _Unread(
        "an icon or other picture of Windows",
        _LEAVE_OUT,
        ((0, b"\x28\x00\x00\x00\x01\x00\x00\x00"),),
    ),
    _Unread("Parquet", _LEAVE_OUT, ((0, b"PAR1"),)),
    _Unread("SQLite or GeoPackage", _LEAVE_OUT, ((0, b"SQLite format 3\0"),)),
    _Unread("ZIP", _UNPACK_ZIP, ((0, b"PK\x03\x04"),)),
    _Unread("7-Zip", _UNPACK, ((0, b"7z\xbc\xaf\x27\x1c"),)),
    _Unread("Zstandard", _UNPACK, ((0, b"\x28\xb5\x2f\xfd"),)),
    _Unread("XZ", _UNPACK, ((0, b"\xfd7zXZ\0"),)),
    _Unread("gzip", _UNPACK, ((0, b"\x1f\x8b"),)),
    _Unread(
        "a pointer of Git LFS",
        "The image itself is not here. Get it with `git lfs pull`.",
        ((0, b"version https://git-lfs"),),
    ),
    _Unread("a GDAL VRT", _CONVERT, ((0, b"<VRTDataset"),)),
    _Unread("a GDAL WMS description", _CONVERT, ((0, b"<GDAL_WMS"),)),
    _Unread("SVG", _PICTURE, ((0, b"<svg"),)),
    _Unread("JSON", _PAGE, ((0, b"{"),)),
    _Unread("a web page (HTML)", _PAGE, ((0, b"<html"), (0, b"<!doctype html"))),
    _Unread("Netpbm", _CONVERT),
)
_NETPBM = re.compile(rb"P(?:[1-6]\s+(?:\d|#)|7\s+(?:#|[A-Z]+\s)|[Ff]4?\s+(?:\d|#))")
"""PBM, PGM, PPM, PAM and PFM: the first letters may be followed by any white space and comments."""
_ARCHIVE_NAME = 30
"""Offset of the name of the first file in a ZIP."""
_PACKERS = (".gz", ".bz2", ".xz", ".zst")
_IN_GZIP = " in gzip"


def kind_of(head: bytes) -> str:
    """Name of the content of a file, for messages, from its first `HEAD_BYTES` bytes."""
    return _kind_of(head, len(FORMATS))


@lru_cache(8)
def _kind_of(head: bytes, _formats: int) -> str:
    """See `kind_of`; a head is looked at twice for each file. Formats are only ever added, so their
    number tells answers from before.
    """
    if not head:
        return "empty"
    name = next((kind.name for _, kind in _kinds() if _matches(head, kind.signatures)), None)
    name = name or next((each.name for each in _UNREAD if _matches(head, each.signatures)), None)
    if name == "ZIP" and _first_packed(head).endswith(b".npy"):
        return "a NumPy archive (.npz)"
    if name == "gzip":
        return _packed_kind(head)
    if name is not None:
        return name
    if _NETPBM.match(head):
        return "Netpbm"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "text" if printable == len(head) else "unknown data"


def claims(location: str) -> tuple[tuple[str, FileKind], ...]:
    """The formats that claim a location by the longest of its suffixes, with the kind that each
    expects.
    """
    return _claims(f".{tail_of(location)}", len(FORMATS))


@lru_cache(256)
def _claims(name: str, _formats: int) -> tuple[tuple[str, FileKind], ...]:
    """See `claims` and `_kind_of`; `name`: what decides the suffix."""
    found = [
        (len(suffix), image_format, kind)
        for image_format, kind in _kinds()
        for suffix in kind.suffixes
        if name.endswith(suffix)
    ]
    longest = max((length for length, *_ in found), default=0)
    return tuple((image_format, kind) for length, image_format, kind in found if length == longest)


def suffix_of(location: str) -> str:
    """The suffix of a location in lower case, with its dot: the one that formats claim, or else the
    last one. Empty if the name has none.
    """
    name = _name(location)
    suffixes = [each for _, kind in _kinds() for each in kind.suffixes if name.endswith(each)]
    _, dot, last = name.rpartition(".")
    return max(suffixes, key=len, default=dot + last if dot else "")


def tail_of(location: str) -> str:
    """What decides the suffix of a location: its name from the first dot on."""
    return _name(location).partition(".")[2]


def require_kind(location: str, head: bytes, image_format: str) -> str:
    """The kind of content. Raises `FormatError` if the format does not read it."""
    found, kinds = kind_of(head), FORMATS[image_format].kinds
    for kind in kinds:
        if _fits(kind, head, found):
            return kind.name
    wanted = " or ".join(kind.name for kind in kinds)
    raise FormatError(
        f"{location} should be {wanted} for the format {image_format!r}, but "
        f"{_is(found)}. {_remedy(found)}"
    )


def claimed_format(location: str, head: bytes) -> str | None:
    """The format that claims a file by its suffix; None if none does.

    Raises `FormatError` if the content does not match the suffix.
    """
    claiming, found = claims(location), kind_of(head)
    for image_format, kind in claiming:
        if _fits(kind, head, found):
            return image_format
    if not claiming:
        return None
    expected = " or ".join(dict.fromkeys(kind.name for _, kind in claiming))
    raise FormatError(
        f"{location} is {expected} by its suffix {suffix_of(location)}, but {_is(found)}. "
        f"{_remedy(found)}"
    )


def format_by_content(location: str, head: bytes) -> str:
    """The format that reads such content, for a file whose suffix no format claims. Raises
    `FormatError` if none does.
    """
    found, suffix = kind_of(head), _whole_suffix(location)
    for image_format, kind in _kinds():
        if kind.name == found:
            return image_format
    named = f"no format claims the suffix {suffix}" if suffix else "its name has no suffix"
    raise FormatError(
        f"{location} is no image that can be read: {named}, and {_is(found)}. {_remedy(found)}"
    )


def _kinds() -> Iterator[tuple[str, FileKind]]:
    """All kinds of content that are read, each with the name of its format."""
    for name, image_format in FORMATS.items():
        for kind in image_format.kinds:
            yield name, kind


def _fits(kind: FileKind, head: bytes, found: str) -> bool:
    """Whether content of the kind `found` is of this kind: two formats may share a signature."""
    return found in (kind.name, kind.content) or (
        found != "empty" and _matches(head, kind.signatures)
    )


def _matches(head: bytes, signatures: tuple[tuple[int, bytes], ...]) -> bool:
    """Whether content has one of these signatures; markup in upper or lower case, also after white
    space.
    """
    for offset, signature in signatures:
        if head.startswith(signature, offset) or (
            signature[:1] in (b"<", b"{") and _begin(head).startswith(signature.lower())
        ):
            return True
    return False


def _begin(head: bytes) -> bytes:
    """The beginning of a text, in lower case."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()


def _first_packed(head: bytes) -> bytes:
    """The name of the first file of a ZIP."""
    return head[_ARCHIVE_NAME : _ARCHIVE_NAME + int.from_bytes(head[26:28], "little")]


def _packed_kind(head: bytes) -> str:
    """A name such as `NIfTI in gzip` for packed volumes and for packed content that a format reads,
    otherwise `gzip`.
    """
    try:
        packed = kind_of(zlib.decompressobj(31).decompress(head, HEAD_BYTES))
    except zlib.error:
        return "gzip"
    name = packed + _IN_GZIP
    is_volume = any(each.name == packed and each.remedy == _SLICES for each in _UNREAD)
    return name if is_volume or any(kind.name == name for _, kind in _kinds()) else "gzip"


def _name(location: str) -> str:
    path = (
        re.split("[?#]", location, maxsplit=1)[0]
        if location.startswith(("http://", "https://"))
        else location
    )
    return path.rstrip("/").rsplit("/", 1)[-1].lower()


def _whole_suffix(location: str) -> str:
    """The suffix, with the one before it if the last is that of a compressor: `.nii.gz`."""
    suffix = suffix_of(location)
    inner = suffix_of(without_query(location)[: -len(suffix)]) if suffix in _PACKERS else ""
    return inner + suffix if inner[1:].isalnum() and not inner[1:].isdecimal() else suffix


def _is(kind: str) -> str:
    return "it is empty (0 bytes)" if kind == "empty" else f"its content is {kind}"


def _remedy(name: str) -> str:
    for image_format, kind in _kinds():
        # What a ZIP holds is not known here.
        if kind.name == name != "ZIP":
            rename = f"Rename it to end in {kind.suffixes[0]}, or set" if kind.suffixes else "Set"
            return f"{rename} `format: {image_format}`."
    plain = name.removesuffix(_IN_GZIP)
    return next((each.remedy for each in _UNREAD if each.name == plain), _LEAVE_OUT)
