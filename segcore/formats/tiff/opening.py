"""Opens TIFF files in tifffile, and turns its errors for broken files into ours."""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from maskloom.segcore.errors import FormatError, ImageError

DAMAGE = (
    AssertionError,
    ArithmeticError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
"""The errors of tifffile and its codecs for broken files."""


@contextlib.contextmanager
def in_tifffile(stream: Any, location: str) -> Iterator[Any]:
    """The file in tifffile, which opens no other file."""
    import tifffile

    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        # What it says about unusual files would go to the terminal.
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    with damage(location):
        file = tifffile.TiffFile(stream, _multifile=False)
    yield file


@contextlib.contextmanager
def damage(location: str) -> Iterator[None]:
    """Turn the errors of tifffile for broken pages into `FormatError`."""
    try:
        yield
    except ImageError:
        raise
    except (*DAMAGE, OSError) as error:
        # An offset that no file can have is an invalid argument; other such errors are the store's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise FormatError(
            f"The pages of {location} cannot be read: {error}. The file is damaged or incomplete; "
            "copy or write it again."
        ) from error
