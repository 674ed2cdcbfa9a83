"""Words on a terminal: what people see of names and numbers."""

from __future__ import annotations

import logging

from maskloom.segcore.storage.addresses import written


def escaped(text: str, kept: str = "\n") -> str:
    r"""Text without what moves a cursor, turns writing round or forges a line: such characters, of
     names of files, are spelled out.

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
    """The same in one line."""
    return escaped(text, "")


def failure(uri: str, error_type: str, error: str) -> str:
    """What became of an image, in one line that names it once."""
    # Names of other files, such as that of its mask, may begin with the image's.
    rest = error[len(uri) :]
    whole = error.startswith(uri) and rest[:1] in ("", " ", ",", ":")
    said = rest.lstrip(" ,:") if whole else error
    return line(f"{uri}: {error_type}: {said}")


def count(number: int, noun: str, plural: str = "") -> str:
    """A number of things.

    >>> count(1, "image"), count(2, "image")
    ('1 image', '2 images')
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


class EscapingFormatter(logging.Formatter):
    """Log records, of libraries too, without control characters, secrets of addresses and
    tracebacks.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's message."""
        return escaped(written(record.getMessage()))
