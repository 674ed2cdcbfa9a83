"""Opening: how readers get at the bytes of a file in any store, and what its first bytes say it is.

`StoredFile` is a file in a store. C libraries that must see a file object get `Ranges`, which reads
only the parts they ask for, through a bounded cache. An exception cannot pass through a C library,
so `Ranges` keeps it and answers with nothing; whoever called the library looks at `failures`
afterwards.
"""

from __future__ import annotations

import contextlib
import re
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import FormatError, MaskloomError, Unavailable
from maskloom.segcore.storage.addresses import path_of, written
from maskloom.segcore.storage.store import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fsspec import AbstractFileSystem

HEAD_BYTES = 512
"""First bytes of a file that tell its kind."""
MAX_PICTURE_PIXELS = 2**28
"""Pixels that are decoded at once at most: of a picture, or of one block of a TIFF."""
_BLOCK_BYTES = 2**18
_CACHED_BLOCKS = 32

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (0, b"GIF8", "GIF"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypheic", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyp", "a video (MP4)"),
    (8, b"AVI ", "a video (AVI)"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"EHFA_HEADER_TAG", "ERDAS Imagine"),
    (0, b"CDF\x01", "NetCDF"),
    (0, b"CDF\x02", "NetCDF"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"\x0e\x03\x13\x01", "HDF4"),
    (0, b"GRIB", "GRIB"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (4, b"n+2\0\r\n\x1a\n", "NIfTI"),
    (4, b"ni2\0\r\n\x1a\n", "NIfTI"),
    (0, b"NRRD0", "NRRD"),
    (0, b"ObjectType = Image", "MetaImage"),
    (208, b"MAP ", "MRC"),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"ZISRAWFILE", "Zeiss CZI"),
    (0, b"\xda\xce\xbe\x0a", "Nikon ND2"),
    (0, b"\x28\x00\x00\x00\x01\x00\x00\x00", "an icon or other picture of Windows"),
    (0, b"PAR1", "Parquet"),
    (0, b"SQLite format 3\0", "SQLite or GeoPackage"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard"),
    (0, b"\xfd7zXZ\0", "XZ"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"version https://git-lfs", "a pointer of Git LFS"),
    (0, b"<VRTDataset", "a GDAL VRT"),
    (0, b"<GDAL_WMS", "a GDAL WMS description"),
    (0, b"<svg", "SVG"),
    (0, b"<html", "a web page (HTML)"),
    (0, b"<!doctype html", "a web page (HTML)"),
)
"""Where content begins with which bytes (letters of text in any case), and what it is then."""
_NETPBM = re.compile(rb"P(?:[1-6]\s+(?:\d|#)|7\s+(?:#|[A-Z]+\s)|[Ff]4?\s+(?:\d|#))")
"""PBM, PGM, PPM, PAM and PFM: any white space may follow the first letters, and comments."""
_ARCHIVE_NAME = 30
"""Where the name of the first file of a ZIP begins."""
_RASTERS = (
    "JPEG 2000",
    "ERDAS Imagine",
    "NetCDF",
    "HDF4",
    "GRIB",
    "FITS",
    "MRC",
    "Netpbm",
    "a GDAL VRT",
    "a GDAL WMS description",
)
_VOLUMES = ("NIfTI", "NIfTI in gzip", "NRRD", "NRRD in gzip", "MetaImage", "DICOM", "HDF5")
_PICTURES = ("GIF", "PDF", "Photoshop", "JPEG XL", "HEIF", "AVIF", "OpenEXR", "SVG")
_REMEDIES = {
    **dict.fromkeys(
        _RASTERS,
        "maskloom does not read this format. Convert it, for example with `gdal_translate FILE "
        "FILE.tif`.",
    ),
    **dict.fromkeys(
        _VOLUMES, "maskloom does not read this format yet. Write its slices as TIFF or PNG."
    ),
    **dict.fromkeys(_PICTURES, "maskloom does not read this format. Convert it to PNG or TIFF."),
    **dict.fromkeys(
        ("NumPy", "a NumPy archive (.npz)"), "maskloom does not read arrays. Write each as TIFF."
    ),
    "Zeiss CZI": "maskloom does not read this format. Export it as TIFF or OME-TIFF.",
    "Nikon ND2": "maskloom does not read this format. Export it as TIFF or OME-TIFF.",
    "a pointer of Git LFS": "The image itself is not here. Get it with `git lfs pull`.",
    "a web page (HTML)": (
        "A server may have sent a page for signing in, or an error, in its place. Download it "
        "again."
    ),
    **dict.fromkeys(("ZIP", "7-Zip", "gzip", "Zstandard", "XZ"), "Unpack it first."),
}
_PACKERS = (".gz", ".bz2", ".xz", ".zst")
_KINDS = {"tiff": ("TIFF",), "picture": ("PNG", "JPEG", "BMP", "WebP")}
"""Kinds of content that a format reads."""
_CLAIMS = {
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gtiff": "TIFF",
    ".btf": "TIFF",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".bmp": "BMP",
    ".webp": "WebP",
}
"""What a suffix says about the content."""


