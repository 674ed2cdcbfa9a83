"""The pixels of one frame: its bytes in the file, decoded to stored numbers, and to values.

Native and RLE frames are decoded by pydicom, all others by imagecodecs.
"""

from __future__ import annotations

import math
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, MaskloomError, ReadError
from maskloom.segcore.formats.dicom.codestream import announced_size
from maskloom.segcore.formats.dicom.header import Header, number, text
from maskloom.segcore.formats.dicom.values import (
    Scale,
    Stored,
    corrected,
    lookup_table,
    scaled,
    stored_type,
    type_of_values,
)
from maskloom.segcore.processes.quiet_pydicom import pydicom

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_RLE = "1.2.840.10008.1.2.5"
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
"""Baseline and extended: colours are stored as YCbCr, unless the header says RGB."""
_DECODERS = {
    **dict.fromkeys(_JPEG, "jpeg_decode"),
    "1.2.840.10008.1.2.4.57": "jpeg_decode",
    "1.2.840.10008.1.2.4.70": "jpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.201": "htj2k_decode",
    "1.2.840.10008.1.2.4.202": "htj2k_decode",
    "1.2.840.10008.1.2.4.203": "htj2k_decode",
}
_END_OF_JPEG = b"\xff\xd9"
_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_PALETTE = "PALETTE COLOR"
_YCBCR = ("YBR_FULL", "YBR_FULL_422")
_READ_AS_THEY_ARE = (
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    _PALETTE,
    "YBR_RCT",
    "YBR_ICT",
    *_YCBCR,
)


def bands_of(header: Header) -> int:
    """Number of bands of the delivered pixels."""
    return 3 if header.photometric == _PALETTE else header.samples


def delivered_type(header: Header, scales: Iterable[Scale]) -> np.dtype[Any]:
    """The type of the delivered pixels of slices with these scales. Raises `FormatError` for pixels
    that are not read.
    """
    assert header.pixels is not None
    if header.syntax not in (*_NATIVE, _RLE, *_DECODERS):
        raise FormatError(
            f"its pixels are compressed in a way that is not read (transfer syntax "
            f"{_uid(header.syntax)}), such as video. Convert it, for example with dcmdjpeg or "
            "gdcmconv --raw."
        )
    if header.photometric not in _READ_AS_THEY_ARE or header.samples not in (1, 3):
        raise FormatError(
            f"its pixels have {header.samples} numbers in a colour system that is not read. "
            "Convert it to RGB."
        )
    if header.pixels.keyword in _FLOATS:
        return np.dtype(np.float32 if header.pixels.keyword == "FloatPixelData" else np.float64)
    stored = stored_type(header)
    if stored.allocated not in (1, 8, 16, 32):
        raise FormatError(
            f"its pixels have {stored.allocated} bits (BitsAllocated); expected 1, 8, 16 or 32."
        )
    if header.photometric == _PALETTE:
        descriptor = header.elements.get("RedPaletteColorLookupTableDescriptor")
        if descriptor is None or len(descriptor) != 3:
            raise FormatError("its pixels are palette colours, but it has no palette.")
        return np.dtype(np.uint8 if descriptor[2] == 8 else np.uint16)
    if header.samples == 3:
        return np.dtype(f"u{max(1, stored.allocated // 8)}")
    table = lookup_table(header)
    if table is not None:
        values = table[1]
        return np.min_scalar_type(int(values.max())) if values.min() >= 0 else np.dtype(np.int32)
    return type_of_values(stored, scales)


