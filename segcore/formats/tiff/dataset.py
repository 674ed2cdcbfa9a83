"""GDAL datasets: opened by path or through fsspec, with bounded memory, one thread per dataset, and
without console output.

rasterio keeps its Python openers in context variables, so every call on a dataset runs in the
context that opened it; then a reader may be opened in one thread and used or closed in another.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import re
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

from maskloom.segcore.formats.source import Ranges, StoredFile, silence
from maskloom.segcore.formats.tiff.pages import FIRST_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from maskloom.segcore.errors import Unavailable

CACHE_BYTES = 64 << 20
"""Memory for decoded blocks, shared by all datasets of a process."""
NAME = "image.tif"
"""File name under which GDAL sees a stored image."""
_DAMAGE = re.compile(
    r"Corrupt JPEG data: (?!bad ICC|\d extraneous bytes before marker 0xd9)"
    r"|Premature end of JPEG file"
    r"|PackBitsDecode|Fax\w+:(?:Premature|Line length|Bad code)"
)
"""Warnings of decoders that produced pixels which are not in the file. Up to 9 bytes after the last
pixel are padding by some programs.
"""
_MISSING_CODEC = re.compile(r"missing codec (?:of code )?([\w ]+)")
_COMPRESSIONS = {
    "JP2000": "JPEG 2000",
    "JXL": "JPEG XL",
    "ISO JBIG": "JBIG",
    "33003": "JPEG 2000 (of Aperio slides)",
    "33004": "JPEG 2000",
    "33005": "JPEG 2000 (of Aperio slides)",
    "22610": "JPEG XR (of Hamamatsu slides)",
    "34934": "JPEG XR",
    "34892": "lossy JPEG (of DNG)",
    "50000": "Zstandard",
    "50001": "WebP",
    "50002": "JPEG XL",
    "52546": "JPEG XL (of DNG)",
}
"""Common names of compressions for libtiff's names and numbers, from the TIFF registry and DNG."""
_SIBLINGS = "GDAL_DISABLE_READDIR_ON_OPEN"
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Redirected(Ranges):
    """A TIFF that appears to begin with another of its directories: a few bytes of its header are
    replaced on reading.
    """

    at: int = 0
    pointer: bytes = b""

    def read(self, size: int = -1) -> bytes:
        """The next bytes; see `Ranges.read`."""
        start = self._position
        data = Ranges.read(self, size)
        first, last = max(start, self.at), min(start + len(data), self.at + len(self.pointer))
        if first >= last:
            return data
        return (
            data[: first - start]
            + self.pointer[first - self.at : last - self.at]
            + data[last - start :]
        )


@dataclass(slots=True, eq=False)
class _StoredFiles:
    """The interface of a Python store for rasterio: the image and the files beside it, under simple
    names.
    """

    files: Mapping[str, StoredFile]
    directory: int | None = None
    """Offset of the image's first directory. None: the one in its header."""
    failures: list[Unavailable] = field(default_factory=list)

    def open(self, path: str, mode: str = "rb", **_: object) -> Ranges:
        """Open one of the files. Raises `FileNotFoundError` for any other path."""
        if not self.isfile(path) or mode not in ("r", "rb"):
            raise FileNotFoundError(path)
        source = self.files[_name(path)]
        if self.directory is None or _name(path) != NAME:
            return Ranges(source, self.failures)
        return _Redirected(source, self.failures, *_pointer(source.read(0, 4), self.directory))

    def isfile(self, path: str) -> bool:
        return _name(path) in self.files

    def isdir(self, _: str) -> bool:
        return False

    def ls(self, _: str) -> list[str]:
        return list(self.files)

    def mtime(self, _: str) -> int:
        return 0

    def size(self, path: str) -> int:
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return self.files[_name(path)].size()

    def rm(self, path: str) -> None:
        raise PermissionError(path)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _pointer(head: bytes, directory: int) -> tuple[int, bytes]:
    """The position of the offset of the first directory in the header of a TIFF, and the bytes of
    that offset.
    """
    order = "<" if head[:2] == b"II" else ">"
    at, letter = FIRST_DIRECTORY[struct.unpack(order + "H", head[2:])[0]]
    return at, struct.pack(order + letter, directory)