@dataclass(slots=True)
class StoredFile:
    """A file in a store."""

    location: str
    """fsspec URI or absolute local path."""
    store: AbstractFileSystem
    path: str
    """Its path in the store."""
    blocks: dict[int, bytes] = field(default_factory=dict, repr=False)
    """Cached bytes, for all `Ranges` of this file."""
    _size: int | None = field(default=None, repr=False)

    @classmethod
    def of(cls, location: str) -> StoredFile:
        """The file at a location. Raises `StoreError` for an unknown protocol."""
        return cls(location, *filesystem(location))

    @property
    def local_path(self) -> str | None:
        """The path that C libraries can open by themselves; None where the bytes must come through
        fsspec.
        """
        from fsspec.implementations.local import LocalFileSystem

        # Names that are no UTF-8 have surrogates, which GDAL cannot be told.
        return (
            self.path
            if isinstance(self.store, LocalFileSystem) and self.path.isprintable()
            else None
        )

    def size(self) -> int:
        """Bytes; the store is asked once. Raises `FormatError` where this is no file, and
        `Unavailable`.
        """
        if self._size is not None:
            return self._size
        with _store_errors(self.location):
            info = self.store.info(self.path)
        if info.get("type", "file") != "file" or info.get("size") is None:
            raise FormatError(
                f"{self.location} is no regular file of known size but a {info.get('type')}. Leave "
                "it out of `inputs`."
            )
        self._size = int(info["size"])
        return self._size

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """A range of its bytes. Raises `Unavailable`."""
        with _store_errors(self.location):
            return bytes(self.store.cat_file(self.path, start=start, end=stop))

    def head(self) -> bytes:
        """Its first bytes, for `kind_of`. Raises `FormatError` where this is no file, and
        `Unavailable`.
        """
        # Some stores refuse a range of an empty file.
        size = min(self.size(), HEAD_BYTES)
        return self.read(0, size) if size else b""

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """Its bytes as a file for libraries that read here and there. Raises `Unavailable` at the
        end where the store failed.
        """
        if self.local_path is not None:
            with Path(self.local_path).open("rb") as file:
                yield file
            return
        ranges = Ranges(self)
        try:
            yield ranges
        finally:
            # A store's failure looks like a broken file to whoever reads.
            if ranges.failures:
                raise ranges.failures[0]

    def beside(self, path: str) -> StoredFile | None:
        """Another regular file of the same store, if it exists. Raises `Unavailable`."""
        if path_of(self.path) != self.path:
            # The query of a URL belongs to one file; a server that passes over it would give the
            # image itself.
            return None
        with _store_errors(self.location):
            return StoredFile(path, self.store, path) if self.store.isfile(path) else None


@contextlib.contextmanager
def _store_errors(location: str) -> Iterator[None]:
    try:
        yield
    except MaskloomError:
        raise
    # Stores raise what their client libraries raise (botocore, aiohttp, google ...), which has no
    # common base.
    except Exception as error:
        raise Unavailable(
            f"{location} could not be read from its store: "
            f"{written(str(error)) or type(error).__name__}"
        ) from error


@dataclass(slots=True, eq=False)
class Ranges:
    """A stored file as a file object for C libraries. Memory is bounded; failures are kept, not
    raised.
    """

    source: StoredFile
    failures: list[Unavailable] = field(default_factory=list)
    size: int = field(init=False)
    _position: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.size = self.source.size()

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the cached bytes go."""
        self.source.blocks.clear()

    def tell(self) -> int:
        """Place of the next byte that `read` gives."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place counted from the start (0), from here (1) or from the end (2)."""
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes; fewer at the end of the file, none after a failure."""
        start = min(self._position, self.size)
        stop = self.size if size < 0 else min(start + size, self.size)
        try:
            data = (
                self._cached(start, stop)
                if stop - start <= _BLOCK_BYTES
                else self.source.read(start, stop)
            )
        except Unavailable as error:
            self.failures.append(error)
            return b""
        self._position = start + len(data)
        return data

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Several ranges at once, which object stores fetch in parallel. GDAL asks so for the
        blocks of a window.
        """
        stops = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        try:
            with _store_errors(self.source.location):
                paths = [self.source.path] * len(stops)
                parts = self.source.store.cat_ranges(paths, list(offsets), stops, on_error="raise")
                return [bytes(part) for part in parts]
        except Unavailable as error:
            self.failures.append(error)
            return [b""] * len(stops)

    def _cached(self, start: int, stop: int) -> bytes:
        first, last = start // _BLOCK_BYTES, max(start, stop - 1) // _BLOCK_BYTES
        joined = (
            b"".join(self._block(number) for number in range(first, last + 1))
            if stop > start
            else b""
        )
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        blocks = self.source.blocks
        block = blocks.pop(number, None)
        if block is None:
            block = self.source.read(
                number * _BLOCK_BYTES, min((number + 1) * _BLOCK_BYTES, self.size)
            )
        # The dictionary's order is the order of use: the oldest goes.
        blocks[number] = block
        if len(blocks) > _CACHED_BLOCKS:
            del blocks[next(iter(blocks))]
        return block


