"""Text for a terminal: escaped names, and numbers with their nouns."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

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


def at(position: Mapping[str, Any]) -> str:
    """A position (`tasks.progress.Progress.position`) in words.

    >>> at({"stage": "fit", "details": ["3/8 images"], "seconds_left": 200})
    'fit: 3/8 images, 3 min left'
    """
    left = position.get("seconds_left")
    details = [*position.get("details", ()), *([] if left is None else [f"{duration(left)} left"])]
    stage = line(str(position.get("stage", "starting")))
    return f"{stage}: {line(', '.join(map(str, details)))}" if details else stage


def told(error: BaseException) -> str:
    """An error in words that may be shown and stored: how far the run came, and what happened."""
    return escaped(redacted(" ".join([*getattr(error, "__notes__", ()), str(error)])))


def recordable(value: Any) -> Any:
    """A JSON value that a server may store: signatures of addresses are masked, and characters that
    UTF-8 cannot encode are escaped.
    """
    if isinstance(value, str):
        return escaped(redacted(value))
    if isinstance(value, Mapping):
        return {key: recordable(item) for key, item in value.items()}
    return [recordable(item) for item in value] if isinstance(value, list) else value


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


def pixels(number: float, unit: str) -> str:
    """A number of pixels, or voxels where the unit is megavoxels, with a prefix.

    >>> pixels(256, "megapixels"), pixels(1_230_000_000, "megapixels")
    ('256 px', '1.2 Gpx')
    >>> pixels(34_000_000, "megavoxels")
    '34 Mvx'
    """
    short = "vx" if unit == "megavoxels" else "px"
    scale, prefix = next(
        (
            (scale, prefix)
            for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
            if number >= scale
        ),
        (1.0, ""),
    )
    size = number / scale
    return f"{size:.1f}".removesuffix(".0") + f" {prefix}{short}"


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(12.3), duration(100), duration(5000)
    ('12 s', '2 min', '1 h 23 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class EscapingFormatter(logging.Formatter):
    """Formats log records, also those of libraries, without control characters, secrets of
    addresses and tracebacks.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The escaped message of a record."""
        return escaped(redacted(record.getMessage()))
