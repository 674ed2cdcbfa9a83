"""Text for a terminal: escaped names, and numbers with their nouns."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from maskloom.segcore.geometry import Shape
from maskloom.segcore.storage.addresses import redacted


def escaped(text: str, kept: str = "\n") -> str:
    r"""The text with control characters escaped, except those in `kept`, so that it cannot move the
    cursor, reverse the direction of writing or forge a line.

    >>> escaped("evil\x1b[2J.png")
    'evil\\x1b[2J.png'
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape").decode()
        for character in text
    )


def line(text: str) -> str:
    """The escaped text, in one line."""
    return escaped(text, "")


def failure(uri: str, error_type: str, error: str) -> str:
    """The failure of an image, in one line that names the image once."""
    # Names of other files, e.g. of the image's mask, may begin with the image's name.
    rest = error[len(uri) :]
    whole = error.startswith(uri) and rest[:1] in ("", " ", ",", ":")
    said = rest.lstrip(" ,:") if whole else error
    return line(f"{uri}: {error_type}: {said}")


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> count(1, "image"), count(2, "image")
    ('1 image', '2 images')
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def millions(shapes: Iterable[Shape]) -> str:
    """The unit for sums over rasters of these shapes.

    >>> millions([(40, 512, 512)]), millions([(40, 512, 512), (512, 512)])
    ('megavoxels', 'megapixels')
    """
    axes = set(map(len, shapes))
    return "megavoxels" if axes == {len("zyx")} else "megapixels"


class EscapingFormatter(logging.Formatter):
    """Formats log records, also those of libraries, without control characters, secrets of
    addresses and tracebacks.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The escaped message of a record."""
        return escaped(redacted(record.getMessage()))