def kind_of(head: bytes) -> str:
    """What the first bytes of a file (`HEAD_BYTES` of them) say it is, in a word for people."""
    if not head:
        return "empty"
    begin = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset) or (
            signature[:1] == b"<" and begin.startswith(signature.lower())
        ):
            # What is packed may be known too.
            packed = _packed_kind(head) if kind == "gzip" else ""
            if kind == "ZIP" and _first_packed(head).endswith(b".npy"):
                return "a NumPy archive (.npz)"
            return f"{packed} in gzip" if packed in _VOLUMES else kind
    if _NETPBM.match(head):
        return "Netpbm"
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "text" if printable == len(head) else "unknown data"


def _first_packed(head: bytes) -> bytes:
    """The name of the first file of a ZIP."""
    return head[_ARCHIVE_NAME : _ARCHIVE_NAME + int.from_bytes(head[26:28], "little")]


def _packed_kind(head: bytes) -> str:
    try:
        return kind_of(zlib.decompressobj(31).decompress(head, HEAD_BYTES))
    except zlib.error:
        return ""


def suffix_of(location: str) -> str:
    """The suffix of a location's name in lower case, with its dot; empty where there is none."""
    path = (
        re.split("[?#]", location, maxsplit=1)[0]
        if location.startswith(("http://", "https://"))
        else location
    )
    _, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return dot + suffix.lower() if dot else ""


def _whole_suffix(location: str) -> str:
    """The suffix, with the one before it where the last is that of a packer: `.nii.gz`."""
    suffix = suffix_of(location)
    inner = suffix_of(path_of(location)[: -len(suffix)]) if suffix in _PACKERS else ""
    return inner + suffix if inner[1:].isalnum() and not inner[1:].isdecimal() else suffix


def require_kind(location: str, head: bytes, image_format: str) -> str:
    """The kind of content. Raises `FormatError` where the format does not read such content."""
    kind, wanted = kind_of(head), _KINDS.get(image_format)
    if wanted is None or kind in wanted:
        return kind
    raise FormatError(
        f"{location} should be {' or '.join(wanted)} for the format {image_format!r}, but "
        f"{_is(kind)}. {_remedy(kind)}"
    )


def require_claim(location: str, head: bytes) -> None:
    """Check that the content is what the suffix claims. Raises `FormatError` where it is not."""
    suffix, kind = suffix_of(location), kind_of(head)
    claim = _CLAIMS.get(suffix, kind)
    if claim != kind:
        raise FormatError(
            f"{location} is {claim} by its suffix {suffix}, but {_is(kind)}. {_remedy(kind)}"
        )


def format_by_content(location: str, head: bytes) -> str:
    """The format that reads such content, for a file whose suffix says nothing. Raises
    `FormatError` where none does.
    """
    kind, suffix = kind_of(head), _whole_suffix(location)
    image_format = next((name for name, kinds in _KINDS.items() if kind in kinds), None)
    if image_format is None:
        named = f"no format claims the suffix {suffix}" if suffix else "its name has no suffix"
        raise FormatError(
            f"{location} is no image that can be read: {named}, and {_is(kind)}. {_remedy(kind)}"
        )
    return image_format


def _is(kind: str) -> str:
    return "it is empty (0 bytes)" if kind == "empty" else f"its content is {kind}"


def _remedy(kind: str) -> str:
    image_format = next((name for name, kinds in _KINDS.items() if kind in kinds), None)
    if image_format is None:
        return _REMEDIES.get(
            kind, "Put the image itself in its place, or leave it out of `inputs`."
        )
    suffix = next(suffix for suffix, claim in _CLAIMS.items() if claim == kind)
    return f"Rename it to end in {suffix}, or set `format: {image_format}`."


def silence(category: type[Warning], module: str = "") -> None:
    """Ignore a library's warnings about odd files, whose faults we report ourselves.

    The filter is of the whole process and stays: `warnings.catch_warnings` would race with other
    threads.
    """
    for action, _, known, known_module, _ in warnings.filters:
        if action != "ignore":
            break
        if known is category and getattr(known_module, "pattern", "") == module:
            return
    warnings.filterwarnings("ignore", category=category, module=module)