@dataclass(slots=True)
class TiffDataset:
    """An open GDAL dataset; for one thread at a time."""

    raw: Any
    """The rasterio dataset. Use it only inside `run`."""
    directory: int | None
    """Offset of the page. None: the first."""
    _siblings: str
    """GDAL's setting for whether to look for files beside the image."""
    _context: contextvars.Context
    _failures: list[Unavailable]
    _damage: list[str] = field(default_factory=list)
    """Warnings of the decoders. GDAL caches decoded blocks, and does not repeat the warnings."""

    @classmethod
    def open(
        cls,
        source: StoredFile,
        beside: Mapping[str, StoredFile] | None = None,
        directory: int | None = None,
        overview: int | None = None,
    ) -> TiffDataset:
        """Open a TIFF. Raises what `errors` names, and `Unavailable`.

        GDAL opens any file beside an image that has a matching name, with any driver, and follows
        its references. So it sees the image alone, or the image under the name `NAME` with the
        given files under similar names. `directory` is the offset of the page to open; None: the
        first. `overview` is the number of an overview, from 0; None: full resolution.
        """
        import rasterio

        siblings = "TRUE" if beside else "EMPTY_DIR"
        context, failures = contextvars.Context(), []
        path, options = source.local_path, dict[str, Any]()
        if path is None or beside or directory is not None:
            files = _StoredFiles({NAME: source, **(beside or {})}, directory)
            _adopt(_StoredFiles)
            path, options, failures = (
                f"maskloom-{uuid4().hex}/{NAME}",
                {"opener": files},
                files.failures,
            )
        if overview is not None:
            options["OVERVIEW_LEVEL"] = overview
        dataset = cls(None, directory, siblings, context, failures)
        dataset.raw = dataset.run(rasterio.open, path, driver="GTiff", **options)
        return dataset

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that touches the dataset. Raises what `errors` names, and `Unavailable`
        if the store failed.
        """
        from rasterio.errors import RasterioIOError

        try:
            with environment({_SIBLINGS: self._siblings}), _LISTENER.keeping(self._damage):
                result = self._context.run(function, *args, **kwargs)
            if self._damage:
                raise RasterioIOError(self._damage[0])
        except errors():
            # A store's failure looks like a broken file to GDAL.
            if self._failures:
                raise self._failures[0] from None
            raise
        if self._failures:
            raise self._failures[0]
        return result

    def close(self) -> None:
        """Let the file go."""
        with environment({_SIBLINGS: self._siblings}):
            self._context.run(self.raw.close)


def environment(more: Mapping[str, str] | None = None) -> Any:
    """GDAL's settings for reading in this thread, with `more` settings."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.session import DummySession

    silence(NotGeoreferencedWarning)
    _quieten("rasterio")

    # rasterio needs the size of the cache in bytes; GDAL itself reads small numbers as megabytes.
    settings = {
        "GDAL_CACHEMAX": CACHE_BYTES,
        "GDAL_NUM_THREADS": "1",
        _SIBLINGS: "EMPTY_DIR",
        **(more or {}),
    }
    return rasterio.Env(session=DummySession(), **settings)


def errors() -> tuple[type[Exception], ...]:
    """The errors that rasterio raises for bad files."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError, RasterioError

    return (RasterioError, CPLE_BaseError, CRSError)


def reason(error: BaseException) -> str:
    """GDAL's own message, which rasterio wraps in a general one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(getattr(error, "errmsg", error)).strip().rstrip(".")


def fault(location: str, what: str, error: BaseException) -> str:
    """The message for a TIFF that GDAL cannot open, with the remedy; `what` is the part that cannot
    be read.
    """
    said = reason(error)
    missing = _MISSING_CODEC.search(said)
    if missing is None:
        return f"{what} {location} cannot be read as TIFF: {said}. Write the file again."
    compression = _COMPRESSIONS.get(missing[1], f"compression {missing[1]}")
    return (
        f"{location} is a TIFF whose pixels are compressed with {compression}, for which there is "
        "no decoder here. Convert it where there is one, "
        "for example with `gdal_translate -co COMPRESS=DEFLATE`."
    )


def _adopt(container: type) -> None:
    from rasterio.abc import MultiByteRangeResourceContainer

    MultiByteRangeResourceContainer.register(container)


class _Listener(logging.Filter):
    """Collects warnings about damage that decoders fill with invented pixels."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    @contextlib.contextmanager
    def keeping(self, heard: list[str]) -> Iterator[None]:
        """Adds what decoders complain about in this thread while the block runs."""
        self._local.heard = heard
        try:
            yield
        finally:
            self._local.heard = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the library's loggers would have let the record pass without us."""
        heard, message = getattr(self._local, "heard", None), record.getMessage()
        if heard is not None and _DAMAGE.search(message):
            heard.append(message.removeprefix("CPLE_AppDefined:"))
        return logging.getLogger("rasterio").isEnabledFor(record.levelno)


_LISTENER = _Listener()


def _quieten(name: str) -> None:
    logger = logging.getLogger(name)
    # One broken file produces thousands of lines; a level set by the user is kept.
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    for speaker in (logging.getLogger(f"{name}.{module}") for module in ("_err", "_env")):
        if _LISTENER not in speaker.filters:
            speaker.setLevel(logging.WARNING)
            speaker.addFilter(_LISTENER)
