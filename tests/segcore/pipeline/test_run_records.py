"""Records of a run: failures as users read them, and the id that finds a run again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskloom.segcore.errors import FitError, FormatError, Unavailable
from maskloom.segcore.pipeline.records import Failure, run_id
from maskloom.segcore.raster.source import Source

A, B = Source("a.tif", "a", "1", 10), Source("b.tif", "b", "1", 20)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (FormatError("cut off"), True),
        (FitError("too few pixels"), True),
        (Unavailable("no answer"), False),
        (OSError("busy"), False),
    ],
)
def test_a_failure_says_whether_the_same_bytes_would_fail_again(error, permanent):
    assert Failure.of(error) == Failure(type(error).__name__, str(error), permanent)


def test_a_failure_without_words_has_those_of_its_kind():
    assert Failure.of(ValueError()).error == "ValueError"


def test_a_failure_keeps_no_secret_of_an_address():
    failure = Failure.of(OSError("https://h/a.tif?X-Amz-Signature=abc123&X-Amz-Date=1: 403"))
    assert "abc123" not in failure.error
    assert "https://h/a.tif" in failure.error


def test_a_run_is_found_by_what_it_is_about():
    one = run_id("demo", "f", [A, B], None)

    assert one.startswith("demo-")
    assert one == run_id("demo", "f", [B, A], None)
    assert one == run_id("demo", "f", [replace(A, size=99), B], None)
    others = [
        run_id("demo", "g", [A, B], None),
        run_id("demo", "f", [A], None),
        run_id("demo", "f", [replace(A, version="2"), B], None),
        run_id("demo", "f", [A, B], one),
    ]
    assert len({one, *others}) == 5
