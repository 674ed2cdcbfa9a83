"""What reaches a terminal."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.flows.commands.results import print_result
from maskloom.flows.outcome import Outcome
from maskloom.flows.run import RunResult
from maskloom.flows.terminal import EscapingFormatter, count, escaped, failure, line, recordable

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


@given(st.text())
def test_nothing_but_line_breaks_of_ours_stays(text: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in escaped(text))
    assert line(text).isprintable()


def test_plain_names_stay_as_they_are() -> None:
    for name in ("été/日本.tif", "a b.png", "C:\\x.tif"):
        assert escaped(name) == name


def test_a_failure_names_its_image_once() -> None:
    assert failure("/a.png", "FormatError", "/a.png is JPEG.") == "/a.png: FormatError: is JPEG."
    mask = "/a.tif.msk, the mask beside /a.tif, should be TIFF."
    assert failure("/a.tif", "FormatError", mask) == f"/a.tif: FormatError: {mask}"
    assert failure("/a", "Missing", "/a b/c is gone.") == "/a: Missing: b/c is gone."
    assert (
        failure("/a.png", "ReadError", "The header of /a.png is cut.")
        == "/a.png: ReadError: The header of /a.png is cut."
    )


def test_logs_of_libraries_hold_no_escapes_tracebacks_or_secrets() -> None:
    try:
        raise ValueError("inside")
    except ValueError as error:
        record = logging.LogRecord(
            "lib",
            logging.ERROR,
            "",
            0,
            "no %s",
            ("https://h/a?sig=c0ffee \x1b",),
            (ValueError, error, None),
        )
    assert EscapingFormatter().format(record) == "no https://h/a?sig=*** \\x1b"


def test_a_record_of_a_run_holds_no_secrets_and_is_utf_8() -> None:
    recorded = recordable(
        {"inputs": ["https://h/a.png?sig=c0ffee", "\udce9.png"], "segmenter": {"clusters": 3}}
    )
    assert recorded == {
        "inputs": ["https://h/a.png?sig=***", "\\udce9.png"],
        "segmenter": {"clusters": 3},
    }
    json.dumps(recorded, ensure_ascii=False).encode()


def result(done: int, failed: int, areas: dict[tuple[str, str], float]) -> RunResult:
    """The result of a run over so many of 30 images; two failed in earlier runs."""
    inputs = frozenset(str(i) for i in range(done + failed))
    inventory = SimpleNamespace(
        images_outside=lambda inputs: 30 - len(inputs),
        removed=0,
        failed_before=2 if len(inputs) < 30 else 0,
    )
    outcome = Outcome("run", done, failed, 1_000_000, areas=areas, inputs=inputs)
    return RunResult("out", inventory, outcome, 1.0)  # type: ignore[arg-type]  # a stand-in


@pytest.mark.parametrize(
    ("done", "failed", "words"),
    [
        (30, 0, "30 images done, 0 failed, 1 Mpx in 1 s."),
        (
            20,
            1,
            "20 images done, 1 failed, 1 Mpx, 9 unchanged (2 of them failed before) in 1 s.",
        ),
    ],
)
def test_unchanged_is_what_a_run_neither_did_nor_failed(
    done: int, failed: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(result(done, failed, {}))
    assert capsys.readouterr().out.splitlines()[0] == words


def test_the_result_is_a_table_of_classes_and_ends_with_the_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    areas = {("sea\x1b[2J", "m2"): 3e6, ("land", "m2"): 1e6, ("none", "m2"): 0.0}
    areas |= {("land", "px"): 40.0}
    print_result(result(29, 1, areas))
    head, *classes, _, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["class", "area", "share"]
    assert [row.split() for row in classes] == [
        ["sea\\x1b[2J", "3", "km²", "75.0%"],
        ["land", "1", "km²", "25.0%"],
        ["land", "40", "px", "100.0%"],
    ]
    assert len({len(row) for row in (head, *classes)}) == 1
    assert last.startswith("Results: out (why images failed: maskloom status out)")


def test_one_is_no_plural() -> None:
    assert [count(n, "patch", "patches") for n in (0, 1, 2)] == [
        "0 patches",
        "1 patch",
        "2 patches",
    ]
