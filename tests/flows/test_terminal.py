"""What reaches a terminal."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.terminal import EscapingFormatter, count, escaped, failure, line

HOSTILE = [
    "\x1b]0;pwned\x07evil.png",
    "fake\nfailed: other.png",
    "a\r\x1b[2Kb",
    "\u202egnp.exe",
    "\x9b31m",
    "\udce9.png",
    "\u2028x",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_move_the_cursor_or_forge_lines(name: str) -> None:
    for text in (line(name), failure(f"/in/{name}", "ReadError", f"/in/{name}: is broken")):
        assert text.isprintable()
        assert len(text.splitlines()) == 1
        text.encode()


@settings(max_examples=25)
@given(st.text())
def test_nothing_but_line_breaks_of_ours_stays(text: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in escaped(text))
    assert line(text).isprintable()


def test_plain_names_stay_as_they_are() -> None:
    for name in ("été/日本.tif", "a b.png", "C:\\x.tif"):
        assert escaped(name) == name


def test_a_failure_names_its_image_once() -> None:
    assert failure("/a.png", "FormatError", "/a.png is JPEG.") == "/a.png: FormatError: is JPEG."
    assert failure("/a.png", "ReadError", "The header of /a.png is cut.") == "/a.png: ReadError: The header of /a.png is cut."


def test_logs_of_libraries_hold_no_escapes_tracebacks_or_secrets() -> None:
    try:
        raise ValueError("inside")
    except ValueError as error:
        record = logging.LogRecord(
            "lib", logging.ERROR, "", 0, "no %s", ("https://h/a?sig=c0ffee \x1b",), (ValueError, error, None)
        )
    assert EscapingFormatter().format(record) == "no https://h/a?sig=*** \\x1b"


def test_one_is_no_plural() -> None:
    assert [count(n, "patch", "patches") for n in (0, 1, 2)] == ["0 patches", "1 patch", "2 patches"]