def read_frame(
    stream: IO[bytes], header: Header, frame: int, scale: Scale, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The values (y, x, band) of a frame, and where they are data. Raises `ReadError`, in words
    that follow the name of the slice.
    """
    try:
        raw = _decoded(_content(stream, header, frame), header, frame)
        return _values(raw, header, scale, dtype)
    except MaskloomError:
        raise
    except Exception as error:  # noqa: BLE001
        # What broken pixels lead to is open-ended, and messages of pydicom may quote values.
        raise ReadError(
            f"its pixels cannot be decoded ({type(error).__name__}, transfer syntax "
            f"{_uid(header.syntax)}): they are damaged or cut off. Send it again from the archive "
            "(PACS)."
        ) from None


def _content(stream: IO[bytes], header: Header, frame: int) -> bytes:
    """The bytes of a frame in the file; for one-bit pixels, from the byte in which it begins."""
    place = header.pixels
    assert place is not None
    stream.seek(place.offset)
    if header.syntax not in _NATIVE:
        tables = [header.elements.get(f"ExtendedOffsetTable{end}") for end in ("", "Lengths")]
        content: bytes = pydicom().encaps.get_frame(
            stream,
            frame,
            number_of_frames=header.frames,
            extended_offsets=tuple(tables) if all(tables) else None,
        )
        return content
    bits = _bits_of_frame(header)
    begin, end = frame * bits // 8, -(-(frame + 1) * bits // 8)
    if header.syntax == _NATIVE[2] and place.vr == "OW" and (place.length or 0) > end:
        end += (end - begin) % 2  # bytes are swapped in pairs
    if place.length is not None and end > place.length:
        raise ReadError(
            f"its pixels are cut off: {place.length} bytes, expected at least {end}. Send it again "
            "from the archive (PACS)."
        )
    stream.seek(place.offset + begin)
    content = stream.read(end - begin)
    if len(content) < end - begin:
        raise ReadError(
            f"the file ends within its pixels ({len(content)} of {end - begin} bytes). Send it "
            "again from the archive (PACS)."
        )
    return content


def _bits_of_frame(header: Header) -> int:
    assert header.pixels is not None
    width = _FLOATS.get(header.pixels.keyword)
    bits = int(width[1]) * 8 if width else stored_type(header).allocated
    # Two pixels of YBR_FULL_422 share their colour differences.
    samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
    return math.prod(header.shape) * samples * bits


def _decoded(content: bytes, header: Header, frame: int) -> NDArray[Any]:
    """Stored numbers, (y, x, sample)."""
    shape = (*header.shape, header.samples)
    if header.syntax in (*_NATIVE, _RLE):
        return _by_pydicom(content, header, frame).reshape(shape)
    size = announced_size(content)
    if size is None or size[:2] != header.shape or size[2] != header.samples:
        raise ReadError(
            f"its compressed pixels announce {size or 'no size'} (rows, columns, samples), its "
            f"header {shape}. Send it again from the archive (PACS)."
        )
    if _DECODERS[header.syntax] == "jpeg_decode" and _END_OF_JPEG not in content[-8:]:
        # libjpeg would fill the rest with grey.
        raise ReadError("its compressed pixels are cut off. Send it again from the archive (PACS).")
    import imagecodecs

    decode = getattr(imagecodecs, _DECODERS[header.syntax])
    if header.syntax in _JPEG and header.samples == 3 and header.photometric == "RGB":
        # Without the colour space the decoder guesses YCbCr.
        pixels = decode(content, colorspace="RGB", outcolorspace="RGB")
    else:
        pixels = decode(content)
    pixels = np.asarray(pixels).reshape(shape)
    return _rgb(pixels, header) if header.syntax not in _JPEG else pixels


def _by_pydicom(content: bytes, header: Header, frame: int) -> NDArray[Any]:
    assert header.pixels is not None
    library, stored = pydicom(), stored_type(header)
    order = ">" if header.syntax == _NATIVE[2] else "<"
    if header.pixels.keyword in _FLOATS:
        floats = np.frombuffer(content, order + _FLOATS[header.pixels.keyword])
        return floats.astype(floats.dtype.newbyteorder("="))
    if stored.allocated == 1:
        bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
        skipped = frame * _bits_of_frame(header) % 8
        return bits[skipped : skipped + math.prod(header.shape) * header.samples]
    if header.syntax == _RLE:
        content = library.encaps.encapsulate([content], has_bot=False)
    planar = number(header.elements, "PlanarConfiguration")
    pixels, _ = library.pixels.get_decoder(header.syntax).as_array(
        content,
        index=0,
        raw=True,
        rows=header.shape[0],
        columns=header.shape[1],
        number_of_frames=1,
        samples_per_pixel=header.samples,
        photometric_interpretation=header.photometric,
        bits_allocated=stored.allocated,
        bits_stored=stored.bits,
        pixel_representation=int(stored.signed),
        pixel_keyword="PixelData",
        pixel_vr=header.pixels.vr,
        correct_unused_bits=False,
        **({"planar_configuration": planar} if header.samples > 1 else {}),
    )
    return _rgb(pixels, header)


def _rgb(pixels: NDArray[Any], header: Header) -> NDArray[Any]:
    if header.photometric not in _YCBCR or header.samples != 3:
        return pixels
    converted: NDArray[Any] = pydicom().pixels.convert_color_space(pixels, "YBR_FULL", "RGB")
    return converted


def _values(
    raw: NDArray[Any], header: Header, scale: Scale, dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    stored_as = stored_type(header)
    stored = raw if header.samples == 3 else corrected(raw, stored_as)
    valid = np.ones(stored.shape[:2], np.bool_)
    if header.samples == 1:
        valid &= ~_is_padding(raw[..., 0], stored[..., 0], header, stored_as)
    if header.photometric == _PALETTE:
        colours = pydicom().pixels.apply_color_lut(stored[..., 0], header.elements)
        return np.asarray(colours).astype(dtype), valid
    table = lookup_table(header) if header.samples == 1 else None
    if table is not None:
        first, values = table
        index = np.clip(stored.astype(np.int64) - first, 0, values.size - 1)
        return values[index].astype(dtype), valid
    if stored.dtype.kind == "f":
        finite = np.isfinite(stored)
        stored = np.where(finite, stored, 0)
        valid &= finite.all(axis=-1)
    return scaled(stored, scale if header.samples == 1 else Scale(), dtype), valid


def _is_padding(
    raw: NDArray[Any], stored: NDArray[Any], header: Header, kind: Stored
) -> NDArray[np.bool_]:
    """Where stored numbers are padding around the image (PS3.3 C.7.5.1.1.2)."""
    value = _padding(header, "PixelPaddingValue", kind)
    if value is None or raw.dtype.kind == "f":
        return np.zeros(raw.shape, np.bool_)
    limit = _padding(header, "PixelPaddingRangeLimit", kind)
    if limit is not None:
        least, greatest = sorted((value, limit))
        return (stored >= least) & (stored <= greatest)
    # Some scanners write padding with more bits than other pixels have.
    size = kind.container.itemsize
    found: NDArray[np.bool_] = (stored == value) | (
        raw.astype(f"u{size}") == value % 2 ** (8 * size)
    )
    return found


def _padding(header: Header, keyword: str, kind: Stored) -> int | None:
    try:
        value = header.elements.get(keyword)
        if value is None or value == "":
            return None
        if isinstance(value, bytes):
            pair = value[:2][:: -1 if header.syntax == _NATIVE[2] else 1]
            return int.from_bytes(pair, "little", signed=kind.signed)
        found = int(value)
    except (TypeError, ValueError):
        return None
    bits = kind.container.itemsize * 8
    return found - 2**bits if kind.signed and found >= 2 ** (bits - 1) else found


def _uid(syntax: str) -> str:
    """A transfer syntax for messages: digits and dots only."""
    return syntax if syntax.replace(".", "").isdigit() else text({}, "") or "unknown"
