"""Photos and similar pictures: PNG, JPEG, BMP and WebP, with the colours and orientation that
viewers show.

Grey pictures have one band, all others red, green and blue: palettes are read as colours, CMYK is
converted to RGB, EXIF orientation is applied. Files of several pictures (animations, MPO) are
refused. Grey of 1, 2 and 4 bits is scaled to 0 to 255; 16 bits stay 16 bits. A pixel is no data
(`valid` False) if its alpha is 0 or it has the transparent colour of the PNG.

These formats have no random access: a reader decodes the picture once and cuts boxes from it, so
`chunks` is the whole shape. PIL decodes; 16-bit colour, which PIL would reduce to 8 bits, is
decoded by OpenCV. PIL replaces damaged parts by grey or black. So the reader also checks the
checksums of a PNG and the length of its pixel data, and the warnings of libjpeg that GDAL reports.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.frames import notes_on_frames
from maskloom.segcore.formats.jpeg import require_whole_jpeg
from maskloom.segcore.formats.orientation import picture_orientation, turn, turn_shape
from maskloom.segcore.formats.png import INTERLACED, essential_chunks, require_all_rows
from maskloom.segcore.formats.source import MAX_PICTURE_PIXELS, StoredFile, silence
from maskloom.segcore.raster.dates import from_tag
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from maskloom.segcore.geometry import Box, Shape
    from maskloom.segcore.raster.spec import Reader

_PNG_GREY = (0, 4)
_LIMIT = threading.Lock()
_GREY_MODES = frozenset({"1", "L", "LA", "I;16"})


@dataclass(frozen=True, slots=True)
class _Header:
    """Metadata from the header of a picture."""

    shape: Shape
    """As stored, before rotation to upright."""
    bands: int
    dtype: str
    orientation: int
    grey_levels: int
    """Largest stored grey value; the transparent colour of a PNG refers to stored values."""
    transparent: Any
    """PIL's information on the transparent colour or palette entries of the PNG; None without."""
    by_opencv: bool
    """Whether the picture is a PNG of 16-bit colour."""


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """PNG, JPEG, BMP and WebP."""

    kinds: tuple[FileKind, ...] = (
        FileKind("PNG", (".png",), ((0, b"\x89PNG\r\n\x1a\n"),)),
        FileKind("JPEG", (".jpg", ".jpeg", ".jpe"), ((0, b"\xff\xd8\xff"),)),
        FileKind("BMP", (".bmp",), ((0, b"BM"),)),
        FileKind("WebP", (".webp",), ((8, b"WEBP"),)),
    )
    mask: str = "png"

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the header (of WebP the whole file); see `segcore.raster.spec.Format.describe`."""
        source = StoredFile.of(location)
        head = source.head()
        kind = require_kind(location, head, "picture")
        with source.stream() as stream:
            image = _opened(location, stream, kind)
        notes = notes_on_frames(location, source, image)
        header = _header(image, head)
        shape, bands = (
            turn_shape(header.shape, header.orientation),
            tuple(range(1, header.bands + 1)),
        )
        return RasterSpec(
            location=location,
            format="picture",
            shape=shape,
            bands=bands,
            dtype=header.dtype,
            chunks=shape,
            version=version,
            file_bands=len(bands),
            interpretation="rgb" if len(bands) == 3 else "bands",
            notes=notes,
            acquired=_acquired(image.info.get("exif")),
        )

    def open(self, spec: RasterSpec) -> PictureReader:
        """Decode the picture; see `segcore.raster.spec.Format.open`."""
        source = StoredFile.of(spec.location)
        head = source.head()
        kind = require_kind(spec.location, head, "picture")
        content = source.read()
        image = _opened(spec.location, io.BytesIO(content), kind)
        header = _header(image, head)
        if (turn_shape(header.shape, header.orientation), header.bands) != (
            spec.shape,
            spec.file_bands,
        ):
            raise SourceChanged(
                f"{spec.location} has changed since its header was read. Run the same command "
                "again."
            )
        if kind == "JPEG":
            require_whole_jpeg(spec.location, content)
        essential = essential_chunks(spec.location, content) if kind == "PNG" else []
        if header.by_opencv:
            pixels, valid = _sixteen_bit_colour(spec.location, b"".join(essential), header)
        else:
            pixels, valid = _decode(spec.location, image, header)
            last_row = image.crop((0, image.height - 1, image.width, image.height))
            if kind == "PNG" and (head[INTERLACED] or not np.asarray(last_row).any()):
                # If a stream ends early, PIL leaves rows 0: the last ones, or rows between others
                # in a picture with several passes.
                require_all_rows(spec.location, head, essential)
        chosen = tuple(band - 1 for band in spec.bands)
        if chosen != tuple(range(header.bands)):
            pixels = pixels[..., list(chosen)]
        return PictureReader(
            turn(pixels, header.orientation),
            None if valid is None else turn(valid, header.orientation),
        )

    def open_stored(self, spec: RasterSpec) -> Reader:
        """Decode the picture to palette indices or unscaled grey; see
        `StoredFormat.open_stored`.
        """
        source = StoredFile.of(spec.location)
        head = source.head()
        kind = require_kind(spec.location, head, "picture")
        content = source.read()
        image = _opened(spec.location, io.BytesIO(content), kind)
        depth = head[24] if kind == "PNG" else 8
        if image.mode not in ("P", "1") and (image.mode != "L" or depth == 8):
            return self.open(spec)
        if kind == "PNG":
            essential_chunks(spec.location, content)
        levels = {"P": 256, "1": 2}.get(image.mode, 2**depth)
        return _stored(spec.location, image, 255 // (levels - 1))


FORMATS.register("picture")(PictureFormat())


@dataclass(frozen=True, slots=True)
class PictureReader(NothingToClose):
    """A decoded picture."""

    pixels: NDArray[Any]
    valid: NDArray[np.bool_] | None
    """None: all pixels are data."""

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        valid = (
            np.ones(box.shape, np.bool_) if self.valid is None else self.valid[box.slices].copy()
        )
        return self.pixels[box.slices].copy(), valid


def _broken() -> tuple[type[Exception], ...]:
    """The errors that PIL raises for bad files."""
    from PIL.Image import DecompressionBombError

    common = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError)
    return (*common, struct.error, zlib.error, DecompressionBombError)


def _opened(location: str, stream: Any, kind: str) -> ImageFile:
    """The header of a picture. Raises `FormatError` if it is broken or too large to decode."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    silence(Warning, r"PIL\.")
    # `PIL.Image.open` would apply PIL's global limit on size, and try other formats.
    plugins: dict[str, type[ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
    }
    try:
        with _own_limit() if kind == "WebP" else contextlib.nullcontext():
            image = plugins[kind](stream)
    except _broken() as error:
        raise FormatError(
            f"The header of {location} cannot be read as {kind}: {error}. Save the picture again."
        ) from error
    width, height = image.size
    if width * height > MAX_PICTURE_PIXELS:
        raise FormatError(
            f"{location} has {width} x {height} pixels, which must be decoded at once; the limit "
            f"is {MAX_PICTURE_PIXELS} pixels. "
            "Convert it to a tiled TIFF (gdal_translate -of COG)."
        )
    if width < 1 or height < 1:
        raise FormatError(f"{location} has {width} x {height} pixels. Save the picture again.")
    return image


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Replace PIL's limit on size, which is global and checked as soon as PIL opens a WebP picture,
    by ours.
    """
    from PIL import Image

    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        # PIL refuses pictures with more than twice as many pixels.
        Image.MAX_IMAGE_PIXELS = MAX_PICTURE_PIXELS // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _header(image: ImageFile, head: bytes) -> _Header:
    depth, colour = (head[24], head[25]) if image.format == "PNG" else (8, 2)
    sixteen_bit_colour = depth == 16 and colour != 0
    grey = colour in _PNG_GREY if image.format == "PNG" else image.mode in _GREY_MODES
    return _Header(
        shape=(image.height, image.width),
        bands=1 if grey else 3,
        dtype="uint16" if depth == 16 else "uint8",
        orientation=picture_orientation(image.info),
        grey_levels=2**depth - 1,
        transparent=image.info.get("transparency"),
        by_opencv=sixteen_bit_colour,
    )


def _acquired(exif: bytes | None) -> str | None:
    """When a picture was taken, by its EXIF data."""
    if not isinstance(exif, bytes) or not exif:
        return None
    from PIL import ExifTags, Image

    found = Image.Exif()
    try:
        found.load(exif)
        camera = found.get_ifd(ExifTags.IFD.Exif)
    except _broken():
        # The picture can be read all the same.
        return None
    taken, offset = (
        camera.get(ExifTags.Base[each]) for each in ("DateTimeOriginal", "OffsetTimeOriginal")
    )
    return from_tag(taken, offset) or from_tag(found.get(ExifTags.Base.DateTime))


def _decode(
    location: str, image: ImageFile, header: _Header
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    try:
        array = np.asarray(_convert(image))
    except _broken() as error:
        raise ReadError(
            f"The pixels of {location} cannot be decoded: {error}. Copy the file again."
        ) from error
    array = array[..., np.newaxis] if array.ndim == 2 else array
    pixels = array[..., : header.bands]
    if array.shape[-1] > header.bands:
        return pixels, array[..., -1] != 0
    if header.transparent is None:
        return pixels, None
    return pixels, ~_is_transparent(pixels, header)


def _convert(image: ImageFile) -> Any:
    """The picture in a mode that NumPy converts to grey, grey and alpha, RGB, or RGBA."""
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "LA", "I;16", "RGB", "RGBA"):
        image.load()
        return image
    return image.convert("RGB")


def _stored(location: str, image: ImageFile, step: int) -> PictureReader:
    """The stored numbers of a picture with palette indices or few grey levels; PIL delivers `step`
    times these.
    """
    orientation = picture_orientation(image.info)
    try:
        values = np.asarray(image.convert("L") if image.mode == "1" else image) // np.uint8(step)
    except _broken() as error:
        raise ReadError(
            f"The pixels of {location} cannot be decoded: {error}. Copy the file again."
        ) from error
    transparent = image.info.get("transparency")
    hidden = np.zeros(256, np.bool_)
    if isinstance(transparent, bytes):
        hidden[: len(transparent)] = np.frombuffer(transparent, np.uint8) == 0
    elif isinstance(transparent, int):
        hidden[transparent] = True
    valid = ~hidden[values]
    return PictureReader(turn(values[..., np.newaxis], orientation), turn(valid, orientation))


def _is_transparent(pixels: NDArray[Any], header: _Header) -> NDArray[np.bool_]:
    """True where pixels have the transparent colour of the PNG."""
    key = np.atleast_1d(np.asarray(header.transparent))
    if header.bands == 1 and header.dtype == "uint8" and header.grey_levels not in (1, 255):
        # PIL scales 2 and 4 bits to 8, but not the transparent colour.
        key = key * 255 // header.grey_levels
    return cast("NDArray[np.bool_]", (pixels == key).all(axis=-1))


def _sixteen_bit_colour(
    location: str, png: bytes, header: _Header
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    import cv2

    # OpenCV delivers blue, green, red, and grey with alpha as blue = green = red.
    array = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16 or array.ndim != 3:
        raise ReadError(
            f"The pixels of {location} cannot be decoded as 16-bit PNG. The file is damaged; copy "
            "it again."
        )
    pixels = array[..., 2::-1][..., : header.bands]
    if array.shape[-1] == 4:
        return pixels, array[..., 3] != 0
    return pixels, None if header.transparent is None else ~_is_transparent(pixels, header)
