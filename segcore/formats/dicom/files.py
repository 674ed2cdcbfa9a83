"""The bytes of DICOM files: plain, deflated, or packed in ZIP archives.

Nothing is unpacked to disk, so names inside an archive lead nowhere, and they are not stored:
entries are counted. Sizes are checked before anything is inflated.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from maskloom.segcore.errors import FormatError, MaskloomError, ReadError
from maskloom.segcore.formats.source import StoredFile

ARCHIVE = b"PK\3\4"
"""Begin of a ZIP archive with at least one file."""
DEFLATED = "1.2.840.10008.1.2.1.99"
_PLAIN = b"1.2.840.10008.1.2.1\0"
LARGEST_INFLATED = 2**29
"""Bytes of a file that is inflated, which is held in memory."""
_MOST_ENTRIES = 200_000
_LARGEST_RATIO = 200
"""Of the sizes of a whole archive after and before inflating; scans reach about 20."""
_RATIO_FROM = 2**28
"""Bytes below which the ratio does not matter."""
_PLAUSIBLE = re.compile(r"(?:^|/)(?:[^./]+|[^/]*\.(?:\d+|dcm|dicom|ima))$", re.IGNORECASE)
"""Names of DICOM files: with their suffixes, without any, or with a number for one."""
_META = 2**16
"""Bytes in which the file meta information ends."""
_PREAMBLE = 128
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations with a length of four bytes."""
_STARTS = (2, 8)
"""Groups of elements with which DICOM files begin that have no preamble."""


def is_archive(uri: str) -> bool:
    """Whether a file is a ZIP archive. Raises `FormatError` and `Unavailable`."""
    return StoredFile.of(uri).head().startswith(ARCHIVE)


def may_be_dicom(head: bytes) -> bool:
    """Whether a file that begins like this may be DICOM."""
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    little, big = (int.from_bytes(head[:2], order) for order in ("little", "big"))
    element = head[2:4]
    return len(head) >= 8 and (
        (little in _STARTS and element[1:] == b"\0") or (big in _STARTS and element[:1] == b"\0")
    )


@contextlib.contextmanager
def opened(uri: str, entry: int = -1) -> Iterator[IO[bytes]]:
    """The bytes of a DICOM file, not deflated, as a seekable stream. Raises `FormatError` for
    archives and deflated data that are broken, encrypted or too large, and `Unavailable`.
    """
    with StoredFile.of(uri).stream() as stream:
        if entry < 0:
            yield _inflated(stream, uri)
            return
        with _archive(stream, uri) as (archive, infos):
            if entry >= len(infos):
                raise ReadError(f"{uri} has lost files since it was listed. Run the command again.")
            content = io.BytesIO(_entry(archive, infos[entry], uri))
        yield _inflated(content, uri)


def dicom_entries(uri: str) -> Iterator[tuple[int, IO[bytes]]]:
    """The files of an archive that may be DICOM: their numbers and bytes. Raises as `opened`."""
    with StoredFile.of(uri).stream() as stream, _archive(stream, uri) as (archive, infos):
        for number, info in enumerate(infos):
            if info.is_dir() or not _PLAUSIBLE.search(info.filename):
                continue  # an archive of other files need not be read as a whole
            if not may_be_dicom(_entry(archive, info, uri, _PREAMBLE + 4)):
                continue
            yield number, _inflated(io.BytesIO(_entry(archive, info, uri)), uri)


@contextlib.contextmanager
def _archive(
    stream: IO[bytes], uri: str
) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    with _zip_errors(uri), zipfile.ZipFile(stream) as archive:
        infos = archive.infolist()
        before = sum(info.compress_size for info in infos)
        after = sum(info.file_size for info in infos)
        if len(infos) > _MOST_ENTRIES or after > max(_RATIO_FROM, before * _LARGEST_RATIO):
            raise FormatError(
                f"{uri} announces {len(infos)} files of {after} bytes in {before} packed ones, "
                "more than scans can have. Unpack it with care, and give the folder."
            )
        if any(info.flag_bits & 1 for info in infos):
            raise FormatError(
                f"{uri} is encrypted. Unpack it with its password, and give the folder."
            )
        yield archive, infos


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, uri: str, most: int = -1) -> bytes:
    """The first bytes of a file in an archive; -1: all."""
    if most < 0 and info.file_size > LARGEST_INFLATED:
        raise FormatError(
            f"{uri} holds a file of {info.file_size} bytes; at most {LARGEST_INFLATED} are "
            "unpacked in memory. Unpack it, and give the folder."
        )
    with archive.open(info) as file:
        return file.read(info.file_size if most < 0 else most)


@contextlib.contextmanager
def _zip_errors(uri: str) -> Iterator[None]:
    """Errors of the archive as `FormatError`, without names of files in it."""
    try:
        yield
    except (MaskloomError, OSError):
        raise
    except Exception:  # noqa: BLE001  what `zipfile` makes of hostile bytes is open-ended
        raise FormatError(
            f"{uri} is damaged, or packed in a way that cannot be read. Pack it again as a plain "
            "ZIP, or give the folder."
        ) from None


def transfer_syntax(head: bytes) -> tuple[str, int]:
    """The transfer syntax in the file meta information, and the number of bytes before the data
    set; an empty name without one.
    """
    syntax, place = "", _PREAMBLE + 4
    if head[_PREAMBLE:place] != b"DICM":
        return "", 0
    while head[place : place + 2] == b"\2\0" and place + 12 <= len(head):
        long = head[place + 4 : place + 6] in _LONG
        begin = place + (12 if long else 8)
        length = int.from_bytes(head[begin - 4 if long else begin - 2 : begin], "little")
        if head[place + 2 : place + 4] == b"\x10\0":
            syntax = head[begin : begin + length].rstrip(b"\0 ").decode("ascii", "replace")
        place = begin + length
    return syntax, place


def _inflated(stream: IO[bytes], uri: str) -> IO[bytes]:
    """The same file without deflation of its data set."""
    stream.seek(0)
    head = stream.read(_META)
    syntax, begin = transfer_syntax(head)
    stream.seek(0)
    if syntax != DEFLATED:
        return stream
    stream.seek(begin)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflate.decompress(stream.read(LARGEST_INFLATED), LARGEST_INFLATED)
    except zlib.error:
        raise FormatError(f"The deflated data of {uri} is damaged. Copy the file again.") from None
    if inflate.unconsumed_tail:
        raise FormatError(
            f"The deflated data of {uri} is larger than {LARGEST_INFLATED} bytes. Store it without "
            "deflation."
        )
    element = b"\2\0\x10\0UI" + len(_PLAIN).to_bytes(2, "little") + _PLAIN
    group = b"\2\0\0\0UL\4\0" + len(element).to_bytes(4, "little")
    return io.BytesIO(bytes(_PREAMBLE) + b"DICM" + group + element + content)
